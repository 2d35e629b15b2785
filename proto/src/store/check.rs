//! Whether an announcement is to be believed.

use std::sync::Arc;
use std::time::Duration;

use meshwork_identity::{
    Domain, EnvelopeError, Grant, MESH_PATH, Scope, Timestamp, TokenError, VerifyContext,
};
use serde::Deserialize;

use super::record::{Held, Record};
use super::refusal::RefusedBy;
use crate::announcement::{Announcement, SignedAnnouncement};
use crate::limits::{MAX_ANNOUNCEMENT, MAX_HOPS, MAX_NAME};

/// Longest time that an announcement may hold: a dead node is forgotten after this at the latest.
pub const MAX_TTL: Duration = Duration::from_hours(1);

/// The first fields of an [`Announcement`]: all that changes when a node says the same again.
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

    /// Only what is later than all that was seen is news, and only while it holds.
    fn check(&self, record: Option<&Record>, now: Timestamp) -> Result<(), RefusedBy> {
        if let Some(record) = record
            && self.version <= record.version
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
}

/// What a peer sent, given what is remembered of its signer. The signatures come last: until then
/// nothing is known to be the signer's word, but much is known not to matter.
pub(super) fn received(
    signed: &SignedAnnouncement,
    record: Option<&Record>,
    trust: &VerifyContext<'_>,
) -> Result<(Head, Said, Arc<Grant>), RefusedBy> {
    if signed.hops > MAX_HOPS {
        return Err(RefusedBy::Hops { hops: signed.hops });
    }
    if record.is_some_and(|record| !record.may_speak(trust.now)) {
        return Err(RefusedBy::RateLimited);
    }
    let head = claimed(signed)?;
    head.check(record, trust.now)?;
    if head.issued_at > trust.now.saturating_add(trust.tolerance) {
        return Err(RefusedBy::FutureIssued { at: head.issued_at });
    }
    let held = record.and_then(|record| record.held.as_ref());
    let grant = token(signed, held, trust).map_err(RefusedBy::Token)?;
    Ok((head, open(signed, held)?, grant))
}

/// This node's own new announcement.
pub(super) fn own(
    signed: &SignedAnnouncement,
    record: Option<&Record>,
    now: Timestamp,
) -> Result<(Head, Said), RefusedBy> {
    let head = claimed(signed)?;
    head.check(record, now)?;
    let held = record.and_then(|record| record.held.as_ref());
    Ok((head, open(signed, held)?))
}

/// The head, before the signature is checked.
pub(super) fn claimed(signed: &SignedAnnouncement) -> Result<Head, RefusedBy> {
    let bytes = signed.envelope.body_len();
    if bytes > MAX_ANNOUNCEMENT {
        return Err(RefusedBy::TooLarge { bytes });
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

/// What the token grants, if its subject signed and it allows announcing. A token that was verified
/// with the node's last announcement is not verified again, but its time and the revocations are
/// asked each time.
fn token(
    signed: &SignedAnnouncement,
    held: Option<&Held>,
    trust: &VerifyContext<'_>,
) -> Result<Arc<Grant>, TokenError> {
    let node = signed.node();
    let known = held.filter(|held| held.signed.token == signed.token);
    let grant = match known.and_then(|held| held.grant.as_ref()) {
        Some(grant) => match grant.revoked_by(trust.revocations) {
            Some(what) => return Err(TokenError::Revoked { what }),
            None => Arc::clone(grant),
        },
        None => Arc::new(signed.token.verify(trust)?),
    };
    grant.check(&node, Scope::Announce, MESH_PATH, &node, trust.now)?;
    Ok(grant)
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
