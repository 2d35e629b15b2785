//! The issuer's side of tickets: who may still come in with which, and as what.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::{
    AdmissionSecret, Limits, NodeId, Resource, Role, Scopes, Timestamp, TokenRequest, text::BASE32,
};

/// Most records in one book.
pub const MAX_ADMISSIONS: usize = 1024;
/// Most uses of one ticket: each joiner is remembered.
pub const MAX_ADMISSION_USES: u32 = 1024;

/// What a ticket is good for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdmissionTerms {
    /// What the joiner is invited as.
    pub role: Role,
    /// The scopes of the joiner's token.
    pub scopes: Scopes,
    /// The resource of the joiner's token.
    pub resource: Resource,
    /// The limits of the joiner's token.
    pub limits: Limits,
    /// How long the joiner's token lasts.
    pub token_ttl: Duration,
    /// How many joiners the ticket admits, 1 to [`MAX_ADMISSION_USES`].
    pub uses: u32,
    /// Until when the ticket admits.
    pub expires: Timestamp,
}

/// One ticket that was given out. The secret itself is not kept.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdmissionRecord {
    terms: AdmissionTerms,
    secret_hash: [u8; 32],
    joiners: BTreeSet<NodeId>,
}

/// The tickets given out by one issuer. It is data: whoever holds it stores it after each change,
/// before acting on the change.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AdmissionBook {
    records: BTreeMap<[u8; 16], AdmissionRecord>,
}

/// Why a ticket was not written down, or does not admit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AdmissionError {
    /// There is no record of this ticket: never given out here, withdrawn, or long past.
    #[error("this ticket is not known here")]
    Unknown,
    /// The record exists, its secret is another.
    #[error("this ticket's secret is wrong")]
    WrongSecret,
    /// The ticket's time is over.
    #[error("this ticket expired at {0}")]
    Expired(Timestamp),
    /// All its uses are taken.
    #[error("this ticket has been used as often as it may be")]
    UsedUp,
    /// The book holds [`MAX_ADMISSIONS`] records.
    #[error("{MAX_ADMISSIONS} tickets are open already; withdraw some or let them expire")]
    Full,
    /// A record with this id exists.
    #[error("a ticket with this id exists already")]
    Duplicate,
    /// No uses, or more than [`MAX_ADMISSION_USES`].
    #[error("a ticket is for 1 to {MAX_ADMISSION_USES} uses")]
    Uses,
}

impl AdmissionBook {
    /// Writes a new ticket down. `secret` must be random in both parts.
    pub fn issue(
        &mut self,
        secret: &AdmissionSecret,
        terms: AdmissionTerms,
    ) -> Result<(), AdmissionError> {
        if !(1..=MAX_ADMISSION_USES).contains(&terms.uses) {
            return Err(AdmissionError::Uses);
        }
        if self.records.contains_key(&secret.id) {
            return Err(AdmissionError::Duplicate);
        }
        if self.records.len() >= MAX_ADMISSIONS {
            return Err(AdmissionError::Full);
        }
        let record = AdmissionRecord {
            terms,
            secret_hash: hash(secret),
            joiners: BTreeSet::new(),
        };
        self.records.insert(secret.id, record);
        Ok(())
    }

    /// Admits `joiner`, who has proved its key and shows `secret`. Who was admitted before is again,
    /// without a further use, as the first answer may have been lost.
    pub fn redeem(
        &mut self,
        secret: &AdmissionSecret,
        joiner: NodeId,
        now: Timestamp,
    ) -> Result<&AdmissionRecord, AdmissionError> {
        let record = self
            .records
            .get_mut(&secret.id)
            .ok_or(AdmissionError::Unknown)?;
        if !bool::from(record.secret_hash.ct_eq(&hash(secret))) {
            return Err(AdmissionError::WrongSecret);
        }
        if now >= record.terms.expires {
            return Err(AdmissionError::Expired(record.terms.expires));
        }
        if !record.joiners.contains(&joiner) && record.uses_left() == 0 {
            return Err(AdmissionError::UsedUp);
        }
        record.joiners.insert(joiner);
        Ok(record)
    }

    /// Withdraws a ticket; whoever joined with it stays. Whether there was one.
    pub fn withdraw(&mut self, id: &[u8; 16]) -> bool {
        self.records.remove(id).is_some()
    }

    /// Forgets the tickets whose time is over.
    pub fn purge(&mut self, now: Timestamp) {
        self.records.retain(|_, record| now < record.terms.expires);
    }

    /// The records by ticket id.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8; 16], &AdmissionRecord)> {
        self.records.iter()
    }
}

impl AdmissionRecord {
    /// What the ticket is good for.
    pub fn terms(&self) -> &AdmissionTerms {
        &self.terms
    }

    /// Who joined with it.
    pub fn joiners(&self) -> impl Iterator<Item = &NodeId> {
        self.joiners.iter()
    }

