//! What is on the wires: datagrams, calls, handshakes, keep-alives and closes.

use meshwork_proto::membership::{Input, Message};

use super::link::End;
use super::sim::{Call, Event, Sim, Work};
use super::spec::Lie;
use super::wire;

/// A `gossip` call, or the answer to one, that is not yet across.
#[derive(Debug)]
pub(super) struct Flight {
    /// Where it was sent.
    from: End,
    /// None for an answer.
    call: Option<Call>,
    /// Packets that are still to get through.
    packets: u64,
    bytes: u64,
    attempt: u32,
}

/// A handshake under way.
#[derive(Debug)]
pub(super) struct Dialling {
    from: u32,
    to: u32,
    life: u32,
    since: u64,
    /// Which of its four flights is sent next.
    flight: usize,
    attempt: u32,
}

impl Sim<'_> {
    // === packets ===

    /// Sends one packet. How long until it arrives; none when it is lost.
    fn packet(&mut self, end: End, bytes: u64) -> Option<u64> {
        let now = self.queue.now();
        let (from, to, latency) = {
            let conn = self.conns.at(end)?;
            conn.sent[end.side] = now;
            (conn.ends[end.side], conn.ends[1 - end.side], conn.latency)
        };
        let leaves = self.occupy(from, bytes);
        if !self.hears(from, to) {
            return None;
        }
        let conn = self.conns.at(end)?;
        if conn.loses(end.side, &self.wire, now, &mut self.luck) {
            return None;
        }
        Some(leaves + self.wire.travel(latency, &mut self.luck))
    }

    /// Takes a node's uplink for so many bytes; how long until the last has left.
    fn occupy(&mut self, n: u32, bytes: u64) -> u64 {
        let now = self.queue.now();
        let node = &mut self.nodes[n as usize];
        node.bytes += bytes;
        node.uplink = node.uplink.max(now) + bytes * 1_000_000 / self.wire.rate;
        node.uplink - now
    }

    /// Whether a packet from one node may reach the other at all.
    pub(super) fn hears(&self, from: u32, to: u32) -> bool {
        let (from, to) = (from as usize, to as usize);
        self.nodes[to].runs()
            && self.sides[from] == self.sides[to]
            && (!self.muted[from] || self.muted[to])
            && (!self.deaf[to] || self.deaf[from])
    }

    // === datagrams ===

    pub(super) fn send_datagram(&mut self, end: End, message: Message<u32>) {
        let now = self.queue.now();
        let Some(conn) = self.conns.at(end) else {
            return;
        };
        conn.used = now;
        let bytes = wire::datagram(&message);
        let Some(after) = self.packet(end, bytes) else {
            return;
        };
        let end = end.other();
        if self.luck.hits(self.wire.duplicate) {
            let again = after + self.wire.travel(after, &mut self.luck);
            let message = message.clone();
            self.queue
                .push(now + again, Event::Datagram { end, message });
        }
        self.queue
            .push(now + after, Event::Datagram { end, message });
    }

    pub(super) fn on_datagram(&mut self, end: End, message: Message<u32>) {
        let now = self.queue.now();
        let Some(conn) = self.conns.at(end) else {
            return;
        };
        conn.heard[end.side] = now;
        let n = conn.ends[end.side];
        // An answer's packet is acknowledged by one of its own; a question's by the answer.
        if matches!(message, Message::Ack { .. } | Message::IndirectAck { .. }) {
            self.nodes[n as usize].bytes += wire::ACK;
        }
        self.deliver(n, Work::Datagram(end, message));
    }

    // === calls ===

    pub(super) fn queue_message(&mut self, end: End, message: Message<u32>) {
        let Some(conn) = self.conns.at(end) else {
            return;
        };
        let lane = &mut conn.lanes[end.side];
        lane.messages.push_back(message);
        if lane.messages.len() > MAX_WAITING {
            lane.messages.pop_front();
        }
        self.arm(end);
    }

    /// Facts that wait are sent after they were gathered for a moment; a message is sent at once,
    /// and takes them along.
    pub(super) fn arm(&mut self, end: End) {
        let now = self.queue.now();
        if let Some(conn) = self.conns.at(end) {
            let lane = &mut conn.lanes[end.side];
            let urgent = !lane.messages.is_empty();
            if !lane.busy && (!lane.armed || urgent && !lane.hurried) {
                lane.armed = true;
                lane.hurried = urgent;
                let at = if urgent { now } else { now + GATHER };
                self.queue.push(at, Event::Flush { end });
            }
        }
    }

    pub(super) fn on_flush(&mut self, end: End) {
        let now = self.queue.now();
        let Some(conn) = self.conns.at(end) else {
            return;
        };
        let n = conn.ends[end.side] as usize;
        if self.nodes[n].stalled_until > now {
            let at = self.nodes[n].stalled_until;
            return self.queue.push(at, Event::Flush { end });
        }
        conn.used = now;
        let lane = &mut conn.lanes[end.side];
        lane.armed = false;
        lane.hurried = false;
        if lane.busy {
            return;
        }
        let messages = lane.messages.drain(..lane.messages.len().min(MAX_MESSAGES));
        let messages: Vec<_> = messages.collect();
        let mut facts = Vec::new();
        while facts.len() < MAX_FACTS
            && let Some(key) = lane.facts.pop_last()
        {
            let whole = lane.whole.remove(&key);
            facts.extend(self.nodes[n].ledger.fact(&key, &self.book, whole));
        }
        if messages.is_empty() && facts.is_empty() {
            return;
        }
        lane.busy = true;
        self.send_call(end, Call { messages, facts });
    }

    /// Sends a call, regardless of what else is on its way.
    pub(super) fn send_call(&mut self, end: End, call: Call) {
        let bytes = wire::batch(&call.messages, &call.facts, self.spec.announcement);
        let packets = wire::packets(bytes);
        if let Some(conn) = self.conns.at(end) {
            let (now, n, to) = (
                self.queue.now(),
                conn.ends[end.side],
                conn.ends[1 - end.side],
            );
            let (messages, facts) = (call.messages.len(), call.facts.len());
            self.trace.note(now, n, bytes << 8 | 7, || {
                format!("=> {to}: {messages} messages, {facts} facts, {bytes} bytes")
            });
        }
        self.fly(Flight {
            from: end,
            call: Some(call),
            packets,
            bytes: wire::framed(bytes, packets),
            attempt: 0,
        });
    }

    /// The answer to a call, which lets the other end send the next.
    pub(super) fn respond(&mut self, end: End) {
        self.fly(Flight {
            from: end,
            call: None,
            packets: 1,
            bytes: wire::RESPONSE,
            attempt: 0,
        });
    }

    /// Sends what is left of a flight. Loss is repaired as QUIC does (RFC 9002): what is lost
    /// among packets that arrive after little more than a round trip, else after a time-out that
    /// doubles.
    fn fly(&mut self, mut flight: Flight) {
        let now = self.queue.now();
        let (end, packets) = (flight.from, flight.packets);
        let each = flight.bytes / packets;
        let mut lost = 0;
        let mut last = 0;
        for _ in 0..packets {
            match self.packet(end, each) {
                Some(after) => last = last.max(after),
                None => lost += 1,
            }
        }
        let Some(conn) = self.conns.at(end) else {
            return;
        };
        let latency = conn.latency;
        let lively = now - conn.heard[end.side] < LIVELY;
        let leaves =
            self.nodes[conn.ends[end.side] as usize].uplink.max(now) + self.paced(packets, latency);
        if lost == 0 {
            let landing = (now + last).max(leaves);
            let flight = self.flights.add(flight);
            self.queue.push(landing, Event::Landing { flight });
            return;
        }
        let timeout = 3 * latency + MAX_ACK_DELAY;
        let doublings = if lively { FEW_DOUBLINGS } else { MAX_DOUBLINGS };
        let again = if lost < packets {
            5 * latency / 2
        } else {
            timeout << flight.attempt
        };
        // What is acknowledged in between begins the doubling anew.
        flight.attempt = if lost < packets {
            0
        } else {
            (flight.attempt + 1).min(doublings)
        };
        flight.bytes = each * lost;
        flight.packets = lost;
        let flight = self.flights.add(flight);
        self.queue.push(leaves + again, Event::Again { flight });
    }

    /// How long many packets take where losses keep the window small (Mathis et al., 1997).
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss
    )]
    fn paced(&self, packets: u64, latency: u64) -> u64 {
        if self.wire.loss <= 0.0 || packets <= INITIAL_WINDOW {
            return 0;
        }
        let window = (1.22 / self.wire.loss.sqrt()).max(2.0);
        let rounds = (packets - INITIAL_WINDOW) as f64 / window;
        (rounds * 2.0 * latency as f64) as u64
    }

    pub(super) fn on_again(&mut self, flight: u32) {
        let now = self.queue.now();
        let Some(from) = self.flights.get(flight).map(|flight| flight.from) else {
            return;
        };
        let stalled_until = self.conns.at(from).map_or(0, |conn| {
            self.nodes[conn.ends[from.side] as usize].stalled_until
        });
        if stalled_until > now {
            self.queue.push(stalled_until, Event::Again { flight });
            return;
        }
        if let Some(flight) = self.flights.take(flight)
            && let Some(conn) = self.conns.at(flight.from)
        {
            let (n, to) = (conn.ends[flight.from.side], conn.ends[1 - flight.from.side]);
            let attempt = flight.attempt;
            self.trace.note(now, n, u64::from(attempt) << 8 | 8, || {
                format!("=> {to}: again, {attempt} in vain")
            });
            self.fly(flight);
        }
    }

    pub(super) fn on_landing(&mut self, flight: u32) {
        let now = self.queue.now();
        let Some(flight) = self.flights.take(flight) else {
            return;
        };
        let end = flight.from.other();
        let Some(conn) = self.conns.at(end) else {
            return;
        };
        conn.heard[end.side] = now;
        let n = conn.ends[end.side];
        if let Some(call) = flight.call {
            self.deliver(n, Work::Call(end, call));
            return;
        }
        let lane = &mut conn.lanes[end.side];
        lane.busy = false;
        if !lane.messages.is_empty() || !lane.facts.is_empty() {
            self.arm(end);
        }
    }

    // === connections ===

    pub(super) fn dial(&mut self, n: u32, to: u32) {
        let now = self.queue.now();
        let node = &mut self.nodes[n as usize];
        if let Some(end) = node.link(to) {
            if let Some(conn) = self.conns.at(end) {
                conn.released[end.side] = false;
                conn.used = now;
            }
            self.input_now(n, Input::LinkUp { peer: to });
            return;
        }
        if !node.has_address(to) {
            self.input_now(n, Input::DialFailed { peer: to });
            return;
        }
        if node.dialling.contains(&to) {
            return;
        }
        node.dialling.push(to);
        let dial = self.dials.add(Dialling {
            from: n,
            to,
            life: node.life,
            since: now,
            flight: 0,
            attempt: 0,
        });
        self.queue.push(now, Event::Dial { dial });
    }

    /// Sends the next flight of a handshake, or ends it.
    pub(super) fn on_dial(&mut self, dial: u32) {
        let now = self.queue.now();
        let Some(dialling) = self.dials.get(dial) else {
            return;
        };
        let (from, to, life) = (dialling.from, dialling.to, dialling.life);
        let (flight, since) = (dialling.flight, dialling.since);
        let alive = self.nodes[from as usize].life == life;
        if !alive || now >= since + DIAL_TIMEOUT {
            self.dials.take(dial);
            if alive {
                self.end_dial(from, to);
                self.input(from, Input::DialFailed { peer: to });
            }
            return;
        }
        if flight == wire::FLIGHTS.len() {
            self.dials.take(dial);
            self.end_dial(from, to);
            self.connect(from, to);
            return;
        }
        let (sender, receiver) = if flight.is_multiple_of(2) {
            (from, to)
        } else {
            (to, from)
        };
        let leaves = self.occupy(sender, wire::FLIGHTS[flight]);
        let lost = self.luck.hits(self.wire.loss) || !self.hears(sender, receiver);
        let latency = self.wire.latency(from, to);
        let travel = leaves + self.wire.travel(latency, &mut self.luck);
        let Some(dialling) = self.dials.get(dial) else {
            return;
        };
        let next = if lost {
            let wait = FIRST_RETRY << dialling.attempt.min(MAX_DOUBLINGS);
            dialling.attempt += 1;
            (now + wait).min(since + DIAL_TIMEOUT)
        } else {
            dialling.flight += 1;
            let other = &self.nodes[receiver as usize];
            let late = other
                .delay
                .as_ref()
                .map_or(0, |range| self.luck.within(range));
            (now + travel + late).max(other.stalled_until)
        };
        self.queue.push(next, Event::Dial { dial });
    }

    fn end_dial(&mut self, from: u32, to: u32) {
        self.nodes[from as usize]
            .dialling
            .retain(|peer| *peer != to);
    }

    /// A handshake is complete: both ends have a link, unless they have one already.
    fn connect(&mut self, from: u32, to: u32) {
        let now = self.queue.now();
        if !self.nodes[to as usize].runs() {
            self.input(from, Input::DialFailed { peer: to });
            return;
        }
        let old = self.nodes[from as usize].link(to);
        let whole = old.and_then(|end| self.conns.any(end));
        if whole.is_some_and(|conn| conn.up == [true; 2]) {
            self.input(from, Input::LinkUp { peer: to });
            return;
        }
        let latency = self.wire.latency(from, to);
        let end = self.conns.open([from, to], latency, now);
        for (n, peer, end) in [(from, to, end), (to, from, end.other())] {
            if let Some(old) = self.nodes[n as usize].set_link(peer, end) {
                self.conns.drop_end(old);
            }
            self.queue.push(now + KEEP, Event::Keep { end });
            self.input(n, Input::LinkUp { peer });
        }
    }

    /// One end loses its connection without telling the other.
    pub(super) fn lose(&mut self, end: End, why: &str) {
        let now = self.queue.now();
        let Some(conn) = self.conns.at(end) else {
            return;
        };
        let (n, peer) = (conn.ends[end.side], conn.ends[1 - end.side]);
        self.conns.drop_end(end);
        if self.nodes[n as usize].drop_link(peer, end) {
            self.trace
                .note(now, n, 6, || format!("link with {peer} lost: {why}"));
            self.input(n, Input::LinkDown { peer });
        }
    }

    /// One end closes its connection and tells the other.
    pub(super) fn close(&mut self, end: End) {
        let now = self.queue.now();
        if let Some(after) = self.packet(end, wire::CLOSE) {
            self.queue
                .push(now + after, Event::Closed { end: end.other() });
        }
        self.lose(end, "closed");
    }

    /// Keeps a connection alive, gives it up when the other end is silent, closes it when it is
    /// not needed.
    pub(super) fn on_keep(&mut self, end: End) {
        let now = self.queue.now();
        let Some(conn) = self.conns.at(end) else {
            return;
        };
        let n = conn.ends[end.side];
        if self.nodes[n as usize].stalled_until > now {
            let at = self.nodes[n as usize].stalled_until;
            self.queue.push(at, Event::Keep { end });
            return;
        }
        let silent = now - conn.heard[end.side];
        if silent >= DEAD_AFTER {
            self.lose(end, "silent");
            return;
        }
        if conn.released[end.side] && now - conn.used >= IDLE {
            self.close(end);
            return;
        }
        let next = (now + KEEP).min(conn.heard[end.side] + DEAD_AFTER);
        if now - conn.sent[end.side] >= KEEP
            && let Some(after) = self.packet(end, wire::ACK)
        {
            let end = end.other();
            self.queue
                .push(now + after, Event::Beep { end, reply: true });
        }
        self.queue.push(next.max(now + 1), Event::Keep { end });
    }

    pub(super) fn on_beep(&mut self, end: End, reply: bool) {
        let now = self.queue.now();
        let Some(conn) = self.conns.at(end) else {
            return;
        };
        conn.heard[end.side] = now;
        let n = conn.ends[end.side];
        let stalls = self.nodes[n as usize].lies.contains(&Lie::Stall);
        if reply
            && !stalls
            && let Some(after) = self.packet(end, wire::ACK)
        {
            let end = end.other();
            self.queue
                .push(now + after, Event::Beep { end, reply: false });
        }
    }
}

