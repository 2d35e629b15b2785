//! Who this node is linked with: neighbours, dials, and where candidates come from.

use std::time::Duration;

use super::probe::{How, Why};
use super::{Action, Context, Membership, Message, Moment, Peer};

/// Time between two searches while neighbours are missing, and while none is.
pub(super) const EAGER: Duration = Duration::from_secs(1);
const CALM: Duration = Duration::from_secs(5);
/// Dials under way at one time, and requests to be neighbours.
const MAX_DIALS: usize = 24;
/// Dials under way from which on others get none for their errands: they can only name nodes that are
/// slow to fail, and this node needs dials for itself.
const MAX_DIALS_FOR_OTHERS: usize = MAX_DIALS / 2;
/// The driver answers a dial within 10 s; what it does not answer has failed.
const DIAL_TIMEOUT: Duration = Duration::from_secs(12);
/// A request to be neighbours that is not answered within this is forgotten.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a node that declined or could not be dialled is left alone, and how many are noted.
const AVOID: Duration = Duration::from_secs(30);
const MAX_AVOIDED: usize = 64;
/// Urgent neighbours take another's place at most this often.
const EVICT: Duration = Duration::from_secs(1);
/// Of one peer, only one request in this time counts as urgent: one that always is in need would
/// use up what others need.
const PRESSED: Duration = Duration::from_mins(1);
/// With fewer neighbours than this a node is in need: a single one may keep everything from it.
const NEEDED: usize = 2;
/// Tries to draw a candidate at random; a ledger of up to this many is searched in order.
const DRAWS: usize = 32;

/// A link in use.
#[derive(Debug, Default)]
pub(super) struct Link {
    /// When it is released, unless it is a neighbour's by then.
    pub(super) linger: Option<Moment>,
    /// Whether it is among those that linger.
    pub(super) queued: bool,
    /// When the peer last pressed to become a neighbour.
    pub(super) pressed: Option<Moment>,
    /// When this node sent its summary and awaits an answer.
    pub(super) summary_sent: Option<Moment>,
    /// Work done for the peer that counts against its share, and when that was reckoned.
    pub(super) spent: usize,
    pub(super) reckoned: Moment,
}

/// A link whose two ends tell each other everything and watch each other.
#[derive(Debug)]
pub(super) struct Neighbour<P> {
    pub(super) peer: P,
    /// When it became one.
    pub(super) since: Moment,
    /// When anything came from it.
    pub(super) heard: Moment,
    /// When a check last reached it.
    pub(super) reached: Moment,
    /// Smoothed, of unrepeated pings.
    pub(super) round_trip: Option<Duration>,
    /// Checks in a row that only succeeded through others.
    pub(super) indirect: u8,
    /// When it was last asked whether it holds this node to be its neighbour.
    affirmed: Moment,
}

impl<P> Neighbour<P> {
    /// Smooths as TCP does (RFC 6298, section 2).
    pub(super) fn measured(&mut self, trip: Duration) {
        let smoothed = self.round_trip.map_or(trip, |old| (old * 7 + trip) / 8);
        self.round_trip = Some(smoothed);
    }
}

/// A node that the driver was asked to connect with.
#[derive(Debug)]
pub(super) struct Dial<P> {
    pub(super) peer: P,
    pub(super) until: Moment,
    /// To become neighbours.
    pub(super) view: bool,
    /// For a look at it.
    pub(super) survey: bool,
}

impl<P: Peer> Membership<P> {
    pub(super) fn is_neighbour(&self, peer: P) -> bool {
        self.neighbours.iter().any(|held| held.peer == peer)
    }

    /// Neighbours that are missing, requests and dials under way counted.
    fn missing(&self, cx: &Context<'_, P>) -> usize {
        let doubted = |held: &&Neighbour<P>| self.suspects.holds(&held.peer);
        let suspects = self.neighbours.iter().filter(doubted).count();
        // A node that knows nobody yet takes whoever there is.
        let wanted = match self.living(cx) {
            0 => self.config.active_wanted,
            living => self.config.wanted(living),
        };
        let wanted = if self.isolated.is_some() {
            // Those that are silent may be gone.
            wanted.max(self.config.active_wanted) + self.neighbours.len()
        } else {
            wanted + suspects
        };
        let dials = self.dials.iter().filter(|dial| dial.view).count();
        wanted
            .min(self.config.active_max)
            .saturating_sub(self.neighbours.len() + self.asked.len() + dials)
    }

