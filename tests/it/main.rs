//! The command line from outside: what it prints and how it ends. No Docker, no node outside this
//! machine.

mod bus;
mod demo;
mod examples;
mod help;
mod local;
mod log;
mod mesh;
mod rpc;
mod sight;
mod support;
