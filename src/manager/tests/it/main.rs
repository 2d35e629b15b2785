//! The manager against agents that keep the agent's contract and lose, repeat, delay and refuse on
//! command. Time is tokio's paused clock, but for the crash test.

#![expect(
    clippy::unwrap_used,
    reason = "a test that unwraps an error has failed"
)]

mod access;
mod agent;
mod crash;
mod faults;
mod lifecycle;
mod placement;
mod restart;
mod world;
