//! `meshwork doctor`: looks at everything that commonly goes wrong, and says how to repair it.

mod network;

use std::fmt::Display;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use meshwork_identity::{Grant, Resource, Revocations, Scope, VerifyContext};
use meshwork_proto::ByteSize;
use meshwork_proto::mesh::{Inspect, MeshStatus};
use serde::Serialize;

use super::Context;
use super::client::Client;
use super::docker::Docker;
use super::error::{CliError, Code};
use super::join::{CLOCK_TOLERANCE, clock_offset};
use super::out::{Out, span};
use super::up::MOCK_FIX;
use crate::ambient::now;
use crate::config::Config;
use crate::home::{Home, HomeError, RunFile, Who};
use crate::node::agent_config;

/// Tokens that end sooner than this are worth a word.
const SOON: Duration = Duration::from_hours(7 * 24);
/// Free space below which pulling an image will hardly work.
const LOW_DISK: u64 = 5_000_000_000;
/// Time for `df`: a file system may hang.
const PROBE: Duration = Duration::from_secs(10);
/// The first runc without CVE-2024-21626, by which a container reaches the host's files.
const SAFE_RUNC: [u32; 3] = [1, 1, 12];

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Health {
    Ok,
    Warning,
    Failed,
}

/// One thing looked at.
#[derive(Debug, Serialize)]
struct Finding {
    check: &'static str,
    health: Health,
    text: String,
    fix: Option<String>,
}

impl Finding {
    fn new(check: &'static str, health: Health, text: impl Display) -> Self {
        Self {
            check,
            health,
            text: text.to_string(),
            fix: None,
        }
    }

    fn ok(check: &'static str, text: impl Display) -> Self {
        Self::new(check, Health::Ok, text)
    }

    fn warning(check: &'static str, text: impl Display, fix: &str) -> Self {
        Self {
            fix: Some(fix.to_owned()),
            ..Self::new(check, Health::Warning, text)
        }
    }

    fn failed(check: &'static str, error: &CliError) -> Self {
        let (text, fix) = (error.message.clone(), error.fix.clone());
        Self {
            check,
            health: Health::Failed,
            text,
            fix,
        }
    }

    fn print(&self, out: Out) {
        let fix = self
            .fix
            .as_ref()
            .map_or_else(String::new, |fix| format!(". fix: {fix}"));
        let line = super::out::clean(&format!("{:10} {}{fix}", self.check, self.text));
        match self.health {
            Health::Ok => out.ok(line),
            Health::Warning => out.warn(line),
            Health::Failed => out.fail(line),
        }
    }
}

pub(super) fn doctor(cx: &Context) -> Result<(), CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let findings = runtime.block_on(examine(cx));
    if cx.out.is_machine() {
        cx.out.value(&findings)?;
    }
    let failed = findings
        .iter()
        .filter(|f| f.health == Health::Failed)
        .count();
    match failed {
        0 => Ok(()),
        n => Err(CliError::new(
            Code::UNHEALTHY,
            format!("{n} of {} checks failed", findings.len()),
        )),
    }
}

async fn examine(cx: &Context) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut tell = |found: Vec<Finding>| {
        for finding in &found {
            finding.print(cx.out);
        }
        findings.extend(found);
    };
    tell(vec![folder(&cx.home)]);
    if cx.home.has_mesh() {
        tell(secrets(&cx.home));
        tell(mesh(cx).await);
        tell(this_node(cx).await);
    } else {
        tell(vec![Finding::warning(
            "mesh",
            "this machine is in no mesh",
            "meshwork up, or meshwork join TICKET",
        )]);
    }
    tell(vec![network::mtu()]);
    tell(containers(&cx.home).await);
    tell(vec![disk(&cx.home).await, gpus(&cx.home).await]);
    findings
}

fn folder(home: &Home) -> Finding {
    match fs::metadata(home.root()) {
        Ok(found) if found.permissions().mode() & 0o022 != 0 => {
            let fix = format!("chmod go-w {}", home.root().display());
            Finding::warning("home", "others may write into the data folder", &fix)
        }
        Ok(_) if home.has_mesh() && matches!(home.lock(), Err(HomeError::Io { .. })) => {
            let text = format!("{} cannot be written to", home.root().display());
            let fix = "make room on its disk, or give it to the user who runs the node";
            Finding::warning("home", text, fix)
        }
        Ok(_) => Finding::ok("home", home.root().display()),
        Err(_) => Finding::ok(
            "home",
            format!("{} is yet to be made", home.root().display()),
        ),
    }
}

