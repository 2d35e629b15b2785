//! What the authority and the admins decree: revocations, and the mesh's key.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use meshwork_identity::{
    CLOCK_TOLERANCE, MAX_REVOCATIONS, NodeId, Revocation, RevocationError, RevocationNotice,
    Revoked, Timestamp, VerifyContext,
};

use super::fact::{psk_version, revocation_key, revocation_rank};
use crate::membership::{Key, Outcome};
use crate::psk::{PskRotation, SignedPskRotation};
use crate::store::RefusedBy;

/// What is in force, with the statements to be sent on.
#[derive(Debug, Default)]
pub(super) struct Decrees {
    revocations: BTreeMap<[u8; 32], Held>,
    /// When each revocation may be forgotten that does not last for ever.
    agenda: BTreeSet<(Timestamp, [u8; 32])>,
    psk: Option<(SignedPskRotation, PskRotation)>,
    /// Version of the latest rotation of the key that was ever heeded: none below it comes back.
    psk_version: u64,
}

#[derive(Debug)]
struct Held {
    statement: Arc<Revocation>,
    what: Revoked,
    rank: u64,
}

/// What a decree changed.
#[derive(Debug)]
pub(super) struct Decreed {
    pub(super) key: Key<NodeId>,
    pub(super) version: u64,
    pub(super) outcome: Outcome,
    /// What is not sent on any more, as newcomers would not believe it.
    pub(super) gone: Vec<Key<NodeId>>,
}

const NEW: Outcome = Outcome::New { hops: 0 };

impl Decrees {
    /// Takes a revocation that a peer, or this node's user, brings.
    pub(super) fn revoke(
        &mut self,
        statement: Revocation,
        trust: &VerifyContext<'_>,
    ) -> Result<Decreed, RefusedBy> {
        let notice = statement
            .claimed()
            .map_err(|_| RefusedBy::Malformed("body"))?;
        let key = notice.what.digest();
        let version = revocation_rank(&statement, notice.keep_until);
        let mut decreed = Decreed {
            key: Key::Revocation(key),
            version,
            outcome: NEW,
            gone: Vec::new(),
        };
        let known = self.revocations.get(&key);
        if let Some(known) = known.filter(|known| known.rank >= version) {
            let same = known.rank == version;
            decreed.outcome = if same {
                Outcome::Duplicate
            } else {
                Outcome::Old
            };
            return Ok(decreed);
        }
        let is_full = self.revocations.len() >= MAX_REVOCATIONS;
        if known.is_none() && is_full && statement.signer() != *trust.root {
            return Err(RefusedBy::Revocation(RevocationError::Full));
        }
        statement.verify(trust).map_err(RefusedBy::Revocation)?;
        self.hold(statement, &notice);
        decreed.gone = self.drop_resting_on(|revoked| *revoked == notice.what);
        Ok(decreed)
    }

    /// Takes back what this node stored itself; each was checked when it came. What rests on a token
    /// that was withdrawn is in force here, but not sent on.
    pub(super) fn restore(&mut self, statements: impl IntoIterator<Item = Revocation>) {
        for statement in statements {
            if let Ok(notice) = statement.claimed() {
                self.hold(statement, &notice);
            }
        }
        let all: BTreeSet<Revoked> = self.revocations.values().map(|held| held.what).collect();
        self.drop_resting_on(|revoked| all.contains(revoked));
    }

    fn hold(&mut self, statement: Revocation, notice: &RevocationNotice) {
        let (key, what) = (notice.what.digest(), notice.what);
        let rank = revocation_rank(&statement, notice.keep_until);
        self.let_go(&key);
        self.agenda.extend(end(&statement).map(|end| (end, key)));
        let statement = Arc::new(statement);
        let held = Held {
            statement,
            what,
            rank,
        };
        self.revocations.insert(key, held);
    }

    fn let_go(&mut self, key: &[u8; 32]) {
        let held = self.revocations.remove(key);
        if let Some(end) = held.and_then(|held| end(&held.statement)) {
            self.agenda.remove(&(end, *key));
        }
    }

