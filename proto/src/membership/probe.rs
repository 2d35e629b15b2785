//! Checks whether nodes answer, directly and through others.

use std::time::Duration;

use super::{Context, Membership, Message, Moment, Peer, shuffle};

/// Nodes checked at one time; nodes that are no neighbours take one half of it at most.
const MAX_CHECKS: usize = 16;
/// Checks on behalf of others at one time, in all and for one neighbour.
const MAX_ERRANDS: usize = 32;
const MAX_ERRANDS_EACH: usize = 4;
/// Helpers are asked again after this.
const ASK_AGAIN: Duration = Duration::from_millis(300);
/// A check of a node that must be dialled first takes this many times as long, unless its link
/// has just ended: on bad links a handshake takes longer than a ping.
const DIALLED: u32 = 3;
/// A requester hears after this that there is no answer yet; its own time is not over then, and
/// it may have to ask again.
const NACK: Duration = Duration::from_millis(300);
/// A neighbour that so often answers only through others is reached one way only: it is replaced.
const ONE_WAY: u8 = 3;
/// A check whose target is heard meanwhile, only not with an answer, goes on this many times: on bad
/// links that is likelier than that the target does not hear this node, or died just now.
const MAX_RENEWALS: u8 = 2;
/// Shortest and longest time before a ping is repeated.
const REPEAT: (Duration, Duration) = (Duration::from_millis(100), Duration::from_millis(400));

/// A node whose answer is awaited.
#[derive(Debug)]
pub(super) struct Check<P> {
    pub(super) target: P,
    seq: u32,
    started: Moment,
    /// Pings sent; a round trip is only known when there was one.
    pings: u32,
    ping_at: Moment,
    /// When the helpers are asked, again and again.
    ask_at: Moment,
    deadline: Moment,
    /// How often the deadline was put off because the target was heard.
    renewals: u8,
    /// Who was asked, and whether it answered that it got no answer either.
    helpers: Vec<(P, bool)>,
}

impl<P> Check<P> {
    pub(super) fn due(&self) -> Moment {
        self.ping_at.min(self.ask_at).min(self.deadline)
    }

    pub(super) fn delay(&mut self, late: Duration) {
        self.started = self.started + late;
        self.ask_at = self.ask_at + late;
        self.deadline = self.deadline + late;
    }
}

/// A node that is checked because a neighbour does not reach it.
#[derive(Debug)]
pub(super) struct Errand<P> {
    requester: P,
    /// The requester's.
    request: u32,
    pub(super) target: P,
    seq: u32,
    ping_at: Moment,
    /// When the requester hears that there is no answer yet; none when it has heard.
    nack_at: Option<Moment>,
    until: Moment,
    alive: bool,
}

impl<P> Errand<P> {
    pub(super) fn due(&self) -> Moment {
        let first = self.nack_at.map_or(self.until, |at| at.min(self.until));
        if self.alive {
            self.until
        } else {
            first.min(self.ping_at)
        }
    }

    pub(super) fn delay(&mut self, late: Duration) {
        self.nack_at = self.nack_at.map(|at| at + late);
        self.until = self.until + late;
    }
}

/// How a node was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    Answer,
    Link,
    /// Another node has its answer.
    Indirect,
    /// It has said something new, which came by whatever way.
    Word,
}

/// Why a node is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// Its turn, or others suspect it: a ping first.
    Probe,
    /// Its link ended: everything at once.
    Lost,
    /// It is no neighbour and was just dialled in vain: again, and through others.
    Unreachable,
}

impl<P: Peer> Membership<P> {
    /// Probes the next neighbour when it is time.
    pub(super) fn probe(&mut self, cx: &mut Context<'_, P>) {
        if cx.now < self.due.probe {
            return;
        }
        self.due.probe = cx.now + cx.chance.jitter(self.stretch(self.config.probe_period));
        for _ in 0..self.neighbours.len() {
            if self.cursor >= self.neighbours.len() {
                shuffle(&mut self.neighbours, cx.chance);
                self.cursor = 0;
            }
            let target = self.neighbours[self.cursor].peer;
            self.cursor += 1;
            if !self.is_checked(target) {
                self.check(cx, target, Why::Probe);
                return;
            }
        }
    }

