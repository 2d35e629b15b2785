//! The connections to other nodes: one for each, found by node id.
//!
//! `table` holds them and decides which of two to keep, `dial` makes them, `greet` begins them with
//! an exchange of tokens and ends them.

mod dial;
mod greet;
mod link;
mod table;

pub(crate) use dial::DialResult;
pub(crate) use link::Link;
pub(crate) use table::{Keep, Peers};
