//! The way of a session: a mesh, two machines, a query, a container, its output, its end.

use serde_json::json;

use crate::support::command::{Running, meshwork};
use crate::support::docker::{self, IMAGE};
use crate::support::mesh::{Mesh, small};
use crate::support::node::Node;
use crate::support::{eventually, so};

/// A mesh with a box of eight GPUs and one of none.
fn two_boxes() -> (Mesh, Node, Node) {
    let mesh = Mesh::new();
    let (gpu_box, cpu_box) = (mesh.agent("gpu-box", 8), mesh.agent("cpu-box", 0));
    mesh.ready(&["gpu-box", "cpu-box"]);
    (mesh, gpu_box, cpu_box)
}

/// A mesh with one box of a GPU.
fn one_box() -> (Mesh, Node) {
    let mesh = Mesh::new();
    let node = mesh.agent("box", 1);
    mesh.ready(&["box"]);
    (mesh, node)
}

/// Runs until it is told to stop, and says both.
const PATIENT: &str =
    "trap 'echo stopping; exit 0' TERM; echo started; while true; do sleep 0.1; done";

#[test]
fn a_query_finds_the_node_and_its_container_gets_the_gpu() {
    if !docker::wanted() {
        return;
    }
    let (mesh, gpu_box, _cpu_box) = two_boxes();

    let nodes = mesh.json(&["node", "ls"]);
    let names: Vec<_> = nodes
        .as_array()
        .unwrap()
        .iter()
        .map(|n| &n["name"])
        .collect();
    assert_eq!(names, ["cpu-box", "gpu-box", "manager"]);
    let found = mesh.json(&["node", "ls", "gpu.vram >= 40GB"]);
    assert_eq!(found.as_array().unwrap().len(), 1);
    let node = &found[0];
    assert_eq!(
        (&node["name"], &node["node"]),
        (&json!("gpu-box"), &json!(gpu_box.id))
    );
    assert_eq!(node["gpus"].as_array().unwrap().len(), 8);
    assert_eq!(
        (&node["path"], &node["vram_free"]),
        (&json!("direct"), &json!(640_000_000_000_u64))
    );
    assert_eq!(
        mesh.json(&["node", "ls", "count(gpu[vram >= 40GB]) >= 9"]),
        json!([])
    );

    let script = "echo $CUDA_VISIBLE_DEVICES $GPU_COUNT $GPU_MODEL_NAME; echo aside >&2; exit 7";
    let done = mesh.run(&small(&["--gpu", "40GB..", "--name", "seven"], script));
    assert_eq!(
        (done.code, done.out.as_str()),
        (Some(7), "GPU-0 1 A100 80GB\n"),
        "{done:?}"
    );
    assert!(
        done.err.contains("plan  gpu-box GPU 0") && done.err.contains("aside\n"),
        "{done:?}"
    );
    let session = mesh.session("seven").expect("it is remembered");
    assert_eq!(
        (&session["exit_code"], &session["reason"]),
        (&json!(7), &json!("self-terminated"))
    );
    assert_eq!(session["gpus"], json!(["GPU 0 (A100 80GB)"]));
    assert_eq!(mesh.ok(&["logs", "seven"]), "GPU-0 1 A100 80GB\n");

    mesh.run(&small(&["--gpu", "40GB..:8"], "true")).ok();
    mesh.run(&small(&["--where", "not gpu.vram > 0B"], "true"))
        .ok();
    assert_eq!(docker::containers(&gpu_box.id), Vec::<String>::new());
}

