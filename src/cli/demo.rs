//! `meshwork demo`: the whole way on one machine, with real processes, sockets and a container.

mod stage;

use std::future::Future;
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};

use super::Context;
use super::docker::Docker;
use super::error::{CliError, Code, EXIT_DENIED};
use super::out::{Out, span};
use stage::Stage;

/// What the demo looks for.
const QUERY: &str = "gpu.vram >= 40GB";
/// Time for all nodes to know each other.
const MEETING: Duration = Duration::from_secs(30);

/// Plays the demo, and cleans up however it ends.
pub(super) fn demo(cx: &Context) -> Result<(), CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut stage = Stage::new()?;
        let cancelled = || Err(CliError::new(Code::CANCELLED, "the demo was interrupted"));
        let played = tokio::select! {
            played = play(&mut stage, cx.out) => played,
            _ = tokio::signal::ctrl_c() => cancelled(),
            _ = terminate.recv() => cancelled(),
        };
        let cleaned = step(
            cx.out,
            "clean up",
            "nothing is left: no process, container, image or file",
            stage.clean_up(),
        )
        .await;
        played.and(cleaned)
    })
}

async fn play(stage: &mut Stage, out: Out) -> Result<(), CliError> {
    let docker = Docker::find(None);
    let has_docker = match &docker {
        Ok(docker) => docker.get("/version").await.map(|_| docker.clone()),
        Err(error) => Err(super::docker::DockerError::Host(error.to_string())),
    };

    step(
        out,
        "make a mesh with a manager",
        "one command: keys, an encrypted mesh and a manager, all in one process",
        stage.manager(),
    )
    .await?;
    step(
        out,
        "two machines join, each with one line",
        "a ticket is all it takes; no port, no certificate, no account",
        stage.agents(),
    )
    .await?;
    step(
        out,
        "meshwork node ls",
        "each node has signed what it is, and the manager has heard it",
        async {
            stage.meet(MEETING).await?;
            stage.show(&["node", "ls"]).await
        },
    )
    .await?;
    step(
        out,
        &format!("meshwork node ls '{QUERY}'"),
        "the query finds the node by its signed announcement",
        stage.show(&["node", "ls", QUERY]),
    )
    .await?;

    let docker = match has_docker {
        Ok(docker) => {
            run_container(stage, out, docker).await?;
            Ok(())
        }
        Err(error) => Err(error),
    };
    step(
        out,
        "an outsider who knows the pre-shared key, but has no token, asks for the sessions",
        "without a token of the mesh's authority nothing is allowed: exit code 3",
        denied(stage, out),
    )
    .await?;
    docker.map_err(|error| {
        CliError::new(Code::NO_BACKEND, format!("no container was run: {error}")).fix(
            "apt-get install docker.io and start dockerd, or name its socket: DOCKER_HOST=unix:///path",
        )
    })
}

async fn run_container(stage: &mut Stage, out: Out, docker: Docker) -> Result<(), CliError> {
    step(
        out,
        "make an image of our own static program",
        "nothing is fetched: the demo needs no network",
        stage.image(docker),
    )
    .await?;
    let image = stage.image_name().to_owned();
    let args = [
        "run", "--rm", "--gpu", "40GB..", "--mem", "64MiB", "--shm", "1MiB", "--pull", "none",
        "--where", QUERY,
    ];
    step(
        out,
        &format!("meshwork {} {image} -- hello", args.join(" ").replace(QUERY, &format!("'{QUERY}'"))),
        "a signed order became a real container with a GPU, its output came back, and it ended with 0",
        stage.show(&[&args[..], &[&image, "--", "hello"]].concat()),
    )
    .await
}

/// The attempt must fail, and for the right reason.
async fn denied(stage: &Stage, out: Out) -> Result<(), CliError> {
    let (code, said) = stage.stranger(&["ps"]).await?;
    if code == Some(EXIT_DENIED.into()) {
        out.remark(super::out::clean(&said));
        return Ok(());
    }
    Err(CliError::new(
        Code::INTERNAL,
        format!("the outsider was not denied (exit code {code:?}): {said}"),
    ))
}

/// One step: what is done, what it proves, how long it took.
async fn step(
    out: Out,
    what: &str,
    proves: &str,
    work: impl Future<Output = Result<(), CliError>>,
) -> Result<(), CliError> {
    out.remark(format_args!("\n▸ {what}"));
    let began = Instant::now();
    let done = work.await;
    match &done {
        Ok(()) => out.ok(format_args!("{proves}  {}", span(began.elapsed()))),
        Err(error) => out.fail(format_args!(
            "{}  {}",
            super::out::clean(&error.message),
            span(began.elapsed())
        )),
    }
    done
}
