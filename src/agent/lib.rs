//! The agent: it owns its machine, decides what runs on it, and runs it in containers.
//!
//! [`Agent::start`] takes over what an earlier life left and begins; [`Agent::router`] is its face
//! to the mesh. Stopping it leaves kernels running.
//!
//! A create command goes through `service` (may the caller?), `orders` (what did the user sign?),
//! `admission` (are there slots?) to `kernel::actor`, which drives one container with what
//! `backend` can do. `journal` has on disk what must survive, and `recovery` makes both agree.

mod accel;
mod admission;
mod agent;
mod backend;
mod config;
mod events;
mod failpoint;
pub mod hardware;
mod journal;
mod kernel;
mod labels;
mod orders;
mod pulls;
mod recovery;
mod service;
mod shared;
mod slots;

pub use accel::AccelError;
pub use accel::nvml::probe_main;
pub use agent::{Agent, AgentError, probe_gpus};
pub use backend::BackendError;
pub use config::{AgentConfig, Bounds, Deadlines};
pub use journal::JournalError;
