//! What this node says of itself: its announcement, the beats that renew it, and how both stay ahead
//! of what others hold of it.

use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use meshwork_identity::{Scope, Token};
use meshwork_proto::Announcement;
use meshwork_proto::announcement::SignedAnnouncement;
use meshwork_proto::beat::{Availability, Beat, SignedBeat};
use meshwork_proto::facts::Fact;
use meshwork_proto::membership::{Input, renewal_ttl};
use tokio::time::Instant;

use super::Gossip;
use crate::error::MeshError;
use crate::node::Node;
use crate::state::{StateStore, durably};

/// Where the first version that was not reserved yet is kept.
const STATE_KEY: &str = "announcement-version";
/// Versions reserved with one write to the disk.
const RESERVED: u64 = 1000;
/// Time between two beats that say what is free: others want it soon, and need not have every step.
const AVAILABILITY_PAUSE: Duration = Duration::from_secs(5);
/// Time between two beats that refute a suspicion. Whoever accuses us all the time makes us say no
/// more often than others listen.
const REFUTATION_PAUSE: Duration = Duration::from_secs(2);
/// First pause between two announcements above versions that others hold of us; it doubles.
const OVERTAKING_PAUSE: Duration = Duration::from_secs(2);
/// Longest such pause. After as much time again without need for one, the next is the first.
const MAX_OVERTAKING_PAUSE: Duration = Duration::from_mins(5);
/// After so many in a row, another process is taken to use our identity: one lost disk needs one or
/// two.
const OVERTAKEN_OFTEN: u32 = 4;

/// Our own announcement.
pub(super) struct Own {
    /// What the node is to say, as it was given.
    draft: Option<Announcement>,
    /// What it said last in full, and with which token.
    said: Option<(Announcement, Token)>,
    /// What is free, by the last word of who knows, and by the last beat.
    available: Option<Availability>,
    told: Option<Availability>,
    /// The next version to sign.
    next: u64,
    /// Versions below this may be used: no later run will use them.
    reserved: u64,
    /// When the announcement or its last beat is to be renewed.
    renewal: Option<Instant>,
    /// When the last beat or announcement went out.
    spoke: Option<Instant>,
    /// A beat is due with a version above this.
    refute: Option<u64>,
    overtaking: Overtaking,
}

/// How this node gets above versions that others hold of it. Two processes with one identity would do
/// so in turn for ever, so it is done ever more seldom.
#[derive(Debug, Default)]
struct Overtaking {
    /// The latest version that others hold, as long as it is above ours.
    ahead: Option<u64>,
    /// How often it was done in a row.
    times: u32,
    /// When it was done last.
    last: Option<Instant>,
}

impl Overtaking {
    fn pause(&self) -> Duration {
        let doubled = 1 << self.times.saturating_sub(1).min(16);
        OVERTAKING_PAUSE
            .saturating_mul(doubled)
            .min(MAX_OVERTAKING_PAUSE)
    }

    fn is_due(&self, now: Instant) -> bool {
        self.ahead.is_some() && self.last.is_none_or(|last| now >= last + self.pause())
    }

    /// Notes that it is done now; how often it was in a row.
    fn done(&mut self, now: Instant) -> u32 {
        let quiet = self.pause() + MAX_OVERTAKING_PAUSE;
        if self.last.is_some_and(|last| now >= last + quiet) {
            self.times = 0;
        }
        self.times = self.times.saturating_add(1);
        (self.ahead, self.last) = (None, Some(now));
        self.times
    }
}

impl Own {
    pub(super) fn load(state: &dyn StateStore) -> Result<Self, MeshError> {
        let stored = state.get(STATE_KEY).map_err(MeshError::state(STATE_KEY))?;
        let next = match stored {
            None => 1,
            Some(bytes) => u64::from_be_bytes(bytes.try_into().map_err(|_| {
                MeshError::state(STATE_KEY)(std::io::ErrorKind::InvalidData.into())
            })?),
        };
        Ok(Self {
            draft: None,
            said: None,
            available: None,
            told: None,
            next,
            reserved: next,
            renewal: None,
            spoke: None,
            refute: None,
            overtaking: Overtaking::default(),
        })
    }

    /// A version that nothing of ours had before, in this run or an earlier one.
    fn version(&mut self, state: &dyn StateStore) -> Result<u64, MeshError> {
        let version = self.next;
        let Some(next) = version.checked_add(1) else {
            let text = "this node has used up all versions; it needs a new identity";
            return Err(MeshError::Announcement(text.into()));
        };
        if version >= self.reserved {
            let reserved = version.saturating_add(RESERVED);
            durably(|| state.put(STATE_KEY, &reserved.to_be_bytes()))
                .map_err(MeshError::state(STATE_KEY))?;
            self.reserved = reserved;
        }
        self.next = next;
        Ok(version)
    }

