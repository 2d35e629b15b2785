//! `meshwork invite` and `meshwork join`: how machines and people come in.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::ProgressBar;
use meshwork_identity::{Contact, NodeId, Scopes, Ticket, TicketError};
use meshwork_mesh::{MemoryState, Mesh, StateStore};
use meshwork_proto::announcement::Role;
use meshwork_proto::mesh::{Invite, Joined, MakeTicket, Ping};
use meshwork_proto::rpc::RpcError;
use meshwork_proto::service::{self, CallOptions};

use super::client::{self, Client};
use super::error::{CliError, Code};
use super::out::span;
use super::token::LimitArgs;
use super::up::{self, NodeArgs};
use super::{Context, init, values};
use crate::ambient::{now, random};
use crate::config::role;
use crate::home::{Contacts, HomeError, MeshFile, Who};
use crate::node;

/// Time to say goodbye to the node that admitted us.
const GOODBYE: Duration = Duration::from_millis(500);
/// Time between two pictures of the spinner.
const TICK: Duration = Duration::from_millis(100);
/// Clocks that differ by more than this make signed things fail.
pub(super) const CLOCK_TOLERANCE: Duration = meshwork_identity::CLOCK_TOLERANCE;

#[derive(Debug, Args)]
pub(super) struct InviteArgs {
    /// What the joiner is to be: agent, manager, relay or user
    #[arg(long, value_parser = invited_role, default_value = "agent")]
    role: String,
    /// How long the ticket may be used
    #[arg(long, value_parser = values::duration, default_value = "1h")]
    ttl: Duration,
    /// How many may join with it
    #[arg(long, default_value_t = 1)]
    uses: u32,
    /// How long the joiner may stay
    #[arg(long, value_parser = values::duration, default_value = "365d", value_name = "DURATION")]
    token_ttl: Duration,
    /// What the joiner may do [default: what the role needs]
    #[arg(long = "scope", value_name = "SCOPES")]
    scopes: Option<Scopes>,
    /// Address to call, as the joiner sees it: HOST:PORT (repeat for several) [default: those that the node knows of itself]
    #[arg(long = "address", value_name = "HOST:PORT")]
    addresses: Vec<String>,
    #[command(flatten)]
    limits: LimitArgs,
}

/// What one can join as, several with commas between.
fn invited_role(text: &str) -> Result<String, String> {
    match text
        .split(',')
        .find(|part| *part != "user" && role(part).is_err())
    {
        Some(part) => Err(format!(
            "`{part}` is no role: use agent, manager, relay or user"
        )),
        None => Ok(text.to_owned()),
    }
}

pub(super) async fn invite(client: &Client, args: InviteArgs) -> Result<(), CliError> {
    let addresses: Result<Vec<Vec<SocketAddr>>, CliError> = args
        .addresses
        .iter()
        .map(|a| client::addresses(a))
        .collect();
    let request = Invite {
        role: args.role,
        ttl: args.ttl,
        uses: args.uses,
        token_ttl: args.token_ttl,
        scopes: args.scopes,
        limits: args.limits.limits()?,
        addresses: addresses?.concat(),
    };
    let invited = client.call::<MakeTicket>(&request).await?;
    let expires = invited.expires.to_string();
    if client.out.is_machine() {
        return client.out.value(&serde_json::json!({
            "ticket": invited.ticket, "role": request.role, "uses": request.uses,
            "expires": expires, "fingerprint": invited.fingerprint,
        }));
    }
    if client.out.quiet {
        return client.out.data(&format!("{}\n", invited.ticket));
    }
    let uses = if request.uses == 1 {
        "one use".to_owned()
    } else {
        format!("{} uses", request.uses)
    };
    client.out.data(&format!(
        "meshwork join {}  ({uses}, expires {expires}; fingerprint {})\n",
        invited.ticket, invited.fingerprint
    ))
}

