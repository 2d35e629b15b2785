//! Docker through its unix socket. The only place that speaks to Docker.

mod host_config;
mod logs;
mod network;
mod pull;

use std::collections::HashMap;
use std::future::Future;
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use bollard::errors::Error;
use bollard::exec::{CreateExecOptions, StartExecResults};
use bollard::models::ContainerSummaryStateEnum;
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, KillContainerOptionsBuilder, ListContainersOptionsBuilder,
    ListImagesOptions, RemoveContainerOptionsBuilder, StopContainerOptionsBuilder,
    WaitContainerOptionsBuilder,
};
use bollard::{API_DEFAULT_VERSION, Docker};
use futures_util::{StreamExt, stream};
use meshwork_identity::NodeId;
use meshwork_proto::agent::{ExecItem, LogChunk, PullProgress};
use meshwork_proto::service::BoxStream;
use tracing::warn;

use super::{Backend, BackendError, ExecPlan, Found, Line, LogQuery, Phase, Plan};
use crate::config::Deadlines;
use crate::kernel::record::Ended;
use crate::labels;

/// Where Docker listens unless told otherwise.
const DEFAULT_SOCKET: &str = "/var/run/docker.sock";
/// bollard's own limit per request, in seconds. Ours stand around each call and are shorter; a
/// `wait` may take as long as its container.
const NO_LIMIT: u64 = 10 * 365 * 24 * 3600;
/// Images named in an announcement at most.
const MAX_IMAGES: usize = 1024;

/// A Docker daemon.
#[derive(Debug)]
pub(crate) struct DockerBackend {
    docker: Docker,
    version: String,
    /// Whether a bridge network can be made here; else kernels have no network.
    bridged: bool,
    node: NodeId,
    deadlines: Deadlines,
}

impl DockerBackend {
    /// Connects and makes the kernels' network. `socket` goes before `DOCKER_HOST`.
    pub(crate) async fn connect(
        socket: Option<&Path>,
        node: NodeId,
        deadlines: Deadlines,
    ) -> Result<Self, BackendError> {
        let path = match socket {
            Some(path) => path.display().to_string(),
            None => socket_from_env(std::env::var("DOCKER_HOST").ok().as_deref())?,
        };
        let docker = Docker::connect_with_unix(&path, NO_LIMIT, API_DEFAULT_VERSION)
            .map_err(|e| BackendError::Unavailable(format!("no Docker at {path}: {e}")))?;
        let docker = within(deadlines.ask, "its version", docker.negotiate_version()).await?;
        let version = within(deadlines.ask, "its version", docker.version()).await?;
        let mut backend = Self {
            docker,
            version: version.version.unwrap_or_default(),
            bridged: true,
            node,
            deadlines,
        };
        if let Err(error) = network::ensure(&backend).await {
            // What was late now may be there when a kernel needs it.
            backend.bridged = matches!(error, BackendError::Unavailable(_));
            let bridged = backend.bridged;
            warn!(%error, bridged, "no bridge network can be made, kernels without one have none");
        }
        Ok(backend)
    }

    async fn ask<T>(
        &self,
        what: &str,
        question: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, BackendError> {
        within(self.deadlines.ask, what, question).await
    }
}

/// The socket that `DOCKER_HOST` names. Docker over TCP is refused: whoever reaches it owns the
/// machine.
fn socket_from_env(host: Option<&str>) -> Result<String, BackendError> {
    match host {
        None | Some("") => Ok(DEFAULT_SOCKET.into()),
        Some(host) => host
            .strip_prefix("unix://")
            .map(str::to_owned)
            .ok_or_else(|| {
                BackendError::Failed(format!(
                    "DOCKER_HOST is `{host}`, only unix:// sockets are used"
                ))
            }),
    }
}

/// The answer, if it comes in time.
async fn within<T>(
    limit: Duration,
    what: &str,
    question: impl Future<Output = Result<T, Error>>,
) -> Result<T, BackendError> {
    match tokio::time::timeout(limit, question).await {
        Ok(answer) => answer.map_err(blame),
        Err(_) => Err(BackendError::Unavailable(format!(
            "Docker, asked for {what}, did not answer within {limit:?}"
        ))),
    }
}

/// Whether Docker said no, or said nothing.
fn blame(error: Error) -> BackendError {
    match error {
        Error::DockerResponseServerError {
            status_code: 404,
            message,
        } => BackendError::NotFound(message),
        Error::DockerResponseServerError {
            status_code: 503,
            message,
        } => BackendError::Unavailable(message),
        Error::DockerResponseServerError { message, .. } => BackendError::Failed(message),
        Error::DockerStreamError { error } => BackendError::Failed(error),
        other => BackendError::Unavailable(other.to_string()),
    }
}

#[async_trait]
impl Backend for DockerBackend {
    fn describe(&self) -> String {
        format!("docker {}", self.version)
    }

