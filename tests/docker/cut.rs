//! A node that is not heard for a while, and comes back.

use serde_json::json;

use crate::support::docker;
use crate::support::mesh::{Mesh, small};
use crate::support::{eventually, so};

#[test]
fn a_frozen_agent_is_suspect_then_lost_then_back_with_its_kernels() {
    if !docker::wanted() {
        return;
    }
    let mesh = Mesh::new();
    let node = mesh.agent("box", 1);
    mesh.ready(&["box"]);
    let script = "trap 'echo end; exit 0' TERM; echo begin; while true; do sleep 0.1; done";
    let id = mesh
        .ok(&small(&["-d", "--gpu", "1"], script))
        .trim()
        .to_owned();
    mesh.reaches(&id, "running");
    let follower = mesh.start(&["logs", "-f", &id]);
    follower.prints("begin\n");

    node.freeze();
    for state in ["suspect", "lost"] {
        eventually(state, || {
            let seen = mesh.node("box").map(|n| n["state"].clone());
            so(seen == Some(json!(state)), seen)
        });
        let session = mesh.session(&id).expect("it is known");
        let seen = (&session["state"], &session["node_reachable"]);
        assert_eq!(
            seen,
            (&json!("running"), &json!(false)),
            "the last that was heard"
        );
        mesh.run(&small(&["--gpu", "1"], "true"))
            .fails(2, "E201", &["box", "not heard"]);
    }
    node.thaw();

    mesh.ready(&["box"]);
    assert_eq!(
        docker::containers(&node.id),
        [&*id],
        "neither stopped nor started again"
    );
    assert_eq!(mesh.ok(&["exec", &id, "echo", "here"]), "here\n");
    mesh.ok(&["stop", &id]);
    let ended = mesh.reaches(&id, "terminated");
    assert_eq!(
        (&ended["reason"], &ended["exit_code"]),
        (&json!("user-requested"), &json!(0))
    );
    assert_eq!(follower.finish().ok(), "begin\nend\n");
}
