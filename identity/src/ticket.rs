//! Tickets: one line of text that brings a node into a mesh.
//!
//! A ticket is a secret: it holds the pre-shared key, and the right to be admitted as long as its
//! issuer's [`AdmissionBook`](crate::AdmissionBook) says so.

use std::{fmt, net::SocketAddr, str::FromStr};

use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::{
    NodeId, Psk, Timestamp, codec,
    mesh::fingerprint,
    text::{self, TextError},
};

/// Most characters of a ticket, so that it stays one line that a terminal and a chat accept.
pub const MAX_TICKET_CHARS: usize = 1024;
/// Most contacts that a ticket carries; it is written with the first of a longer list.
pub const MAX_CONTACTS: usize = 4;
/// Most addresses of each; it is written with the first of a longer list.
pub const MAX_CONTACT_ADDRS: usize = 4;
/// Most characters of a role.
pub const MAX_ROLE_CHARS: usize = 32;

/// How a ticket begins; the digit is its version.
const PREFIX: &str = "mw1";

/// An invitation into a mesh.
///
/// [`Display`](fmt::Display) writes it out with its secrets, [`Debug`] without.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ticket {
    /// The authority of the mesh.
    pub mesh: NodeId,
    /// The secret that all members share.
    pub psk: Psk,
    /// Nodes to call first, the best first. Hints: their keys prove who they are.
    pub contacts: Vec<Contact>,
    /// What to show to the issuer, who admits.
    pub admission: AdmissionSecret,
    /// Who made the ticket and holds its record.
    pub issuer: NodeId,
    /// Until when it can be used. The issuer decides; this is for the joiner to know.
    pub expires: Timestamp,
    /// What the joiner is invited as.
    pub role: Role,
}

/// A node and where it was last seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contact {
    /// The node.
    pub node: NodeId,
    /// Its addresses, the best first.
    #[serde(deserialize_with = "codec::bounded_vec::<_, _, MAX_CONTACT_ADDRS>")]
    pub addrs: Vec<SocketAddr>,
}

/// What a node is invited as: 1 to [`MAX_ROLE_CHARS`] lower-case letters, digits, `-`, with `,`
/// between several.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Role(String);

/// The number of an admission record and the proof to have been given it.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct AdmissionSecret {
    /// Which record.
    pub id: [u8; 16],
    /// 16 random bytes; the record holds their hash only.
    pub secret: [u8; 16],
}

/// Why a text is no ticket that can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TicketError {
    /// It does not begin like a ticket.
    #[error("this is not a ticket: tickets begin with `{PREFIX}`")]
    NotATicket,
    /// A ticket of a version that this program does not know.
    #[error(
        "this ticket has a version that this program does not know; update meshwork, or ask for a new ticket"
    )]
    Version,
    /// Longer than [`MAX_TICKET_CHARS`].
    #[error("this is longer than any ticket ({MAX_TICKET_CHARS} characters)")]
    TooLong,
    /// A character that does not occur in tickets.
    #[error("character {0} cannot be part of a ticket: only `a`–`z` and `2`–`7` are")]
    Symbol(usize),
    /// The checksum does not match.
    #[error("the ticket was mistyped or cut off: its checksum does not match; copy the whole line")]
    Checksum,
    /// The checksum matches, the content does not: a program error of whoever made it.
    #[error("the ticket is complete, but its content does not decode")]
    Malformed,
    /// Its time is over.
    #[error("the ticket expired at {0}; ask for a new one")]
    Expired(Timestamp),
}

impl Ticket {
    /// Whether it can still be used, as far as the joiner can tell.
    pub fn check_expiry(&self, now: Timestamp) -> Result<(), TicketError> {
        if now >= self.expires {
            return Err(TicketError::Expired(self.expires));
        }
        Ok(())
    }

    /// Three words that stand for the mesh, to compare with what `meshwork init` printed.
    pub fn fingerprint(&self) -> String {
        fingerprint(&self.mesh)
    }
}

/// The content of the text. Apart from [`Ticket`], so that no other serializer meets its secrets.
#[derive(Serialize, Deserialize)]
struct Wire {
    mesh: NodeId,
    psk: [u8; 32],
    #[serde(deserialize_with = "codec::bounded_vec::<_, _, MAX_CONTACTS>")]
    contacts: Vec<Contact>,
    admission_id: [u8; 16],
    admission_secret: [u8; 16],
    issuer: NodeId,
    expires: Timestamp,
    role: Role,
}

impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let contacts = self.contacts.iter().take(MAX_CONTACTS);
        let wire = Wire {
            mesh: self.mesh,
            psk: *self.psk.as_bytes(),
            contacts: contacts.map(Contact::shortened).collect(),
            admission_id: self.admission.id,
            admission_secret: self.admission.secret,
            issuer: self.issuer,
            expires: self.expires,
            role: self.role.clone(),
        };
        let bytes = Zeroizing::new(codec::encode(&wire));
        f.write_str(&text::to_text(PREFIX, &bytes))
    }
}

impl FromStr for Ticket {
    type Err = TicketError;

