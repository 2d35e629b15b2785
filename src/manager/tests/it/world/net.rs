//! What carries calls between the manager and the agents in memory, and loses them on order.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use meshwork_identity::NodeId;
use meshwork_proto::announcement::Announcement;
use meshwork_proto::mesh::PeerView;
use meshwork_proto::ports::{Directory, Known};
use meshwork_proto::query::{Asker, Query, ScopeFilter, View};
use meshwork_proto::rpc::{RpcError, Status};
use meshwork_proto::service::{BoxFuture, Caller, ItemStream, RawCall, RawReply};

use super::context;
use crate::agent::Agent;

/// The mesh: nodes by id.
#[derive(Default)]
pub(super) struct Net {
    pub(super) agents: Mutex<BTreeMap<NodeId, Agent>>,
    pub(super) known: Mutex<BTreeMap<NodeId, Arc<Announcement>>>,
    pub(super) local: Mutex<Option<NodeId>>,
}

impl Directory for Net {
    fn local(&self) -> NodeId {
        self.local.lock().unwrap().unwrap()
    }

    fn nodes(&self) -> Vec<Known> {
        self.known
            .lock()
            .unwrap()
            .iter()
            .map(|(n, a)| (*n, Arc::clone(a)))
            .collect()
    }

    fn find_scoped(&self, query: &Query, scope: &ScopeFilter) -> Vec<Known> {
        let view = View {
            asker: Asker::default(),
            filter: scope.clone(),
        };
        self.nodes()
            .into_iter()
            .filter(|(n, a)| query.matches(n, a) && view.shows(a))
            .collect()
    }

    /// Every agent that was ever connected: the mesh is slow to notice that one is gone.
    fn peer(&self, node: &NodeId) -> Option<PeerView> {
        let agents = self.agents.lock().unwrap();
        agents.get(node).map(|agent| PeerView {
            node: *node,
            path: "direct".into(),
            address: ([127, 0, 0, 1], 1).into(),
            rtt: Duration::from_millis(1),
            lost: 0,
            sent: 0,
            bytes_sent: 0,
            bytes_received: 0,
            age: agent.connected_for(),
            neighbour: false,
        })
    }
}

/// Counts one fault down. True when it strikes.
fn strikes(faults: &mut BTreeMap<&'static str, u32>, method: &'static str) -> bool {
    let left = faults.entry(method).or_default();
    let strikes = *left > 0;
    *left = left.saturating_sub(1);
    strikes
}

impl Net {
    fn agent(&self, node: NodeId) -> Result<Agent, RpcError> {
        let agent = self.agents.lock().unwrap().get(&node).cloned();
        agent
            .filter(|agent| !agent.is_unreachable())
            .ok_or_else(|| RpcError::new(Status::NoRoute, "no path"))
    }

    pub(super) fn dispatch(&self, agent: &Agent, call: &RawCall) -> RawReply {
        let method = call.method;
        *agent.calls.lock().unwrap().entry(method.name).or_default() += 1;
        let cx = context(self.local(), agent.node, Vec::new());
        let router = agent.router();
        router
            .dispatch(
                method.service,
                method.name,
                cx,
                call.codec,
                call.body.clone(),
            )
            .unwrap()
    }

    async fn deliver(&self, to: NodeId, call: RawCall) -> Result<Bytes, RpcError> {
        let agent = self.agent(to)?;
        let name = call.method.name;
        let lost = || RpcError::new(Status::Timeout, "no answer");
        let delay = agent.faults().delay;
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        if strikes(&mut agent.faults().lose_requests, name) {
            let deadline = call.options.deadline;
            agent.faults().lost.push(call);
            tokio::time::sleep(deadline).await;
            return Err(lost());
        }
        let RawReply::Unary(answer) = self.dispatch(&agent, &call) else {
            unreachable!()
        };
        let answer = answer.await;
        if strikes(&mut agent.faults().lose_answers, name) {
            tokio::time::sleep(call.options.deadline).await;
            return Err(lost());
        }
        answer
    }
}

pub(super) struct Wire(pub(super) Arc<Net>);

impl Caller for Wire {
    fn call_raw(&self, to: NodeId, call: RawCall) -> BoxFuture<Result<Bytes, RpcError>> {
        let net = Arc::clone(&self.0);
        async move { net.deliver(to, call).await }.boxed()
    }

    fn stream_raw(
        &self,
        to: NodeId,
        call: RawCall,
    ) -> BoxFuture<Result<ItemStream<Bytes>, RpcError>> {
        let net = Arc::clone(&self.0);
        async move {
            let agent = net.agent(to)?;
            if agent.faults().silent {
                tokio::time::sleep(call.options.deadline).await;
                return Err(RpcError::new(Status::Timeout, "no answer"));
            }
            let RawReply::Stream(items) = net.dispatch(&agent, &call) else {
                unreachable!()
            };
            items.await
        }
        .boxed()
    }
}
