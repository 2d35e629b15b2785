//! How two nodes reach each other: what lies between them, and which of the ways to take.
//!
//! [`PeerPaths`] is the machine of one peer: it takes what is known and heard of ways to it, asks for
//! probes, and names the route to use. [`Probe`] is what the probes look like on the wire. [`classify`]
//! judges address translators by what peers observe, and [`MappingLifetime`] how long their
//! mappings last. Time is given as the duration since a start that the caller chose.

mod event;
mod lifetime;
mod nat;
mod peer;
mod probe;
mod route;
mod traffic;

pub use event::{Action, Event, MAX_SPREAD};
pub use lifetime::MappingLifetime;
pub use nat::{NatClass, Strategy, classify, pair};
pub use peer::PeerPaths;
pub use probe::{KEY_ID_LEN, PROBE_LEN, Probe, ProbeKind, ReplayWindow, SIGNED_LEN, TAG_LEN};
pub use route::{PathConfig, Route, canonical};
