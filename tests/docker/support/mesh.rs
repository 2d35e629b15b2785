//! A mesh: a manager, agents that joined it by ticket, and commands of its first user.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;

use super::command::{Done, Running, meshwork};
use super::docker::IMAGE;
use super::node::Node;
use super::{eventually, so};

/// A manager and what belongs to it.
pub(crate) struct Mesh {
    // Dropped in this order: the processes before their folder.
    pub(crate) manager: Node,
    folder: TempDir,
}

impl Mesh {
    /// Makes a mesh and runs its manager.
    pub(crate) fn new() -> Self {
        Self::with_manager_in("manager")
    }

    /// The same, with the manager's data in this folder of the mesh's, or in a whole path.
    pub(crate) fn with_manager_in(home: impl AsRef<Path>) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let home = folder.path().join(home);
        fs::create_dir_all(&home).unwrap();
        let config = "name = \"manager\"\nroles = [\"manager\"]\n";
        fs::write(home.join("config.toml"), config).unwrap();
        let manager = Node::start(&home, &["up"]);
        Self { manager, folder }
    }

    /// A folder of this mesh.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Starts an agent with so many pretended 80 GB GPUs.
    pub(crate) fn agent(&self, name: &str, gpus: usize) -> Node {
        self.agent_in(&self.path(name), name, gpus)
    }

    /// The same, with its data in this folder.
    pub(crate) fn agent_in(&self, home: &Path, name: &str, gpus: usize) -> Node {
        fs::create_dir_all(home).unwrap();
        let mut agent = toml::toml! {
            nvml = false
            reserved_memory = "0B"
        };
        if gpus > 0 {
            let path = home.join("gpus.toml");
            fs::write(&path, gpu_file(gpus)).unwrap();
            agent.insert("mock_accelerators".into(), path.to_str().unwrap().into());
        }
        let config = toml::Table::from_iter([("agent".into(), agent.into())]);
        fs::write(home.join("config.toml"), config.to_string()).unwrap();
        let ticket = self.ok(&["--quiet", "invite", "--role", "agent"]);
        Node::start(home, &["join", ticket.trim(), "--name", name])
    }

    /// Lets another person join; the folder has that user's identity and token.
    pub(crate) fn user(&self, name: &str) -> PathBuf {
        let home = self.path(name);
        let ticket = self.ok(&["--quiet", "invite", "--role", "user"]);
        Running::start(meshwork(&home, &["join", ticket.trim()]))
            .finish()
            .ok();
        home
    }

    /// Begins a command of the first user.
    pub(crate) fn start(&self, args: &[&str]) -> Running {
        Running::start(meshwork(&self.manager.home, args))
    }

    /// Runs a command of the first user.
    #[track_caller]
    pub(crate) fn run(&self, args: &[&str]) -> Done {
        self.start(args).finish()
    }

    /// Runs one that must go well; returns what it prints.
    #[track_caller]
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        self.run(args).ok()
    }

    /// Runs one that answers in JSON.
    #[track_caller]
    pub(crate) fn json(&self, args: &[&str]) -> Value {
        let text = self.ok(&[args, &["-o", "json"]].concat());
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{args:?}: {e}: {text}"))
    }

    /// A node as `node ls` shows it.
    #[track_caller]
    pub(crate) fn node(&self, name: &str) -> Option<Value> {
        find(&self.json(&["node", "ls"]), "name", name)
    }

    /// A session as `ps -a` shows it, by its whole id or its name.
    #[track_caller]
    pub(crate) fn session(&self, which: &str) -> Option<Value> {
        let sessions = self.json(&["ps", "-a"]);
        find(&sessions, "session", which).or_else(|| find(&sessions, "name", which))
    }

    /// Waits until the manager hears these agents.
    #[track_caller]
    pub(crate) fn ready(&self, names: &[&str]) {
        eventually("agents that are ready", || {
            let nodes = self.json(&["node", "ls"]);
            let ready =
                |name: &&str| find(&nodes, "name", name).is_some_and(|n| n["state"] == "ready");
            so(names.iter().all(ready), nodes)
        });
    }

    /// Waits until a session is in this state; returns it.
    #[track_caller]
    pub(crate) fn reaches(&self, session: &str, state: &str) -> Value {
        eventually(&format!("session {session} {state}"), || {
            let seen = self.session(session);
            seen.clone()
                .filter(|s| s["state"] == state)
                .ok_or_else(|| format!("{seen:?}"))
        })
    }
}

/// The arguments of a small kernel that runs a script.
pub(crate) fn small<'a>(options: &[&'a str], script: &'a str) -> Vec<&'a str> {
    let run = [
        "run", "--cpu", "0.1", "--mem", "32MiB", "--shm", "1MiB", "--pull", "none",
    ];
    [&run[..], options, &[IMAGE, "--", "sh", "-c", script]].concat()
}

fn find(list: &Value, field: &str, value: &str) -> Option<Value> {
    list.as_array()
        .expect("a list")
        .iter()
        .find(|item| item[field] == value)
        .cloned()
}

fn gpu_file(gpus: usize) -> String {
    let head = "slot_name = \"cuda\"\nvendor = \"nvidia\"\n".to_owned();
    (0..gpus).fold(head, |text, n| {
        text + &format!(
            "[[devices]]\nmother_uuid = \"GPU-{n}\"\nmodel_name = \"A100 80GB\"\nmemory_size = \"80GB\"\n"
        )
    })
}