    pub(super) fn is_checked(&self, target: P) -> bool {
        self.checks.iter().any(|check| check.target == target)
    }

    /// Begins to check a node; says whether it is being checked.
    pub(super) fn check(&mut self, cx: &mut Context<'_, P>, target: P, why: Why) -> bool {
        if target == self.local || self.is_checked(target) {
            return true;
        }
        // Those that are no neighbours leave room for those that are.
        let room = if self.is_neighbour(target) || why == Why::Lost {
            MAX_CHECKS
        } else {
            MAX_CHECKS / 2
        };
        if self.checks.len() >= room {
            return false;
        }
        self.stats.probes += 1;
        let seq = self.next_seq();
        let alone = !self.links.contains_key(&target);
        let direct = if alone || why != Why::Probe {
            Duration::ZERO
        } else {
            self.stretch(self.config.direct_timeout)
        };
        let timeout = self.config.probe_timeout;
        let timeout = if alone && why != Why::Lost {
            timeout * DIALLED
        } else {
            timeout
        };
        let mut check = Check {
            target,
            seq,
            started: cx.now,
            pings: 0,
            ping_at: cx.now,
            ask_at: cx.now + direct,
            deadline: cx.now + self.stretch(timeout),
            renewals: 0,
            helpers: Vec::new(),
        };
        if alone {
            self.dial(cx, target);
        }
        self.advance(cx, &mut check);
        self.checks.push(check);
        true
    }

    /// Goes on with every check and ends those whose time is over.
    pub(super) fn run_checks(&mut self, cx: &mut Context<'_, P>) {
        let mut checks = std::mem::take(&mut self.checks);
        let mut failed = Vec::new();
        checks.retain_mut(|check| {
            if cx.now >= check.deadline && !self.renew(cx.now, check) {
                failed.push((check.target, check.started, self.blame(cx, check)));
                return false;
            }
            self.advance(cx, check);
            true
        });
        self.checks = checks;
        for (target, started, own_fault) in failed {
            self.check_failed(cx, target, started, own_fault);
        }
    }

    /// Puts a check's deadline off when its target was heard in the last half of a probe's time.
    fn renew(&self, now: Moment, check: &mut Check<P>) -> bool {
        let timeout = self.config.probe_timeout;
        let heard = |held: &super::Neighbour<P>| {
            held.peer == check.target
                && held.heard > check.started
                && now.since(held.heard) < timeout / 2
        };
        let renew = check.renewals < MAX_RENEWALS && self.neighbours.iter().any(heard);
        if renew {
            check.renewals += 1;
            check.deadline = now + self.stretch(timeout);
        }
        renew
    }

    /// Pings the target and asks the helpers, as far as it is time.
    fn advance(&mut self, cx: &mut Context<'_, P>, check: &mut Check<P>) {
        if cx.now >= check.ping_at {
            check.ping_at = cx.now + self.ping_repeat(check.target);
            if self.links.contains_key(&check.target) {
                check.pings += 1;
                self.ping(cx, check.target, check.seq);
            }
        }
        if cx.now >= check.ask_at {
            check.ask_at = cx.now + ASK_AGAIN;
            if check.helpers.is_empty() {
                check.helpers = self.helpers(cx, check.target);
            }
            // Those who had no answer yet may have one by now, and it may have been lost.
            for (helper, _) in &check.helpers {
                let (seq, target) = (check.seq, check.target);
                cx.send(*helper, Message::PingRequest { seq, target });
            }
        }
    }

    fn helpers(&self, cx: &mut Context<'_, P>, target: P) -> Vec<(P, bool)> {
        let trusted = |peer: &P| *peer != target && !self.suspects.holds(peer);
        let mut others: Vec<P> = self.active().filter(trusted).collect();
        shuffle(&mut others, cx.chance);
        others.truncate(self.config.indirect);
        others.into_iter().map(|helper| (helper, false)).collect()
    }

