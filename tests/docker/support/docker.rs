//! Docker as an operator sees it: an independent witness of what the agents did.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::{Command, Stdio};

/// Image of these tests: a static busybox and nothing else.
pub(crate) const IMAGE: &str = "meshwork-test/spine:1";
/// The busybox commands that the tests' kernels use.
const COMMANDS: [&str; 9] = [
    "cat", "echo", "env", "false", "head", "sh", "sleep", "tail", "true",
];

/// Whether these tests are to run: no, when they are switched off; then it says so. Fails with the
/// fix where no daemon answers, and makes the image where it is missing.
pub(crate) fn wanted() -> bool {
    if std::env::var_os("MESHWORK_SKIP_DOCKER").is_some_and(|v| v == "1") {
        eprintln!("skipped: MESHWORK_SKIP_DOCKER=1");
        return false;
    }
    let version = Command::new("docker")
        .args(["version", "--format", "{{.Server.Version}}"])
        .output();
    let why = match version {
        Ok(output) if output.status.success() => {
            ensure_image();
            return true;
        }
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(error) => format!("docker: {error}"),
    };
    panic!(
        "these tests run containers: {why}\nfix: ./test.sh (starts a private daemon), or name a \
         socket: DOCKER_HOST=unix:///path, or leave them out: MESHWORK_SKIP_DOCKER=1"
    );
}

/// Runs a command of the Docker client and returns what it prints.
#[track_caller]
pub(crate) fn docker(args: &[&str]) -> String {
    let output = Command::new("docker")
        .args(args)
        .output()
        .expect("the docker client");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "docker {args:?}: {said}");
    String::from_utf8(output.stdout)
        .expect("ids and names are UTF-8")
        .trim()
        .to_owned()
}

/// Sessions of the containers, running or not, that the agent of `node` made.
pub(crate) fn containers(node: &str) -> Vec<String> {
    let filter = format!("label=ai.meshwork.node={node}");
    let format = "{{.Label \"ai.meshwork.session\"}}";
    let listed = docker(&["ps", "--all", "--filter", &filter, "--format", format]);
    let mut sessions: Vec<String> = listed.lines().map(str::to_owned).collect();
    sessions.sort();
    sessions
}

/// Removes what is left of `node`'s containers. Never panics: it runs in drops.
pub(crate) fn remove_containers(node: &str) {
    let filter = format!("label=ai.meshwork.node={node}");
    let listed = Command::new("docker")
        .args(["ps", "-aq", "--filter", &filter])
        .output();
    let Ok(listed) = listed else { return };
    for id in String::from_utf8_lossy(&listed.stdout).lines() {
        let remove = ["rm", "--force", "--volumes", id];
        let _ = Command::new("docker")
            .args(remove)
            .stdout(Stdio::null())
            .status();
    }
}

fn ensure_image() {
    if !docker(&["images", "--quiet", IMAGE]).is_empty() {
        return;
    }
    let root = tempfile::tempdir().expect("a temporary folder");
    let bin = root.path().join("bin");
    fs::create_dir(&bin).unwrap();
    let busybox = ["/bin/busybox", "/usr/bin/busybox"]
        .into_iter()
        .find_map(|p| fs::read(p).ok());
    fs::write(
        bin.join("busybox"),
        busybox.expect("fix: apt-get install busybox-static"),
    )
    .unwrap();
    fs::set_permissions(bin.join("busybox"), fs::Permissions::from_mode(0o755)).unwrap();
    for name in COMMANDS {
        symlink("busybox", bin.join(name)).unwrap();
    }
    let mut tar = Command::new("tar")
        .args(["-C", root.path().to_str().unwrap(), "-c", "bin"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("tar");
    let imported = Command::new("docker")
        .args(["import", "-", IMAGE])
        .stdin(tar.stdout.take().unwrap())
        .stdout(Stdio::null())
        .status();
    assert!(
        tar.wait().unwrap().success() && imported.unwrap().success(),
        "docker import"
    );
}