    /// Looks for what neighbours are missing, when it is time.
    pub(super) fn look_for_neighbours(&mut self, cx: &mut Context<'_, P>) {
        if cx.now < self.due.view {
            return;
        }
        self.asked.retain(|(_, until)| *until > cx.now);
        self.drop_one_way(cx);
        let missing = self.missing(cx);
        self.due.view = cx.now + cx.chance.jitter(if missing > 0 { EAGER } else { CALM });
        // Others look for neighbours as well, and those who find this one save it the search.
        let at_once = match self.neighbours.len() {
            _ if self.isolated.is_some() => missing,
            0 => 2,
            _ => 1,
        };
        for _ in 0..at_once.min(missing) {
            let Some(peer) = self.candidate(cx) else {
                return;
            };
            self.approach(cx, peer);
        }
    }

    /// Asks a node to be neighbours, dialling it first when it is not linked.
    fn approach(&mut self, cx: &mut Context<'_, P>, peer: P) {
        if self.links.contains_key(&peer) {
            self.ask(cx, peer, false);
        } else if self.dial(cx, peer)
            && let Some(dial) = self.dials.iter_mut().find(|dial| dial.peer == peer)
        {
            dial.view = true;
        }
    }

    fn ask(&mut self, cx: &mut Context<'_, P>, peer: P, urgent: bool) {
        let asked = self.asked.iter().any(|(asked, _)| *asked == peer);
        if asked || self.asked.len() >= MAX_DIALS {
            return;
        }
        self.asked.push((peer, cx.now + ASK_TIMEOUT));
        let urgent = urgent || self.neighbours.len() < NEEDED;
        cx.send(peer, Message::Neighbor { urgent });
    }

    /// Replaces one neighbour now and then, so that the mesh's graph stays random.
    pub(super) fn replace(&mut self, cx: &mut Context<'_, P>) {
        if cx.now < self.due.replace {
            return;
        }
        self.due.replace = cx.now + cx.chance.jitter(self.config.replace_period);
        let wanted = self.config.wanted(self.living(cx));
        let have = self.neighbours.len();
        if have < wanted || self.living(cx) <= self.config.active_max {
            return;
        }
        if have > wanted + 1 {
            // Enough others chose this node; what is too many costs every flood.
            return self.evict(cx);
        }
        if let Some(peer) = self.candidate(cx) {
            self.replacing = Some(peer);
            self.approach(cx, peer);
        }
    }

    /// Has the driver connect with a node; says whether it does.
    pub(super) fn dial(&mut self, cx: &mut Context<'_, P>, peer: P) -> bool {
        if self.dials.iter().any(|dial| dial.peer == peer) {
            return true;
        }
        if self.dials.len() >= MAX_DIALS {
            return false;
        }
        self.stats.dials += 1;
        self.dials.push(Dial {
            peer,
            until: cx.now + DIAL_TIMEOUT,
            view: false,
            survey: false,
        });
        cx.out.push(Action::Dial { peer });
        true
    }

    /// The same on behalf of another node, while there are dials to spare.
    pub(super) fn dial_for_others(&mut self, cx: &mut Context<'_, P>, peer: P) {
        if self.dials.len() < MAX_DIALS_FOR_OTHERS {
            self.dial(cx, peer);
        }
    }

    pub(super) fn expire_dials(&mut self, cx: &mut Context<'_, P>) {
        while let Some(dial) = self.dials.iter().find(|dial| dial.until <= cx.now) {
            let peer = dial.peer;
            self.on_dial_failed(cx, peer);
        }
    }

    fn take_dial(&mut self, peer: P) -> Option<Dial<P>> {
        let at = self.dials.iter().position(|dial| dial.peer == peer)?;
        Some(self.dials.swap_remove(at))
    }

