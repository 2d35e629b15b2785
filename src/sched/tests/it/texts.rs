//! What people read: the plan and the itemised refusal; and the order of preference by example.

use meshwork_sched::{Candidate, Request, place};

use crate::build::{GB, candidate, gpu, node, want};

fn chosen(nodes: &[Candidate], cpu: u64, mem: u64, gpu: Option<&str>) -> String {
    let resources = want(cpu, mem, gpu);
    let request = Request {
        resources: &resources,
        filter: None,
        filtered: 0,
    };
    place(&request, nodes).unwrap().plan
}

#[test]
fn most_free_comes_first_then_least_loaded_then_the_id() {
    let a100 = |index, used| gpu(index, "A100 80GB", 80 * GB, used);
    let mut nodes = vec![
        candidate(1, "one-gpu", 8_000, 32 * GB, vec![a100(0, 0)]),
        candidate(
            2,
            "two-used",
            1_000,
            4 * GB,
            vec![a100(0, 30 * GB), a100(1, GB)],
        ),
        candidate(
            3,
            "two-free",
            1_000,
            4 * GB,
            vec![a100(0, 900_000_000), a100(1, 0)],
        ),
    ];
    assert_eq!(
        chosen(&nodes, 1_000, GB, Some("40GB..")),
        "two-free GPU 1 (A100 80GB, 80GB free)"
    );
    assert_eq!(
        chosen(&nodes, 1_000, GB, Some("2")),
        "two-free GPU 1 (A100 80GB, 80GB free), GPU 0 (A100 80GB, 79.1GB free)"
    );
    assert_eq!(
        chosen(&nodes, 1_000, GB, None),
        "one-gpu (8.0 of 8.0 cpu and 32GB of 32GB memory free)"
    );
    nodes.push(candidate(4, "twin", 8_000, 32 * GB, vec![]));
    let smaller = if node(1) < node(4) { "one-gpu" } else { "twin" };
    assert!(chosen(&nodes, 1_000, GB, None).starts_with(smaller));
    nodes[0].load_millis = 1;
    assert!(chosen(&nodes, 1_000, GB, None).starts_with("twin"));
}

#[test]
fn a_refusal_is_itemised() {
    let mut nodes = vec![
        candidate(
            1,
            "lab-2",
            500,
            2 * GB,
            vec![gpu(0, "A100 80GB", 80 * GB, 0), gpu(1, "L4", 24 * GB, 0)],
        ),
        candidate(2, "attic", 8_000, 32 * GB, vec![]),
    ];
    nodes[1].barred = Some("not heard for 12 s".into());
    let resources = want(1_500, 4 * GB, Some("40GB..:2"));
    let request = Request {
        resources: &resources,
        filter: Some("region = \"eu\""),
        filtered: 3,
    };
    insta::assert_snapshot!(place(&request, &nodes).unwrap_err());
    let nothing = Request {
        filter: None,
        filtered: 0,
        ..request
    };
    insta::assert_snapshot!(place(&nothing, &[]).unwrap_err());
}
