//! `meshwork node`: the machines of the mesh, as a manager sees them.

use std::time::Duration;

use clap::{Args, Subcommand};
use meshwork_proto::ByteSize;
use meshwork_proto::announcement::{Disk, Gpu};
use meshwork_proto::manager::{FindNodes, ListNodes, NodeState, NodeView, Nodes, ScopedNodes};
use meshwork_proto::query::QueryError;
use meshwork_proto::query::scope::narrowing_tags;
use meshwork_proto::slots::Health;
use serde::Serialize;

use super::client::Client;
use super::error::{CliError, Code};
use super::out::{Row, counted, span};

#[derive(Debug, Subcommand)]
pub(super) enum NodeCommand {
    /// List nodes, all or those that satisfy a query
    Ls(LsArgs),
    /// Show one node
    Show(ShowArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "Queries: gpu.vram >= 40GB and tags has \"prod\" and not region = \"eu\"")]
pub(super) struct LsArgs {
    /// Query that the nodes must satisfy
    query: Option<String>,
    /// Nodes that this scope shows: any, global-only, same-subnet, tenant:ID, region:NAME, own, or
    /// everything
    #[arg(long, value_name = "SCOPE")]
    scope: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct ShowArgs {
    /// Name, id or prefix of the id
    node: String,
}

pub(super) async fn node(client: &Client, command: NodeCommand) -> Result<(), CliError> {
    match command {
        NodeCommand::Ls(args) => {
            let views = list(client, args).await?;
            client
                .out
                .list(&views.iter().map(NodeRow::from).collect::<Vec<_>>())
        }
        NodeCommand::Show(args) => show(client, &args.node).await,
    }
}

async fn list(client: &Client, args: LsArgs) -> Result<Vec<NodeView>, CliError> {
    let query = args.query;
    let Some(scope) = args.scope else {
        return client.call::<Nodes>(&ListNodes { query }).await;
    };
    let scope = scope
        .parse()
        .map_err(|error: QueryError| CliError::new(Code::SPEC, format!("--scope: {error}")))?;
    client
        .call::<ScopedNodes>(&FindNodes { query, scope })
        .await
}

/// A node in a list.
#[derive(Debug, Serialize)]
struct NodeRow {
    node: String,
    name: String,
    state: NodeState,
    roles: Vec<String>,
    path: String,
    rtt_ms: Option<f64>,
    gpus: Vec<GpuRow>,
    arch: String,
    cpu_model: String,
    cpu_cores: u32,
    cpu_threads: u32,
    cpu_free: Option<f64>,
    memory: u64,
    memory_free: Option<u64>,
    disks: Vec<Disk>,
    vram_free: Option<u64>,
    kernels: u32,
    tags: Vec<String>,
    /// Of the tags, those that decide who finds the node.
    scopes: Vec<String>,
    region: Option<String>,
    subnet: Option<String>,
    services: Vec<String>,
    models: Vec<String>,
    tools: Vec<String>,
    addresses: Vec<String>,
    images: Vec<String>,
    os: String,
    kernel: String,
    cuda: Option<String>,
    rocm: Option<String>,
    backend: Option<String>,
    version: String,
    seen_ms: u64,
    #[serde(skip)]
    short: String,
}

#[derive(Debug, Serialize)]
struct GpuRow {
    index: u32,
    vendor: String,
    model: String,
    vram: u64,
    driver: String,
    /// CUDA compute capability.
    cc: Option<String>,
    uuid: String,
    mig: bool,
    vram_used: Option<u64>,
    health: Option<Health>,
    kernel: Option<String>,
}

#[expect(clippy::cast_precision_loss, reason = "shown with few digits")]
impl From<&NodeView> for NodeRow {
    fn from(view: &NodeView) -> Self {
        let said = &view.announcement;
        let capacity = view.capacity.as_ref();
        let gpu = |gpu: &Gpu| {
            let status = capacity.and_then(|c| c.gpus.iter().find(|g| g.device.uuid == gpu.uuid));
            GpuRow {
                index: gpu.index,
                vendor: gpu.vendor.clone(),
                model: gpu.model.clone(),
                vram: gpu.vram,
                driver: gpu.driver.clone(),
                cc: gpu.compute_capability.map(|(x, y)| format!("{x}.{y}")),
                uuid: gpu.uuid.clone(),
                mig: gpu.mig,
                vram_used: status.map(|s| s.vram_used),
                health: status.map(|s| s.health),
                kernel: status.and_then(|s| s.kernel).map(|k| k.to_string()),
            }
        };
        Self {
            node: view.node.to_string(),
            name: said.name.clone(),
            state: view.state,
            roles: said.roles.iter().map(ToString::to_string).collect(),
            path: view.path.clone(),
            rtt_ms: view.rtt.map(|rtt| rtt.as_micros() as f64 / 1000.0),
            gpus: said.hardware.gpus.iter().map(gpu).collect(),
            arch: said.hardware.arch.clone(),
            cpu_model: said.hardware.cpu_model.clone(),
            cpu_cores: said.hardware.cpu_cores,
            cpu_threads: said.hardware.cpu_threads,
            cpu_free: capacity.map(|c| c.cpu_free as f64 / 1000.0),
            memory: said.hardware.memory,
            memory_free: capacity.map(|c| c.mem_free),
            disks: said.hardware.disks.clone(),
            vram_free: capacity.map(|c| {
                let free = c.gpus.iter().filter(|g| g.is_free());
                free.map(|g| g.device.vram.saturating_sub(g.vram_used))
                    .sum()
            }),
            kernels: view.kernels,
            tags: said.tags.iter().cloned().collect(),
            scopes: narrowing_tags(said)
                .into_iter()
                .map(str::to_owned)
                .collect(),
            region: said.region.clone(),
            subnet: said.subnet.as_ref().map(ToString::to_string),
            services: said.services.iter().cloned().collect(),
            models: said.models.iter().cloned().collect(),
            tools: said.tools.iter().cloned().collect(),
            addresses: said.addresses.iter().map(ToString::to_string).collect(),
            images: said.images.clone(),
            os: said.software.os.clone(),
            kernel: said.software.kernel.clone(),
            cuda: said.software.cuda.clone(),
            rocm: said.software.rocm.clone(),
            backend: said.software.container_backend.clone(),
            version: said.software.meshwork.clone(),
            seen_ms: u64::try_from(view.seen.as_millis()).unwrap_or(u64::MAX),
            short: view.node.short(),
        }
    }
}

impl GpuRow {
    /// All of it in a line.
    fn text(&self) -> String {
        let mut parts = vec![format!(
            "{}: {} {}",
            self.index,
            self.model,
            ByteSize(self.vram)
        )];
        parts.push(self.vendor.clone());
        if !self.driver.is_empty() {
            parts.push(format!("driver {}", self.driver));
        }
        parts.extend(self.cc.as_ref().map(|cc| format!("compute {cc}")));
        parts.extend(self.mig.then(|| "MIG".to_owned()));
        parts.extend(self.vram_used.map(|b| format!("{} in use", ByteSize(b))));
        parts.extend(self.kernel.as_ref().map(|k| format!("held by {k}")));
        if self.health == Some(Health::Unknown) {
            parts.push("health unknown".to_owned());
        }
        parts.push(self.uuid.clone());
        parts.join(", ")
    }
}

impl NodeRow {
    /// `data 400GB, images 400GB`.
    fn disks_text(&self) -> String {
        let disks = self.disks.iter();
        let texts = disks.map(|disk| format!("{} {}", disk.purpose, ByteSize(disk.total)));
        texts.collect::<Vec<_>>().join(", ")
    }