/// Keys, PSK and tokens: readable by us alone, whole, and still good.
fn secrets(home: &Home) -> Vec<Finding> {
    let mut found = Vec::new();
    let fail = |error| vec![Finding::failed("secrets", &CliError::from(error))];
    let mesh = match home.mesh() {
        Ok(mesh) => mesh,
        Err(error) => return fail(error),
    };
    if let Err(error) = home.psk() {
        found.extend(fail(error));
    }
    let revocations = Revocations::new();
    for (who, check) in [(Who::Node, "node"), (Who::User, "user")] {
        let token = match (home.key_path(who).exists(), home.token(who)) {
            (false, Ok(None)) => continue,
            (_, Ok(token)) => token,
            (_, Err(error)) => {
                found.extend(fail(error));
                continue;
            }
        };
        let identity = match home.identity(who) {
            Ok(identity) => identity.node_id(),
            Err(error) => {
                found.extend(fail(error));
                continue;
            }
        };
        let Some(token) = token else {
            let fix = "ask an admin for a ticket: meshwork invite";
            found.push(Finding::warning(
                check,
                format!("{} has no token", identity.short()),
                fix,
            ));
            continue;
        };
        found.push(
            match token.verify(&VerifyContext::new(&mesh.authority, now(), &revocations)) {
                Err(error) => Finding::failed(check, &CliError::from(error)),
                Ok(grant) if grant.subject != identity => {
                    let error = CliError::new(Code::TOKEN, "the token is for someone else");
                    Finding::failed(check, &error)
                }
                Ok(grant) => {
                    let left = grant.expires.duration_since(now());
                    let text = format!(
                        "{} may {} for another {}",
                        identity.short(),
                        may(&grant),
                        span(left)
                    );
                    if left < SOON {
                        Finding::warning(check, text, "ask an admin for a new ticket")
                    } else {
                        Finding::ok(check, text)
                    }
                }
            },
        );
    }
    found
}

/// What a token allows, in few words.
fn may(grant: &Grant) -> String {
    if grant.scopes.contains(Scope::Admin) && grant.resource == Resource::any() {
        return "do everything".to_owned();
    }
    format!("{} on {}", grant.scopes, grant.resource)
}

/// Whether a node answers, and what its clock says.
async fn mesh(cx: &Context) -> Vec<Finding> {
    if !cx.home.key_path(Who::User).exists() {
        return match cx.home.running() {
            Ok(Some(run)) => vec![Finding::ok(
                "mesh",
                format!("the node runs as process {}", run.pid),
            )],
            _ => vec![Finding::warning(
                "mesh",
                "the node does not run",
                "meshwork up",
            )],
        };
    }
    let client = match Client::connect(cx).await {
        Ok(client) => client,
        Err(mut error) => {
            if matches!(error.code, Code::TIMEOUT | Code::NO_ROUTE) {
                error.fix = Some(
                    "is the node up and its UDP port open? a node with another pre-shared key stays silent, \
                     so that looks the same: compare the psk files, or join again"
                        .to_owned(),
                );
            }
            return vec![Finding::failed("mesh", &error)];
        }
    };
    let mut found = Vec::new();
    let peer = client
        .mesh()
        .peers()
        .into_iter()
        .find(|peer| peer.node == client.server);
    let path = peer.map_or_else(String::new, |p| {
        format!(
            " at {}, {:.1} ms",
            super::out::address(p.address),
            p.rtt.as_secs_f64() * 1000.0
        )
    });
    found.push(Finding::ok(
        "mesh",
        format!("{} answers{path}", client.server.short()),
    ));
    match clock_offset(client.mesh(), client.server).await {
        Ok(offset) if offset.within(CLOCK_TOLERANCE / 10) => {
            found.push(Finding::ok("clock", offset));
        }
        Ok(offset) => {
            let fix = "let chrony or systemd-timesyncd set this machine's clock";
            found.push(Finding::warning(
                "clock",
                format!("{offset} against {}", client.server.short()),
                fix,
            ));
        }
        Err(error) => found.push(Finding::failed("clock", &CliError::from(error))),
    }
    client.close().await;
    found
}

/// What the node that runs here says of itself.
async fn ask(cx: &Context, run: &RunFile) -> Option<MeshStatus> {
    let here = Context {
        home: cx.home.clone(),
        out: cx.out,
        server: Some(run.node.to_string()),
    };
    let client = Client::connect(&here).await.ok()?;
    let status = client.call::<Inspect>(&()).await.ok();
    let user = client.user.node_id();
    client.close().await;
    status.map(|mut status| {
        // This very question came over a connection, too.
        status.peers.retain(|peer| peer.node != user);
        status
    })
}

/// How the node that runs here stands with the network.
async fn this_node(cx: &Context) -> Vec<Finding> {
    let home = &cx.home;
    let asked = match (home.running(), home.key_path(Who::User).exists()) {
        (Ok(Some(run)), true) => ask(cx, &run).await,
        _ => None,
    };
    // Without a user there is still what the node wrote down some seconds ago.
    let Some(status) = asked.or_else(|| home.status()) else {
        return Vec::new();
    };
    // A file that does not parse is found elsewhere.
    let config: Config = home
        .read_toml("config.toml")
        .ok()
        .flatten()
        .unwrap_or_default();
    let contacts = home.contacts().map_or(0, |known| known.contact.len());
    network::findings(&status, &config, contacts)
}

