//! The command line from outside: what it prints and how it ends. No Docker, no node outside this
//! machine.

mod demo;
mod help;
mod local;
mod mesh;
mod sight;
mod support;
