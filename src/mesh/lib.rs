//! The input and output of the mesh: encrypted connections between nodes, and what runs over them.

pub mod transport;
