//! Tests of the protocol crate as its users see it.
#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod arbitrary;
mod decode;
mod facts;
mod fixture;
mod membership;
mod membership_alone;
mod membership_harness;
mod membership_property;
mod path;
mod query;
mod query_free;
mod query_property;
mod samples;
mod store;
mod store_full;
mod store_property;
mod vectors;
