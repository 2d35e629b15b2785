//! What is on the way to one socket.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    task::Waker,
};

use quinn::udp::EcnCodepoint;
use tokio::time::Instant;

use super::{HostId, Letter};

/// Datagrams that may be on the way to one socket; more are lost, as in a full socket buffer.
const MAX_ON_THE_WAY: usize = 4096;
/// Datagrams that a paused host keeps to send them when it goes on.
const MAX_HELD: usize = 1024;

/// What is on the way to one socket, by arrival time and order of sending.
pub(super) struct Inbox {
    pub(super) host: HostId,
    pub(super) port: u16,
    on_the_way: BTreeMap<(Instant, u64), Arrival>,
    sequence: u64,
    reader: Option<Waker>,
    held: Vec<Letter>,
}

/// A datagram at its destination.
#[derive(Debug, Clone)]
pub(crate) struct Arrival {
    pub(crate) from: SocketAddr,
    /// The address of ours that it was sent to.
    pub(crate) to: IpAddr,
    pub(crate) ecn: Option<EcnCodepoint>,
    pub(crate) payload: Vec<u8>,
}

/// What a socket finds when it looks for mail.
pub(crate) enum Mail {
    /// Datagrams, in order of arrival.
    Here(Vec<Arrival>),
    /// Nothing before this time, as far as is known now.
    At(Instant),
    /// Nothing on the way.
    Nothing,
}

impl Inbox {
    pub(super) fn new(host: HostId, port: u16) -> Self {
        Self {
            host,
            port,
            on_the_way: BTreeMap::new(),
            sequence: 0,
            reader: None,
            held: Vec::new(),
        }
    }

    pub(super) fn put(&mut self, at: Instant, arrival: Arrival) {
        if self.on_the_way.len() == MAX_ON_THE_WAY {
            return;
        }
        let key = (at, self.sequence);
        self.sequence += 1;
        self.on_the_way.insert(key, arrival);
        // The reader sleeps until what was the first arrival; tell it about an earlier one.
        let first = self.on_the_way.first_key_value();
        if first.is_some_and(|(first, _)| *first == key) {
            self.wake();
        }
    }

    pub(super) fn take(&mut self, max: usize, waker: &Waker, paused: bool) -> Mail {
        let now = Instant::now();
        let mut here = Vec::new();
        while !paused
            && here.len() < max
            && let Some(first) = self.on_the_way.first_entry()
            && first.key().0 <= now
        {
            here.push(first.remove());
        }
        if !here.is_empty() {
            return Mail::Here(here);
        }
        self.reader = Some(waker.clone());
        let first = self.on_the_way.first_key_value().filter(|_| !paused);
        first.map_or(Mail::Nothing, |((at, _), _)| Mail::At(*at))
    }

    pub(super) fn wake(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }

    /// Keeps what a paused host sends.
    pub(super) fn hold(&mut self, letter: Letter) {
        if self.held.len() < MAX_HELD {
            self.held.push(letter);
        }
    }

    pub(super) fn take_held(&mut self) -> Vec<Letter> {
        std::mem::take(&mut self.held)
    }
}
