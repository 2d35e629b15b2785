//! The bus against a model, under many threads, and its waits.

mod flow;
mod model;
#[cfg(feature = "shuttle")]
mod permutations;
mod threads;
