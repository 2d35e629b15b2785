//! `meshwork up`: runs the node of this machine.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use meshwork_agent::hardware;
use meshwork_proto::ByteSize;
use meshwork_proto::announcement::{Gpu, Role};
use meshwork_proto::mesh::PeerView;
use meshwork_proto::path::NatClass;
use tokio::signal::unix::{SignalKind, signal};

use super::error::{CliError, Code};
use super::out::{address, span};
use super::{Context, init};
use crate::config::{Config, node_name, role};
use crate::home::{Home, HomeError, RunFile, Who};
use crate::node::{Node, NodeError, OnStep, Step, agent_config};

/// Worker threads of a node: its load is small packets, not computing.
const WORKERS: usize = 2;
/// Time to finish running calls after the first signal.
pub(super) const DRAIN: Duration = Duration::from_secs(10);
/// Time for a detached node to get ready.
const DETACHED_START: Duration = Duration::from_secs(20);
/// Time between two looks at whether it does.
pub(super) const LOOK: Duration = Duration::from_millis(20);
/// What helps against a description of GPUs that cannot be used.
pub(super) const MOCK_FIX: &str =
    "name a readable file like configs/mock-gpus.toml, or leave mock_accelerators out";

#[derive(Debug, Args)]
pub(super) struct UpArgs {
    #[command(flatten)]
    pub(super) node: NodeArgs,
    /// Tell what the node does on standard error (RUST_LOG says more)
    #[arg(long)]
    pub(super) log: bool,
}

/// What `up` and `join` have in common.
#[derive(Debug, Default, Args)]
pub(super) struct NodeArgs {
    /// UDP socket [default: of config.toml, else port 4460 on every address]
    #[arg(long, value_name = "IP:PORT")]
    listen: Option<SocketAddr>,
    /// What the node does: agent, manager, relay (repeat for several) [default: of config.toml, else what it joined as]
    #[arg(long = "role", value_parser = role, value_name = "ROLE")]
    roles: Vec<Role>,
    /// Name of the node [default: of config.toml, else the host's name]
    #[arg(long, value_parser = node_name)]
    pub(super) name: Option<String>,
    /// Return when the node is ready, and leave it running
    #[arg(short, long)]
    pub(super) detach: bool,
    /// End when standard input closes: for a parent whose end, however sudden, shall end the node
    #[arg(long, hide = true, conflicts_with = "detach")]
    while_stdin: bool,
}

pub(super) fn up(cx: &Context, args: &UpArgs) -> Result<(), CliError> {
    if !cx.home.has_mesh() {
        let authority = init::make(&cx.home, args.node.name.clone())?;
        init::report(&cx.home, cx.out, authority)?;
    }
    init::renew(&cx.home)?;
    serve(cx, &args.node, Instant::now())?;
    Ok(())
}

