//! What the demo is played with: a temporary folder, child processes, an image. All of it is gone
//! after [`Stage::clean_up`].

use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use serde_json::Value;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

use super::super::docker::{Docker, DockerError, tar};
use super::super::error::{CliError, Code};
use super::super::out::Out;
use crate::ambient::random;
use crate::home::{Home, Who};

/// Our static program, compiled by `build.rs`.
const RUNNER: &[u8] = include_bytes!(env!("MESHWORK_RUNNER"));
/// Its name in the image.
const PROGRAM: &str = "meshwork-runner";
/// Eight pretended 80 GB GPUs.
const MOCK_GPUS: &str = include_str!("../../../configs/mock-gpus.toml");
/// Time for a node to listen.
const START: Duration = Duration::from_secs(20);
/// Time for a node to end by itself.
const END: Duration = Duration::from_secs(15);
/// Time between two looks.
const LOOK: Duration = Duration::from_millis(50);
/// Begin of the names of the folder and the image.
const PREFIX: &str = "meshwork-demo-";
/// In the folder, locked as long as its demo runs.
const LOCK: &str = "lock";
/// The demo's nodes besides the manager.
const AGENTS: [&str; 2] = ["gpu-box", "cpu-box"];

/// Everything that must be gone in the end.
pub(super) struct Stage {
    out: Out,
    folder: PathBuf,
    _lock: File,
    program: PathBuf,
    nodes: Vec<Child>,
    image: Option<(Docker, String)>,
}

impl Stage {
    pub(super) fn new(out: Out) -> Result<Self, CliError> {
        let number = u64::from_be_bytes(random());
        let folder = std::env::temp_dir().join(format!("{PREFIX}{number:016x}"));
        DirBuilder::new()
            .mode(0o700)
            .create(&folder)
            .map_err(|e| CliError::file(&folder, &e))?;
        let lock = take(&folder).map_err(|e| CliError::file(&folder, &e))?;
        Ok(Self {
            out,
            folder,
            _lock: lock,
            program: std::env::current_exe()?,
            nodes: Vec::new(),
            image: None,
        })
    }

