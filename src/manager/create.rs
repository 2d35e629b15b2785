//! `session.create`: from a signed order to a session that a node has taken.

use std::sync::Arc;
use std::time::Duration;

use meshwork_identity::{CLOCK_TOLERANCE, Grant, Scope, Timestamp, TokenError};
use meshwork_proto::announcement::Role;
use meshwork_proto::manager::{self, CreateSession, CreatedSession};
use meshwork_proto::rpc::{RpcError, Status};
use meshwork_proto::service::{CallContext, Method};
use meshwork_proto::session::{SessionOrder, SessionState};
use meshwork_proto::{SessionId, session};
use tokio::time::{Instant, timeout_at};

use crate::core::{Core, no_session};
use crate::ledger::Draft;
use crate::placement::{NOT_PLACED, parse_query, within_limits};
use crate::record::{Facts, Ordered, Record};

/// Sessions that the manager keeps, ended ones included: when there are more, the one that ended
/// first goes. A session takes up to some 260 kB when its owner fills every field.
const MAX_SESSIONS: usize = 10_000;

/// Longest wait for the node's answer. After it the caller is told the session as it is: scheduled.
const ACCEPT_DEADLINE: Duration = Duration::from_secs(25);
/// Kept back of the caller's own deadline to deliver the answer.
const ANSWER_TIME: Duration = Duration::from_millis(500);

/// Pause between looks at agents that are yet to say their first word.
const RECHECK: Duration = Duration::from_secs(1);

enum Admitted {
    /// It is on disk now, or was before.
    Kept,
    /// A dry run found this.
    Planned(Box<CreatedSession>),
}

/// Answers once the node has taken the order, or refused it, or [`ACCEPT_DEADLINE`] has passed; in
/// the last case the session stays and the reconciler goes on.
///
/// # Cancel safety
/// Once the order is on disk, the session goes on whether or not anybody waits.
pub(crate) async fn create(
    core: Arc<Core>,
    cx: CallContext,
    request: CreateSession,
) -> Result<CreatedSession, RpcError> {
    let wait = cx
        .deadline
        .map_or(ACCEPT_DEADLINE, |d| d.saturating_sub(ANSWER_TIME));
    let until = Instant::now() + wait.min(ACCEPT_DEADLINE);
    let (ordered, grant) = check(&core, &cx, &request)?;
    let id = ordered.order.session;
    match place_now_or_soon(&core, ordered, grant, request.dry_run, until).await? {
        Admitted::Planned(plan) => Ok(*plan),
        Admitted::Kept => accepted(&core, id, until).await,
    }
}

/// Where nothing fits but some agent was called only a moment ago (the manager or the agent has
/// just started), its first word decides.
async fn place_now_or_soon(
    core: &Arc<Core>,
    ordered: Arc<Ordered>,
    grant: Grant,
    dry_run: bool,
    until: Instant,
) -> Result<Admitted, RpcError> {
    let mut news = core.nodes.watch();
    loop {
        // Before the look, as a first word may come during it.
        news.mark_unchanged();
        let awaited = awaits_agents(core);
        let (shared, ordered, grant) = (Arc::clone(core), Arc::clone(&ordered), grant.clone());
        let admitted = core
            .ledger
            .change(move |draft| admit(&shared, draft, ordered, &grant, dry_run))
            .await;
        match admitted {
            Err(error) if error.reason == NOT_PLACED && awaited && Instant::now() < until => {
                let look_again = (Instant::now() + RECHECK).min(until);
                // Whether there was news or not, the next look tells.
                let _ = timeout_at(look_again, news.changed()).await;
            }
            outcome => return outcome,
        }
    }
}

fn awaits_agents(core: &Core) -> bool {
    let agents = core.directory.with_role(Role::Agent);
    agents.iter().any(|(node, _)| core.nodes.awaits(*node))
}

/// Everything that needs no look at other sessions.
fn check(
    core: &Core,
    cx: &CallContext,
    request: &CreateSession,
) -> Result<(Arc<Ordered>, Grant), RpcError> {
    let warrant = request.warrant.clone();
    let grant = core.trust.verify(&warrant)?;
    let malformed = |e| RpcError::invalid(format!("the order cannot be read: {e}")).reason("order");
    let order: SessionOrder = warrant.open().map_err(malformed)?;
    let owner = warrant.order.signer();
    if owner != cx.peer && !core.is_admin(cx, &manager::Create::INFO) {
        return Err(RpcError::denied("the order is signed by somebody else").reason("wrong_signer"));
    }
    let path = manager::Create::INFO.path();
    grant
        .check(&owner, Scope::Call, &path, &cx.local, core.now())
        .map_err(|e| denied(&e))?;
    order.spec.check()?;
    parse_query(order.spec.place.as_deref())?;
    within_limits(&grant.limits, &order.spec.kernel.resources)?;
    Ok((
        Arc::new(Ordered {
            warrant,
            order,
            owner,
        }),
        grant,
    ))
}

fn denied(error: &TokenError) -> RpcError {
    RpcError::denied(error.to_string()).reason(error.kind())
}

