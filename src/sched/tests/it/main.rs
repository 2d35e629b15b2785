//! Placement from outside: properties over arbitrary clusters, and the texts that people read.

#![expect(
    clippy::unwrap_used,
    reason = "a test that unwraps an error has failed"
)]

mod build;
mod properties;
mod texts;