    pub(super) fn on_dial_failed(&mut self, cx: &mut Context<'_, P>, peer: P) {
        let Some(dial) = self.take_dial(peer) else {
            return;
        };
        self.stats.dials_failed += 1;
        self.end_errands(cx, peer, false);
        self.avoid(cx.now, peer);
        if dial.view {
            self.due.view = self.due.view.min(cx.now + cx.chance.jitter(EAGER / 2));
        }
        // A node that is alone accuses only when it has doubted itself long enough; then every
        // dial in vain tells.
        let alone = self.neighbours.is_empty() && self.isolated.is_some();
        let look = dial.survey || (alone && !self.is_doubting(cx.now));
        if look && !self.suspects.holds(&peer) && cx.version(peer).is_some() {
            self.check(cx, peer, Why::Unreachable);
        }
    }

    pub(super) fn on_link_up(&mut self, cx: &mut Context<'_, P>, peer: P) {
        if peer == self.local {
            return;
        }
        self.links.entry(peer).or_default();
        self.isolated = None;
        let dial = self.take_dial(peer);
        self.reached(cx.now, peer, How::Link);
        self.end_errands(cx, peer, true);
        let returned = self.suspects.holds(&peer);
        if returned {
            self.tell_accusations(cx, peer);
        }
        if self.is_neighbour(peer) {
            // Another connection took the old one's place; perhaps the node has forgotten.
            cx.send(peer, Message::Neighbor { urgent: false });
            return;
        }
        // Who is back, or not known at all, may be the way to a part of the mesh that was away.
        let found = returned || cx.version(peer).is_none();
        let wanted = dial.as_ref().is_some_and(|dial| dial.view) || self.missing(cx) > 0;
        let room = self.neighbours.len() < self.config.active_max;
        if wanted || (found && room) {
            self.ask(cx, peer, found);
        }
        if dial.is_some() {
            self.linger(cx.now, peer);
        }
        if wanted || found || dial.is_some_and(|dial| dial.view || dial.survey) {
            self.start_repair(cx, peer);
        }
    }

    pub(super) fn on_link_down(&mut self, cx: &mut Context<'_, P>, peer: P) {
        if self.links.remove(&peer).is_none() {
            return;
        }
        self.asked.retain(|(asked, _)| *asked != peer);
        if !self.remove_neighbour(peer) {
            return;
        }
        self.due.view = cx.now;
        let others = self.living(cx) > 1;
        if self.neighbours.is_empty() && others {
            self.doubt(cx);
        }
        self.check(cx, peer, Why::Lost);
        self.look_for_neighbours(cx);
    }

    pub(super) fn on_neighbor(&mut self, cx: &mut Context<'_, P>, from: P, urgent: bool) {
        if self.is_neighbour(from) {
            return cx.send(from, Message::Accept);
        }
        let full = self.neighbours.len() >= self.config.active_max;
        // Who has just declined would only push the others out.
        let fickle = self.is_avoided(cx.now, from);
        let may = urgent && !fickle && cx.now.since(self.evicted) >= EVICT;
        if full && may && self.presses(cx.now, from) {
            self.evicted = cx.now;
            self.evict(cx);
        }
        if self.neighbours.len() < self.config.active_max {
            cx.send(from, Message::Accept);
            self.add_neighbour(cx, from);
        } else {
            cx.send(from, Message::Decline);
        }
    }

    /// Whether an urgent request of this peer counts.
    fn presses(&mut self, now: Moment, peer: P) -> bool {
        let Some(link) = self.links.get_mut(&peer) else {
            return false;
        };
        let counts = link.pressed.is_none_or(|last| now.since(last) >= PRESSED);
        if counts {
            link.pressed = Some(now);
        }
        counts
    }

    pub(super) fn on_accept(&mut self, cx: &mut Context<'_, P>, from: P) {
        let asked = self.asked.len();
        self.asked.retain(|(asked, _)| *asked != from);
        let asked = self.asked.len() < asked;
        if self.is_neighbour(from) {
            return;
        }
        // What was not asked for, or no longer, is the late answer to a question that a decline
        // has overtaken: the peer has let go of this node.
        if asked && self.neighbours.len() < self.config.active_max {
            self.add_neighbour(cx, from);
            self.start_repair(cx, from);
        } else {
            cx.send(from, Message::Decline);
        }
    }

