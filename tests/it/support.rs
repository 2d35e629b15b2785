//! Runs the binary in a folder of its own.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use tempfile::TempDir;

/// A data folder, and the binary to use it with.
pub(crate) struct Home {
    folder: TempDir,
}

/// What a command left.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Home {
    pub(crate) fn new() -> Self {
        Self {
            folder: tempfile::tempdir().expect("a temporary folder"),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The binary, with nothing of this process's environment that it listens to.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_meshwork"));
        command
            .arg("--home")
            .arg(self.path().join("home"))
            .args(args);
        for name in ["MESHWORK_HOME", "MESHWORK_SERVER", "NO_COLOR", "RUST_LOG"] {
            command.env_remove(name);
        }
        // No containers, also where Docker runs.
        command.env("DOCKER_HOST", "unix:///nowhere");
        // A terminal of this width, for help that wraps.
        command.env("COLUMNS", "100");
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Done {
        self.command(args)
            .output()
            .expect("the binary starts")
            .into()
    }

    /// Runs what must go well; tells what it printed.
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let done = self.run(args);
        assert_eq!(done.code, 0, "{args:?}: {done:?}");
        done.out
    }

    /// Runs what must fail with this exit code; tells the error, the folder's name made `HOME`.
    pub(crate) fn fails(&self, code: i32, args: &[&str]) -> String {
        let done = self.run(args);
        assert_eq!(done.code, code, "{args:?}: {done:?}");
        done.err
            .replace(&self.path().join("home").display().to_string(), "HOME")
    }
}

/// A running node, which ends with this value, and with this process too: its standard input
/// closes then.
pub(crate) struct Node {
    child: Child,
}

impl Drop for Node {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        // It drains by itself; nothing can be done here if it does not.
        let _ = self.child.wait();
    }
}

impl Home {
    /// Starts a node without containers, and waits until it answers.
    pub(crate) fn start(&self, args: &[&str]) -> Node {
        let common = ["--listen", "127.0.0.1:0", "--while-stdin"];
        let child = self
            .command(&[args, &common[..]].concat())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("the binary starts");
        let node = Node { child };
        let serves = |done: &Done| {
            let findings: serde_json::Value = serde_json::from_str(&done.out).expect("JSON");
            let mut findings = findings.as_array().into_iter().flatten();
            findings.any(|finding| finding["check"] == "mesh" && finding["health"] == "ok")
        };
        self.eventually(&["doctor", "-o", "json"], serves);
        node
    }

    /// Runs a command again and again until it leaves what is expected.
    pub(crate) fn eventually(&self, args: &[&str], expected: impl Fn(&Done) -> bool) -> Done {
        const TRIES: u32 = 300;
        for _ in 0..TRIES {
            let done = self.run(args);
            if expected(&done) {
                return done;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        panic!("{args:?}: never as expected: {:?}", self.run(args));
    }
}

impl From<Output> for Done {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).expect("output is UTF-8");
        Self {
            code: output.status.code().expect("not killed"),
            out: text(output.stdout),
            err: text(output.stderr),
        }
    }
}

/// Sends a signal by name; the standard library has no call for it, every shell has.
pub(crate) fn signal(name: &str, process: u32) {
    let status = Command::new("sh")
        .args(["-c", &format!("kill -{name} {process}")])
        .status();
    assert!(status.expect("a shell starts").success());
}
