//! `meshwork demo`: the whole way on one machine, with real processes, sockets and a container.

mod stage;

use std::cell::RefCell;
use std::future::Future;
use std::time::{Duration, Instant};

use serde::Serialize;
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
        let mut stage = Stage::new(cx.out)?;
        stage.sweep().await;
        let bill = Bill::new(cx.out);
        let cancelled = || Err(CliError::new(Code::CANCELLED, "the demo was interrupted"));
        let played = tokio::select! {
            played = play(&mut stage, &bill) => played,
            _ = tokio::signal::ctrl_c() => cancelled(),
            _ = terminate.recv() => cancelled(),
        };
        let cleaned = bill
            .step(
                "clean up",
                "nothing is left: no process, container, image or file",
                stage.clean_up(),
            )
            .await;
        if cx.out.is_machine() {
            cx.out.value(&bill.steps.take())?;
        }
        let not_shown = played?;
        cleaned?;
        if let Some(why) = not_shown {
            cx.out.note(format_args!(
                "no container was run: {why}. fix: apt-get install docker.io and start dockerd, or \
                 name its socket: DOCKER_HOST=unix:///path"
            ));
        }
        Ok(())
    })
}

/// Plays every step. Where Docker is missing, the ones that need none; then says why.
async fn play(stage: &mut Stage, bill: &Bill) -> Result<Option<String>, CliError> {
    let docker = Docker::find(None);
    let has_docker = match &docker {
        Ok(docker) => docker.get("/version").await.map(|_| docker.clone()),
        Err(error) => Err(super::docker::DockerError::Host(error.to_string())),
    };

    bill.step(
        "make a mesh with a manager",
        "one command: keys, an encrypted mesh and a manager, all in one process",
        stage.manager(),
    )
    .await?;
    bill.step(
        "two machines join, each with one line",
        "a ticket is all it takes; no port, no certificate, no account",
        stage.agents(),
    )
    .await?;
    bill.step(
        "meshwork node ls",
        "each node has signed what it is, and the manager has heard it",
        async {
            stage.meet(MEETING).await?;
            stage.show(&["node", "ls"]).await
        },
    )
    .await?;
    bill.step(
        &format!("meshwork node ls '{QUERY}'"),
        "the query finds the node by its signed announcement",
        stage.show(&["node", "ls", QUERY]),
    )
    .await?;

    let not_shown = match has_docker {
        Ok(docker) => {
            run_container(stage, bill, docker).await?;
            None
        }
        Err(error) => Some(error.to_string()),
    };
    bill.step(
        "an outsider who knows the pre-shared key, but has no token, asks for the sessions",
        "without a token of the mesh's authority nothing is allowed: exit code 3",
        denied(stage, bill.out),
    )
    .await?;
    Ok(not_shown)
}

async fn run_container(stage: &mut Stage, bill: &Bill, docker: Docker) -> Result<(), CliError> {
    bill.step(
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
    bill.step(
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

/// The steps, as they are told.
struct Bill {
    out: Out,
    steps: RefCell<Vec<Step>>,
}

/// One step: what was done, what it proves, how long it took.
#[derive(Debug, Serialize)]
struct Step {
    what: String,
    proves: &'static str,
    ok: bool,
    error: Option<String>,
    took_ms: u64,
}

impl Bill {
    fn new(out: Out) -> Self {
        Self {
            out,
            steps: RefCell::default(),
        }
    }

    async fn step(
        &self,
        what: &str,
        proves: &'static str,
        work: impl Future<Output = Result<(), CliError>>,
    ) -> Result<(), CliError> {
        self.out.remark(format_args!("\n▸ {what}"));
        let began = Instant::now();
        let done = work.await;
        let took = began.elapsed();
        let error = done.as_ref().err().map(|e| super::out::clean(&e.message));
        match &error {
            None => self.out.ok(format_args!("{proves}  {}", span(took))),
            Some(error) => self.out.fail(format_args!("{error}  {}", span(took))),
        }
        self.steps.borrow_mut().push(Step {
            what: what.to_owned(),
            proves,
            ok: error.is_none(),
            error,
            took_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        });
        done
    }
}
