//! The manager's methods, each a look at the ledger or one change of it. What takes longer is the
//! reconciler's.

use std::cmp::Reverse;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use meshwork_proto::announcement::Role;
use meshwork_proto::manager::{
    self, FindNodes, ListNodes, ListSessions, NodeState, NodeView, SessionRef, StopSession,
};
use meshwork_proto::ports::Known;
use meshwork_proto::query::ScopeFilter;
use meshwork_proto::rpc::{RpcError, Status};
use meshwork_proto::service::{CallContext, Method, Router};
use meshwork_proto::session::SessionView;

use crate::core::{Core, no_session};
use crate::create::create;
use crate::placement::parse_query;
use crate::streams;

/// Every method of the service.
pub(crate) fn router(core: &Arc<Core>) -> Router {
    Router::new()
        .unary::<manager::Create, _, _>(with(core, create))
        .unary::<manager::Get, _, _>(with(core, get))
        .unary::<manager::List, _, _>(with(core, list))
        .unary::<manager::Stop, _, _>(with(core, stop))
        .unary::<manager::Remove, _, _>(with(core, remove))
        .unary::<manager::Nodes, _, _>(with(core, nodes))
        .unary::<manager::ScopedNodes, _, _>(with(core, scoped_nodes))
        .stream::<manager::Watch, _, _>(with(core, streams::watch))
        .stream::<manager::Logs, _, _>(with(core, streams::logs))
        .stream::<manager::Exec, _, _>(with(core, streams::exec))
}

fn with<Q, F, Fut>(
    core: &Arc<Core>,
    handler: F,
) -> impl Fn(CallContext, Q) -> Fut + Clone + use<Q, F, Fut>
where
    F: Fn(Arc<Core>, CallContext, Q) -> Fut + Clone,
    Fut: Future,
{
    let core = Arc::clone(core);
    move |cx, request| handler(Arc::clone(&core), cx, request)
}

async fn get(
    core: Arc<Core>,
    cx: CallContext,
    request: SessionRef,
) -> Result<SessionView, RpcError> {
    let entry = core.resolve(&cx, &manager::Get::INFO, &request.session)?;
    Ok(core.view(&entry.now()))
}

async fn list(
    core: Arc<Core>,
    cx: CallContext,
    request: ListSessions,
) -> Result<Vec<SessionView>, RpcError> {
    if request.everyone && !core.is_admin(&cx, &manager::List::INFO) {
        return Err(RpcError::denied(
            "seeing everyone's sessions needs a token with scope `admin`",
        )
        .reason("scope_exceeded")
        .fix("ask for such a token, or list your own sessions"));
    }
    let records = core.ledger.entries().into_iter().map(|entry| entry.now());
    let mut views: Vec<_> = records
        .filter(|r| !r.facts.removed)
        .filter(|r| request.everyone || r.ordered.owner == cx.peer)
        .filter(|r| request.ended || !r.ended())
        .map(|r| core.view(&r))
        .collect();
    views.sort_by_key(|view| (Reverse(view.created_at), view.session));
    Ok(views)
}

async fn stop(
    core: Arc<Core>,
    cx: CallContext,
    request: StopSession,
) -> Result<SessionView, RpcError> {
    let entry = core.resolve(&cx, &manager::Stop::INFO, &request.session)?;
    let id = entry.now().id();
    let grace = request.grace;
    let known = core.ledger.change(move |draft| {
        draft.update(id, |facts| {
            if facts.state.exit().is_none() {
                facts.request_stop(grace);
            }
        });
        Ok(draft.get(id))
    });
    let record = known.await?.ok_or_else(|| no_session(&request.session))?;
    Ok(core.view(&record))
}

async fn remove(core: Arc<Core>, cx: CallContext, request: SessionRef) -> Result<(), RpcError> {
    let entry = core.resolve(&cx, &manager::Remove::INFO, &request.session)?;
    let id = entry.now().id();
    core.ledger
        .change(move |draft| {
            if draft.get(id).is_some_and(|record| !record.ended()) {
                return Err(RpcError::new(Status::Conflict, "the session has not ended")
                    .reason("not_ended")
                    .fix(format!("stop it first: meshwork stop {}", id.short())));
            }
            draft.update(id, |facts| facts.removed = true);
            Ok(())
        })
        .await
}

async fn nodes(
    core: Arc<Core>,
    _: CallContext,
    request: ListNodes,
) -> Result<Vec<NodeView>, RpcError> {
    list_nodes(&core, request.query.as_deref(), &ScopeFilter::Own)
}

async fn scoped_nodes(
    core: Arc<Core>,
    cx: CallContext,
    request: FindNodes,
) -> Result<Vec<NodeView>, RpcError> {
    let everything = request.scope == ScopeFilter::Everything;
    if everything && !core.is_admin(&cx, &manager::ScopedNodes::INFO) {
        return Err(RpcError::denied(
            "seeing every node, whatever it is narrowed to, needs a token with scope `admin`",
        )
        .reason("scope_exceeded")
        .fix("ask for such a token, or use the scope `any`"));
    }
    list_nodes(&core, request.query.as_deref(), &request.scope)
}

fn list_nodes(
    core: &Core,
    query: Option<&str>,
    scope: &ScopeFilter,
) -> Result<Vec<NodeView>, RpcError> {
    let query = parse_query(query)?;
    let living = core.directory.find_scoped(&query, scope);
    let mut views: Vec<_> = living.iter().map(|k| node_view(core, k)).collect();
    views.extend(core.directory.lost(&query, scope).iter().map(|known| {
        let view = node_view(core, known);
        match view.state {
            // Its heartbeats count for more than what others miss.
            NodeState::Ready => view,
            _ => NodeView {
                state: NodeState::Lost,
                capacity: None,
                ..view
            },
        }
    }));
    views.sort_by(|a, b| (&a.announcement.name, a.node).cmp(&(&b.announcement.name, b.node)));
    Ok(views)
}

fn node_view(core: &Core, (node, announcement): &Known) -> NodeView {
    let is_self = *node == core.directory.local();
    let peer = core.directory.peer(node);
    let standing = core.nodes.standing(*node);
    let heartbeat = standing.heard.as_ref().map(|(_, heartbeat)| heartbeat);
    let is_lost = standing.state == NodeState::Lost;
    // The mesh gives a silent connection up later than the manager its agent.
    let peer = peer.filter(|_| !is_lost);
    let seen = match (&standing.heard, is_self || peer.is_some()) {
        (Some((silence, _)), _) => *silence,
        (None, true) => Duration::ZERO,
        (None, false) => core.now().duration_since(announcement.issued_at),
    };
    NodeView {
        node: *node,
        state: if announcement.roles.contains(&Role::Agent) {
            standing.state
        } else {
            NodeState::Online
        },
        path: match (is_self, &peer) {
            (true, _) => "self".into(),
            (false, Some(peer)) => peer.path.clone(),
            (false, None) => String::new(),
        },
        rtt: peer.as_ref().map(|peer| peer.rtt),
        capacity: heartbeat.filter(|_| !is_lost).map(|h| h.capacity.clone()),
        kernels: heartbeat.map_or(0, |h| u32::try_from(h.kernels.len()).unwrap_or(u32::MAX)),
        seen,
        announcement: announcement.as_ref().clone(),
    }
}