    /// Whether a beat is due: to renew, to say what is free, or to refute.
    fn beat_is_due(&self, now: Instant) -> bool {
        let pause_over = |pause| self.spoke.is_none_or(|at| now >= at + pause);
        self.said.is_some()
            && (self.renewal.is_some_and(|at| at <= now)
                || self.available != self.told && pause_over(AVAILABILITY_PAUSE)
                || self.refute.is_some() && pause_over(REFUTATION_PAUSE))
    }
}

impl Gossip {
    pub(super) fn own(&self) -> MutexGuard<'_, Own> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is free from now on; the next beat says so.
    pub(crate) fn set_availability(&self, available: Option<Availability>) {
        self.own().available = available;
    }

    /// Our announcement has expired here, and so everywhere: it is to be made anew. The timer of its
    /// renewal stood still while the machine slept.
    pub(crate) fn has_expired(&self) {
        self.own().renewal = Some(Instant::now());
    }

    /// What this node announces, as others see it.
    pub(crate) fn announced(&self) -> Option<Announcement> {
        self.own().said.as_ref().map(|(body, _)| body.clone())
    }
}

impl Node {
    /// Announces `draft`, unless that is what this node says already; from then on it is renewed in
    /// time.
    pub(crate) fn announce(self: &Arc<Self>, draft: Announcement) -> Result<(), MeshError> {
        self.gossip.own().draft = Some(draft);
        self.reannounce()
    }

    /// Announces the last draft anew, if what is to be said has changed: the addresses of this node,
    /// its relays, its token.
    pub(crate) fn reannounce(self: &Arc<Self>) -> Result<(), MeshError> {
        let mut own = self.gossip.own();
        let Some(draft) = own.draft.clone() else {
            return Ok(());
        };
        let token = self
            .credentials
            .token_with(Scope::Announce)
            .map_err(MeshError::Token)?;
        let body = self.completed(draft);
        let says_so = own.said.as_ref().is_some_and(|(said, with)| {
            let head = Announcement {
                version: said.version,
                issued_at: said.issued_at,
                ttl: said.ttl,
                ..body.clone()
            };
            *said == head && with.id() == token.id()
        });
        if says_so {
            return Ok(());
        }
        self.publish(&mut own, body, token)?;
        drop(own);
        self.published_own();
        Ok(())
    }

    /// What the node adds to what it was told to say.
    fn completed(&self, mut draft: Announcement) -> Announcement {
        if let (None, Some(policy)) = (&draft.subnet, &self.config.subnet_policy) {
            draft.subnet = policy.derive(&draft.tags);
        }
        let offered = self.desk.offers().into_iter();
        draft.services.extend(offered.map(str::to_owned));
        self.traversal.complete(&mut draft);
        draft
    }

    /// One after the other, so that versions enter the ledger in their order.
    fn publish(&self, own: &mut Own, draft: Announcement, token: Token) -> Result<(), MeshError> {
        let ttl = self.announcement_ttl();
        let body = Announcement {
            version: own.version(&*self.state)?,
            issued_at: self.credentials.now(),
            ttl,
            ..draft
        };
        let refused = |why: &dyn std::fmt::Display| MeshError::Announcement(why.to_string());
        let signed = SignedAnnouncement::sign(&self.credentials.identity, token.clone(), &body)
            .map_err(|error| refused(&error))?;
        self.take_own(Fact::Announcement(signed))
            .map_err(|error| refused(&error))?;
        let now = Instant::now();
        own.said = Some((body, token));
        // What is free goes with a beat.
        own.told = None;
        (own.renewal, own.spoke, own.refute) = (Some(now + ttl / 3), Some(now), None);
        Ok(())
    }

    /// Does what is due for our announcement to hold and to be believed.
    pub(crate) fn keep_announced(self: &Arc<Self>) {
        let now = Instant::now();
        self.overtake_if_due(now);
        let mut own = self.gossip.own();
        if !own.beat_is_due(now) {
            return;
        }
        let result = self.beat(&mut own);
        if result.is_err() {
            // Tried again as late as after success, so that a full disk is not asked all the time.
            own.renewal = Some(now + self.announcement_ttl() / 3);
            (own.spoke, own.refute) = (Some(now), None);
        }
        drop(own);
        match result {
            Ok(()) => self.published_own(),
            Err(error) => tracing::warn!(%error, "cannot renew this node's announcement"),
        }
    }

