//! Whether an announcement, or a beat upon one, is to be believed.

use std::sync::Arc;
use std::time::Duration;

use meshwork_identity::{
    Domain, EnvelopeError, Grant, MESH_PATH, NodeId, Scope, Timestamp, TokenError, VerifyContext,
};
use serde::Deserialize;

use super::record::{Held, Record};
use super::refusal::RefusedBy;
use crate::announcement::{Announcement, SignedAnnouncement};
use crate::beat::{Beat, SignedBeat};
use crate::limits::{MAX_ANNOUNCEMENT, MAX_BEAT, MAX_HOPS, MAX_NAME};

/// Longest time that an announcement may hold: a dead node is forgotten after this at the latest.
pub const MAX_TTL: Duration = Duration::from_hours(24);

/// The first fields of an [`Announcement`] and of a [`Beat`]: all that changes when a node says the
/// same again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(super) struct Head {
    pub(super) version: u64,
    pub(super) issued_at: Timestamp,
    pub(super) ttl: Duration,
}

/// What a believed announcement says.
#[derive(Debug)]
pub(super) enum Said {
    /// What the one that is held says, under a new head.
    Again,
    /// Something else.
    Anew(Arc<Announcement>),
}

impl Head {
    pub(super) fn expires_at(&self) -> Timestamp {
        self.issued_at.saturating_add(self.ttl)
    }

    /// Puts it on an announcement that was made under an earlier one.
    pub(super) fn put_on(&self, body: &mut Announcement) {
        (body.version, body.issued_at, body.ttl) = (self.version, self.issued_at, self.ttl);
    }

    /// Only what is later than all that was seen is news, and only while it holds.
    fn check(&self, record: Option<&Record>, now: Timestamp) -> Result<(), RefusedBy> {
        if let Some(record) = record
            && !record.takes(self.version)
        {
            return Err(RefusedBy::Rollback {
                version: self.version,
                known: record.version,
            });
        }
        if self.ttl.is_zero() || self.ttl > MAX_TTL {
            return Err(RefusedBy::Malformed("ttl"));
        }
        if self.expires_at() <= now {
            return Err(RefusedBy::Expired {
                at: self.expires_at(),
            });
        }
        Ok(())
    }

    /// The same, for what others say: it is not from the future either.
    fn check_now(
        &self,
        record: Option<&Record>,
        trust: &VerifyContext<'_>,
    ) -> Result<(), RefusedBy> {
        self.check(record, trust.now)?;
        if self.issued_at > trust.now.saturating_add(trust.tolerance) {
            return Err(RefusedBy::FutureIssued { at: self.issued_at });
        }
        Ok(())
    }
}

/// What a peer sent, given what is remembered of its signer. The signatures come last: until then
/// nothing is known to be the signer's word, but much is known not to matter.
pub(super) fn received(
    signed: &SignedAnnouncement,
    record: Option<&Record>,
    trust: &VerifyContext<'_>,
) -> Result<(Head, Said, Timestamp), RefusedBy> {
    passable(signed.hops, record, trust)?;
    let head = claimed(signed)?;
    head.check_now(record, trust)?;
    let held = record.and_then(|record| record.held.as_deref());
    let deadline = token(signed, held, trust).map_err(RefusedBy::Token)?;
    Ok((head, open(signed, held)?, deadline))
}

/// A beat that a peer sent; nothing when the announcement that it renews is not held. Only then is
/// it left unverified.
pub(super) fn beat(
    signed: &SignedBeat,
    record: Option<&Record>,
    trust: &VerifyContext<'_>,
) -> Result<Option<Head>, RefusedBy> {
    passable(signed.hops, record, trust)?;
    let (head, beat) = claimed_beat(signed)?;
    head.check_now(record, trust)?;
    let Some(held) = record.and_then(|record| record.held.as_deref()) else {
        return Ok(None);
    };
    if beat.base > held.base {
        return Ok(None);
    }
    if beat.base < held.base {
        return Err(RefusedBy::WrongBase {
            base: beat.base,
            held: held.base,
        });
    }
    still_granted(held, &signed.node(), trust).map_err(RefusedBy::Token)?;
    verified(signed)?;
    Ok(Some(head))
}

/// An announcement that is not held, together with the latest beat upon it, which is what counts.
pub(super) fn renewed(
    signed: &SignedAnnouncement,
    signed_beat: &SignedBeat,
    record: Option<&Record>,
    trust: &VerifyContext<'_>,
) -> Result<(Head, u64, Said, Timestamp), RefusedBy> {
    passable(signed.hops.max(signed_beat.hops), record, trust)?;
    let base = claimed(signed)?;
    let (head, beat) = claimed_beat(signed_beat)?;
    if signed.node() != signed_beat.node() {
        return Err(RefusedBy::BadSignature);
    }
    if beat.base != base.version {
        return Err(RefusedBy::WrongBase {
            base: beat.base,
            held: base.version,
        });
    }
    if head.version <= base.version {
        return Err(RefusedBy::Malformed("version"));
    }
    head.check_now(record, trust)?;
    let held = record.and_then(|record| record.held.as_deref());
    let deadline = token(signed, held, trust).map_err(RefusedBy::Token)?;
    verified(signed_beat)?;
    Ok((head, beat.base, open(signed, held)?, deadline))
}

/// What may be refused without looking into it.
fn passable(hops: u8, record: Option<&Record>, trust: &VerifyContext<'_>) -> Result<(), RefusedBy> {
    if hops > MAX_HOPS {
        return Err(RefusedBy::Hops { hops });
    }
    if record.is_some_and(|record| !record.may_speak(trust.now)) {
        return Err(RefusedBy::RateLimited);
    }
    Ok(())
}

