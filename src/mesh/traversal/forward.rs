//! Packets on their way through relays: into the datagrams of a relay's connection, on to the
//! receiver's connection, and out of it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use meshwork_identity::NodeId;
use tokio::time::{Instant, sleep};
use tracing::trace;

use super::frame::{Frame, Reassembly, split};
use super::relay::Drop;
use crate::node::Node;
use crate::peer::Link;
use crate::rpc::close_code;

/// How long the last packet for a relay takes through this machine, with some to spare.
const TELLING: Duration = Duration::from_millis(30);

impl Node {
    /// Sends the packets that the path layer wants relayed, until the last connection of a node that
    /// shuts down is to end.
    pub(super) async fn forward_packets(&self) {
        let stopping = self.desk.stopping.clone();
        let queue = self.paths.relay_queue();
        let forward = async {
            while let Some((relay, to, packet)) = queue.next().await {
                if !self.send_through(&relay, &to, &packet) {
                    trace!(?relay, ?to, "a packet for a relay is lost");
                }
            }
        };
        tokio::select! {
            biased;
            () = stopping.cancelled() => {}
            () = forward => {}
        }
    }

    /// Closes the connections that go over relays, and waits until those have been told. When all end
    /// at once, the peers behind relays hear nothing, and take this node for lost in the end.
    pub(crate) async fn close_relayed(&self) {
        let mut relayed = self.peers.living();
        relayed.retain(|link| self.is_relayed(&link.peer));
        for link in &relayed {
            link.close(close_code::SHUTDOWN, "the node shuts down");
        }
        if !relayed.is_empty() {
            sleep(TELLING).await;
        }
    }

    /// False when the packet is lost, as packets may be.
    fn send_through(&self, relay: &NodeId, to: &NodeId, packet: &[u8]) -> bool {
        // Of relays behind relays, each one's packets would go over the other in the end.
        if !self.is_direct(relay) {
            return false;
        }
        let Some(link) = self.peers.get(relay) else {
            return false;
        };
        let Some(room) = link.conn.max_datagram_size() else {
            return false;
        };
        let number = self.traversal.packet_number.fetch_add(1, Ordering::Relaxed);
        let Some(frames) = split(to, number, packet, room) else {
            return false;
        };
        frames
            .into_iter()
            .all(|frame| link.conn.send_datagram(frame).is_ok())
    }

    /// Hands a frame on for `from`, or counts why not.
    pub(crate) fn relay_send(&self, from: &Link, bytes: &[u8]) {
        let relay = &self.traversal.relay;
        match self.hand_on(from, bytes) {
            Ok(len) => relay.relayed(len),
            Err(why) => {
                trace!(from = ?from.peer, ?why, "frame not relayed");
                relay.dropped(why);
            }
        }
    }

    fn hand_on(&self, from: &Link, bytes: &[u8]) -> Result<usize, Drop> {
        let relay = &self.traversal.relay;
        if relay.config().is_none() {
            return Err(Drop::NotServing);
        }
        let frame = Frame::parse(bytes).ok_or(Drop::Malformed)?;
        if frame.node == from.peer.as_bytes() {
            return Err(Drop::Malformed);
        }
        if !self.is_member_link(from) {
            return Err(Drop::NotMember);
        }
        relay.admit(&from.peer, bytes.len(), Instant::now())?;
        let to = self.peers.by_key(frame.node).ok_or(Drop::UnknownPeer)?;
        if !self.is_member_link(&to) {
            return Err(Drop::NotMember);
        }
        if !self.is_direct(&to.peer) {
            return Err(Drop::UnknownPeer);
        }
        let room = to.conn.max_datagram_size().ok_or(Drop::UnknownPeer)?;
        let frames = frame.stamped(&from.peer, room).ok_or(Drop::Congested)?;
        let size = frames.iter().map(bytes::Bytes::len).sum();
        if to.conn.datagram_send_buffer_space() < size {
            return Err(Drop::Congested);
        }
        for frame in frames {
            to.conn
                .send_datagram(frame)
                .map_err(|_| Drop::UnknownPeer)?;
        }
        Ok(frame.payload.len())
    }

    /// Takes a frame that a relay hands to us. Who sent the packet in it, the packet itself proves.
    pub(crate) fn relay_deliver(
        self: &Arc<Self>,
        relay: &Link,
        reassembly: &mut Reassembly,
        bytes: &[u8],
    ) {
        let counted = &self.traversal.relay;
        let Some(frame) = Frame::parse(bytes) else {
            return counted.dropped(Drop::Malformed);
        };
        if !self.is_member_link(relay) {
            return counted.dropped(Drop::NotMember);
        }
        let source = match self.peers.by_key(frame.node) {
            Some(link) => link.peer,
            None => match NodeId::from_bytes(*frame.node) {
                Ok(source) if source != self.credentials.node_id() => source,
                _ => return counted.dropped(Drop::Malformed),
            },
        };
        if !self.may_call(&source, &relay.peer) {
            return counted.dropped(Drop::OverRate);
        }
        if let Some(packet) = reassembly.take(&frame, Instant::now()) {
            self.paths.inject(source, relay.peer, &packet);
        }
    }

    /// Whether a packet of `source` may come over `relay`: those of peers that we know in person do,
    /// those of others up to a number.
    fn may_call(&self, source: &NodeId, relay: &NodeId) -> bool {
        self.peers.get(source).is_some()
            || self.peers.dialling(source).is_some()
            || self.traversal.callers.admit(relay, source, Instant::now())
    }

    fn is_member_link(&self, link: &Link) -> bool {
        let now = self.credentials.now();
        link.standing.borrow().is_member(now)
    }

    /// Whether packets to `peer` go there without help.
    pub(super) fn is_direct(&self, peer: &NodeId) -> bool {
        self.paths
            .route(peer)
            .is_some_and(|route| route.is_direct())
    }

    /// Where we send packets to `peer`, if they go there without help.
    pub(super) fn address_of(&self, peer: &NodeId) -> Option<SocketAddr> {
        self.paths.route(peer).and_then(|route| route.addr())
    }
}
