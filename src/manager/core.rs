//! What all parts of the manager share, and the questions they have in common: who may see a
//! session, which session is meant, what it looks like.

use std::sync::Arc;
use std::time::Duration;

use meshwork_identity::{NodeId, Scope, Timestamp};
use meshwork_proto::SessionId;
use meshwork_proto::ports::{Directory, Trust, WallClock};
use meshwork_proto::rpc::{RpcError, Status};
use meshwork_proto::service::{CallContext, CallOptions, Caller, Method, MethodInfo, call};
use meshwork_proto::session::SessionView;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::ledger::{Entry, Ledger};
use crate::nodes::Nodes;
use crate::record::Record;

/// Time for one command to an agent, and for one question.
pub(crate) const COMMAND_DEADLINE: Duration = Duration::from_secs(10);

/// Candidates named in the answer to an ambiguous prefix.
const NAMED_CANDIDATES: usize = 5;

pub(crate) struct Core {
    pub(crate) ledger: Ledger,
    pub(crate) nodes: Nodes,
    pub(crate) caller: Arc<dyn Caller>,
    pub(crate) directory: Arc<dyn Directory>,
    pub(crate) trust: Arc<dyn Trust>,
    pub(crate) clock: Arc<dyn WallClock>,
    pub(crate) started: Instant,
    /// Cancelled when the manager shuts down.
    pub(crate) closing: CancellationToken,
}

impl Core {
    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Calls an agent with [`COMMAND_DEADLINE`].
    pub(crate) async fn ask<M: Method>(
        &self,
        node: NodeId,
        request: &M::Request,
    ) -> Result<M::Response, RpcError> {
        let answer = call::<M>(
            &*self.caller,
            node,
            request,
            CallOptions::within(COMMAND_DEADLINE),
        );
        tokio::time::timeout(COMMAND_DEADLINE, answer)
            .await
            .unwrap_or_else(|_| Err(no_answer(node, &M::INFO)))
    }

    pub(crate) fn view(&self, record: &Record) -> SessionView {
        record.view(self.nodes.is_ready(record.facts.node))
    }

    /// Whether the caller may act on other people's sessions with this method.
    pub(crate) fn is_admin(&self, cx: &CallContext, method: &MethodInfo) -> bool {
        let (path, now) = (method.path(), self.now());
        let allows = |g: &meshwork_identity::Grant| {
            g.check(&cx.peer, Scope::Admin, &path, &cx.local, now)
                .is_ok()
        };
        cx.grants.iter().any(allows)
    }

    /// The session that a caller means by an id, a name of theirs or a unique prefix of an id.
    /// Sessions that the caller must not see are as good as absent.
    pub(crate) fn resolve(
        &self,
        cx: &CallContext,
        method: &MethodInfo,
        text: &str,
    ) -> Result<Arc<Entry>, RpcError> {
        let admin = self.is_admin(cx, method);
        let visible: Vec<(Arc<Entry>, Arc<Record>)> = self
            .ledger
            .entries()
            .into_iter()
            .map(|entry| (Arc::clone(&entry), entry.now()))
            .filter(|(_, r)| !r.facts.removed && (admin || r.ordered.owner == cx.peer))
            .collect();
        if let Ok(id) = text.parse::<SessionId>() {
            let hit = visible.into_iter().find(|(_, r)| r.id() == id);
            return hit.map(|(entry, _)| entry).ok_or_else(|| no_session(text));
        }
        let named = |r: &Record| r.ordered.order.spec.name.as_deref() == Some(text);
        let mut by_name: Vec<_> = visible.iter().filter(|(_, r)| named(r)).collect();
        // A name is unique among its owner's living sessions only.
        by_name.sort_by_key(|(_, r)| {
            (
                r.ordered.owner != cx.peer,
                r.ended(),
                std::cmp::Reverse(r.facts.created_at),
            )
        });
        if let [first, rest @ ..] = by_name.as_slice() {
            let class = |r: &Record| (r.ordered.owner == cx.peer, r.ended());
            let rival = |(_, r): &&(Arc<Entry>, Arc<Record>)| {
                class(r) == class(&first.1) && r.ordered.owner != first.1.ordered.owner
            };
            let rivals: Vec<_> = rest.iter().copied().filter(|hit| rival(hit)).collect();
            if rivals.is_empty() {
                return Ok(Arc::clone(&first.0));
            }
            return Err(ambiguous(
                text,
                std::iter::once(*first).chain(rivals).map(|(_, r)| &**r),
            ));
        }
        let by_prefix: Vec<_> = visible
            .iter()
            .filter(|(_, r)| r.id().matches_prefix(text))
            .collect();
        match by_prefix.as_slice() {
            [] => Err(no_session(text)),
            [(entry, _)] => Ok(Arc::clone(entry)),
            several => Err(ambiguous(text, several.iter().map(|(_, r)| &**r))),
        }
    }
}

pub(crate) fn no_answer(node: NodeId, method: &MethodInfo) -> RpcError {
    let message = format!("{} did not answer {}", node.short(), method.path());
    RpcError::new(Status::Timeout, message)
}

pub(crate) fn no_session(text: &str) -> RpcError {
    RpcError::not_found(format!("no session `{}`", text.escape_debug()))
        .reason("no_session")
        .fix("meshwork ps -a lists your sessions")
}

fn ambiguous<'a>(text: &str, candidates: impl Iterator<Item = &'a Record>) -> RpcError {
    let label = |r: &Record| match &r.ordered.order.spec.name {
        Some(name) => format!("{} ({name})", r.id()),
        None => r.id().to_string(),
    };
    let mut labels: Vec<String> = candidates.map(label).collect();
    let count = labels.len();
    labels.truncate(NAMED_CANDIDATES);
    let more = if count > labels.len() { ", …" } else { "" };
    let labels = labels.join(", ");
    RpcError::invalid(format!("`{text}` means {count} sessions: {labels}{more}"))
        .reason("ambiguous")
        .fix("give more of the id")
}
