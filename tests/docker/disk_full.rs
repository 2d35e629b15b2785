//! A disk that is full: what needs it says so, nothing that was acknowledged is lost, and when there
//! is room again everything goes on without help.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use crate::support::docker;
use crate::support::mesh::{Mesh, small};
use crate::support::{eventually, so};

/// A small file system in memory. Dropping it takes it down.
struct Disk {
    at: tempfile::TempDir,
}

impl Disk {
    /// Mounts it; none without the right to.
    fn mount() -> Option<Self> {
        let at = tempfile::tempdir().expect("a temporary folder");
        let mut mount = Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", "size=24m,mode=700", "meshwork-test"])
            .arg(at.path());
        if mount.output().is_ok_and(|done| done.status.success()) {
            return Some(Self { at });
        }
        eprintln!("skipped: mounting a file system needs root");
        None
    }

    fn path(&self) -> &Path {
        self.at.path()
    }

    /// Takes all room; what is returned gives it back.
    fn fill(&self) -> PathBuf {
        let path = self.path().join("ballast");
        let mut file = File::create(&path).unwrap();
        // Smaller pieces take what the larger leave.
        for size in [1 << 20, 1 << 12, 1] {
            while file.write_all(&vec![0; size]).map_err(|e| e.kind())
                != Err(ErrorKind::StorageFull)
            {}
        }
        path
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a process that a panic left may still have it open.
        let _ = Command::new("umount")
            .arg("--lazy")
            .arg(self.path())
            .status();
    }
}

#[test]
fn a_manager_without_room_refuses_and_recovers() {
    if !docker::wanted() {
        return;
    }
    let Some(disk) = Disk::mount() else { return };
    let mesh = Mesh::with_manager_in(disk.path().join("home"));
    let _node = mesh.agent("box", 0);
    mesh.ready(&["box"]);
    let script = "trap 'exit 0' TERM; while true; do sleep 0.1; done";
    let id = mesh.ok(&small(&["-d"], script)).trim().to_owned();
    mesh.reaches(&id, "running");

    let ballast = disk.fill();
    // The store has some room inside its file, so the first changes may still find a place.
    eventually("a refusal", || {
        let done = mesh.run(&small(&["-d"], "true"));
        so(done.code != Some(0), &done)?;
        done.fails(1, "E205", &["the manager's disk is full"]);
        Ok(())
    });
    assert_eq!(
        mesh.session(&id).expect("it is remembered")["state"],
        json!("running")
    );

    fs::remove_file(ballast).unwrap();
    assert_eq!(mesh.run(&small(&[], "exit 4")).code, Some(4));
    mesh.ok(&["stop", &id]);
    assert_eq!(
        mesh.reaches(&id, "terminated")["reason"],
        json!("user-requested")
    );
}

#[test]
fn an_agent_without_room_refuses_and_recovers() {
    if !docker::wanted() {
        return;
    }
    let Some(disk) = Disk::mount() else { return };
    let mesh = Mesh::new();
    let node = mesh.agent_in(&disk.path().join("home"), "box", 0);
    mesh.ready(&["box"]);
    let script = "trap 'exit 5' TERM; while true; do sleep 0.1; done";
    let id = mesh.ok(&small(&["-d"], script)).trim().to_owned();
    mesh.reaches(&id, "running");

    let ballast = disk.fill();
    eventually("a refusal", || {
        let done = mesh.run(&small(&[], "true"));
        so(done.code != Some(0), &done)?;
        done.fails(2, "E201", &["box", "the agent's disk is full"]);
        Ok(())
    });
    // Its end cannot be written down yet; then it is not told either.
    assert_eq!(
        mesh.session(&id).expect("it is remembered")["state"],
        json!("running")
    );
    fs::remove_file(ballast).unwrap();

    assert_eq!(mesh.run(&small(&[], "exit 4")).code, Some(4));
    mesh.ok(&["stop", &id]);
    let ended = mesh.reaches(&id, "terminated");
    assert_eq!(
        (&ended["reason"], &ended["exit_code"]),
        (&json!("user-requested"), &json!(5))
    );
    eventually("nothing left", || {
        let left = docker::containers(&node.id);
        so(left.is_empty(), left)
    });
}