/// This node's own new announcement.
pub(super) fn own(
    signed: &SignedAnnouncement,
    record: Option<&Record>,
    now: Timestamp,
) -> Result<(Head, Said), RefusedBy> {
    let head = claimed(signed)?;
    head.check(record, now)?;
    let held = record.and_then(|record| record.held.as_deref());
    Ok((head, open(signed, held)?))
}

/// This node's own new beat.
pub(super) fn own_beat(
    signed: &SignedBeat,
    record: Option<&Record>,
    now: Timestamp,
) -> Result<Head, RefusedBy> {
    let (head, beat) = claimed_beat(signed)?;
    head.check(record, now)?;
    let held = record.and_then(|record| record.held.as_deref());
    match held.map(|held| held.base) {
        Some(base) if base == beat.base => {}
        base => {
            return Err(RefusedBy::WrongBase {
                base: beat.base,
                held: base.unwrap_or(0),
            });
        }
    }
    verified(signed)?;
    Ok(head)
}

/// Head and body of a beat, before the signature is checked.
pub(super) fn claimed_beat(signed: &SignedBeat) -> Result<(Head, Beat), RefusedBy> {
    let bytes = signed.envelope.body_len();
    if bytes > MAX_BEAT {
        return Err(RefusedBy::TooLarge {
            bytes,
            most: MAX_BEAT,
        });
    }
    let body = signed.envelope.unverified_body();
    let beat: Beat =
        crate::codec::decode(body, MAX_BEAT).map_err(|_| RefusedBy::Malformed("beat"))?;
    if !beat.is_sound() {
        return Err(RefusedBy::Malformed("slot name"));
    }
    let head = Head {
        version: beat.version,
        issued_at: beat.issued_at,
        ttl: beat.ttl,
    };
    Ok((head, beat))
}

pub(super) fn verified(signed: &SignedBeat) -> Result<(), RefusedBy> {
    let verified = signed.envelope.verified_body(&Domain::BEAT);
    verified.map(drop).map_err(|_| RefusedBy::BadSignature)
}

/// The head, before the signature is checked.
pub(super) fn claimed(signed: &SignedAnnouncement) -> Result<Head, RefusedBy> {
    let bytes = signed.envelope.body_len();
    if bytes > MAX_ANNOUNCEMENT {
        return Err(RefusedBy::TooLarge {
            bytes,
            most: MAX_ANNOUNCEMENT,
        });
    }
    split(signed).map(|(head, _)| head)
}

/// Head and what follows it in the body.
fn split(signed: &SignedAnnouncement) -> Result<(Head, &[u8]), RefusedBy> {
    postcard::take_from_bytes(signed.envelope.unverified_body())
        .map_err(|_| RefusedBy::Malformed("body"))
}

/// What it says, if it is signed, and says nothing that no honest node says. What is already held
/// is recognized by its bytes: nearly every announcement is a renewal, and to decode one and to drop
/// the other's many strings costs a tenth of a signature.
pub(super) fn open(signed: &SignedAnnouncement, held: Option<&Held>) -> Result<Said, RefusedBy> {
    let known = held.and_then(|held| split(&held.signed).ok());
    if known.is_some_and(|(_, known)| split(signed).is_ok_and(|(_, rest)| rest == known)) {
        let verified = signed.envelope.verified_body(&Domain::ANNOUNCEMENT);
        return verified
            .map(|_| Said::Again)
            .map_err(|_| RefusedBy::BadSignature);
    }
    let body = signed.open().map_err(|error| match error {
        EnvelopeError::Signature(_) => RefusedBy::BadSignature,
        EnvelopeError::Decode(_) | EnvelopeError::TooLarge => RefusedBy::Malformed("body"),
    })?;
    if body.name.len() > MAX_NAME || body.name.chars().any(char::is_control) {
        return Err(RefusedBy::Malformed("name"));
    }
    Ok(Said::Anew(Arc::new(body)))
}

/// When the token ends, if its subject signed and it allows announcing. A token that was verified
/// with the node's last announcement is not verified again, but its time and the revocations are
/// asked each time.
fn token(
    signed: &SignedAnnouncement,
    held: Option<&Held>,
    trust: &VerifyContext<'_>,
) -> Result<Timestamp, TokenError> {
    let token = &signed.token;
    let grant = if held.is_some_and(|held| held.signed.token == *token) {
        token.grant_as_verified(trust.tolerance)
    } else {
        token.verify(trust)?
    };
    may_announce(&grant, &signed.node(), trust)?;
    Ok(grant.deadline())
}

/// Whether the token of what is held still lets its node announce.
pub(super) fn still_granted(
    held: &Held,
    node: &NodeId,
    trust: &VerifyContext<'_>,
) -> Result<(), TokenError> {
    let grant = held.signed.token.grant_as_verified(trust.tolerance);
    may_announce(&grant, node, trust)
}

fn may_announce(grant: &Grant, node: &NodeId, trust: &VerifyContext<'_>) -> Result<(), TokenError> {
    if let Some(what) = grant.revoked_by(trust.revocations) {
        return Err(TokenError::Revoked { what });
    }
    grant.check(node, Scope::Announce, MESH_PATH, node, trust.now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_head_is_how_an_announcement_begins() {
        let body = Announcement {
            version: 300,
            issued_at: Timestamp::from_millis(70_000),
            ttl: Duration::new(5, 6),
            name: "lab-1".to_owned(),
            ..Announcement::default()
        };
        let bytes = crate::codec::encode(&body);
        let (head, rest) = postcard::take_from_bytes::<Head>(&bytes).unwrap();
        assert_eq!(
            (head.version, head.issued_at, head.ttl, head.expires_at()),
            (body.version, body.issued_at, body.ttl, body.expires_at())
        );
        assert!(rest.starts_with(&crate::codec::encode("lab-1")));
    }
}