    /// Renews the announcement: by a beat, or in full when its token no longer serves or there is
    /// nothing left to renew.
    fn beat(&self, own: &mut Own) -> Result<(), MeshError> {
        let token = self
            .credentials
            .token_with(Scope::Announce)
            .map_err(MeshError::Token)?;
        let Some((said, with)) = own.said.clone() else {
            return Ok(());
        };
        let local = self.credentials.node_id();
        let holds = self.gossip.facts().store().version(&local).is_some();
        if with.id() != token.id() || !holds {
            return self.publish(own, said, token);
        }
        let ttl = self.announcement_ttl();
        let body = Beat {
            version: own.version(&*self.state)?,
            issued_at: self.credentials.now(),
            ttl,
            base: said.version,
            availability: own.available.clone(),
        };
        let refused = |why: &dyn std::fmt::Display| MeshError::Announcement(why.to_string());
        let signed =
            SignedBeat::sign(&self.credentials.identity, &body).map_err(|error| refused(&error))?;
        self.take_own(Fact::Beat(signed))
            .map_err(|error| refused(&error))?;
        let now = Instant::now();
        own.told.clone_from(&own.available);
        (own.renewal, own.spoke, own.refute) = (Some(now + ttl / 3), Some(now), None);
        Ok(())
    }

    /// Others hold a later version of ours than we knew of, as our memory was lost: goes on above it,
    /// with everything there is to say. Another statement of our latest version counts, too.
    pub(super) fn overtake(self: &Arc<Self>, version: u64) {
        {
            let mut own = self.gossip.own();
            if own.next > version.saturating_add(1) {
                return;
            }
            let ahead = own.overtaking.ahead.max(Some(version));
            own.overtaking.ahead = ahead;
        }
        self.overtake_if_due(Instant::now());
    }

    fn overtake_if_due(self: &Arc<Self>, now: Instant) {
        let mut own = self.gossip.own();
        if !own.overtaking.is_due(now) {
            return;
        }
        let Some(version) = own.overtaking.ahead else {
            return;
        };
        own.next = own.next.max(version.saturating_add(1));
        let Some((body, token)) = own.said.clone() else {
            // The first announcement goes above it.
            own.overtaking.ahead = None;
            return;
        };
        let times = own.overtaking.done(now);
        let result = self.publish(&mut own, body, token);
        drop(own);
        if times == OVERTAKEN_OFTEN {
            tracing::warn!(
                "another process announces itself as this node: two machines use one identity, as \
                 after a disk was copied; give one of them an identity of its own"
            );
        }
        match result {
            Ok(()) => self.published_own(),
            Err(error) => tracing::warn!(%error, "cannot announce above an earlier run"),
        }
    }

    /// Says that this node lives, with a version above the one that it is suspected at.
    pub(super) fn refute(self: &Arc<Self>, above: u64) {
        {
            let mut own = self.gossip.own();
            if own.next > above.saturating_add(1) || own.overtaking.ahead.is_some() {
                // It was said already, and the flood is under way; or all is said anew soon.
                return;
            }
            own.next = own.next.max(above.saturating_add(1));
            own.refute = Some(above);
        }
        self.keep_announced();
    }

    /// How long what we say now is to hold.
    fn announcement_ttl(&self) -> Duration {
        let known = || meshwork_proto::membership::Ledger::nodes(&*self.gossip.facts());
        self.config
            .announcement_ttl
            .unwrap_or_else(|| renewal_ttl(known()))
    }

    fn published_own(self: &Arc<Self>) {
        let key = meshwork_proto::membership::Key::Node(self.credentials.node_id());
        self.membership(Input::Published { key });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::MemoryState;

    #[tokio::test(start_paused = true)]
    async fn two_nodes_of_one_identity_overtake_each_other_ever_more_seldom() {
        let start = Instant::now();
        let (mut overtaking, mut times, mut now) = (Overtaking::default(), 0, start);
        while now < start + Duration::from_hours(1) {
            // The other one is at it all the time.
            overtaking.ahead = Some(7);
            if overtaking.is_due(now) {
                times += 1;
                assert_eq!(overtaking.done(now), times);
            }
            now += Duration::from_secs(1);
        }
        assert!((15..=25).contains(&times), "{times}");
        overtaking.ahead = Some(9);
        assert_eq!(overtaking.done(now + Duration::from_hours(1)), 1);
    }

    #[tokio::test]
    async fn versions_end_with_an_error() {
        let state = MemoryState::default();
        state.put(STATE_KEY, &(u64::MAX - 1).to_be_bytes()).unwrap();
        let mut own = Own::load(&state).unwrap();
        assert_eq!(own.version(&state).unwrap(), u64::MAX - 1);
        let error = own.version(&state).unwrap_err().to_string();
        assert!(error.contains("used up"), "{error}");
    }
}