/// Runs the node until it is told to end, or leaves it running. `began`: when the user began to
/// wait for it.
pub(super) fn serve(cx: &Context, args: &NodeArgs, began: Instant) -> Result<(), CliError> {
    let config = config(&cx.home, args)?;
    // Whether there is a node to run at all, before a process or a folder is made for it.
    cx.home.identity(Who::Node)?;
    if args.detach {
        return detach(cx, args);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build()?;
    let done = runtime.block_on(run(cx, config, began, args.while_stdin));
    // What is left are tasks that did not end by their deadline.
    runtime.shutdown_background();
    done
}

/// The operator's settings, with those of the command line over them.
fn config(home: &Home, args: &NodeArgs) -> Result<Config, CliError> {
    let mut config: Config = home.read_toml("config.toml")?.unwrap_or_default();
    config.listen = args.listen.unwrap_or(config.listen);
    config.name = args.name.clone().or(config.name);
    if !args.roles.is_empty() {
        config.roles = Some(args.roles.iter().copied().collect());
    }
    Ok(config)
}

/// Refuses settings of the agent's part that cannot work on this machine.
async fn check_agent(home: &Home, config: &Config) -> Result<(), CliError> {
    let wrong = |text: String, fix: &str| {
        let file = home.path("config.toml");
        CliError::new(Code::CONFIG, format!("{}: {text}", file.display())).fix(fix)
    };
    let reserved = config.agent.reserved_cpus;
    if reserved > 0 {
        let threads = hardware::collect(home.root(), Vec::new()).0.cpu_threads;
        if reserved >= threads {
            return Err(wrong(
                format!(
                    "reserved_cpus = {reserved} leaves none of this machine's {threads} hardware threads to containers"
                ),
                "reserve fewer",
            ));
        }
    }
    if config.agent.mock_accelerators.is_some() {
        meshwork_agent::probe_gpus(&agent_config(home, config))
            .await
            .map_err(|e| wrong(format!("mock_accelerators: {e}"), MOCK_FIX))?;
    }
    Ok(())
}

async fn run(
    cx: &Context,
    config: Config,
    began: Instant,
    while_stdin: bool,
) -> Result<(), CliError> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    check_agent(&cx.home, &config).await?;
    let identity = cx.home.identity(Who::Node)?.node_id();
    cx.out.ok(format_args!(
        "identity  {} (ed25519, {})",
        identity.short(),
        cx.home.key_path(Who::Node).display()
    ));
    let node = Node::start(&cx.home, config, tell(cx, began)).await?;
    if cx.home.authority()?.is_some() {
        cx.out.remark("next: meshwork invite --role agent");
    }
    tracing::info!(node = %node.id().short(), "serving");
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        () = stdin_closed(), if while_stdin => {}
    }
    cx.out
        .remark("stopping; kernels go on (again to stop at once)");
    tokio::select! {
        () = node.shutdown(DRAIN) => Ok(()),
        _ = interrupt.recv() => Err(CliError::new(Code::CANCELLED, "stopped at once")),
        _ = terminate.recv() => Err(CliError::new(Code::CANCELLED, "stopped at once")),
    }
}

/// Waits for the end of standard input, on a thread that nobody joins: a blocking read cannot be
/// interrupted, and the process ends soon anyhow.
async fn stdin_closed() {
    let (closed, is_closed) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        let _ = closed.send(());
    });
    let _ = is_closed.await;
}

/// Prints the steps of a starting node, each once: the agent's part may be tried many times.
fn tell(cx: &Context, began: Instant) -> OnStep {
    let (out, home) = (cx.out, cx.home.clone());
    let complained = AtomicBool::new(false);
    Arc::new(move |step| match step {
        Step::Listening(addresses) => {
            let ports: Vec<String> = addresses.iter().map(|a| format!("udp {a}")).collect();
            out.ok(format_args!("listening {}", ports.join(", ")));
        }
        Step::Metrics(address) => out.ok(format_args!("metrics   http://{address}/metrics")),
        Step::Path(peer) => out.ok(path_line(&peer)),
        Step::Nat(class, seen) => {
            let seen = seen.map_or_else(String::new, |at| format!(", seen as {}", address(at)));
            out.ok(format_args!("nat       {class}{seen}: {}", in_words(class)));
        }
        Step::Agent { backend, gpus } => {
            for gpu in &gpus {
                out.ok(gpu_line(gpu));
            }
            out.ok(backend);
        }
        Step::NoAgent(why) => {
            if !complained.swap(true, Ordering::Relaxed) {
                out.warn(format_args!(
                    "runs no containers yet, trying again: {}",
                    super::out::clean(&why)
                ));
            }
        }
        Step::Announced => {
            out.ok(format_args!(
                "announced, signed  → ready in {}",
                span(began.elapsed())
            ));
            // A program reads where the node listens, and goes on when standard output says it.
            if out.is_machine()
                && let Ok(Some(run)) = home.running()
                && let Err(error) = out.value(&run)
            {
                tracing::warn!(%error, "nobody reads where the node listens");
            }
        }
    })
}

