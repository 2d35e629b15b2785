//! `meshwork bus bench`: no mesh needed, and its figures add up.

use serde_json::Value;

use crate::support::Home;

fn bench(args: &[&str]) -> Vec<Value> {
    let home = Home::new();
    let text = home.ok(&[&["bus", "bench", "-o", "json"], args].concat());
    assert!(!home.path().join("home").exists(), "it needs no folder");
    serde_json::from_str(&text).expect("JSON")
}

#[test]
fn what_is_accepted_is_delivered() {
    let rows = bench(&["--events", "20001", "--size", "100", "--shards", "2"]);
    assert_eq!(rows.len(), 2);
    for (row, batch) in rows.iter().zip([1, 1_000]) {
        assert_eq!(row["batch"], batch);
        assert_eq!((&row["size"], &row["shards"]), (&100.into(), &2.into()));
        assert_eq!(row["accepted"], 20_001, "{row}");
        assert_eq!(row["delivered"], row["accepted"], "{row}");
        assert_eq!(row["dropped"], 0, "{row}");
        assert!(row["events_per_second"].as_f64().unwrap() > 0.0, "{row}");
    }
}

#[test]
fn what_is_not_delivered_is_counted_as_dropped() {
    for mode in ["drop-newest", "drop-oldest"] {
        // 16 events fit: whoever writes is ahead of whoever reads.
        let rows = bench(&["--events", "400", "--size", "1048576", "--mode", mode]);
        for row in rows {
            let count = |name: &str| row[name].as_u64().unwrap();
            assert_eq!(count("accepted"), 400, "{row}");
            assert_eq!(count("delivered") + count("dropped"), 400, "{row}");
            assert_eq!(count("retried"), 0, "{row}");
        }
    }
}

#[test]
fn people_get_a_table_and_quiet_ones_the_rates() {
    let home = Home::new();
    let bench = ["bus", "bench", "--events", "1000", "--size", "0"];
    let table = home.ok(&bench);
    let head = "BATCH  SECONDS  EVENTS/S  BYTES/S  ACCEPTED  DELIVERED  DROPPED";
    let words = |line: &str| -> Vec<String> { line.split_whitespace().map(Into::into).collect() };
    assert_eq!(words(table.lines().next().unwrap()), words(head));
    assert_eq!(table.lines().count(), 3);
    let rates = home.ok(&[&bench[..], &["-q"]].concat());
    assert!(
        rates.lines().all(|rate| rate.parse::<u64>().is_ok()),
        "{rates}"
    );
}

#[test]
fn what_cannot_be_is_refused() {
    let home = Home::new();
    insta::assert_snapshot!(
        home.fails(1, &["bus", "bench", "--shards", "3"]),
        @"error[E106] a bus of 3 shards: give a power of two from 1 to 64."
    );
    for args in [["--events", "0"], ["--size", "1048577"], ["--mode", "lose"]] {
        let error = home.fails(1, &[&["bus", "bench"][..], &args].concat());
        assert!(error.starts_with("error[E100] "), "{error}");
    }
}
