//! Who is who in a mesh, and who may do what: keys, node ids, signed envelopes, permission tokens,
//! tickets and the key store.
//!
//! Everything here is a function of its arguments. Time is a [`Timestamp`], chance is bytes, both
//! given by the caller; only `keystore` touches the disk.

mod admission;
mod codec;
mod domain;
mod envelope;
mod key;
mod keystore;
mod limits;
mod mesh;
pub mod noise;
mod resource;
mod revocation;
mod scope;
mod text;
mod ticket;
mod time;
mod token;
mod warrant;
mod words;

pub use admission::{
    AdmissionBook, AdmissionError, AdmissionRecord, AdmissionTerms, MAX_ADMISSION_USES,
    MAX_ADMISSIONS,
};
pub use codec::{DecodeError, bounded_vec};
pub use domain::Domain;
pub use envelope::{Envelope, EnvelopeError, MAX_ENVELOPE_BODY};
pub use key::{
    Identity, NODE_ID_CHARS, NodeId, NodeIdError, SHORT_ID_CHARS, Signature, SignatureError,
};
pub use keystore::{KeyStoreError, SecretFile, load_identity, load_or_create_identity};
pub use limits::{Limits, MAX_NODE_TAGS, MAX_TAG_CHARS, NodeTags, NodeTagsError};
pub use mesh::{MeshId, Psk, fingerprint};
pub use resource::{MAX_RESOURCE_PATH, Resource, ResourceError};
pub use revocation::{
    MAX_REVOCATION_BYTES, MAX_REVOCATIONS, Revocation, RevocationError, RevocationNotice,
    Revocations, Revoked,
};
pub use scope::{Scope, ScopeError, Scopes};
pub use ticket::{
    AdmissionSecret, Contact, MAX_CONTACT_ADDRS, MAX_CONTACTS, MAX_ROLE_CHARS, MAX_TICKET_CHARS,
    Role, RoleError, Ticket, TicketError,
};
pub use time::Timestamp;
pub use token::{
    CLOCK_TOLERANCE, ChainLink, Claims, Exceeded, Grant, Link, MAX_LINKS, MAX_TOKEN_BYTES,
    MESH_PATH, Token, TokenError, TokenId, TokenRequest, VerifyContext,
};
pub use warrant::{Warrant, WarrantError};