    /// Removes what demos left that were killed (`kill -9`): their nodes ended with them, but
    /// not their folder, image and containers. What cannot be removed is left to the next one.
    pub(super) async fn sweep(&self) {
        let owner = fs::metadata(&self.folder).map(|meta| meta.uid()).ok();
        let entries = self.folder.parent().and_then(|tmp| fs::read_dir(tmp).ok());
        for entry in entries.into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let ours = entry
                .metadata()
                .is_ok_and(|meta| meta.is_dir() && Some(meta.uid()) == owner);
            let lock = File::open(entry.path().join(LOCK));
            if !name.starts_with(PREFIX) || !ours || !lock.is_ok_and(|f| f.try_lock().is_ok()) {
                continue;
            }
            if let Ok(docker) = Docker::find(None)
                && let Err(error) = remove_image(&docker, &image_of(&name)).await
            {
                tracing::debug!(%error, %name, "an old demo's image stays");
            }
            if let Err(error) = fs::remove_dir_all(entry.path()) {
                tracing::debug!(%error, %name, "an old demo's folder stays");
            }
        }
    }

    fn home(&self, name: &str) -> Home {
        Home::new(self.folder.join(name))
    }

    /// Starts the manager.
    pub(super) async fn manager(&mut self) -> Result<(), CliError> {
        self.start("manager", &["up", "--role", "manager", "--name", "manager"])
            .await
    }

    /// Starts both agents, with one ticket for two.
    pub(super) async fn agents(&mut self) -> Result<(), CliError> {
        let ticket = self
            .output(&["--quiet", "invite", "--role", "agent", "--uses", "2"])
            .await?;
        let ticket = ticket.trim();
        for name in AGENTS {
            let home = self.folder.join(name);
            fs::create_dir_all(&home).map_err(|e| CliError::file(&home, &e))?;
            let mut config = "[agent]\nnvml = false\nreserved_memory = \"0B\"\n".to_owned();
            if name == AGENTS[0] {
                let mock = home.join("gpus.toml");
                write(&mock, MOCK_GPUS)?;
                let path = Value::from(mock.to_string_lossy());
                config = format!("{config}mock_accelerators = {path}\n");
            }
            write(&home.join("config.toml"), &config)?;
            self.start(name, &["join", ticket, "--name", name]).await?;
        }
        Ok(())
    }

    /// Starts a node as a process of its own, and waits until it listens. It ends when this
    /// process does, even by `kill -9`: then its standard input closes.
    async fn start(&mut self, name: &str, args: &[&str]) -> Result<(), CliError> {
        let log = self.folder.join(format!("{name}.log"));
        let file = fs::File::create(&log).map_err(|e| CliError::file(&log, &e))?;
        let mut node = Command::new(&self.program)
            .args(args)
            .args(["--log", "--while-stdin", "--listen", "127.0.0.1:0"])
            .arg("--home")
            .arg(self.folder.join(name))
            .env_remove("MESHWORK_SERVER")
            .stdin(Stdio::piped())
            .stdout(file.try_clone()?)
            .stderr(file)
            // Ctrl-C is for us alone: we end the nodes in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let listening = timeout(START, async {
            loop {
                if let Some(status) = node.try_wait()? {
                    return Ok(Some(status));
                }
                if self.home(name).running()?.is_some() {
                    return Ok(None);
                }
                sleep(LOOK).await;
            }
        });
        let failed = |what: String| {
            let text = fs::read_to_string(&log).unwrap_or_default();
            let last = text.lines().last().unwrap_or_default();
            CliError::new(Code::START, format!("{name} {what}: {last}"))
        };
        let ended: Result<Option<ExitStatus>, CliError> = listening
            .await
            .unwrap_or_else(|_| Err(failed("does not listen".into())));
        self.nodes.push(node);
        match ended? {
            Some(status) => Err(failed(format!("ended ({status})"))),
            None => Ok(()),
        }
    }

    /// Waits until the manager knows both agents, and hears those that run containers.
    pub(super) async fn meet(&self, deadline: Duration) -> Result<(), CliError> {
        let until = Instant::now() + deadline;
        loop {
            let nodes = self.output(&["node", "ls", "-o", "json"]).await?;
            let nodes: Value = serde_json::from_str(&nodes).map_err(std::io::Error::from)?;
            let met = AGENTS.iter().all(|name| {
                let node = nodes
                    .as_array()
                    .into_iter()
                    .flatten()
                    .find(|n| n["name"] == *name);
                // Without a container backend a node is just online.
                node.is_some_and(|n| {
                    n["state"] == "ready" || n["backend"].is_null() && n["state"] == "online"
                })
            });
            if met {
                return Ok(());
            }
            if Instant::now() > until {
                return Err(CliError::new(Code::TIMEOUT, "the nodes did not meet"));
            }
            sleep(4 * LOOK).await;
        }
    }

    /// Makes the image.
    pub(super) async fn image(&mut self, docker: Docker) -> Result<(), CliError> {
        // The folder's name is random, so the image's is.
        let name = self
            .folder
            .file_name()
            .map(|n| n.to_string_lossy().into_owned());
        let name = image_of(&name.unwrap_or_default());
        // Noted first: also a half-made image is removed.
        self.image = Some((docker.clone(), name.clone()));
        let entry = format!("ENTRYPOINT [\"/{PROGRAM}\"]");
        Ok(docker.import(&name, &entry, &tar(PROGRAM, RUNNER)).await?)
    }

    /// The image's name, once it was made.
    pub(super) fn image_name(&self) -> &str {
        self.image.as_ref().map_or("", |(_, name)| name)
    }

    /// Runs a command as the manager's user and shows what it prints; it must succeed.
    pub(super) async fn show(&self, args: &[&str]) -> Result<(), CliError> {
        if self.out.quiet || self.out.is_machine() {
            return self.output(args).await.map(drop);
        }
        let status = self.command("manager", args).status().await?;
        if status.success() {
            Ok(())
        } else {
            Err(unexpected(args, status, ""))
        }
    }

    /// Runs a command as the manager's user; it must succeed.
    async fn output(&self, args: &[&str]) -> Result<String, CliError> {
        let output = self.command("manager", args).output().await?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(unexpected(
            args,
            output.status,
            &String::from_utf8_lossy(&output.stderr),
        ))
    }

    /// Runs a command as someone who has the mesh's pre-shared key and an identity, but no token.
    pub(super) async fn stranger(&self, args: &[&str]) -> Result<(Option<i32>, String), CliError> {
        let (manager, stranger) = (self.home("manager"), self.home("stranger"));
        stranger.write_psk(&manager.psk()?)?;
        stranger.identity_or_new(Who::User, &random())?;
        stranger.write_mesh(&manager.mesh()?)?;
        let node = manager
            .running()?
            .ok_or_else(|| CliError::new(Code::NO_SERVER, "the manager is gone"))?;
        let address = node
            .addrs
            .first()
            .map(ToString::to_string)
            .unwrap_or_default();
        let server = format!("{}@{address}", node.node);
        let output = self
            .command("stranger", args)
            .args(["--server", &server])
            .output()
            .await?;
        Ok((
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        ))
    }

    fn command(&self, home: &str, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--home").arg(self.folder.join(home)).args(args);
        command
            .env_remove("MESHWORK_SERVER")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// Ends the nodes and removes what they and we made. Everything is tried, the first failure is
    /// told.
    pub(super) async fn clean_up(mut self) -> Result<(), CliError> {
        // Agents first: they end their talk with the manager.
        while let Some(mut node) = self.nodes.pop() {
            drop(node.stdin.take());
            if timeout(END, node.wait()).await.is_err() {
                node.kill().await?;
            }
        }
        let image = match self.image.take() {
            Some((docker, name)) => remove_image(&docker, &name).await,
            None => Ok(()),
        };
        fs::remove_dir_all(&self.folder).map_err(|e| CliError::file(&self.folder, &e))?;
        Ok(image?)
    }
}

/// Makes the folder's lock and takes it. It appears locked, so that no sweep takes it in between.
fn take(folder: &Path) -> std::io::Result<File> {
    let new = folder.join("lock.new");
    let file = File::create(&new)?;
    file.try_lock()?;
    fs::rename(new, folder.join(LOCK))?;
    Ok(file)
}

/// The image of the demo in the folder of this name.
fn image_of(folder: &str) -> String {
    format!("{folder}:latest")
}

/// Kernels outlive their agent, so what is still there of this image goes with it.
async fn remove_image(docker: &Docker, name: &str) -> Result<(), DockerError> {
    if let Ok(ids) = docker.containers_of(name).await {
        for id in ids {
            docker.remove_container(&id).await?;
        }
    }
    docker.remove_image(name).await
}

fn unexpected(args: &[&str], status: ExitStatus, said: &str) -> CliError {
    CliError::new(
        Code::INTERNAL,
        format!("meshwork {}: {status} {}", args.join(" "), said.trim()),
    )
}

fn write(path: &Path, text: &str) -> Result<(), CliError> {
    fs::write(path, text).map_err(|e| CliError::file(path, &e))
}

impl From<DockerError> for CliError {
    fn from(error: DockerError) -> Self {
        Self::new(Code::NO_BACKEND, error)
    }
}
