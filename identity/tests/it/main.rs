//! What the crate promises to those who use it: nothing forged verifies, nothing delegated widens,
//! every refusal has its kind, and encodings do not change by accident.

#![allow(
    clippy::unwrap_used,
    reason = "the lint spares tests, but not their helpers"
)]

mod common;
mod failures;
mod keystore;
mod mutation;
mod narrowing;
mod revocation;
mod vectors;
mod warrant;
