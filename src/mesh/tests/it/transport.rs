//! Tests of the Noise-secured QUIC transport.

mod basics;
mod mangled;
mod refusals;
mod replayed;
mod rewritten;
mod timing;
