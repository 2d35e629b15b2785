//! `meshwork run`: signs an order, hands it to the manager, and stays with it until it ends.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use meshwork_identity::Warrant;
use meshwork_proto::kernel::{KernelSpec, Mount, PullPolicy};
use meshwork_proto::manager::{Create, CreateSession, Stop, StopSession};
use meshwork_proto::session::{SessionOrder, SessionSpec};
use meshwork_proto::slots::{GpuRequest, Resources};
use meshwork_proto::{ByteSize, SessionId};

use super::client::Client;
use super::error::{CliError, Code};
use super::{session, values};
use crate::ambient::{now, random};

/// How long a signed order may be started. Long enough for a manager that restarts, short enough
/// that a copy of it is soon worthless.
const ORDER_LIFE: Duration = Duration::from_mins(15);
/// Size of /dev/shm, in bytes, where the memory has room for it: as Docker's.
const DEFAULT_SHM: u64 = 64 << 20;

#[derive(Debug, Args)]
#[command(
    after_help = "An attached run shows the container's output, ends with its exit code, and stops it at Ctrl-C \
                        (a second one does not wait for that). If this command dies, the session goes on: \
                        `meshwork logs -f` follows it again.\n\nGPUs: 1 | 40GB.. | 24GB..48GB:2 | H100:2 | nvidia:A100:40GB..:2"
)]
pub(super) struct RunArgs {
    /// Print the session's id and return as soon as a node has accepted it
    #[arg(short, long)]
    detach: bool,
    /// GPUs: how many, and what each must be
    #[arg(long, value_parser = values::gpus)]
    gpu: Option<GpuRequest>,
    /// Hardware threads, or a part of one
    #[arg(long, value_parser = values::cpu_millis, default_value = "1")]
    cpu: u64,
    /// Memory, without swap
    #[arg(long, value_parser = values::memory, default_value = "1GiB")]
    mem: ByteSize,
    /// Size of /dev/shm, inside the memory [default: 64MiB, at most half of the memory]
    #[arg(long, value_parser = values::memory)]
    shm: Option<ByteSize>,
    /// Query that the node must satisfy
    #[arg(long = "where", value_name = "QUERY")]
    place: Option<String>,
    /// Variable of its environment: NAME=VALUE, or NAME to pass on the one set here
    #[arg(short, long, value_parser = values::variable, value_name = "NAME[=VALUE]")]
    env: Vec<(String, String)>,
    /// Named folder of the node: NAME:/path or NAME:/path:ro
    #[arg(long = "vol", value_parser = values::mount, value_name = "NAME:/path[:ro]")]
    mounts: Vec<Mount>,
    /// Your name for the session
    #[arg(long)]
    name: Option<String>,
    /// Forget the session and its output when it ends
    #[arg(long)]
    rm: bool,
    /// When the node fetches the image
    #[arg(long, value_enum, default_value_t)]
    pull: Pull,
    /// Working directory in the container
    #[arg(long)]
    workdir: Option<String>,
    /// Show where it would run, and start nothing
    #[arg(long, conflicts_with = "detach")]
    dry_run: bool,
    /// Image
    image: String,
    /// Command and its arguments [default: the image's own]
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

#[derive(Debug, Clone, Copy, Default, clap::ValueEnum)]
enum Pull {
    /// When it is missing or the registry holds another digest
    Digest,
    /// When it is missing
    #[default]
    Tag,
    /// Never
    None,
}

impl RunArgs {
    /// What the user wants.
    fn spec(self) -> SessionSpec {
        let resources = Resources {
            cpu_millis: self.cpu,
            mem: self.mem.0,
            shm: self
                .shm
                .map_or_else(|| DEFAULT_SHM.min(self.mem.0 / 2), |shm| shm.0),
            gpu: self.gpu,
        };
        SessionSpec {
            name: self.name,
            kernel: KernelSpec {
                image: self.image,
                pull: match self.pull {
                    Pull::Digest => PullPolicy::Digest,
                    Pull::Tag => PullPolicy::Tag,
                    Pull::None => PullPolicy::None,
                },
                command: self.command,
                env: self.env.into_iter().collect(),
                mounts: self.mounts,
                workdir: self.workdir,
                resources,
                ..KernelSpec::default()
            },
            place: self.place,
            remove: self.rm,
        }
    }
}

pub(super) async fn run(client: &Client, args: RunArgs) -> Result<ExitCode, CliError> {
    let (detach, dry_run, rm) = (args.detach, args.dry_run, args.rm);
    let spec = args.spec();
    spec.check()?;
    let order = SessionOrder {
        session: SessionId::from_bytes(random()),
        spec,
        issued_at: now(),
        valid_for: ORDER_LIFE,
    };
    let warrant = Warrant::seal(&client.user, client.token()?, &order)
        .map_err(|e| CliError::new(Code::SPEC, e))?;
    let session = order.session;
    let request = CreateSession { warrant, dry_run };
    let created = tokio::select! {
        created = client.call::<Create>(&request) => created?,
        _ = tokio::signal::ctrl_c() => return give_up(client, session).await,
    };
    if dry_run {
        let value = serde_json::json!({ "node": created.view.node, "plan": created.plan });
        return client
            .out
            .facts(
                &value,
                &created.view.node.to_string(),
                &[("plan", created.plan)],
            )
            .map(|()| ExitCode::SUCCESS);
    }
    client
        .out
        .note(format_args!("plan  {}", super::out::clean(&created.plan)));
    if detach {
        if client.out.is_machine() {
            client
                .out
                .value(&session::SessionRow::from(&created.view))?;
        } else {
            client.out.data(&format!("{}\n", created.view.session))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    session::attach(client, &created.view, rm).await
}

/// Ctrl-C came before the answer: the manager may have accepted the order, or may not.
async fn give_up(client: &Client, session: SessionId) -> Result<ExitCode, CliError> {
    let request = StopSession {
        session: session.to_string(),
        grace: None,
    };
    match client.call::<Stop>(&request).await {
        Err(error) if error.code != Code::NOT_FOUND => Err(error),
        _ => Err(CliError::new(Code::CANCELLED, "interrupted before it ran")),
    }
}