#[derive(Debug, Args)]
pub(super) struct JoinArgs {
    /// The ticket: mw1…
    ticket: String,
    #[command(flatten)]
    node: NodeArgs,
    /// Only join; `meshwork up` runs the node later
    #[arg(long, conflicts_with = "detach")]
    no_up: bool,
    /// Tell what the node does on standard error (RUST_LOG says more)
    #[arg(long)]
    pub(super) log: bool,
}

pub(super) fn join(cx: &Context, args: &JoinArgs) -> Result<(), CliError> {
    let began = Instant::now();
    let ticket: Ticket = args.ticket.parse().map_err(ticket_error)?;
    ticket.check_expiry(now()).map_err(ticket_error)?;
    let who = if ticket.role.as_str() == "user" {
        Who::User
    } else {
        Who::Node
    };
    check_free(cx, who, &ticket)?;
    let name = args.node.name.clone().unwrap_or_else(init::host_name);

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    // A node that starts now tells its path itself.
    let starts = who == Who::Node && !args.no_up;
    let tells = starts && !args.node.detach;
    let joined = runtime.block_on(redeem(cx, who, &ticket, &name, !tells))?;
    drop(runtime);
    store(cx, who, &ticket, &joined, name)?;
    if starts {
        return up::serve(cx, &args.node, began);
    }
    report_joined(cx, who, &ticket, &joined)
}

/// Says what was won, where no node is started that says it.
fn report_joined(cx: &Context, who: Who, ticket: &Ticket, joined: &Joined) -> Result<(), CliError> {
    let id = cx.home.identity(who)?.node_id();
    if cx.out.is_machine() {
        return cx.out.value(&serde_json::json!({
            "id": id, "role": joined.role, "authority": ticket.mesh,
            "fingerprint": ticket.fingerprint(),
        }));
    }
    if cx.out.quiet {
        return cx.out.data(&format!("{id}\n"));
    }
    let next = if who == Who::User { "node ls" } else { "up" };
    cx.out.remark(format_args!("next: meshwork {next}"));
    Ok(())
}

fn ticket_error(error: TicketError) -> CliError {
    let code = if matches!(error, TicketError::Expired(_)) {
        Code::EXPIRED
    } else {
        Code::TICKET
    };
    CliError::new(code, error)
}

/// Refuses a folder that has such a member already, or one of another mesh.
fn check_free(cx: &Context, who: Who, ticket: &Ticket) -> Result<(), CliError> {
    let root = cx.home.root().to_owned();
    if cx.home.has_mesh() && cx.home.mesh()?.authority != ticket.mesh {
        return Err(HomeError::Exists(root).into());
    }
    if cx.home.token(who)?.is_some() {
        return Err(HomeError::Joined(root, who).into());
    }
    Ok(())
}

/// Shows the ticket to the node that made it. Whoever asks again with the same key is admitted
/// again: an interrupted join can be repeated.
async fn redeem(
    cx: &Context,
    who: Who,
    ticket: &Ticket,
    name: &str,
    tell_path: bool,
) -> Result<Joined, CliError> {
    let identity = cx.home.identity_or_new(who, &random())?;
    // A node keeps the revocations that it is told now; a person meets nobody but its server.
    let state: Arc<dyn StateStore> = match who {
        Who::Node => Arc::new(node::open_state(&cx.home)?),
        Who::User => Arc::new(MemoryState::default()),
    };
    let mesh = client::start_dialer(identity, ticket.mesh, ticket.psk.clone(), None, state)?;
    let began = Instant::now();
    let spinner = cx.out.is_live().then(|| {
        let spinner = ProgressBar::new_spinner().with_message("calling the mesh");
        spinner.enable_steady_tick(TICK);
        spinner
    });
    let joined = mesh.join(ticket, name).await;
    if let Some(spinner) = spinner {
        spinner.finish_and_clear();
    }
    if joined.is_ok() {
        cx.out.ok(format_args!(
            "{} verified ({})  {}",
            ticket.issuer.short(),
            ticket.fingerprint(),
            span(began.elapsed())
        ));
        if tell_path {
            report_path(cx, &mesh, ticket.issuer);
        }
        report_clock(cx, &mesh, ticket.issuer).await;
    }
    mesh.shutdown(GOODBYE).await;
    Ok(joined?)
}