    pub(super) fn on_decline(&mut self, cx: &mut Context<'_, P>, from: P) {
        let asked = self.asked.len();
        self.asked.retain(|(asked, _)| *asked != from);
        let lost = self.remove_neighbour(from);
        if lost || self.asked.len() < asked {
            self.avoid(cx.now, from);
            self.linger(cx.now, from);
            self.due.view = self.due.view.min(cx.now + cx.chance.jitter(EAGER / 8));
        }
    }

    /// A linked node says that it shuts down. It says so of itself, so that it is believed; but not
    /// again and again, as each time costs one of the accusations that the others take from this node.
    pub(super) fn on_leaving(&mut self, cx: &mut Context<'_, P>, from: P) {
        if self.is_avoided(cx.now, from) {
            return;
        }
        self.asked.retain(|(asked, _)| *asked != from);
        self.remove_neighbour(from);
        self.avoid(cx.now, from);
        self.accuse(cx, from);
        self.due.view = cx.now;
    }

    /// The local node shuts down.
    pub(super) fn on_leave(&mut self, cx: &mut Context<'_, P>) {
        for neighbour in self.neighbours.drain(..) {
            let (to, message) = (neighbour.peer, Message::Leave);
            cx.out.push(Action::Send { to, message });
        }
        self.left = true;
        self.checks.clear();
        self.errands.clear();
        self.dials.clear();
    }

    fn add_neighbour(&mut self, cx: &mut Context<'_, P>, peer: P) {
        self.stats.neighbours_gained += 1;
        self.isolated = None;
        if let Some(link) = self.links.get_mut(&peer) {
            link.linger = None;
        }
        let neighbour = Neighbour {
            peer,
            since: cx.now,
            heard: cx.now,
            reached: cx.now,
            round_trip: None,
            indirect: 0,
            affirmed: cx.now,
        };
        let at = cx.chance.below(self.neighbours.len() + 1);
        self.neighbours.insert(at, neighbour);
        self.cursor += usize::from(at < self.cursor);
        self.keep_in_mind(cx, peer);
        if self
            .replacing
            .take_if(|replacing| *replacing == peer)
            .is_some()
            && self.neighbours.len() > self.config.wanted(self.living(cx))
        {
            self.evict_but(cx, Some(peer));
        }
    }

    /// Asks the neighbour that was not asked for longest whether it is one still.
    pub(super) fn affirm(&mut self, cx: &mut Context<'_, P>) -> Option<P> {
        let longest = self
            .neighbours
            .iter_mut()
            .min_by_key(|held| held.affirmed)?;
        longest.affirmed = cx.now;
        let peer = longest.peer;
        cx.send(peer, Message::Neighbor { urgent: false });
        Some(peer)
    }

    /// Asks all neighbours whether they are.
    pub(super) fn affirm_all(&mut self, cx: &mut Context<'_, P>) {
        for held in &mut self.neighbours {
            held.affirmed = cx.now;
            cx.send(held.peer, Message::Neighbor { urgent: false });
        }
    }

    /// Removes a neighbour; says whether it was one.
    fn remove_neighbour(&mut self, peer: P) -> bool {
        let Some(at) = self.neighbours.iter().position(|held| held.peer == peer) else {
            return false;
        };
        self.neighbours.remove(at);
        self.cursor -= usize::from(at < self.cursor);
        self.stats.neighbours_lost += 1;
        true
    }

    /// Ends the relation with a neighbour and tells it so. The link lingers, so that it hears it.
    pub(super) fn drop_neighbour(&mut self, cx: &mut Context<'_, P>, peer: P) {
        if self.remove_neighbour(peer) {
            cx.send(peer, Message::Decline);
            self.linger(cx.now, peer);
            self.due.view = cx.now;
        }
    }

    fn evict(&mut self, cx: &mut Context<'_, P>) {
        self.evict_but(cx, None);
    }