    fn from_str(text: &str) -> Result<Self, TicketError> {
        let bytes = text::from_text(PREFIX, text, MAX_TICKET_CHARS).map_err(|e| match e {
            TextError::TooLong => TicketError::TooLong,
            TextError::Prefix if is_other_version(text) => TicketError::Version,
            TextError::Prefix => TicketError::NotATicket,
            TextError::Symbol(index) => TicketError::Symbol(index + 1),
            TextError::Checksum => TicketError::Checksum,
        })?;
        let bytes = Zeroizing::new(bytes);
        let wire: Wire = codec::decode_canonical(&bytes).map_err(|_| TicketError::Malformed)?;
        Ok(Self {
            mesh: wire.mesh,
            psk: Psk::from_bytes(wire.psk),
            contacts: wire.contacts,
            admission: AdmissionSecret {
                id: wire.admission_id,
                secret: wire.admission_secret,
            },
            issuer: wire.issuer,
            expires: wire.expires,
            role: wire.role,
        })
    }
}

/// Whether the text begins as tickets of other versions would.
fn is_other_version(text: &str) -> bool {
    let rest = text.trim().strip_prefix("mw");
    rest.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

impl Contact {
    fn shortened(&self) -> Self {
        let addrs = self.addrs.iter().take(MAX_CONTACT_ADDRS);
        Self {
            node: self.node,
            addrs: addrs.copied().collect(),
        }
    }
}

impl Role {
    /// The role's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// The text does not have the form of a [`Role`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a role is 1 to {MAX_ROLE_CHARS} lower-case letters, digits, `-` and `,`")]
pub struct RoleError;

impl FromStr for Role {
    type Err = RoleError;

    fn from_str(text: &str) -> Result<Self, RoleError> {
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == ',';
        if text.is_empty() || text.len() > MAX_ROLE_CHARS || !text.chars().all(fits) {
            return Err(RoleError);
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for Role {
    type Error = RoleError;

    fn try_from(text: String) -> Result<Self, RoleError> {
        text.parse()
    }
}

impl From<Role> for String {
    fn from(role: Role) -> Self {
        role.0
    }
}

/// In constant time over the secret.
impl PartialEq for AdmissionSecret {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id && bool::from(self.secret.ct_eq(&other.secret))
    }
}

impl Eq for AdmissionSecret {}

impl fmt::Debug for AdmissionSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = text::BASE32.encode(&self.id);
        write!(f, "AdmissionSecret({id}, …)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Identity;

    fn ticket(contacts: usize, addrs: usize) -> Ticket {
        let [mesh, node] = [1, 2].map(|n| Identity::from_seed(&[n; 32]).node_id());
        let addr = "[2001:db8::1]:65535".parse().unwrap();
        let contact = Contact {
            node,
            addrs: vec![addr; addrs],
        };
        Ticket {
            mesh,
            psk: Psk::from_bytes([0x41; 32]),
            contacts: vec![contact; contacts],
            admission: AdmissionSecret {
                id: [3; 16],
                secret: [0x42; 16],
            },
            issuer: node,
            expires: Timestamp::MAX,
            role: "r".repeat(MAX_ROLE_CHARS).parse().unwrap(),
        }
    }

    #[test]
    fn the_largest_ticket_fits_and_round_trips() {
        let largest = ticket(MAX_CONTACTS, MAX_CONTACT_ADDRS);
        let text = largest.to_string();
        assert!(text.len() <= MAX_TICKET_CHARS, "{}", text.len());
        assert_eq!(text.parse(), Ok(largest.clone()));
        // Hints beyond the bounds stay out of the text.
        let more = ticket(MAX_CONTACTS + 1, MAX_CONTACT_ADDRS + 1);
        assert_eq!(more.to_string().parse(), Ok(largest));
    }

    #[test]
    fn each_error_is_reached() {
        let text = ticket(1, 1).to_string();
        let parse = |text: &str| text.parse::<Ticket>().map(|_| ());
        assert_eq!(parse(&format!("\t{text}\n")), Ok(()));
        assert_eq!(parse("hello"), Err(TicketError::NotATicket));
        assert_eq!(parse("mwt1aaaa"), Err(TicketError::NotATicket));
        assert_eq!(
            parse(&text.replacen("mw1", "mw2", 1)),
            Err(TicketError::Version)
        );
        assert_eq!(
            parse(&"m".repeat(MAX_TICKET_CHARS + 1)),
            Err(TicketError::TooLong)
        );
        assert_eq!(
            parse(&text.replacen("mw1", "mw1!", 1)),
            Err(TicketError::Symbol(4))
        );
        assert_eq!(parse(&text[..text.len() - 3]), Err(TicketError::Checksum));
        assert_eq!(
            parse(&text::to_text(PREFIX, b"junk")),
            Err(TicketError::Malformed)
        );
    }

    #[test]
    fn expiry_is_checked_against_a_given_time() {
        let ticket = Ticket {
            expires: Timestamp::from_secs(100),
            ..ticket(1, 1)
        };
        assert_eq!(ticket.check_expiry(Timestamp::from_secs(99)), Ok(()));
        assert_eq!(
            ticket.check_expiry(Timestamp::from_secs(100)),
            Err(TicketError::Expired(ticket.expires))
        );
    }

    #[test]
    fn debug_shows_no_secret() {
        let shown = format!("{:?}", ticket(1, 1));
        assert!(shown.contains("Psk(…)"));
        // Neither as a list of numbers (0x41, 0x42) nor as base32 of them.
        for secret in ["65, 65", "66, 66", "ifaucqk", "ijbeeqs"] {
            assert!(!shown.contains(secret), "{shown}");
        }
    }
}