    async fn images(&self) -> Result<Vec<String>, BackendError> {
        let list = self.docker.list_images(None::<ListImagesOptions>);
        let mut images = self.ask("its images", list).await?;
        images.sort_by_key(|i| std::cmp::Reverse(i.created));
        let named = images
            .into_iter()
            .flat_map(|i| i.repo_tags)
            .filter(|t| t != "<none>:<none>");
        Ok(named.take(MAX_IMAGES).collect())
    }

    async fn has_image(&self, image: &str) -> Result<bool, BackendError> {
        match self.ask("an image", self.docker.inspect_image(image)).await {
            Ok(_) => Ok(true),
            Err(BackendError::NotFound(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn pull(&self, image: &str) -> BoxStream<Result<PullProgress, BackendError>> {
        pull::pull(&self.docker, image)
    }

    async fn create(&self, plan: &Plan) -> Result<bool, BackendError> {
        let options = CreateContainerOptionsBuilder::default()
            .name(&plan.name)
            .build();
        let network = if self.bridged {
            network::ensure(self).await?
        } else {
            "none".into()
        };
        let body = host_config::container(plan, &network);
        let create = async {
            match self.docker.create_container(Some(options), body).await {
                Ok(_) => Ok(true),
                Err(Error::DockerResponseServerError {
                    status_code: 409, ..
                }) => Ok(false),
                Err(error) => Err(error),
            }
        };
        within(self.deadlines.create, "a container", create).await
    }

    async fn start(&self, id: &str) -> Result<(), BackendError> {
        let start = self.docker.start_container(id, None);
        within(self.deadlines.start, "a start", start).await
    }

    async fn inspect(&self, id: &str) -> Result<(Phase, Option<Ended>), BackendError> {
        let found = self
            .ask("a container", self.docker.inspect_container(id, None))
            .await?;
        let state = found.state.unwrap_or_default();
        if state.running == Some(true) || state.paused == Some(true) {
            return Ok((Phase::Running, None));
        }
        // Docker's zero time: it never started.
        if state.started_at.is_none_or(|t| t.starts_with("0001-")) {
            return Ok((Phase::Made, None));
        }
        let code = state
            .exit_code
            .and_then(|c| i32::try_from(c).ok())
            .unwrap_or(-1);
        let oom = state.oom_killed == Some(true);
        Ok((Phase::Ended, Some(Ended { code, oom })))
    }

    async fn wait(&self, id: &str) -> Result<(), BackendError> {
        let options = WaitContainerOptionsBuilder::default()
            .condition("not-running")
            .build();
        let mut waiting = Box::pin(self.docker.wait_container(id, Some(options)));
        match waiting.next().await {
            Some(Ok(_) | Err(Error::DockerContainerWaitError { .. })) => Ok(()),
            Some(Err(error)) => Err(blame(error)),
            None => Err(BackendError::Unavailable(
                "Docker went away during a wait".into(),
            )),
        }
    }

    async fn stop(&self, id: &str, grace: Duration) -> Result<(), BackendError> {
        let seconds = i32::try_from(grace.as_millis().div_ceil(1000)).unwrap_or(i32::MAX);
        let stopped = if seconds == 0 {
            let options = KillContainerOptionsBuilder::default()
                .signal("SIGKILL")
                .build();
            self.ask("a kill", self.docker.kill_container(id, Some(options)))
                .await
        } else {
            let options = StopContainerOptionsBuilder::default().t(seconds).build();
            let stop = self.docker.stop_container(id, Some(options));
            within(grace + self.deadlines.ask, "a stop", stop).await
        };
        match stopped {
            Ok(()) | Err(BackendError::NotFound(_)) => Ok(()),
            // "is not running", or it is being removed.
            Err(BackendError::Failed(message)) => match self.inspect(id).await {
                Ok((Phase::Running, _)) => Err(BackendError::Failed(message)),
                Ok(_) | Err(BackendError::NotFound(_)) => Ok(()),
                Err(error) => Err(error),
            },
            Err(error) => Err(error),
        }
    }

    async fn remove(&self, id: &str) -> Result<(), BackendError> {
        let options = RemoveContainerOptionsBuilder::default()
            .force(true)
            .v(true)
            .build();
        let remove = self.docker.remove_container(id, Some(options));
        match self.ask("a removal", remove).await {
            Ok(()) | Err(BackendError::NotFound(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn list(&self) -> Result<Vec<Found>, BackendError> {
        let label = format!("{}={}", labels::NODE, self.node);
        let filters = HashMap::from([("label".to_owned(), vec![label])]);
        let options = ListContainersOptionsBuilder::default()
            .all(true)
            .filters(&filters)
            .build();
        let list = self.docker.list_containers(Some(options));
        let containers = self.ask("its containers", list).await?;
        let found = containers.into_iter().filter_map(|c| {
            let phase = match c.state? {
                ContainerSummaryStateEnum::CREATED => Phase::Made,
                ContainerSummaryStateEnum::RUNNING
                | ContainerSummaryStateEnum::PAUSED
                | ContainerSummaryStateEnum::RESTARTING => Phase::Running,
                _ => Phase::Ended,
            };
            let kernel = labels::read(&c.labels.unwrap_or_default());
            Some(Found {
                id: c.id?,
                kernel,
                phase,
            })
        });
        Ok(found.collect())
    }

    fn logs(&self, id: &str, query: LogQuery) -> BoxStream<Result<Line, BackendError>> {
        logs::logs(&self.docker, id, query)
    }

    async fn exec(
        &self,
        id: &str,
        plan: &ExecPlan,
    ) -> Result<BoxStream<Result<ExecItem, BackendError>>, BackendError> {
        let options = CreateExecOptions {
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            env: Some(plan.env.iter().map(|(k, v)| format!("{k}={v}")).collect()),
            cmd: Some(plan.command.clone()),
            privileged: Some(false),
            working_dir: plan.workdir.clone(),
            ..CreateExecOptions::default()
        };
        let made = self
            .ask("a command", self.docker.create_exec(id, options))
            .await?;
        let started = self
            .ask("a command", self.docker.start_exec(&made.id, None))
            .await?;
        let StartExecResults::Attached { output, .. } = started else {
            return Err(BackendError::Failed(
                "Docker ran the command detached".into(),
            ));
        };
        let pieces = output.filter_map(|piece| async {
            match piece {
                Ok(piece) => logs::split(piece).map(|(output, data)| {
                    Ok(ExecItem::Output(LogChunk {
                        output,
                        data,
                        at: None,
                    }))
                }),
                Err(error) => Some(Err(blame(error))),
            }
        });
        let (docker, limit) = (self.docker.clone(), self.deadlines.ask);
        let exit = stream::once(async move { exit_code(&docker, &made.id, limit).await });
        Ok(Box::pin(pieces.chain(exit)))
    }
}

/// First and longest time between two questions whether a command that closed its output has ended.
const EXEC_POLL: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(1));

/// The exit code of a command whose output is closed. Docker tells it a moment later; a command
/// may also close its output and go on.
async fn exit_code(docker: &Docker, exec: &str, limit: Duration) -> Result<ExecItem, BackendError> {
    let mut pause = EXEC_POLL.0;
    loop {
        let state = within(limit, "a command", docker.inspect_exec(exec)).await?;
        if state.running != Some(true)
            && let Some(code) = state.exit_code
        {
            return Ok(ExecItem::Exit(i32::try_from(code).unwrap_or(-1)));
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(EXEC_POLL.1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_unix_sockets_are_used() {
        assert_eq!(socket_from_env(None).unwrap(), DEFAULT_SOCKET);
        assert_eq!(socket_from_env(Some("")).unwrap(), DEFAULT_SOCKET);
        assert_eq!(
            socket_from_env(Some("unix:///x/d.sock")).unwrap(),
            "/x/d.sock"
        );
        assert!(socket_from_env(Some("tcp://127.0.0.1:2375")).is_err());
    }
}
