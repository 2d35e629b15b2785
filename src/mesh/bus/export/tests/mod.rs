//! Exporters against sinks that fail in every way, and against the real servers.

#[cfg(feature = "redis")]
mod killed;
#[cfg(feature = "nats")]
mod nats;
#[cfg(feature = "redis")]
mod redis;
mod scripted;
#[cfg(any(feature = "redis", feature = "nats"))]
mod server;