    /// `4×A100 80GB`, for each kind of device.
    fn gpu_text(&self) -> String {
        let mut kinds: Vec<(String, usize)> = Vec::new();
        for gpu in &self.gpus {
            let size = ByteSize(gpu.vram).to_string();
            let named = gpu.model.replace(' ', "").contains(&size);
            let kind = if named {
                gpu.model.clone()
            } else {
                format!("{} {size}", gpu.model)
            };
            match kinds.iter_mut().find(|(k, _)| *k == kind) {
                Some((_, count)) => *count += 1,
                None => kinds.push((kind, 1)),
            }
        }
        let texts: Vec<String> = kinds
            .iter()
            .map(|(kind, n)| format!("{n}×{kind}"))
            .collect();
        if texts.is_empty() {
            "-".into()
        } else {
            texts.join(", ")
        }
    }

    fn health_text(&self) -> String {
        let sick = self
            .gpus
            .iter()
            .filter(|g| g.health == Some(Health::Unknown))
            .count();
        match sick {
            // Nothing was heard of its devices, or of them no more.
            _ if self.vram_free.is_none() => "-".into(),
            0 => "ok".into(),
            n => format!("{} unknown", counted(n, "GPU")),
        }
    }

    fn state_text(&self) -> &'static str {
        match self.state {
            NodeState::Ready => "ready",
            NodeState::Suspect => "suspect",
            NodeState::Lost => "lost",
            NodeState::Online => "online",
        }
    }

    fn seen_text(&self) -> String {
        span(Duration::from_millis(self.seen_ms))
    }
}