fn report_path(cx: &Context, mesh: &Mesh, issuer: NodeId) {
    if let Some(peer) = mesh.peers().into_iter().find(|peer| peer.node == issuer) {
        cx.out.ok(up::path_line(&peer));
    }
}

async fn report_clock(cx: &Context, mesh: &Mesh, issuer: NodeId) {
    match clock_offset(mesh, issuer).await {
        Ok(offset) if offset.within(CLOCK_TOLERANCE) => {
            cx.out.ok(format_args!("clock     {offset}"));
        }
        Ok(offset) => cx.out.warn(format_args!(
            "clock     {offset}: signed things fail beyond {} s; set this machine's clock",
            CLOCK_TOLERANCE.as_secs()
        )),
        Err(error) => tracing::debug!(%error, "no clock offset"),
    }
}

/// How far another clock is ahead of ours, to half a round trip.
#[derive(Debug, Clone, Copy)]
pub(super) struct ClockOffset {
    millis: i64,
}

impl ClockOffset {
    pub(super) fn within(self, tolerance: Duration) -> bool {
        u128::from(self.millis.unsigned_abs()) <= tolerance.as_millis()
    }
}

impl std::fmt::Display for ClockOffset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Our own error, from where the other stands.
        let ours = -self.millis;
        let tenths = ours.unsigned_abs() / 100;
        let sign = if ours < 0 && tenths > 0 { '-' } else { '+' };
        write!(f, "{sign}{}.{}s", tenths / 10, tenths % 10)
    }
}

/// Asks `node` for its time.
pub(super) async fn clock_offset(mesh: &Mesh, node: NodeId) -> Result<ClockOffset, RpcError> {
    let (asked, began) = (now(), Instant::now());
    let pong = service::call::<Ping>(mesh, node, &(), CallOptions::default()).await?;
    let here = asked.saturating_add(began.elapsed() / 2).as_millis();
    let millis = i128::from(pong.now.as_millis()) - i128::from(here);
    Ok(ClockOffset {
        millis: i64::try_from(millis).unwrap_or(i64::MAX),
    })
}

/// Writes down what was won, the mesh's file last.
fn store(
    cx: &Context,
    who: Who,
    ticket: &Ticket,
    joined: &Joined,
    name: String,
) -> Result<(), CliError> {
    cx.home.write_psk(&ticket.psk)?;
    let mut contacts: Vec<Contact> = cx.home.contacts()?.contact;
    for contact in joined.contacts.iter().chain(&ticket.contacts) {
        match contacts.iter_mut().find(|known| known.node == contact.node) {
            Some(known) => known.addrs.extend(
                contact
                    .addrs
                    .iter()
                    .filter(|a| !known.addrs.contains(a))
                    .copied()
                    .collect::<Vec<_>>(),
            ),
            None => contacts.push(contact.clone()),
        }
    }
    for contact in &mut contacts {
        contact.addrs.truncate(meshwork_identity::MAX_CONTACT_ADDRS);
    }
    cx.home.write_contacts(&Contacts { contact: contacts })?;
    cx.home.write_token(who, &joined.token)?;
    let before = if cx.home.has_mesh() {
        Some(cx.home.mesh()?)
    } else {
        None
    };
    let (name, roles) = match (who, before) {
        // A person who joins does not change what the machine is.
        (Who::User, Some(before)) => (before.name, before.roles),
        (Who::User, None) => (name, BTreeSet::new()),
        (Who::Node, _) => (name, node_roles(&joined.role)?),
    };
    cx.home.write_mesh(&MeshFile {
        authority: ticket.mesh,
        name,
        roles,
    })?;
    Ok(())
}

fn node_roles(text: &str) -> Result<BTreeSet<Role>, CliError> {
    let roles: Result<BTreeSet<Role>, String> = text.split(',').map(str::parse).collect();
    roles.map_err(|e| CliError::new(Code::TICKET, e))
}
