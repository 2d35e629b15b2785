//! The purposes a key may sign for, each with a string of its own.
//!
//! What is really signed is `len(domain) ‖ domain ‖ message`, so that bytes signed for one purpose
//! never verify for another, whatever the two messages look like. The length byte makes the split
//! unambiguous: no domain followed by a message can equal another domain followed by another
//! message. A prefix in front of plain Ed25519 is enough for this; the pre-hashed variant
//! (RFC 8032 §5.1, Ed25519ph) would add nothing, as all our messages are in memory anyway.
//!
//! All domains stand in this file, so that a test can hold them apart. An incompatible change of a
//! signed format gets a new version here, never the same string.

/// What a signature or a derived id is for: `meshwork/<purpose>/v<version>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Domain(&'static str);

impl Domain {
    /// A link of a permission token.
    pub const TOKEN: Self = Self("meshwork/token/v1");
    /// A node's description of itself.
    pub const ANNOUNCEMENT: Self = Self("meshwork/announcement/v1");
    /// The renewal of a node's description, and what it has free.
    pub const BEAT: Self = Self("meshwork/beat/v1");
    /// A node's word that another is dead.
    pub const SUSPICION: Self = Self("meshwork/suspicion/v1");
    /// A new pre-shared key for the mesh.
    pub const PSK_ROTATION: Self = Self("meshwork/psk-rotation/v1");
    /// The withdrawal of a token or a node.
    pub const REVOCATION: Self = Self("meshwork/revocation/v1");
    /// A user's order that a manager carries to an agent.
    pub const WARRANT: Self = Self("meshwork/warrant/v1");
    /// The name of a mesh, hashed from its authority's key. Nothing is signed under it.
    pub const MESH_ID: Self = Self("meshwork/mesh-id/v1");

    /// Every domain, for the test that holds them apart.
    pub const ALL: [Self; 8] = [
        Self::TOKEN,
        Self::ANNOUNCEMENT,
        Self::BEAT,
        Self::SUSPICION,
        Self::PSK_ROTATION,
        Self::REVOCATION,
        Self::WARRANT,
        Self::MESH_ID,
    ];

    /// The domain's string.
    pub fn as_str(&self) -> &'static str {
        self.0
    }

    /// The bytes that are signed for `message`: `len(domain) ‖ domain ‖ message`.
    pub fn frame(&self, message: &[u8]) -> Vec<u8> {
        let name = self.0.as_bytes();
        let length = u8::try_from(name.len()).expect("a domain string is short");
        let mut framed = Vec::with_capacity(1 + name.len() + message.len());
        framed.push(length);
        framed.extend_from_slice(name);
        framed.extend_from_slice(message);
        framed
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn domains_are_distinct_and_well_formed() {
        let names: BTreeSet<_> = Domain::ALL.iter().map(Domain::as_str).collect();
        assert_eq!(names.len(), Domain::ALL.len());
        for name in names {
            let parts: Vec<_> = name.split('/').collect();
            assert!(matches!(parts[..], ["meshwork", _, "v1"]), "{name}");
        }
    }

    #[test]
    fn frames_of_different_domains_never_meet() {
        for (i, one) in Domain::ALL.iter().enumerate() {
            for other in &Domain::ALL[i + 1..] {
                assert_ne!(one.frame(b"x"), other.frame(b"x"));
            }
        }
    }
}
