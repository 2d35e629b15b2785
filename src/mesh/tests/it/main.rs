//! Integration tests of the mesh: one binary, one module a subject.
#![allow(clippy::unwrap_used, reason = "helpers of tests may panic like tests")]

mod announce;
mod auth;
mod cluster;
mod common;
mod join;
mod membership;
mod mesh_sim;
mod path;
mod peers;
mod probe;
mod psk;
mod relay;
mod rpc;
mod rpc_context;
mod rpc_lane;
mod rpc_service;
mod rpc_sim;
mod rpc_stream;
mod sim;
mod transport;
mod traversal;