    /// Whether the failure of a check may be this node's own: of the helpers, who answer in any
    /// case, most did not, or there were none although others live. Single answers are lost.
    fn blame(&self, cx: &Context<'_, P>, check: &Check<P>) -> bool {
        let answered = check.helpers.iter().filter(|(_, answered)| *answered);
        let silent = check.helpers.len() - answered.clone().count();
        if check.helpers.is_empty() {
            self.living(cx) > 1
        } else {
            silent > answered.count()
        }
    }

    fn check_failed(&mut self, cx: &mut Context<'_, P>, target: P, start: Moment, own_fault: bool) {
        self.stats.probes_failed += 1;
        // Whom others do not reach either is no sign of a fault here.
        if own_fault && !self.suspects.holds(&target) {
            self.worsen(1);
        }
        if self.trusts_itself(cx, start, target) {
            if !self.may_yet_object(cx, target) {
                self.accuse(cx, target);
            }
        } else {
            self.stats.doubted += 1;
            self.doubt(cx);
        }
    }

    /// A check's target was reached.
    pub(super) fn reached(&mut self, now: Moment, target: P, how: How) {
        let Some(at) = self.checks.iter().position(|check| check.target == target) else {
            return;
        };
        let check = self.checks.swap_remove(at);
        if how == How::Word {
            return;
        }
        self.mend();
        self.stats.probes_indirect += u64::from(how == How::Indirect);
        if let Some(neighbour) = self.neighbours.iter_mut().find(|held| held.peer == target) {
            neighbour.reached = now;
            if how == How::Indirect {
                neighbour.indirect = neighbour.indirect.saturating_add(1);
            } else {
                neighbour.indirect = 0;
            }
            if how == How::Answer && check.pings == 1 {
                neighbour.measured(now.since(check.started));
            }
        }
    }

    pub(super) fn on_ping(&mut self, cx: &mut Context<'_, P>, from: P, seq: u32, of_me: u64) {
        cx.send(from, Message::Ack { seq });
        self.compare_versions(cx, from, of_me);
        self.remind(cx, from);
    }

    pub(super) fn on_ack(&mut self, cx: &mut Context<'_, P>, from: P, seq: u32) {
        let mine = |check: &Check<P>| check.target == from && check.seq == seq;
        if self.checks.iter().any(mine) {
            return self.reached(cx.now, from, How::Answer);
        }
        let asked = |errand: &&mut Errand<P>| errand.target == from && errand.seq == seq;
        if let Some(errand) = self.errands.iter_mut().find(asked) {
            answer(cx, errand);
        }
    }

    pub(super) fn on_indirect_ack(
        &mut self,
        now: Moment,
        from: P,
        (seq, target): (u32, P),
        alive: bool,
    ) {
        let Some(check) = self
            .checks
            .iter_mut()
            .find(|check| check.target == target && check.seq == seq)
        else {
            return;
        };
        let Some(helper) = check.helpers.iter_mut().find(|(peer, _)| *peer == from) else {
            return;
        };
        helper.1 = true;
        if alive {
            self.reached(now, target, How::Indirect);
        }
    }

