//! Placement: which node shall run a request, as pure functions over a snapshot.
//!
//! [`place`] judges every candidate by the same rule that the agent later admits by
//! ([`Capacity::shortages`]) and takes the best; a refusal names what was short on each node.
//! [`reserve`] and [`release`] keep a snapshot honest between two reports of its node. Nothing here
//! waits, reads a clock or draws a random number: equal input gives equal output, in any order of
//! candidates.

mod place;
mod reserve;

pub use place::{Candidate, NotPlaced, Placement, Refusal, Request, describe, place};
pub use reserve::{release, reserve};

#[cfg(doc)]
use meshwork_proto::slots::Capacity;
