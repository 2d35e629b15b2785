//! The datagrams of a connection: small messages that may be lost. The first byte says what one is.

use std::sync::Arc;

use bytes::Bytes;
use quinn::ConnectionError;
use tracing::debug;

use crate::node::Node;
use crate::peer::Link;
use crate::rpc::close_code;
use crate::traversal::Reassembly;

/// A message of the membership protocol.
pub(crate) const GOSSIP: u8 = 1;
/// A packet that this node is to hand on as a relay.
pub(crate) const RELAY_SEND: u8 = 2;
/// A packet that a relay hands to this node.
pub(crate) const RELAY_DELIVER: u8 = 3;

/// Datagrams that are handled before other tasks get their turn.
const AT_ONCE: usize = 32;

impl Node {
    /// Handles a connection's datagrams until it ends. Closes it when the peer sends what nobody
    /// who speaks this version does.
    pub(crate) async fn read_datagrams(self: &Arc<Self>, link: &Arc<Link>) -> ConnectionError {
        let mut reassembly = Reassembly::default();
        loop {
            for _ in 0..AT_ONCE {
                let bytes = match link.conn.read_datagram().await {
                    Ok(bytes) => bytes,
                    Err(ended) => return ended,
                };
                if !self.handle_datagram(link, &mut reassembly, bytes) {
                    debug!(peer = ?link.peer, "unknown type of datagram");
                    link.close(close_code::PROTOCOL, "unknown type of datagram");
                    return link.conn.closed().await;
                }
            }
            tokio::task::yield_now().await;
        }
    }

    /// False for a datagram of unknown type.
    fn handle_datagram(
        self: &Arc<Self>,
        link: &Arc<Link>,
        reassembly: &mut Reassembly,
        mut bytes: Bytes,
    ) -> bool {
        if bytes.is_empty() {
            return false;
        }
        let kind = bytes.split_to(1)[0];
        match kind {
            GOSSIP => self.gossip_datagram(link, &bytes),
            RELAY_SEND => self.relay_send(link, &bytes),
            RELAY_DELIVER => self.relay_deliver(link, reassembly, &bytes),
            _ => return false,
        }
        true
    }
}
