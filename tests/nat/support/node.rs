//! The built binary on the machines of a lab: a hub that everybody can reach, and members that join
//! it from wherever they are.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use super::lab::Host;
use super::{PATIENCE, eventually, so};

/// The port of every node.
pub(crate) const PORT: u16 = 4460;

/// A machine with the binary's data folder and, once it is started, its node.
pub(crate) struct Member {
    pub(crate) host: Host,
    pub(crate) name: String,
    folder: TempDir,
    node: Option<Child>,
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    #[expect(dead_code, reason = "shown when a test fails")]
    err: String,
}

impl Member {
    /// A machine that is in no mesh yet.
    pub(crate) fn new(host: &Host, name: &str) -> Self {
        let member = Self {
            host: host.clone(),
            name: name.to_owned(),
            folder: tempfile::tempdir().expect("a temporary folder"),
            node: None,
        };
        fs::create_dir(member.home()).expect("a folder of our own");
        member
    }

    /// A mesh's first node, which manages it.
    pub(crate) fn hub(host: &Host) -> Self {
        let mut hub = Self::new(host, "hub");
        hub.start(&["up", "--role", "manager"]);
        hub
    }

    /// A node that joins as `role` with a ticket of the hub, and its user. `config` is its
    /// `config.toml`.
    pub(crate) fn joins(hub: &Self, host: &Host, name: &str, role: &str, config: &str) -> Self {
        let mut member = Self::new(host, name);
        member.configure(config);
        member.ok(&["join", &hub.ticket("user")]);
        member.start(&["join", &hub.ticket(role)]);
        member
    }

    /// Replaces its `config.toml`, for the next start.
    pub(crate) fn configure(&self, config: &str) {
        fs::write(self.home().join("config.toml"), config).expect("a folder of our own");
    }

    /// A ticket for one joiner.
    pub(crate) fn ticket(&self, role: &str) -> String {
        let line = self.ok(&["invite", "-q", "--role", role]);
        line.trim().to_owned()
    }

    /// Starts the node, and waits until it has told the mesh of itself.
    pub(crate) fn start(&mut self, args: &[&str]) {
        assert!(self.node.is_none(), "{} runs already", self.name);
        let log = |name: &str| {
            let path = self.folder.path().join(name);
            File::options().create(true).append(true).open(path)
        };
        let listen = format!("[::]:{PORT}");
        let child = self
            .command(args)
            .args([
                "--name",
                &self.name,
                "--listen",
                &listen,
                "--log",
                "--while-stdin",
            ])
            .env("RUST_LOG", "info,meshwork_mesh=debug")
            .stdin(Stdio::piped())
            .stdout(log("out").expect("a folder of our own"))
            .stderr(log("err").expect("a folder of our own"))
            .spawn()
            .expect("the binary starts");
        self.node = Some(child);
        eventually("a node that is ready", || {
            so(self.run_file().contains("ready = true"), self.story())
        });
    }

    /// Stops the node in order.
    pub(crate) fn stop(&mut self) {
        if let Some(mut node) = self.node.take() {
            drop(node.stdin.take());
            let status = node.wait().expect("our own child");
            assert!(
                status.success(),
                "{} ends in order: {}",
                self.name,
                self.story()
            );
        }
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        if let Some(mut node) = self.node.take() {
            // `ip netns exec` becomes the program: there is no process between.
            let _ = node.kill();
            let _ = node.wait();
        }
    }

    /// Its node's id.
    pub(crate) fn id(&self) -> String {
        let file = self.run_file();
        let line = file.lines().find_map(|line| line.strip_prefix("node = "));
        line.expect("it runs").trim_matches('"').to_owned()
    }

    /// A command of this machine's user.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = self.host.command(env!("CARGO_BIN_EXE_meshwork"));
        command.arg("--home").arg(self.home()).args(args);
        for name in ["MESHWORK_HOME", "MESHWORK_SERVER", "NO_COLOR", "RUST_LOG"] {
            command.env_remove(name);
        }
        // No containers, also where Docker runs.
        command.env("DOCKER_HOST", "unix:///nowhere");
        command
    }

    /// Runs a command of this machine's user.
    pub(crate) fn run(&self, args: &[&str]) -> Done {
        let output = self
            .command(args)
            .stdin(Stdio::null())
            .output()
            .expect("the binary starts");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Done {
            code: output.status.code(),
            out: text(&output.stdout),
            err: text(&output.stderr),
        }
    }

    /// Runs a command that must go well; tells what it printed.
    #[track_caller]
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let done = self.run(args);
        assert_eq!(done.code, Some(0), "{} {args:?}: {done:?}", self.name);
        done.out
    }

    /// What its own node says of itself.
    pub(crate) fn status(&self) -> Result<Value, String> {
        let own = format!("127.0.0.1:{PORT}");
        self.json(&["--server", &own, "status"])
    }

    /// Runs a command for its JSON.
    pub(crate) fn json(&self, args: &[&str]) -> Result<Value, String> {
        let done = self.run(&[&["-o", "json"], args].concat());
        serde_json::from_str(&done.out).map_err(|error| format!("{error}: {done:?}"))
    }

    /// The connection that its node has with `other`'s.
    pub(crate) fn peer(&self, other: &Self) -> Result<Value, String> {
        let own = format!("127.0.0.1:{PORT}");
        let peers = self.json(&["--server", &own, "peer", "ls"])?;
        let id = other.id();
        let mut list = peers.as_array().into_iter().flatten();
        let found = list.find(|peer| peer["node"] == id.as_str());
        found.cloned().ok_or_else(|| format!("{peers}"))
    }

    /// Waits until the connection with `other` takes such a way; tells of it.
    #[track_caller]
    pub(crate) fn reaches(&self, other: &Self, way: &str) -> Value {
        eventually(
            &format!("{} reaches {} {way}", self.name, other.name),
            || {
                let peer = self.peer(other)?;
                let path = peer["path"].as_str().unwrap_or_default();
                if path.starts_with(way) {
                    return Ok(peer);
                }
                let stats = self.status().map(|status| status["traversal"].clone());
                Err(format!("{peer} {stats:?}"))
            },
        )
    }

    /// What its node printed and logged.
    pub(crate) fn story(&self) -> String {
        let read = |name| fs::read_to_string(self.folder.path().join(name)).unwrap_or_default();
        format!("{}\n{}", read("out"), read("err"))
    }

    /// Its data folder.
    pub(crate) fn home(&self) -> PathBuf {
        self.folder.path().join("home")
    }

    fn run_file(&self) -> String {
        fs::read_to_string(self.home().join("run/node.addr")).unwrap_or_default()
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if let Some(folder) = std::env::var_os("MESHWORK_NAT_LOGS") {
            // For whoever looks for the cause of a failure: the whole story.
            let _ = fs::write(PathBuf::from(folder).join(&self.name), self.story());
        }
        if std::thread::panicking() {
            const LAST: usize = 6000;
            let story = self.story();
            let start = story.len().saturating_sub(LAST);
            let start = story.ceil_char_boundary(start);
            eprintln!("=== {} ===\n{}", self.name, &story[start..]);
        }
        if let Some(mut node) = self.node.take() {
            drop(node.stdin.take());
            let began = std::time::Instant::now();
            while matches!(node.try_wait(), Ok(None)) {
                if began.elapsed() > PATIENCE {
                    let _ = node.kill();
                }
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
        }
    }
}
