//! The agent against a real Docker daemon.
//!
//! They need Docker at `DOCKER_HOST` or `/var/run/docker.sock` and a static busybox, and fail
//! without; `MESHWORK_SKIP_DOCKER=1` leaves them out.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on should say where"
)]

mod away;
mod crash;
mod devices;
mod images;
mod life;
mod logs;
mod orders;
mod support;
mod walls;
