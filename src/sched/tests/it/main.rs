//! Placement from outside: properties over arbitrary clusters, and the texts that people read.

mod build;
mod properties;
mod texts;