    pub(super) fn on_ping_request(
        &mut self,
        cx: &mut Context<'_, P>,
        from: P,
        seq: u32,
        target: P,
    ) {
        let same = |errand: &&Errand<P>| errand.requester == from && errand.request == seq;
        if let Some(errand) = self.errands.iter().find(same) {
            if errand.target == target && (errand.alive || errand.nack_at.is_none()) {
                let alive = errand.alive;
                cx.send(from, Message::IndirectAck { seq, target, alive });
            }
            return;
        }
        if target == self.local {
            let alive = true;
            return cx.send(from, Message::IndirectAck { seq, target, alive });
        }
        let each = self
            .errands
            .iter()
            .filter(|errand| errand.requester == from);
        let known = self.links.contains_key(&target) || cx.version(target).is_some();
        if !self.is_neighbour(from)
            || !known
            || each.count() >= MAX_ERRANDS_EACH
            || self.errands.len() >= MAX_ERRANDS
        {
            self.stats.throttled += 1;
            return;
        }
        let own_seq = self.next_seq();
        let mut errand = Errand {
            requester: from,
            request: seq,
            target,
            seq: own_seq,
            ping_at: cx.now,
            nack_at: Some(cx.now + NACK),
            until: cx.now + self.config.probe_timeout,
            alive: false,
        };
        if !self.links.contains_key(&target) {
            errand.until = cx.now + self.config.probe_timeout * DIALLED;
            self.dial_for_others(cx, target);
        }
        self.go_on(cx, &mut errand);
        self.errands.push(errand);
    }

    pub(super) fn run_errands(&mut self, cx: &mut Context<'_, P>) {
        if self.errands.is_empty() {
            return;
        }
        let mut errands = std::mem::take(&mut self.errands);
        errands.retain_mut(|errand| {
            self.go_on(cx, errand);
            cx.now < errand.until
        });
        self.errands = errands;
    }

    fn go_on(&mut self, cx: &mut Context<'_, P>, errand: &mut Errand<P>) {
        if errand.alive {
            return;
        }
        if cx.now >= errand.ping_at {
            errand.ping_at = cx.now + self.ping_repeat(errand.target);
            if self.links.contains_key(&errand.target) {
                self.ping(cx, errand.target, errand.seq);
            }
        }
        if errand.nack_at.is_some_and(|at| cx.now >= at) {
            nack(cx, errand);
        }
    }

    /// The link with a node came up, which shows that it lives, or it could not be dialled.
    pub(super) fn end_errands(&mut self, cx: &mut Context<'_, P>, target: P, alive: bool) {
        for errand in &mut self.errands {
            if errand.target != target || errand.alive {
                continue;
            }
            if alive {
                answer(cx, errand);
            } else {
                nack(cx, errand);
            }
        }
    }

    /// Replaces neighbours that answer only through others.
    pub(super) fn drop_one_way(&mut self, cx: &mut Context<'_, P>) {
        let one_way = self.neighbours.iter().find(|held| held.indirect >= ONE_WAY);
        if let Some(peer) = one_way.map(|held| held.peer) {
            self.avoid(cx.now, peer);
            self.drop_neighbour(cx, peer);
        }
    }

    fn ping(&mut self, cx: &mut Context<'_, P>, to: P, seq: u32) {
        self.stats.pings += 1;
        let version_of_you = cx.version(to).unwrap_or(0);
        cx.send(
            to,
            Message::Ping {
                seq,
                version_of_you,
            },
        );
    }

    fn ping_repeat(&self, target: P) -> Duration {
        let held = self.neighbours.iter().find(|held| held.peer == target);
        held.and_then(|held| held.round_trip)
            .map_or(self.config.ping_repeat, |trip| {
                (trip * 3 / 2).clamp(REPEAT.0, REPEAT.1)
            })
    }

    fn next_seq(&mut self) -> u32 {
        self.seq = self.seq.wrapping_add(1);
        self.seq
    }
}

/// Tells the requester that the target lives.
fn answer<P: Peer>(cx: &mut Context<'_, P>, errand: &mut Errand<P>) {
    if errand.alive {
        return;
    }
    (errand.alive, errand.nack_at) = (true, None);
    let message = Message::IndirectAck {
        seq: errand.request,
        target: errand.target,
        alive: true,
    };
    cx.send(errand.requester, message);
}

/// Tells the requester, once, that there is no answer yet.
fn nack<P: Peer>(cx: &mut Context<'_, P>, errand: &mut Errand<P>) {
    if errand.nack_at.take().is_some() {
        let message = Message::IndirectAck {
            seq: errand.request,
            target: errand.target,
            alive: false,
        };
        cx.send(errand.requester, message);
    }
}
