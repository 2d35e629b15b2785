//! The built binary behind real NATs: network namespaces, `iptables` masquerading, `miniupnpd`, real
//! processes and real time. Needs root; `MESHWORK_SKIP_DOCKER=1` leaves these tests out.

#![allow(
    clippy::unwrap_used,
    reason = "a test ends where something is not as it should be"
)]

mod pairs;
mod port_map;
mod proofs;
mod streams;
mod support;