/// The driver gathers what it sends for so long.
const GATHER: u64 = 50_000;
/// Messages and facts in one call.
const MAX_MESSAGES: usize = 64;
const MAX_FACTS: usize = 256;
/// Messages that may wait for one link; the oldest leave.
const MAX_WAITING: usize = 256;
/// A receiver waits so long before it acknowledges (RFC 9000, section 18.2).
const MAX_ACK_DELAY: u64 = 25_000;
/// Time-outs double at most so often; and fewer times while other packets of the connection are
/// acknowledged, which shows the loss of those before them (RFC 9002, section 6.1).
const MAX_DOUBLINGS: u32 = 8;
const FEW_DOUBLINGS: u32 = 2;
/// A connection on which something came in this time is lively.
const LIVELY: u64 = 4_000_000;
/// Packets that are sent at once (RFC 9002, section 7.2).
const INITIAL_WINDOW: u64 = 10;
/// A dial fails after this.
const DIAL_TIMEOUT: u64 = 5_000_000;
/// A lost flight of a handshake is sent again after this at first (RFC 9002: twice the initial
/// round trip of 333 ms, and the variance).
const FIRST_RETRY: u64 = 1_000_000;
/// The product's defaults: a silent connection is given up, an idle one closed, after this.
const DEAD_AFTER: u64 = 20_000_000;
const IDLE: u64 = 60_000_000;
/// Time between two looks at a connection, and between keep-alive packets.
const KEEP: u64 = DEAD_AFTER / 3;