/// Places the order and notes it, on its own among all changes.
fn admit(
    core: &Core,
    draft: &mut Draft,
    ordered: Arc<Ordered>,
    grant: &Grant,
    dry_run: bool,
) -> Result<Admitted, RpcError> {
    let now = core.now();
    let known = draft.get(ordered.order.session);
    if let Some(known) = &known {
        let same = known.ordered.owner == ordered.owner && known.ordered.order == ordered.order;
        if !same || known.facts.removed {
            return Err(
                RpcError::new(Status::Conflict, "this session id was used before")
                    .reason("session_exists")
                    .fix("sign a new order with a fresh id"),
            );
        }
        if known.facts.refusal.is_none() && !dry_run {
            return Ok(Admitted::Kept);
        }
    }
    fresh(&ordered.order, now)?;
    let all: Vec<_> = draft
        .all()
        .into_iter()
        .filter(|r| !r.facts.removed)
        .collect();
    if let Some(name) = &ordered.order.spec.name {
        let holder = all.iter().find(|r| {
            r.ordered.owner == ordered.owner
                && r.ordered.order.spec.name.as_ref() == Some(name)
                && r.id() != ordered.order.session
                && !r.ended()
        });
        if let Some(holder) = holder {
            let id = holder.id();
            return Err(RpcError::new(
                Status::Conflict,
                format!("your session {} has the name `{name}`", id.short()),
            )
            .reason("name_taken")
            .fix(format!(
                "choose another name, or end it: meshwork stop {name}"
            )));
        }
    }
    let placement = core.place(draft, &ordered, grant, &[])?;
    let before = known.map_or(0, |k| k.facts.generation);
    let record = Record {
        facts: Facts {
            node: placement.node,
            node_name: placement.name,
            plan: placement.plan,
            attempt: 1,
            generation: next_generation(before, now),
            accepted: false,
            state: SessionState::Scheduled,
            gpus: Vec::new(),
            stop: None,
            refused: Vec::new(),
            refusal: None,
            removed: false,
            created_at: now,
            started_at: None,
            ended_at: None,
        },
        ordered,
    };
    if dry_run {
        let (view, plan) = (core.view(&record), record.facts.plan);
        return Ok(Admitted::Planned(Box::new(CreatedSession { view, plan })));
    }
    if all.len() >= MAX_SESSIONS {
        make_room(draft, &all)?;
    }
    draft.insert(record);
    Ok(Admitted::Kept)
}

/// Forgets the session that ended first.
fn make_room(draft: &mut Draft, all: &[Arc<Record>]) -> Result<(), RpcError> {
    let ended = all.iter().filter(|r| r.ended());
    let Some(oldest) = ended.min_by_key(|r| (r.facts.ended_at, r.id())) else {
        let message = format!("{MAX_SESSIONS} sessions are alive, the manager keeps no more");
        return Err(RpcError::new(Status::ResourceExhausted, message).reason("sessions"));
    };
    draft.update(oldest.id(), |facts| facts.removed = true);
    Ok(())
}

/// A generation above `before` and, clocks permitting, above every one that a manager gave out
/// earlier and forgot.
pub(crate) fn next_generation(before: u64, now: Timestamp) -> u64 {
    now.as_millis().max(before + 1)
}

fn fresh(order: &session::SessionOrder, now: Timestamp) -> Result<(), RpcError> {
    let until = order.issued_at.saturating_add(order.valid_for);
    if now >= until.saturating_add(CLOCK_TOLERANCE) {
        return Err(
            RpcError::invalid(format!("the order was valid until {until}"))
                .reason("order_expired")
                .fix("sign it anew"),
        );
    }
    if order.issued_at > now.saturating_add(CLOCK_TOLERANCE) {
        return Err(RpcError::invalid(format!(
            "the order is signed at {}, it is {now} here",
            order.issued_at
        ))
        .reason("order_from_future")
        .fix("check the clocks of both machines"));
    }
    Ok(())
}

/// Waits for the node's word on a session.
async fn accepted(core: &Core, id: SessionId, until: Instant) -> Result<CreatedSession, RpcError> {
    let gone = || no_session(&id.to_string());
    let mut changes = core.ledger.entry(id).ok_or_else(gone)?.record.subscribe();
    loop {
        let record = Arc::clone(&changes.borrow_and_update());
        if let Some(refusal) = record.facts.refusal.clone() {
            forget_refused(core, id, record.facts.generation).await;
            return Err(refusal);
        }
        let answered = record.facts.accepted || record.ended() || record.facts.stop.is_some();
        if !answered {
            match timeout_at(until, changes.changed()).await {
                Ok(Ok(())) => continue,
                Ok(Err(_)) => return Err(gone()),
                Err(_) => tracing::debug!(session = %id, "the node has not answered yet"),
            }
        }
        let view = core.view(&record);
        return Ok(CreatedSession {
            view,
            plan: record.facts.plan.clone(),
        });
    }
}

/// The caller learns of the refusal from the answer; an ended session in the list would tell it a
/// second time. When this fails the session stays as ended, which is true as well.
async fn forget_refused(core: &Core, id: SessionId, generation: u64) {
    let forget = move |draft: &mut Draft| {
        if let Some(known) = draft.get(id)
            && known.facts.generation == generation
            && known.facts.refusal.is_some()
        {
            draft.remove(id);
        }
        Ok(())
    };
    if let Err(error) = core.ledger.change(forget).await {
        tracing::debug!(session = %id, %error, "refused session stays listed");
    }
}
