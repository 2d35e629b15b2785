//! What Meshwork's peers say to each other and the rules of saying it.
//!
//! Wire types (postcard, versioned by golden vectors in `proto/vectors/`), their limits, the
//! typed declaration of every RPC method, and the sans-I/O machines that decide what a node does
//! with what it hears: the announcement store, its index and the query language. Nothing here
//! opens a socket, reads a clock or draws a random number: bytes and time come in as arguments.

pub mod agent;
pub mod announcement;
pub mod beat;
pub mod codec;
pub mod facts;
pub mod ids;
pub mod kernel;
pub mod limits;
pub mod manager;
pub mod membership;
pub mod mesh;
pub mod path;
pub mod ports;
pub mod psk;
pub mod query;
pub mod rpc;
pub mod service;
pub mod session;
pub mod slots;
pub mod store;
pub mod subnet;
pub mod suspicion;
pub mod units;

pub use announcement::{Announcement, SignedAnnouncement};
pub use beat::{Availability, Beat, SignedBeat};
pub use ids::{KernelId, SessionId};
pub use psk::{PskRotation, SignedPskRotation};
pub use rpc::{RpcError, Status};
pub use suspicion::{SignedSuspicion, Suspicion};
pub use units::ByteSize;