    /// Drops a neighbour: a suspect one, or any.
    fn evict_but(&mut self, cx: &mut Context<'_, P>, spared: Option<P>) {
        let may = |held: &&Neighbour<P>| Some(held.peer) != spared;
        let suspect = |held: &&Neighbour<P>| self.suspects.holds(&held.peer);
        let count = self.neighbours.iter().filter(may).count();
        let any = cx.chance.below(count);
        let first = self.neighbours.iter().filter(may).find(suspect);
        let chosen = first.or_else(|| self.neighbours.iter().filter(may).nth(any));
        if let Some(peer) = chosen.map(|held| held.peer) {
            self.avoid(cx.now, peer);
            self.drop_neighbour(cx, peer);
        }
    }

    /// A node to become neighbours with: one half of the time a preferred one, otherwise one of
    /// the ledger or, when that knows few, one met before.
    fn candidate(&self, cx: &mut Context<'_, P>) -> Option<P> {
        if !self.preferred.is_empty() && cx.chance.one_in(2) {
            let start = cx.chance.below(self.preferred.len());
            let found = self.first_fit(cx, &self.preferred, start);
            if found.is_some() {
                return found;
            }
        }
        let known = cx.ledger.nodes();
        let start = cx.chance.below(known);
        for draw in 0..DRAWS.min(known) {
            let at = if known <= DRAWS {
                (start + draw) % known
            } else {
                cx.chance.below(known)
            };
            if let Some(peer) = cx.ledger.nth(at)
                && self.fits(cx.now, peer)
            {
                return Some(peer);
            }
        }
        let start = cx.chance.below(self.passive.len());
        self.first_fit(cx, &self.passive, start)
    }

    fn first_fit(&self, cx: &Context<'_, P>, peers: &[P], start: usize) -> Option<P> {
        let (end, begin) = peers.split_at(start.min(peers.len()));
        let mut around = begin.iter().chain(end).copied();
        around.find(|peer| self.fits(cx.now, *peer))
    }

    /// Whether a node may be approached.
    fn fits(&self, now: Moment, peer: P) -> bool {
        peer != self.local
            && !self.is_neighbour(peer)
            && !self.suspects.holds(&peer)
            && !self.asked.iter().any(|(asked, _)| *asked == peer)
            && !self.dials.iter().any(|dial| dial.peer == peer)
            && !self.is_avoided(now, peer)
    }

    fn is_avoided(&self, now: Moment, peer: P) -> bool {
        let mut avoided = self.avoided.iter();
        avoided.any(|(avoided, until)| *avoided == peer && *until > now)
    }

    pub(super) fn avoid(&mut self, now: Moment, peer: P) {
        self.avoided
            .retain(|(avoided, until)| *avoided != peer && *until > now);
        if self.avoided.len() >= MAX_AVOIDED {
            self.avoided.pop_front();
        }
        self.avoided.push_back((peer, now + AVOID));
    }

    /// Notes who was met, to be dialled when the ledger is lost or its nodes are gone.
    fn keep_in_mind(&mut self, cx: &mut Context<'_, P>, peer: P) {
        if self.passive.contains(&peer) {
            return;
        }
        if self.passive.len() < self.config.passive_max {
            self.passive.push(peer);
        } else {
            let at = cx.chance.below(self.passive.len());
            self.passive[at] = peer;
        }
    }

    /// Keeps a link for a while although it is no neighbour's.
    fn linger(&mut self, now: Moment, peer: P) {
        let until = now + self.config.linger;
        let Some(link) = self.links.get_mut(&peer) else {
            return;
        };
        link.linger = Some(until);
        if !std::mem::replace(&mut link.queued, true) {
            self.lingering.push_back((until, peer));
        }
    }

    /// Gives back links whose time is over. One whose time was prolonged waits once more, no longer
    /// than that: a link that ended and came again stands in the queue twice.
    pub(super) fn release_lingering(&mut self, cx: &mut Context<'_, P>) {
        while let Some((_, peer)) = self.lingering.pop_front_if(|(until, _)| *until <= cx.now) {
            let Some(link) = self.links.get_mut(&peer) else {
                continue;
            };
            link.queued = false;
            match link.linger {
                Some(until) if until > cx.now => {
                    link.queued = true;
                    self.lingering.push_back((until, peer));
                }
                Some(_) => {
                    link.linger = None;
                    if !self.is_neighbour(peer) {
                        cx.out.push(Action::Release { peer });
                    }
                }
                None => {}
            }
        }
    }
}
