//! `meshwork`: one program that is the node, its command line, and the demo of both.
//!
//! The command line ([`cli`]) reads a data folder ([`home`]) and an operator's settings
//! ([`config`]), and either runs the node ([`node`]) or calls one over the mesh.

mod ambient;
mod cli;
mod config;
mod home;

mod metrics;
mod node;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::run()
}
