//! A node as a process of its own.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use super::command::meshwork;
use super::docker::remove_containers;
use super::eventually;

/// A running node. Dropping it kills the process and removes its containers; a killed test process
/// ends it as well, as that closes the node's standard input.
pub(crate) struct Node {
    pub(crate) home: PathBuf,
    /// Its id.
    pub(crate) id: String,
    /// Where it listens. It listens there again after a restart.
    pub(crate) address: SocketAddr,
    child: Child,
}

impl Node {
    /// Starts the node of `home` with `up`, or with whatever else runs one.
    #[track_caller]
    pub(crate) fn start(home: &Path, args: &[&str]) -> Self {
        let mut node = Self {
            home: home.to_owned(),
            id: String::new(),
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            child: spawn(home, args, "127.0.0.1:0"),
        };
        let run = node.listens();
        let address = run["addrs"][0].as_str().expect("an address");
        node.id += run["node"].as_str().expect("an id");
        node.address = address.parse().expect("IP:PORT");
        node
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("our own child");
        self.child.wait().expect("our own child");
    }

    /// `kill -9` and at once a new start.
    #[track_caller]
    pub(crate) fn strike(&mut self) {
        self.kill();
        self.restart();
    }

    /// Asks it to end, and waits until it has.
    #[track_caller]
    pub(crate) fn end(&mut self) {
        self.signal("TERM");
        eventually("a node that ends", || {
            let status = self.child.try_wait().expect("our own child");
            status
                .ok_or_else(|| self.log())
                .map(|status| assert!(status.success(), "{status}"))
        });
    }

    /// Starts it again where it was.
    #[track_caller]
    pub(crate) fn restart(&mut self) {
        self.child = spawn(&self.home, &["up"], &self.address.to_string());
        self.listens();
    }

    /// Freezes the process: it stays, and does nothing.
    pub(crate) fn freeze(&self) {
        self.signal("STOP");
    }

    /// Lets it go on.
    pub(crate) fn thaw(&self) {
        self.signal("CONT");
    }

    /// What it has told.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.home.with_extension("log")).unwrap_or_default()
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let kill = std::process::Command::new("kill")
            .args(["-s", name, &pid])
            .status();
        assert!(kill.expect("kill").success());
    }

    /// Waits until the process has written where it listens.
    #[track_caller]
    fn listens(&mut self) -> toml::Table {
        let file = self.home.join("run/node.addr");
        eventually("a node that listens", || {
            if let Some(status) = self.child.try_wait().expect("our own child") {
                panic!("the node ended ({status}):\n{}", self.log());
            }
            let text = fs::read_to_string(&file).map_err(|e| e.to_string())?;
            let run: toml::Table = toml::from_str(&text).map_err(|e| e.to_string())?;
            let ours = run["pid"].as_integer() == Some(self.child.id().into());
            if ours { Ok(run) } else { Err(text) }
        })
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = self.log();
            let first = log.lines().count().saturating_sub(80);
            let last: Vec<&str> = log.lines().skip(first).collect();
            eprintln!(
                "--- the end of {}'s log:\n{}\n---",
                self.home.display(),
                last.join("\n")
            );
        }
        remove_containers(&self.id);
    }
}

/// Starts the process; its log is beside its folder.
fn spawn(home: &Path, args: &[&str], listen: &str) -> Child {
    let log = File::options()
        .create(true)
        .append(true)
        .open(home.with_extension("log"))
        .unwrap();
    meshwork(home, args)
        .args(["--log", "--while-stdin", "--listen", listen])
        .env(
            "RUST_LOG",
            "info,meshwork_manager=debug,meshwork_agent=debug",
        )
        .stdin(Stdio::piped())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .expect("the binary starts")
}
