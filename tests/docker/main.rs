//! The built binary as its users meet it: real processes, real containers, real sockets. Needs a
//! Docker daemon; `MESHWORK_SKIP_DOCKER=1` leaves these tests out.

#![allow(
    clippy::unwrap_used,
    reason = "a test ends where something is not as it should be"
)]

mod chaos;
mod cut;
mod disk_full;
mod refusals;
mod spine;
mod support;
