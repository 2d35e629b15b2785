//! What the store remembers of one key: its latest announcement with the latest beat upon it, and how
//! far it may be trusted with more.

use std::sync::Arc;
use std::time::Duration;

use meshwork_identity::Timestamp;

use super::allowance::Allowance;
use super::check::{Head, MAX_TTL};
use super::shares::Path;
use crate::announcement::{Announcement, SignedAnnouncement};
use crate::beat::{Availability, Beat, SignedBeat};
use crate::codec;
use crate::limits::{MAX_ANNOUNCEMENT, MAX_BEAT};

/// How much longer than needed a version is remembered, in case our clock is set back.
const CLOCK_MARGIN: Duration = Duration::from_hours(1);

/// What a key may send: one new version a second, five at once.
type Voice = Allowance<1000, 5>;

/// What is remembered of a key that was once believed.
#[derive(Debug)]
pub(super) struct Record {
    /// Largest version seen.
    pub(super) version: u64,
    /// When the last announcement that is as old as the latest, or older, must have expired, seen or
    /// not. Before this, forgetting the version would let an older one pass.
    pub(super) ends: Timestamp,
    /// New versions that the key may still send.
    voice: Voice,
    /// Its latest announcement, while that holds. Apart, as most of what is remembered of a mesh that
    /// changes holds nothing.
    pub(super) held: Option<Box<Held>>,
    /// Where it hung when its announcement was held last; nothing, if that was in an earlier run.
    pub(super) hung: Option<Path>,
}

/// An announcement that holds.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) slot: u32,
    pub(super) expires: Timestamp,
    /// The latest version and its times: those of the beat, if there is one.
    pub(super) head: Head,
    /// Checked, as is its token. Only its bytes are kept for long: see [`Bodies`](super::Bodies).
    pub(super) signed: Arc<SignedAnnouncement>,
    /// The version under which it was announced, which beats name.
    pub(super) base: u64,
    /// The latest beat upon it, if any.
    pub(super) beat: Option<Box<SignedBeat>>,
    /// When its token ends; never, for our own.
    pub(super) deadline: Timestamp,
    /// Where it stands among the nodes that may be drawn at random; nowhere, for our own.
    pub(super) place: Option<u32>,
    /// Believed dead: remembered, but not found.
    pub(super) dead: bool,
}

impl Held {
    /// What it says, under the latest head.
    pub(super) fn body(&self) -> Arc<Announcement> {
        self.body_under(&self.head)
    }

    /// The same under another head.
    pub(super) fn body_under(&self, head: &Head) -> Arc<Announcement> {
        let body = self.signed.envelope.unverified_body();
        let mut body: Announcement =
            codec::decode(body, MAX_ANNOUNCEMENT).expect("decoded when it was checked");
        head.put_on(&mut body);
        Arc::new(body)
    }

    /// What its node has free.
    pub(super) fn availability(&self) -> Option<Availability> {
        availability(self.beat.as_deref()?)
    }
}

/// What a beat that was checked says to be free.
pub(super) fn availability(beat: &SignedBeat) -> Option<Availability> {
    let body = beat.envelope.unverified_body();
    let beat: Beat = codec::decode(body, MAX_BEAT).expect("decoded when it was checked");
    beat.availability
}

impl Record {
    pub(super) fn new(now: Timestamp) -> Self {
        Self {
            version: 0,
            ends: now,
            voice: Voice::new(now),
            held: None,
            hung: None,
        }
    }

    /// One of which only the version is remembered, from an earlier run.
    pub(super) fn recalled(version: u64, ends: Timestamp, now: Timestamp) -> Self {
        Self {
            version,
            ends,
            ..Self::new(now)
        }
    }

    /// Whether a version is news: it is later than all that were seen, or it is the latest itself and
    /// was lost. After a restart only versions are remembered, and the latest still holds.
    pub(super) fn takes(&self, version: u64) -> bool {
        version > self.version || version == self.version && self.held.is_none()
    }

    /// Whether the key may send a new version now.
    pub(super) fn may_speak(&self, now: Timestamp) -> bool {
        self.voice.has_some(now)
    }

    /// Whether this very beat is the latest.
    pub(super) fn is_at(&self, beat: &SignedBeat) -> bool {
        let latest = self.held.as_deref().and_then(|held| held.beat.as_deref());
        latest.is_some_and(|latest| latest.envelope == beat.envelope)
    }

    /// Remembers a version, and charges the key for it.
    pub(super) fn saw(&mut self, head: &Head, now: Timestamp) {
        self.voice.charge(now);
        self.version = head.version;
        self.ends = self.ends.max(head.issued_at.saturating_add(MAX_TTL));
    }

    /// Remembers a version that was remembered in an earlier run, too.
    pub(super) fn recall(&mut self, version: u64, ends: Timestamp) {
        self.version = self.version.max(version);
        self.ends = self.ends.max(ends);
    }

    /// When the announcement expires or, without one, the record may be forgotten.
    pub(super) fn changes_at(&self) -> Timestamp {
        match &self.held {
            Some(held) => held.expires,
            None => self.ends.saturating_add(CLOCK_MARGIN),
        }
    }
}