    /// Drops the statements of admins who are none any more.
    fn drop_resting_on(&mut self, is_revoked: impl Fn(&Revoked) -> bool) -> Vec<Key<NodeId>> {
        let rests = |held: &Held| held.statement.rests_on(&is_revoked);
        let gone = self.revocations.iter().filter(|(_, held)| rests(held));
        let gone: Vec<[u8; 32]> = gone.map(|(key, _)| *key).collect();
        for key in &gone {
            self.let_go(key);
        }
        let mut gone: Vec<_> = gone.into_iter().map(Key::Revocation).collect();
        let psk = self.psk.as_ref();
        if psk.is_some_and(|(signed, _)| signed.rests_on(&is_revoked)) {
            self.psk = None;
            gone.push(Key::Psk);
        }
        gone
    }

    /// Forgets revocations that are past their time; their keys.
    pub(super) fn expire(&mut self, now: Timestamp) -> Vec<Key<NodeId>> {
        let mut gone = Vec::new();
        while let Some((at, key)) = self.agenda.first().copied()
            && at <= now
        {
            self.agenda.remove(&(at, key));
            self.revocations.remove(&key);
            gone.push(Key::Revocation(key));
        }
        gone
    }

    pub(super) fn next_expiry(&self) -> Option<Timestamp> {
        self.agenda.first().map(|(at, _)| *at)
    }

    /// Takes a change of the mesh's key.
    pub(super) fn rotate(
        &mut self,
        signed: SignedPskRotation,
        trust: &VerifyContext<'_>,
    ) -> Result<Decreed, RefusedBy> {
        let claimed = signed.claimed().ok_or(RefusedBy::Malformed("body"))?;
        let version = psk_version(&signed, claimed.epoch);
        let mut decreed = Decreed {
            key: Key::Psk,
            version,
            outcome: NEW,
            gone: Vec::new(),
        };
        let held = self.psk.as_ref();
        if held.is_some_and(|(held, _)| held.envelope == signed.envelope) {
            decreed.outcome = Outcome::Duplicate;
            return Ok(decreed);
        }
        // The one that is known to have been heeded may come back, as after a restart.
        if version < self.psk_version || (self.psk.is_some() && version == self.psk_version) {
            return Err(RefusedBy::Rollback {
                version,
                known: self.psk_version,
            });
        }
        let rotation = signed.verify(trust).map_err(RefusedBy::Psk)?;
        self.psk = Some((signed, rotation));
        self.psk_version = version;
        Ok(decreed)
    }

    pub(super) fn psk(&self) -> Option<&PskRotation> {
        self.psk.as_ref().map(|(_, rotation)| rotation)
    }

    pub(super) fn signed_psk(&self) -> Option<&SignedPskRotation> {
        self.psk.as_ref().map(|(signed, _)| signed)
    }

    pub(super) fn psk_version(&self) -> u64 {
        self.psk_version
    }

    /// Remembers from an earlier run how far the key has come.
    pub(super) fn recall_psk(&mut self, version: u64) {
        self.psk_version = self.psk_version.max(version);
    }

    pub(super) fn revocation(&self, key: &[u8; 32]) -> Option<&Arc<Revocation>> {
        self.revocations.get(key).map(|held| &held.statement)
    }

    /// Keys and versions of all revocations held.
    pub(super) fn revocations(&self) -> impl Iterator<Item = (Key<NodeId>, u64)> + '_ {
        let all = self.revocations.values();
        all.map(|held| (revocation_key(&held.what), held.rank))
    }
}

/// When a statement may be forgotten; never, if what it revokes lasts for ever.
fn end(statement: &Revocation) -> Option<Timestamp> {
    let keep_until = statement.claimed().ok()?.keep_until;
    (keep_until != Timestamp::MAX).then(|| keep_until.saturating_add(CLOCK_TOLERANCE))
}
