//! Tests of the protocol crate as its users see it.
#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod arbitrary;
mod decode;
mod fixture;
mod query;
mod query_property;
mod samples;
mod store;
mod store_property;
mod vectors;
