//! Docker as an operator sees it: an independent witness of what the agent did.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use meshwork_identity::NodeId;

use super::{IMAGE, tar};

pub(crate) fn socket() -> PathBuf {
    let host = std::env::var("DOCKER_HOST").unwrap_or_default();
    host.strip_prefix("unix://")
        .unwrap_or("/var/run/docker.sock")
        .into()
}

fn docker(args: &[&str]) -> Command {
    let mut command = Command::new("docker");
    command
        .arg("-H")
        .arg(format!("unix://{}", socket().display()))
        .args(args);
    command
}

/// Runs a command of the Docker client and returns what it prints.
pub(crate) fn run(args: &[&str]) -> String {
    let output = docker(args).output().expect(
        "these tests need the `docker` client and daemon; MESHWORK_SKIP_DOCKER=1 leaves them out",
    );
    assert!(
        output.status.success(),
        "docker {args:?}: {}\n(MESHWORK_SKIP_DOCKER=1 leaves these tests out)",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Removes a container, if nobody else does.
pub(crate) fn discard(id: &str) {
    drop(docker(&["rm", "-f", "-v", id]).output());
}

/// Removes an image, if it is there.
pub(crate) fn discard_image(name: &str) {
    drop(docker(&["rmi", "-f", name]).output());
}

/// Ids of the containers of `node`'s agent, running or not.
pub(crate) fn containers(node: &NodeId) -> Vec<String> {
    let filter = format!("label=ai.meshwork.node={node}");
    run(&["ps", "-a", "-q", "--no-trunc", "--filter", &filter])
        .lines()
        .map(str::to_owned)
        .collect()
}

/// One field of a container.
pub(crate) fn inspect(id: &str, format: &str) -> String {
    run(&["inspect", "--format", format, id])
}

/// Makes the image of the tests, of a static busybox, where it is missing.
pub(crate) fn ensure_image() {
    if run(&["images", "-q", IMAGE]).is_empty() {
        let mut archive = tar::Archive::default();
        busybox(&mut archive);
        import(IMAGE, &archive.finish());
    }
}

/// An image that has only these files.
pub(crate) fn import(name: &str, archive: &[u8]) {
    let mut child = docker(&["import", "-", name])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(archive).unwrap();
    assert!(child.wait().unwrap().success(), "docker import");
}

/// Adds a shell and its usual programs.
pub(crate) fn busybox(archive: &mut tar::Archive) {
    let program = ["/bin/busybox", "/usr/bin/busybox"]
        .into_iter()
        .find_map(|p| std::fs::read(p).ok());
    let program = program.expect("these tests need busybox-static");
    archive.file("bin/busybox", 0o755, &program);
    for name in [
        "sh", "echo", "sleep", "cat", "true", "id", "mount", "mknod", "dd", "head", "seq",
        "printf", "env", "grep", "tail", "ls", "touch", "nproc", "trap", "mkdir",
    ] {
        archive.link(&format!("bin/{name}"), "busybox");
    }
    archive.file("etc/passwd", 0o644, b"root:x:0:0::/:/bin/sh\n");
}