    /// How many more may.
    pub fn uses_left(&self) -> u32 {
        let used = u32::try_from(self.joiners.len()).unwrap_or(u32::MAX);
        self.terms.uses.saturating_sub(used)
    }

    /// The token that `joiner` is to get.
    pub fn token_request(&self, joiner: NodeId) -> TokenRequest {
        TokenRequest {
            subject: joiner,
            scopes: self.terms.scopes,
            resource: self.terms.resource.clone(),
            not_before: None,
            ttl: self.terms.token_ttl,
            depth: 0,
            limits: self.terms.limits.clone(),
        }
    }
}

/// SHA-256 suffices: the secret is 128 random bits, not a password.
fn hash(secret: &AdmissionSecret) -> [u8; 32] {
    Sha256::digest(secret.secret).into()
}

impl fmt::Debug for AdmissionRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdmissionRecord")
            .field("terms", &self.terms)
            .field("joiners", &self.joiners)
            .field(
                "secret_hash",
                &format_args!("{}…", BASE32.encode(&self.secret_hash[..5])),
            )
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Identity, Scope};

    const NOW: Timestamp = Timestamp::from_secs(1000);

    fn secret(id: u8, secret: u8) -> AdmissionSecret {
        AdmissionSecret {
            id: [id; 16],
            secret: [secret; 16],
        }
    }

    fn terms(uses: u32) -> AdmissionTerms {
        AdmissionTerms {
            role: "agent".parse().unwrap(),
            scopes: [Scope::Join, Scope::Announce].into(),
            resource: Resource::any(),
            limits: Limits::none(),
            token_ttl: Duration::from_hours(1),
            uses,
            expires: Timestamp::from_secs(2000),
        }
    }

    fn joiner(n: u8) -> NodeId {
        Identity::from_seed(&[n; 32]).node_id()
    }

    #[test]
    fn a_counted_ticket_admits_so_many_and_each_again() {
        let mut book = AdmissionBook::default();
        book.issue(&secret(1, 1), terms(2)).unwrap();
        for (n, left) in [(1, 1), (1, 1), (2, 0), (1, 0), (2, 0)] {
            let record = book.redeem(&secret(1, 1), joiner(n), NOW).unwrap();
            assert_eq!(record.uses_left(), left);
            assert_eq!(record.token_request(joiner(n)).subject, joiner(n));
        }
        assert_eq!(
            book.redeem(&secret(1, 1), joiner(3), NOW),
            Err(AdmissionError::UsedUp)
        );
        let stored = postcard::to_allocvec(&book).unwrap();
        assert_eq!(
            postcard::from_bytes::<AdmissionBook>(&stored).unwrap(),
            book
        );
    }

    #[test]
    fn each_refusal_is_its_own() {
        let mut book = AdmissionBook::default();
        assert_eq!(
            book.issue(&secret(1, 1), terms(0)),
            Err(AdmissionError::Uses)
        );
        assert_eq!(
            book.issue(&secret(1, 1), terms(MAX_ADMISSION_USES + 1)),
            Err(AdmissionError::Uses)
        );
        book.issue(&secret(1, 1), terms(1)).unwrap();
        assert_eq!(
            book.issue(&secret(1, 2), terms(1)),
            Err(AdmissionError::Duplicate)
        );
        assert_eq!(
            book.redeem(&secret(2, 1), joiner(1), NOW),
            Err(AdmissionError::Unknown)
        );
        assert_eq!(
            book.redeem(&secret(1, 2), joiner(1), NOW),
            Err(AdmissionError::WrongSecret)
        );
        let end = Timestamp::from_secs(2000);
        assert_eq!(
            book.redeem(&secret(1, 1), joiner(1), end),
            Err(AdmissionError::Expired(end))
        );
        book.purge(NOW);
        assert_eq!(book.iter().count(), 1);
        book.purge(end);
        assert_eq!(book.iter().count(), 0);
    }

    #[test]
    fn the_book_is_bounded() {
        let mut book = AdmissionBook::default();
        for n in 0..MAX_ADMISSIONS {
            let mut one = secret(0, 0);
            one.id[..8].copy_from_slice(&n.to_be_bytes());
            book.issue(&one, terms(1)).unwrap();
        }
        assert_eq!(
            book.issue(&secret(9, 9), terms(1)),
            Err(AdmissionError::Full)
        );
        assert!(book.withdraw(&[0; 16]));
        assert_eq!(book.issue(&secret(9, 9), terms(1)), Ok(()));
    }

    #[test]
    fn the_secret_is_neither_stored_nor_shown() {
        let mut book = AdmissionBook::default();
        book.issue(&secret(1, 0x42), terms(1)).unwrap();
        let stored = postcard::to_allocvec(&book).unwrap();
        assert!(!stored.windows(4).any(|bytes| bytes == [0x42; 4]));
        assert!(!format!("{book:?}").contains("66, 66"));
    }
}