/// `path direct udp 1.2.3.4:4460, 23 ms`.
pub(super) fn path_line(peer: &PeerView) -> String {
    let ms = peer.rtt.as_micros() / 1000;
    if peer.path.starts_with("relay") {
        return format!("path      {}, {ms} ms", super::out::clean(&peer.path));
    }
    format!(
        "path      {} udp {}, {ms} ms",
        peer.path,
        address(peer.address)
    )
}

/// What a kind of NAT means for whoever wants to reach the machine.
pub(super) fn in_words(class: NatClass) -> &'static str {
    match class {
        NatClass::Open => "others reach this machine directly",
        NatClass::Cone => {
            "others reach it directly once both sides knock, through a relay until then"
        }
        NatClass::Symmetric => {
            "machines that are open reach it directly, all others through a relay"
        }
        NatClass::Unknown => "too few peers have told how they see this machine",
    }
}

fn gpu_line(gpu: &Gpu) -> String {
    let line = format!("GPU {} {} {}", gpu.index, gpu.model, ByteSize(gpu.vram));
    if gpu.driver.is_empty() {
        return line;
    }
    format!("{line} · driver {}", gpu.driver)
}

/// Starts this program again without a terminal, and waits until it is ready.
fn detach(cx: &Context, args: &NodeArgs) -> Result<(), CliError> {
    if cx.home.running()?.is_some() {
        return Err(HomeError::Running(cx.home.root().to_owned()).into());
    }
    let log = cx.home.path("run/node.log");
    cx.home.make_run_folder()?;
    let file = File::create(&log).map_err(|e| CliError::file(&log, &e))?;
    let mut command = Command::new(std::env::current_exe()?);
    command
        .arg("--home")
        .arg(cx.home.root())
        .args(["up", "--log"]);
    if let Some(listen) = args.listen {
        command.args(["--listen", &listen.to_string()]);
    }
    if let Some(name) = &args.name {
        command.args(["--name", name]);
    }
    for role in &args.roles {
        command.args(["--role", role.name()]);
    }
    let mut child = command
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        // Ctrl-C here must not reach it.
        .process_group(0)
        .spawn()?;
    let began = Instant::now();
    loop {
        if let Some(run) = cx
            .home
            .running()?
            .filter(|run| run.ready && run.pid == child.id())
        {
            return report_detached(cx, &run);
        }
        if let Some(status) = child.try_wait()? {
            let text = fs::read_to_string(&log).unwrap_or_default();
            let error = CliError::from_printed(&text)
                .unwrap_or_else(|| CliError::new(Code::START, format!("the node ended: {status}")));
            return Err(match error.fix {
                Some(_) => error,
                None => error.fix(format_args!("see {}", log.display())),
            });
        }
        if began.elapsed() > DETACHED_START {
            return Err(CliError::new(Code::START, "the node is not ready yet")
                .fix(format_args!("see {}", log.display())));
        }
        std::thread::sleep(LOOK);
    }
}

fn report_detached(cx: &Context, run: &RunFile) -> Result<(), CliError> {
    if cx.out.is_machine() {
        return cx.out.value(run);
    }
    if cx.out.quiet {
        return cx.out.data(&format!("{}\n", run.pid));
    }
    let addresses: Vec<String> = run.addrs.iter().map(ToString::to_string).collect();
    cx.out.ok(format_args!(
        "node {} runs as process {}, listening on {}",
        run.node.short(),
        run.pid,
        addresses.join(", ")
    ));
    Ok(())
}

impl From<NodeError> for CliError {
    fn from(error: NodeError) -> Self {
        match error {
            NodeError::Home(error) => error.into(),
            NodeError::Mesh(error) => error.into(),
            NodeError::Metrics { .. } => Self::new(Code::START, error)
                .fix("another program may use the port: name another one in config.toml"),
            NodeError::State { .. } | NodeError::Manager(_) => {
                Self::new(Code::START, super::error::chain(&error))
            }
        }
    }
}
