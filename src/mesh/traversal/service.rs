//! The methods of the `mesh` service by which peers find ways to each other, and by which people see
//! them.

use std::net::SocketAddr;
use std::sync::Arc;

use meshwork_identity::NodeId;
use meshwork_proto::mesh::{
    MAX_NEIGHBOURS, NeighbourView, OfferPaths, PathOffer, Reflex, Reflexed, Survey,
};
use meshwork_proto::rpc::{RpcError, Status};
use meshwork_proto::service::Router;
use tokio::time::{Instant, sleep};

use super::budget::Whose;
use super::punch::TRAIN;
use crate::node::Node;
use crate::service::on;

/// What every node serves of this.
pub(crate) fn router(node: &Arc<Node>) -> Router {
    let node = Arc::downgrade(node);
    let router = Router::new();
    let router = on::<Reflex, _>(router, &node, |node, cx, ()| async move {
        node.seen_at(&cx.peer).map(|address| Reflexed { address })
    });
    let router = on::<OfferPaths, _>(router, &node, |node, cx, offer| async move {
        node.take_offer(cx.peer, &offer)
    });
    on::<Survey, _>(router, &node, |node, _, ()| async move {
        Ok(node.neighbour_view())
    })
}

impl Node {
    /// Where we see `peer`.
    fn seen_at(&self, peer: &NodeId) -> Result<SocketAddr, RpcError> {
        self.address_of(peer).ok_or_else(|| {
            RpcError::unavailable("you are seen over a relay, which tells nothing about you")
                .reason("relayed")
        })
    }

    /// Sends probes to where a peer says that it may be, and tells it where we may be.
    fn take_offer(
        self: &Arc<Self>,
        peer: NodeId,
        offer: &PathOffer,
    ) -> Result<PathOffer, RpcError> {
        let Some(train) = self
            .traversal
            .budgets
            .train(&peer, Whose::Theirs, Instant::now())
        else {
            return Err(RpcError::new(
                Status::ResourceExhausted,
                "too many attempts at a direct path; try again later",
            )
            .reason("punch_budget"));
        };
        self.traversal.note_sent(peer);
        self.paths.punch(peer, &self.probeable(&offer.candidates));
        let draining = self.desk.draining.clone();
        self.tasks.spawn(async move {
            let _train = train;
            tokio::select! {
                biased;
                () = draining.cancelled() => {}
                () = sleep(TRAIN) => {}
            }
        });
        Ok(self.offer(offer.id))
    }

    fn neighbour_view(&self) -> NeighbourView {
        let status = self.status();
        let mut view = NeighbourView {
            node: status.node,
            neighbours: status.peers,
            known: status.known,
            suspects: status.suspects,
        };
        view.neighbours.truncate(MAX_NEIGHBOURS);
        view.suspects.truncate(MAX_NEIGHBOURS);
        view
    }
}