#[test]
fn a_detached_session_is_listed_followed_entered_and_stopped() {
    if !docker::wanted() {
        return;
    }
    let (mesh, node) = one_box();
    let id = mesh
        .ok(&small(&["-d", "--name", "web", "--gpu", "1"], PATIENT))
        .trim()
        .to_owned();
    mesh.reaches(&id, "running");
    assert_eq!(docker::containers(&node.id), [&*id]);
    assert_eq!(mesh.json(&["ps"])[0]["session"], *id);

    let follower = mesh.start(&["logs", "-f", "web"]);
    follower.prints("started\n");
    let done = mesh.run(&["exec", "web", "sh", "-c", "echo inside $GPU_COUNT; exit 3"]);
    assert_eq!(
        (done.code, done.out.as_str()),
        (Some(3), "inside 1\n"),
        "{done:?}"
    );
    let second = mesh.run(&small(&["--gpu", "1"], "true"));
    second.fails(2, "E201", &["box", "gpu: needs 1, 0 of 1 free"]);

    mesh.ok(&["stop", "web"]);
    let ended = mesh.reaches(&id, "terminated");
    assert_eq!(
        (&ended["reason"], &ended["exit_code"]),
        (&json!("user-requested"), &json!(0))
    );
    assert_eq!(follower.finish().ok(), "started\nstopping\n");
    assert_eq!(
        mesh.ok(&["logs", "web"]),
        "started\nstopping\n",
        "output outlives its container"
    );
    assert_eq!(mesh.json(&["ps"]), json!([]));

    mesh.ok(&["rm", "web"]);
    mesh.run(&["logs", "web"]).fails(1, "E203", &["web"]);
    eventually("nothing left", || {
        so(
            docker::containers(&node.id).is_empty() && kept_logs(&node) == 0,
            kept_logs(&node),
        )
    });
}

#[test]
fn rm_leaves_no_trace_attached_and_detached() {
    if !docker::wanted() {
        return;
    }
    let (mesh, node) = one_box();
    let done = mesh.run(&small(&["--rm"], "echo a last word; exit 5"));
    assert_eq!(
        (done.code, done.out.as_str()),
        (Some(5), "a last word\n"),
        "{done:?}"
    );
    let id = mesh.ok(&small(&["--rm", "-d"], "echo unseen"));
    assert_eq!(mesh.ok(&["logs", "-f", id.trim()]), "unseen\n");
    eventually("no trace", || {
        let sessions = mesh.json(&["ps", "-a"]);
        let clean = docker::containers(&node.id).is_empty() && kept_logs(&node) == 0;
        so(sessions == json!([]) && clean, (sessions, kept_logs(&node)))
    });
}

#[test]
fn commands_of_one_user_do_not_disturb_each_other() {
    if !docker::wanted() {
        return;
    }
    let (mesh, _node) = one_box();
    let first = mesh.start(&small(&["--name", "first"], PATIENT));
    first.prints("started\n");
    let scripts: Vec<String> = (0..6)
        .map(|n| format!("echo {n}; sleep 0.3; exit {n}"))
        .collect();
    let others: Vec<Running> = scripts.iter().map(|s| mesh.start(&small(&[], s))).collect();
    for (n, run) in others.into_iter().enumerate() {
        let done = run.finish();
        let expected = (i32::try_from(n).ok(), format!("{n}\n"));
        assert_eq!((done.code, done.out.clone()), expected, "{done:?}");
    }
    mesh.ok(&["stop", "first"]);
    assert_eq!(first.finish().ok(), "started\nstopping\n");
}

/// Kernels of which the agent keeps output.
fn kept_logs(node: &Node) -> usize {
    std::fs::read_dir(node.home.join("agent/logs"))
        .unwrap()
        .count()
}

#[test]
fn too_much_memory_ends_a_kernel_and_says_so() {
    if !docker::wanted() {
        return;
    }
    let (mesh, _node) = one_box();
    let done = mesh.run(&small(&["--name", "hog"], "exec tail /dev/zero"));
    assert_eq!(done.code, Some(137), "{done:?}");
    assert!(done.err.contains("out-of-memory"), "{done:?}");
    let session = mesh.session("hog").expect("it is remembered");
    assert_eq!(
        (&session["reason"], &session["exit_code"]),
        (&json!("out-of-memory"), &json!(137))
    );
}

