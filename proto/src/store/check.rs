//! Whether an announcement is to be believed.

use std::time::Duration;

use meshwork_identity::{EnvelopeError, Grant, MESH_PATH, Scope, TokenError, VerifyContext};

use super::record::{Held, Record};
use super::refusal::RefusedBy;
use crate::announcement::{Announcement, SignedAnnouncement};
use crate::limits::{MAX_ANNOUNCEMENT, MAX_HOPS, MAX_NAME};

/// Longest time that an announcement may hold: a dead node is forgotten after this at the latest.
pub const MAX_TTL: Duration = Duration::from_hours(1);

/// What a peer sent, given what is remembered of its signer.
pub(super) fn received(
    signed: &SignedAnnouncement,
    record: Option<&Record>,
    trust: &VerifyContext<'_>,
) -> Result<(Announcement, Grant), RefusedBy> {
    if signed.hops > MAX_HOPS {
        return Err(RefusedBy::Hops { hops: signed.hops });
    }
    if record.is_some_and(|record| !record.may_speak(trust.now)) {
        return Err(RefusedBy::RateLimited);
    }
    check_size(signed)?;
    let held = record.and_then(|record| record.held.as_ref());
    let grant = token(signed, held, trust).map_err(RefusedBy::Token)?;
    let body = open(signed)?;
    version(record, body.version)?;
    if body.issued_at > trust.now.saturating_add(trust.tolerance) {
        return Err(RefusedBy::FutureIssued { at: body.issued_at });
    }
    if body.expires_at() <= trust.now {
        return Err(RefusedBy::Expired {
            at: body.expires_at(),
        });
    }
    Ok((body, grant))
}

/// The body, if it is small enough, signed, and says nothing that no honest node says.
pub(super) fn open(signed: &SignedAnnouncement) -> Result<Announcement, RefusedBy> {
    check_size(signed)?;
    let body = signed.open().map_err(|error| match error {
        EnvelopeError::Signature(_) => RefusedBy::BadSignature,
        EnvelopeError::Decode(_) | EnvelopeError::TooLarge => RefusedBy::Malformed("body"),
    })?;
    if body.name.len() > MAX_NAME || body.name.chars().any(char::is_control) {
        return Err(RefusedBy::Malformed("name"));
    }
    if body.ttl.is_zero() || body.ttl > MAX_TTL {
        return Err(RefusedBy::Malformed("ttl"));
    }
    Ok(body)
}

/// Only what is later than all that was seen is news.
pub(super) fn version(record: Option<&Record>, version: u64) -> Result<(), RefusedBy> {
    match record {
        Some(record) if version <= record.version => Err(RefusedBy::Rollback {
            version,
            known: record.version,
        }),
        _ => Ok(()),
    }
}

fn check_size(signed: &SignedAnnouncement) -> Result<(), RefusedBy> {
    let bytes = signed.envelope.body_len();
    if bytes > MAX_ANNOUNCEMENT {
        Err(RefusedBy::TooLarge { bytes })
    } else {
        Ok(())
    }
}

/// What the token grants, if its subject signed and it allows announcing. A token that was verified
/// with the node's last announcement is not verified again, but its time and the revocations are
/// asked each time.
fn token(
    signed: &SignedAnnouncement,
    held: Option<&Held>,
    trust: &VerifyContext<'_>,
) -> Result<Grant, TokenError> {
    let node = signed.node();
    let known = held.filter(|held| held.signed.token == signed.token);
    let grant = match known.and_then(|held| held.grant.as_deref()) {
        Some(grant) => match grant.revoked_by(trust.revocations) {
            Some(what) => return Err(TokenError::Revoked { what }),
            None => grant.clone(),
        },
        None => signed.token.verify(trust)?,
    };
    grant.check(&node, Scope::Announce, MESH_PATH, &node, trust.now)?;
    Ok(grant)
}
