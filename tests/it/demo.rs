//! The demo where there are no containers; `tests/docker` plays it whole.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use crate::support::{Done, Home, signal};

const KILLED: &str = "meshwork-demo-0000000000000001";
const RUNNING: &str = "meshwork-demo-0000000000000002";

fn left_in(folder: &Path) -> usize {
    fs::read_dir(folder).expect("the folder is there").count()
}

#[test]
fn without_docker_it_shows_the_rest_and_how_to_get_it() {
    let home = Home::new();
    let tmp = tempfile::tempdir().unwrap();
    let output = home
        .command(&["demo"])
        .env("TMPDIR", tmp.path())
        .output()
        .unwrap();
    let done = Done::from(output);
    assert_eq!(done.code, 0, "{done:?}");
    assert!(
        done.err.contains("no container was run") && done.err.contains("apt-get install docker.io"),
        "{done:?}"
    );
    for shown in ["gpu-box", "8×A100 80GB", "error[E301]", "✔ nothing is left"] {
        assert!(done.out.contains(shown), "{shown}: {done:?}");
    }
    assert_eq!(left_in(tmp.path()), 0);
}

#[test]
fn interrupted_it_cleans_up() {
    let home = Home::new();
    let tmp = tempfile::tempdir().unwrap();
    let child = home
        .command(&["demo"])
        .env("TMPDIR", tmp.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Its manager's key is there: a node is on its way up.
    while !fs::read_dir(tmp.path())
        .unwrap()
        .flatten()
        .any(|f| f.path().join("manager/node.key").exists())
    {
        std::thread::yield_now();
    }
    signal("INT", child.id());
    let done = Done::from(child.wait_with_output().unwrap());
    assert!(
        done.code == 1 && done.err.contains("error[E209]"),
        "{done:?}"
    );
    assert_eq!(left_in(tmp.path()), 0);
}

#[test]
fn what_a_killed_demo_left_goes_with_the_next() {
    let home = Home::new();
    let tmp = tempfile::tempdir().unwrap();
    let lock = |name: &str| {
        fs::create_dir(tmp.path().join(name)).unwrap();
        fs::File::create(tmp.path().join(name).join("lock")).unwrap()
    };
    drop(lock(KILLED));
    let held = lock(RUNNING);
    held.lock().unwrap();
    fs::create_dir(tmp.path().join("meshwork-demo-notes")).unwrap();
    let output = home
        .command(&["demo", "-o", "json"])
        .env("TMPDIR", tmp.path())
        .output()
        .unwrap();
    let steps: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let steps = steps.as_array().unwrap();
    assert!(
        !steps.is_empty() && steps.iter().all(|step| step["ok"] == true),
        "{steps:?}"
    );
    assert!(!tmp.path().join(KILLED).exists());
    assert!(tmp.path().join(RUNNING).join("lock").exists());
    assert_eq!(left_in(tmp.path()), 2, "only what has a demo's lock is one");
}
