//! What the machine of a peer's paths is told, and what it wants done.

use std::net::SocketAddr;

use meshwork_identity::NodeId;

use super::{ProbeKind, Route};

/// Ways that packets go over beside the one in use while that is in doubt.
pub const MAX_SPREAD: usize = 2;

/// What the machine is told.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Event<'a> {
    /// The peer may be at these addresses.
    Offered(&'a [SocketAddr]),
    /// The same, and the peer pings us now, too: open the NATs between us.
    Punch(&'a [SocketAddr]),
    /// A relay is linked with both of us, or not any more.
    RelayUp(NodeId),
    /// See above.
    RelayDown(NodeId),
    /// A handshake was completed over this way.
    Proven(Route),
    /// An authentic ping came over this way.
    Ping {
        /// The way, as we would answer.
        route: Route,
        /// Any but a pong: what the peer says of the way.
        kind: ProbeKind,
    },
    /// An authentic pong came over this way.
    Pong {
        /// The way.
        route: Route,
        /// That of our ping.
        transaction: u64,
    },
    /// So many packets were sent to the peer and received from it in all. To be told whenever the
    /// machine's timer fires, and when the first packet is sent or received after
    /// [`is_watching`](super::PeerPaths::is_watching) has turned false.
    Traffic {
        /// Sent in all.
        sent: u64,
        /// Received over the way in use. What comes over others says nothing about it.
        received: u64,
    },
    /// Another peer was proven at this address.
    Taken(SocketAddr),
    /// Whether there is a NAT between our socket and the peer on this way.
    Nated {
        /// The way.
        route: Route,
        /// See above.
        nated: bool,
    },
    /// A NAT shows another peer a new address for the socket in use: what this peer sends to the old
    /// one may not arrive.
    Remapped,
    /// Another socket is to be used from now on.
    Rotated {
        /// Its number.
        socket: u8,
    },
    /// An old socket is gone.
    Closed {
        /// Its number.
        socket: u8,
    },
    /// The time of [`next_timer`](super::PeerPaths::next_timer) has come.
    Timer,
}

/// What the machine wants done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Ping over this way.
    Ping {
        /// The way.
        route: Route,
        /// Unique among all pings of the machine; 1 and up.
        transaction: u64,
        /// What to say of the way.
        kind: ProbeKind,
    },
    /// Send everything for the peer this way.
    Use(Route),
    /// While the way in use is in doubt, the next packets go over these, too. None: it is not, or
    /// there is no other.
    Spread([Option<Route>; MAX_SPREAD]),
    /// Nothing is known of this way any more; packets from there are not the peer's.
    Forget(Route),
    /// A way by NAT or relay is not in use any more, and a search for a better one has found none:
    /// nothing that the machine knows answers.
    Lost,
}
