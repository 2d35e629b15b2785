//! A deterministic network for tests: virtual time, virtual UDP sockets, seeded loss and latency,
//! under unmodified quinn and the unmodified node.
//!
//! Everything runs on one thread under tokio's paused clock, so ten virtual minutes pass as fast as
//! the processor allows, and the same seed gives the same datagrams at the same times, in any
//! process. [`Net::trace_hash`] condenses them into one value to compare.
//!
//! ```
//! use meshwork_netsim::{LinkModel, Sim};
//!
//! let sim = Sim::new(42, LinkModel::default());
//! let net = sim.net();
//! sim.block_on(async move {
//!     let _socket = net.socket("10.0.0.1:7000".parse().unwrap()).unwrap();
//!     tokio::time::sleep(std::time::Duration::from_secs(600)).await;
//! });
//! ```
//!
//! Code under test must take its time from tokio, its random bytes from [`Net::entropy`], use `biased`
//! in `select!`, and never iterate over hashed maps.

mod entropy;
pub mod facts;
pub mod heap;
pub mod nat;
mod net;
pub mod report;
pub mod run;
mod runtime;
pub mod scenario;
pub mod search;
mod socket;
pub mod swarm;
#[cfg(feature = "world")]
pub mod world;

use std::future::Future;

pub use entropy::SeededEntropy;
pub use net::{
    Bandwidth, Datagram, Delivery, GatewayId, Host, Lan, Latency, LinkModel, Loss, Net, Outage,
    Wire,
};
pub use runtime::SimRuntime;
pub use socket::SimSocket;

/// One simulated world: a runtime with a paused clock, and a network.
#[derive(Debug)]
pub struct Sim {
    runtime: tokio::runtime::Runtime,
    net: Net,
}

impl Sim {
    /// A world in which all chance comes from `seed`, with this wire between all hosts.
    ///
    /// # Panics
    /// If the operating system refuses the resources of an event loop.
    pub fn new(seed: u64, wire: impl Into<Wire>) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("the system grants an event loop");
        let net = {
            let _entered = runtime.enter();
            Net::new(seed, wire.into())
        };
        Self { runtime, net }
    }

    /// The network; clone it into tasks.
    pub fn net(&self) -> Net {
        self.net.clone()
    }

    /// Runs `future` to its end. Whenever all tasks wait, time jumps to the next timer.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }
}

#[cfg(test)]
mod tests;