#[test]
fn a_volume_outlives_its_kernels() {
    if !docker::wanted() {
        return;
    }
    let (mesh, _node) = one_box();
    mesh.ok(&small(&["--vol", "notes:/data"], "echo kept > /data/note"));
    assert_eq!(
        mesh.ok(&small(&["--vol", "notes:/data:ro"], "cat /data/note")),
        "kept\n"
    );
    let done = mesh.run(&small(&["--vol", "notes:/data:ro"], "echo x > /data/note"));
    assert_ne!(done.code, Some(0), "{done:?}");
    assert_eq!(
        mesh.ok(&small(
            &["--vol", "other:/data"],
            "cat /data/* 2>/dev/null; true"
        )),
        ""
    );
}

#[test]
fn what_fits_nowhere_is_told_node_by_node() {
    if !docker::wanted() {
        return;
    }
    let (mesh, _gpu_box, _cpu_box) = two_boxes();
    let error =
        mesh.run(&small(&["--gpu", "H100:2"], "true"))
            .fails(2, "E201", &["gpu-box", "cpu-box"]);
    assert!(error.contains("H100"), "{error}");
    let error = mesh
        .run(&small(&["--gpu", "9"], "true"))
        .fails(2, "E201", &["gpu-box", "8", "9"]);
    assert!(error.contains("cpu-box"), "{error}");
    mesh.run(&small(&["--where", "tags has \"prod\""], "true"))
        .fails(2, "E201", &["prod"]);
    mesh.run(&small(&["--where", "gpu.vram >= 40XB"], "true"))
        .fails(1, "E202", &["40XB", "^"]);
    assert_eq!(
        mesh.json(&["ps", "-a"]),
        json!([]),
        "what was refused is not kept"
    );
}

#[test]
fn what_cannot_start_is_an_error_and_leaves_nothing() {
    if !docker::wanted() {
        return;
    }
    let (mesh, node) = one_box();
    let run = ["run", "--mem", "32MiB", "--shm", "1MiB", "--pull", "none"];
    let missing = mesh.run(&[&run[..], &["meshwork-test/absent:1"]].concat());
    missing.fails(1, "E207", &["meshwork-test/absent:1"]);
    let program = mesh.run(&[&run[..], &[IMAGE, "--", "/no/such/program"]].concat());
    assert_eq!(program.code, Some(127), "as a shell says it: {program:?}");
    eventually("nothing left", || {
        let left = docker::containers(&node.id);
        so(left.is_empty(), left)
    });
}

#[test]
fn an_agent_that_ends_in_order_leaves_its_kernels_running() {
    if !docker::wanted() {
        return;
    }
    let (mesh, mut node) = one_box();
    let run: Running = mesh.start(&small(&["--name", "steady"], PATIENT));
    run.prints("started\n");
    node.end();
    assert_eq!(docker::containers(&node.id).len(), 1);
    node.restart();
    mesh.ok(&["stop", "steady"]);
    let done = run.finish();
    assert_eq!(
        (done.code, done.out.as_str()),
        (Some(0), "started\nstopping\n"),
        "{done:?}"
    );
}

#[test]
fn a_node_that_is_not_there_is_unreachable() {
    if !docker::wanted() {
        return;
    }
    let mut mesh = Mesh::new();
    mesh.manager.kill();
    let server = format!("{}@{}", mesh.manager.id, mesh.manager.address);
    mesh.run(&["ps", "--server", &server])
        .fails(4, "E402", &[&mesh.manager.id[..10]]);
    mesh.run(&["ps"]).fails(4, "E405", &["meshwork up"]);
}

#[test]
fn the_demo_shows_everything_and_leaves_nothing() {
    if !docker::wanted() {
        return;
    }
    let tmp = tempfile::tempdir().unwrap();
    let mut demo = meshwork(tmp.path(), &["demo"]);
    demo.env("TMPDIR", tmp.path());
    let told = Running::start(demo).finish().ok();
    for shown in [
        "8×A100 80GB",
        "hello from kernel",
        "error[E301]",
        "✔ nothing is left",
    ] {
        assert!(told.contains(shown), "{shown}: {told}");
    }
    assert_eq!(std::fs::read_dir(tmp.path()).unwrap().count(), 0);
    let images = ["images", "--quiet", "--filter", "reference=meshwork-demo-*"];
    assert_eq!(docker::docker(&images), "");
}