async fn containers(home: &Home) -> Vec<Finding> {
    let config: Config = match home.read_toml("config.toml") {
        Ok(config) => config.unwrap_or_default(),
        Err(error) => return vec![Finding::failed("config", &error.into())],
    };
    let docker = Docker::find(config.agent.docker_socket);
    let version = match &docker {
        Ok(docker) => docker.get("/version").await,
        Err(_) => {
            return vec![Finding::warning(
                "docker",
                "DOCKER_HOST is no unix socket",
                "export DOCKER_HOST=unix:///path",
            )];
        }
    };
    let (Ok(docker), Ok(version)) = (&docker, &version) else {
        let why = version.err().map_or_else(String::new, |e| e.to_string());
        let fix = "apt-get install docker.io, start dockerd, or set DOCKER_HOST; without it this node runs no containers";
        return vec![Finding::warning("docker", why, fix)];
    };
    let mut found = vec![Finding::ok(
        "docker",
        version["Version"].as_str().unwrap_or("unknown version"),
    )];
    let runc = version["Components"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|c| c["Name"] == "runc");
    if let Some(runc) = runc.and_then(|c| c["Version"].as_str()) {
        found.push(if numbers(runc) < SAFE_RUNC {
            Finding::warning(
                "runc",
                format!("{runc} lets containers reach the host's files (CVE-2024-21626)"),
                "update runc to 1.1.12 or later",
            )
        } else {
            Finding::ok("runc", runc)
        });
    }
    if let Ok(info) = docker.get("/info").await {
        let cgroup = info["CgroupVersion"].as_str().unwrap_or("unknown");
        found.push(Finding::ok(
            "cgroups",
            format!(
                "version {cgroup}, driver {}",
                info["CgroupDriver"].as_str().unwrap_or("unknown")
            ),
        ));
    }
    found
}

/// The first three numbers of a version.
fn numbers(version: &str) -> [u32; 3] {
    let mut parts = version
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|p| p.parse().ok());
    std::array::from_fn(|_| parts.next().unwrap_or(0))
}

async fn disk(home: &Home) -> Finding {
    let existing = home
        .root()
        .ancestors()
        .find(|p| p.exists())
        .unwrap_or(Path::new("/"));
    let mut df = tokio::process::Command::new("df");
    df.arg("-Pk")
        .arg(existing)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = tokio::time::timeout(PROBE, df.output()).await;
    let text = match output {
        Ok(Ok(output)) => String::from_utf8_lossy(&output.stdout).into_owned(),
        _ => {
            return Finding::warning(
                "disk",
                "df does not answer",
                "look at the mounts of this machine",
            );
        }
    };
    let column = text
        .lines()
        .nth(1)
        .and_then(|line| line.split_whitespace().nth(3));
    let Some(free) = column
        .and_then(|kib| kib.parse::<u64>().ok())
        .map(|kib| kib * 1024)
    else {
        return Finding::warning(
            "disk",
            "df says nothing that is understood",
            "look at the mounts of this machine",
        );
    };
    let text = format!("{} free for {}", ByteSize(free), existing.display());
    if free < LOW_DISK {
        Finding::warning("disk", text, "make room: images need gigabytes")
    } else {
        Finding::ok("disk", text)
    }
}

/// Asks the driver as the agent does: from a process that may hang.
async fn gpus(home: &Home) -> Finding {
    let config: Config = home
        .read_toml("config.toml")
        .ok()
        .flatten()
        .unwrap_or_default();
    match meshwork_agent::probe_gpus(&agent_config(home, &config)).await {
        Ok(gpus) if gpus.is_empty() => Finding::ok("gpu", "none"),
        Ok(gpus) => {
            let names = gpus
                .iter()
                .map(|gpu| format!("{}: {} {}", gpu.index, gpu.model, ByteSize(gpu.vram)));
            Finding::ok("gpu", names.collect::<Vec<_>>().join(", "))
        }
        Err(error) if config.agent.mock_accelerators.is_some() => {
            Finding::warning("gpu", error, MOCK_FIX)
        }
        Err(error) => Finding::warning(
            "gpu",
            error,
            "nvidia-smi; dmesg shows Xid messages; a reboot may be needed",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_by_number() {
        assert!(numbers("1.1.5") < SAFE_RUNC && numbers("1.0.0-rc93") < SAFE_RUNC);
        assert!(numbers("1.1.12") >= SAFE_RUNC && numbers("v1.2") > SAFE_RUNC);
    }
}
