//! Making connections: to any of a peer's addresses, once at a time, again and again where a peer
//! is pinned.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use meshwork_identity::{Contact, NodeId};
use meshwork_proto::rpc::RpcError;
use quinn::Connection;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::debug;

use super::Link;
use crate::error::{MeshError, Tried};
use crate::node::Node;
use crate::path::{Bound, virtual_addr};
use crate::rpc::{after, close_code};
use crate::transport::{ConnectError, Incoming};
use crate::watch;

/// How a dial ended.
pub(crate) type DialResult = Result<(), MeshError>;

/// First pause before a pinned peer is dialled again; doubled after each failure.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// Longest pause before a pinned peer is dialled again.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How long one round of dialling a pinned peer may take.
const PINNED_DIAL: Duration = Duration::from_secs(30);

/// Waits for the end of a dial.
async fn end(dial: &mut watch::Receiver<Option<DialResult>>) -> DialResult {
    match dial.wait_for(Option::is_some).await {
        Ok(result) => result.clone().expect("it was waited for"),
        // Whoever dials says how it ended, unless it was stopped.
        Err(_) => Err(MeshError::ShuttingDown),
    }
}

impl Node {
    /// The connection to the contact, dialled if there is none.
    ///
    /// # Cancel safety
    /// Dropping the future leaves a dial that was begun to itself.
    pub(crate) async fn reach(
        self: &Arc<Self>,
        contact: &Contact,
        deadline: Instant,
    ) -> Result<Arc<Link>, MeshError> {
        let node = contact.node;
        if node == self.credentials.node_id() {
            return Err(MeshError::Own);
        }
        if let Some(link) = self.peers.get(&node) {
            return Ok(link);
        }
        let begun = Instant::now();
        let mut dial = match self.peers.dialling(&node) {
            Some(dial) => dial,
            None if !self.open_relays(node) && contact.addrs.is_empty() => {
                return Err(MeshError::NoAddress { node });
            }
            None => self.dial_once(contact),
        };
        tokio::select! {
            biased;
            link = self.peers.connected(&node) => Ok(link),
            end = end(&mut dial) => {
                end?;
                // It is in the table since, unless it has ended.
                self.peers.get(&node).ok_or_else(|| MeshError::Greeting {
                    node,
                    why: RpcError::unavailable("the connection ended after the greeting")
                        .reason("connection_lost"),
                })
            }
            () = sleep_until(deadline) => Err(MeshError::Timeout {
                node,
                after: deadline.saturating_duration_since(begun),
            }),
        }
    }

    /// Dials, unless that is being done already.
    fn dial_once(self: &Arc<Self>, contact: &Contact) -> watch::Receiver<Option<DialResult>> {
        self.peers.dial(contact.node, || {
            let (done, result) = watch::channel(None);
            let (node, contact) = (self.clone(), contact.clone());
            self.tasks.spawn(async move {
                let draining = node.desk.draining.clone();
                let result = tokio::select! {
                    biased;
                    () = draining.cancelled() => Err(MeshError::ShuttingDown),
                    result = node.dial_and_greet(&contact) => result,
                };
                if let Err(error) = &result {
                    debug!(peer = ?contact.node, %error, "dial failed");
                }
                node.peers.dialled(&contact.node);
                done.send_replace(Some(result));
            });
            result
        })
    }

    async fn dial_and_greet(self: &Arc<Self>, contact: &Contact) -> DialResult {
        let (conn, path) = self.connect(contact).await?;
        let link = self
            .adopt(conn, path, true)
            .expect("what we dial is not bounded");
        let greeted = self.greet(&link).await;
        if greeted.is_err() {
            link.close(close_code::NO_GREETING, "no answer to the greeting");
        }
        greeted
    }

    /// Connects over all addresses and relays at once: the first that answers carries the handshake.
    /// When another node answers at one of them, the others are tried again without it.
    async fn connect(&self, contact: &Contact) -> Result<(Connection, Bound), MeshError> {
        let peer = contact.node;
        let mut dial = self.paths.dial(peer, &contact.addrs);
        let mut failed: Vec<(SocketAddr, ConnectError)> = Vec::new();
        loop {
            let error = match self.endpoint.connect(virtual_addr(&peer), Some(peer)).await {
                Ok(conn) => match self.paths.bind(peer, &conn) {
                    Some(path) => return Ok((conn, path)),
                    None => return Err(MeshError::ShuttingDown),
                },
                Err(error) => error,
            };
            let unanswered = matches!(
                error,
                ConnectError::Timeout { .. } | ConnectError::Local { .. }
            );
            let refuted = if unanswered { None } else { dial.refute() };
            if let Some(addr) = refuted.and_then(|route| route.addr()) {
                failed.push((addr, error.at(addr)));
            }
            let left = !dial.addrs().is_empty() || !dial.relays().is_empty();
            if refuted.is_some() && left {
                continue;
            }
            let rest = dial.addrs().iter();
            failed.extend(rest.map(|addr| (*addr, error.at(*addr))));
            return Err(MeshError::Unreachable {
                node: peer,
                tried: Tried::new(&contact.addrs, failed, dial.relays()),
            });
        }
    }

    /// Keeps a pinned peer connected until the node shuts down.
    pub(crate) async fn keep_connected(self: Arc<Self>, peer: NodeId) {
        let draining = self.desk.draining.clone();
        let keep = async {
            let mut pause = FIRST_PAUSE;
            loop {
                let Some(contact) = self.peers.pinned(&peer) else {
                    return;
                };
                match self.reach(&contact, after(PINNED_DIAL)).await {
                    Ok(_) => {
                        let since = Instant::now();
                        self.peers.disconnected(&peer).await;
                        // Who accepts and drops us at once is no better than who is not there.
                        if since.elapsed() > LONGEST_PAUSE {
                            pause = FIRST_PAUSE;
                        }
                    }
                    Err(error) => debug!(?peer, %error, "pinned peer is not reached"),
                }
                sleep(self.jitter(pause)).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        };
        tokio::select! {
            biased;
            () = draining.cancelled() => {}
            () = keep => {}
        }
    }

    /// Between half of `pause` and all of it, so that many nodes do not come back at once.
    fn jitter(&self, pause: Duration) -> Duration {
        let chance = u32::from_be_bytes(self.entropy.array());
        pause / 2 + pause.mul_f64(f64::from(chance) / f64::from(u32::MAX) / 2.0)
    }

    /// Accepts peers until the endpoint closes.
    pub(crate) async fn accept(self: Arc<Self>) {
        while let Some(incoming) = self.endpoint.accept().await {
            // A node that only dials lets the attempt go, which closes it.
            if self.config.accept && !self.desk.draining.is_cancelled() {
                self.tasks.spawn(self.clone().welcome(incoming));
            }
        }
    }

    async fn welcome(self: Arc<Self>, incoming: Incoming) {
        let conn = match incoming.complete().await {
            Ok(conn) => conn,
            Err(error) => return debug!(%error, "a peer's attempt to connect failed"),
        };
        let peer = crate::transport::peer_id(&conn);
        if self.endpoint.open_connections() > self.config.max_peers {
            debug!(?peer, "too many connections");
            return conn.close(close_code::BUSY, b"");
        }
        let Some(path) = self.paths.bind(peer, &conn) else {
            debug!(
                ?peer,
                "a relay named another node than the one that has proven itself"
            );
            return conn.close(close_code::PROTOCOL, b"misnamed by the relay");
        };
        self.adopt(conn, path, false);
    }
}