fn or_dash(text: Option<String>) -> String {
    text.filter(|t| !t.is_empty())
        .unwrap_or_else(|| "-".to_owned())
}

impl Row for NodeRow {
    fn head(wide: bool) -> Vec<&'static str> {
        let mut head = vec![
            "NODE",
            "STATE",
            "PATH",
            "GPU",
            "FREE VRAM",
            "JOBS",
            "HEALTH",
            "SEEN",
            "VERSION",
        ];
        if wide {
            head.extend(["RTT", "CPU", "FREE MEM", "ROLES", "TAGS", "ID"]);
        }
        head
    }

    fn cells(&self, wide: bool) -> Vec<String> {
        let mut cells = vec![
            self.name.clone(),
            self.state_text().to_owned(),
            or_dash(Some(self.path.clone())),
            self.gpu_text(),
            or_dash(
                self.vram_free
                    .filter(|_| !self.gpus.is_empty())
                    .map(|b| ByteSize(b).to_string()),
            ),
            self.kernels.to_string(),
            self.health_text(),
            self.seen_text(),
            self.version.clone(),
        ];
        if wide {
            cells.extend([
                or_dash(self.rtt_ms.map(|ms| format!("{ms:.1}ms"))),
                match self.cpu_free {
                    Some(free) => format!("{free} of {} free", self.cpu_threads),
                    None => self.cpu_threads.to_string(),
                },
                or_dash(self.memory_free.map(|b| ByteSize(b).to_string())),
                self.roles.join(","),
                or_dash(Some(self.tags.join(","))),
                self.node.clone(),
            ]);
        }
        cells
    }

    fn id(&self) -> String {
        self.node.clone()
    }
}

/// Who finds a node with these scope tags.
fn shown_to(scopes: &[String]) -> String {
    if scopes.is_empty() {
        "everyone".to_owned()
    } else {
        scopes.join(", ")
    }
}

async fn show(client: &Client, wanted: &str) -> Result<(), CliError> {
    let views = client.call::<Nodes>(&ListNodes::default()).await?;
    let by_name: Vec<&NodeView> = views
        .iter()
        .filter(|v| v.announcement.name == wanted)
        .collect();
    let found = if by_name.is_empty() {
        views
            .iter()
            .filter(|v| v.node.matches_prefix(wanted))
            .collect()
    } else {
        by_name
    };
    let view = match found[..] {
        [view] => view,
        [] => {
            return Err(
                CliError::new(Code::NOT_FOUND, format!("there is no node `{wanted}`"))
                    .fix("meshwork node ls"),
            );
        }
        _ => {
            return Err(CliError::new(
                Code::VALUE,
                format!("{} nodes are meant by `{wanted}`", found.len()),
            )
            .fix("write more of the id: meshwork node ls -o wide"));
        }
    };
    let row = NodeRow::from(view);
    let mut facts = vec![
        ("node", format!("{} ({})", row.name, row.short)),
        ("id", row.node.clone()),
        (
            "state",
            format!("{}, seen {} ago", row.state_text(), row.seen_text()),
        ),
        ("roles", row.roles.join(", ")),
        ("path", or_dash(Some(row.path.clone()))),
        ("addresses", or_dash(Some(row.addresses.join(", ")))),
        ("tags", or_dash(Some(row.tags.join(", ")))),
        ("shown to", shown_to(&row.scopes)),
        ("region", or_dash(row.region.clone())),
        ("subnet", or_dash(row.subnet.clone())),
        ("services", or_dash(Some(row.services.join(", ")))),
        ("os", or_dash(Some(row.os.clone()))),
        ("kernel", or_dash(Some(row.kernel.clone()))),
        ("arch", or_dash(Some(row.arch.clone()))),
        ("cuda", or_dash(row.cuda.clone())),
        ("rocm", or_dash(row.rocm.clone())),
        ("containers", or_dash(row.backend.clone())),
        ("version", row.version.clone()),
        (
            "cpu",
            format!(
                "{} of {}, {}",
                counted(row.cpu_threads as usize, "thread"),
                counted(row.cpu_cores as usize, "core"),
                row.cpu_model
            ),
        ),
        (
            "memory",
            match row.memory_free {
                Some(free) => format!("{}, {} free", ByteSize(row.memory), ByteSize(free)),
                None => ByteSize(row.memory).to_string(),
            },
        ),
        ("disks", or_dash(Some(row.disks_text()))),
        ("images", or_dash(Some(row.images.join(", ")))),
        ("sessions", row.kernels.to_string()),
    ];
    facts.extend(row.gpus.iter().map(|gpu| ("gpu", gpu.text())));
    client.out.facts(&row, &row.node, &facts)
}
