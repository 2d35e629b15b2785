use std::path::Path;
use std::time::Duration;

use super::*;

const FILE: &str = r#"name = "x"
kind = "swarm"
promises = "Nothing."
seeds = 200
duration = "1.5 min"
[bars]
known = ["p99 <= 2 s", "worst <= 10 s"]
direct = "mean >= 95 %"
[swarm]
nodes = 1000
[ci]
seeds = 2
swarm.nodes = 50
bars.known = "p99 <= 4 s"
"#;

fn parse(text: &str) -> Result<Scenario, ScenarioError> {
    Scenario::parse(Path::new("x.toml"), text)
}

#[derive(Deserialize)]
struct File {
    swarm: Part,
}

#[derive(Deserialize)]
struct Part {
    nodes: u32,
}

#[test]
fn a_head_is_read_and_shown() {
    let scenario = parse(FILE).unwrap();
    assert_eq!(scenario.seeds, 200);
    assert_eq!(scenario.duration, Duration::from_secs(90));
    let known = &scenario.bars["known"].0;
    assert_eq!(known[0].to_string(), "p99 <= 2 s");
    assert!(known[0].admits(2.0) && !known[0].admits(2.1));
    assert_eq!(scenario.bars["direct"].0[0].to_string(), "mean >= 95 %");
}

#[test]
fn the_table_for_ci_is_laid_over_the_file() {
    let small = parse(FILE).unwrap().scaled_for_ci().unwrap();
    assert_eq!(small.seeds, 2);
    assert_eq!(small.read::<File>().unwrap().swarm.nodes, 50);
    assert_eq!(small.bars["known"].0.len(), 1);
    assert_eq!(small.duration, Duration::from_secs(90));
}

#[test]
fn errors_name_the_line_and_the_fix() {
    for (wrong, line, fix) in [
        (
            FILE.replace("\"1.5 min\"", "\"90\""),
            "line 5",
            "write us, ms, s, min, h or d",
        ),
        (
            FILE.replace("p99 <= 2 s", "p99 < 2 s"),
            "line 7",
            "write a statistic, <= or >=",
        ),
        (
            FILE.replace("mean >=", "average >="),
            "line 8",
            "use worst, mean, p50",
        ),
        (
            FILE.replace("seeds = 200", "sheds = 200"),
            "line 4",
            "unknown field `sheds`, expected one of",
        ),
        (
            FILE.replace("\"swarm\"", "\"flock\""),
            "line 2",
            "expected one of `swarm`, `world`, `facts`",
        ),
    ] {
        let error = parse(&wrong).unwrap_err().to_string();
        assert!(
            error.contains("x.toml") && error.contains(line) && error.contains(fix),
            "{error}"
        );
    }
}

#[test]
fn statistics_are_of_all_values() {
    let values: Vec<f64> = (1..=100).map(f64::from).collect();
    for (bar, expected) in [
        ("p99 <= 0", 99.0),
        ("p50 <= 0", 50.0),
        ("worst <= 0", 100.0),
        ("worst >= 0", 1.0),
        ("mean <= 0", 50.5),
        ("p999 <= 0", 100.0),
        ("p99 >= 0", 2.0),
        ("p90 >= 0", 11.0),
    ] {
        let bar: Bar = bar.parse().unwrap();
        assert_eq!(bar.value(&values), Some(expected), "{bar}");
    }
    assert_eq!("p99 <= 1".parse::<Bar>().unwrap().value(&[]), None);
}

#[test]
fn durations_are_written_as_they_are_read() {
    for text in ["250 ms", "2 s", "90 min", "1 h", "1500 us"] {
        let duration = value::parse_duration(text).unwrap();
        assert_eq!(value::show_duration(duration), text);
    }
}
