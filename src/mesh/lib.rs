//! The input and output of the mesh: encrypted connections between nodes, and what runs over them.
//!
//! [`Mesh`] is a node: it keeps one connection to each peer (`peer`), over which it makes and serves
//! calls (`rpc`), spreads what all nodes shall know (`gossip`) and lets newcomers in (`admission`).
//! What a peer may do is decided once, when it presents its tokens (`credentials`), and looked up at
//! every call. Below lies [`transport`]: QUIC, secured by Noise.
//!
//! Time, chance, memory and the network come from outside ([`Env`]), so that a simulator can run
//! whole meshes in one thread, repeatably.

pub mod bus;
pub mod log;
pub mod transport;

mod addresses;
mod admission;
mod config;
mod credentials;
mod datagram;
mod env;
mod error;
mod gossip;
mod mesh;
mod node;
mod path;
mod peer;
mod psk;
mod rpc;
mod service;
mod state;
mod traversal;
mod watch;

pub use config::MeshConfig;
pub use env::{BindSocket, Env, FindAddresses, SystemClock};
pub use error::{MeshError, Tried, TurnedAway};
pub use gossip::{GossipStats, MemberEvent};
pub use mesh::Mesh;
pub use path::PathStats;
pub use psk::PskView;
pub use rpc::{RpcLimits, ServeHandle, ServiceOptions};
pub use state::{FileState, MemoryState, StateStore};
pub use transport::SystemEntropy;
pub use traversal::{PathKind, RelayConfig, TraversalError};
