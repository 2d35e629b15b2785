//! The query language: which nodes does one mean?
//!
//! ```text
//! gpu.vram >= 40GB and gpu.vendor = "nvidia" and tags has "prod" and not region = "eu"
//! count(gpu[vram >= 40GB]) >= 2
//! region=eu,driver>=550
//! ```
//! # Grammar
//! ```text
//! query    = [ list ]                                  nothing: every node
//! list     = either *( "," either )                    "," is "and", and binds weakest
//! either   = both *( "or" both )
//! both     = term *( "and" term )
//! term     = "not" term | "(" list ")" | "gpu" "[" list "]" | count | test
//! count    = "count" "(" "gpu" [ "[" list "]" ] ")" compare number
//! test     = field ( compare value | "has" value | "~" value | "in" "(" value *( "," value ) ")" )
//! compare  = "=" | "!=" | "<" | "<=" | ">" | ">="
//! value    = word | "quoted" | 'quoted'                in quotes, \ takes the next character as is
//! ```
//! Key words and field names ignore letter case. At most [`MAX_QUERY`](crate::limits::MAX_QUERY)
//! bytes, [`MAX_DEPTH`] levels and [`MAX_TERMS`] values.
//!
//! # GPUs
//! `gpu[…]` holds when some *one* GPU satisfies all that stands in it; inside, fields lose their
//! `gpu.`. Outside, `gpu.…` tests that only `and`, `,`, `or` and parentheses join are about one GPU
//! together: `gpu.vram >= 40GB and region = eu and gpu.vendor = nvidia` is
//! `gpu[vram >= 40GB and vendor = nvidia] and region = eu`. An `or` that asks about the node too
//! stands by itself: in `gpu.vram >= 40GB and (gpu.vendor = nvidia or region = eu)` the two may be
//! two GPUs. A `not` outside is about the node:
//! `not gpu.vendor = amd` holds when *no* GPU is AMD's; `gpu.vendor != amd` when some GPU is not.
//! Two explicit `gpu[…]` may be two GPUs.
//!
//! # Values
//! - Memory and disks need a unit: `40GB`, `512MiB`, `1.5 TB`.
//! - Versions (`cuda`, `rocm`, `version`, `backend.version`, `gpu.driver`, `gpu.cc`) compare by
//!   number, and only as many parts as the query writes: `driver = 550` holds for 550.54.14, and
//!   `cuda > 12` begins at 13.
//! - What people chose (names, tags, regions, models, images, …) compares exactly; what machines
//!   report (vendor, GPU and CPU model, arch, OS, kernel, backend) ignores ASCII letter case, and so
//!   does `~` ("contains") always. `subnet ~ 3.7` holds at and below 3.7.
//! - A value that a node does not state equals nothing, lies in no order and contains nothing, and
//!   `a != b` is exactly the opposite of `a = b`.
//!
//! # What is free
//! `free.cpu` (hardware threads, up to three decimals), `free.mem`, `free.gpus`, `gpu.free` (memory of
//! one GPU; also `free.gpu.vram`) and `healthy` are as the node's latest beat says. Of a node that sent
//! none since its announcement, or that is believed dead, they are unknown, and what is unknown
//! satisfies no comparison: neither `free.gpus = 0` nor `free.gpus != 0`. `not` is still the opposite:
//! `not free.gpus > 0` holds for it.
//!
//! An unknown field, operator or kind of value is an error when the query is read, never a test
//! that is left out.

mod ast;
mod error;
mod field;
mod json;
mod leaf;
mod lexer;
mod parser;
pub mod scope;
mod value;

use std::fmt;
use std::str::FromStr;

use meshwork_identity::NodeId;

use crate::announcement::Announcement;
use crate::beat::Availability;

pub(crate) use ast::{NodeLeaf, Tree};
pub use error::QueryError;
pub(crate) use field::{Field, GpuField, NodeField, Subject};
pub use json::JsonFilter;
pub use scope::{Asker, ScopeFilter, View};
pub(crate) use value::{Literal, Op, Test, Value};

/// Deepest nesting of `not`, parentheses and brackets.
pub const MAX_DEPTH: usize = 32;

/// Most values in one query: what a hostile one can make us compare per node.
pub const MAX_TERMS: usize = 64;

/// A query, read and checked. Prints as canonical text that reads back to an equal query (where it
/// is no longer than [`MAX_QUERY`](crate::limits::MAX_QUERY); short forms grow when printed).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    tree: Tree<NodeLeaf>,
}

impl Query {
    /// Every node.
    pub fn all() -> Self {
        Self {
            tree: Tree::And(Vec::new()),
        }
    }

    /// Reads the text form.
    pub fn parse(text: &str) -> Result<Self, QueryError> {
        parser::parse(text).map(|tree| Self { tree })
    }

    /// Reads the JSON form (see [`JsonFilter`]).
    pub fn from_json(text: &str) -> Result<Self, QueryError> {
        json::parse(text)
    }

    /// The JSON form.
    pub fn to_json(&self) -> JsonFilter {
        JsonFilter::from(self)
    }

    /// Whether every node satisfies it by construction.
    pub fn is_all(&self) -> bool {
        matches!(&self.tree, Tree::And(items) if items.is_empty())
    }

    /// Whether it asks for what a node has free, or whether it is well.
    pub fn asks_free(&self) -> bool {
        self.tree.has(&NodeLeaf::is_live)
    }

    /// Whether this node satisfies it, as far as its announcement tells: what it has free is unknown.
    /// Scopes are not asked: that is [`View`]'s part.
    pub fn matches(&self, node: &NodeId, announcement: &Announcement) -> bool {
        self.matches_with(node, announcement, None)
    }

    /// The same, given what it has free.
    pub fn matches_with(
        &self,
        node: &NodeId,
        announcement: &Announcement,
        free: Option<&Availability>,
    ) -> bool {
        let subject = Subject {
            node,
            said: announcement,
            free,
        };
        self.tree.holds(&|leaf| leaf.holds(subject))
    }

    pub(crate) fn tree(&self) -> &Tree<NodeLeaf> {
        &self.tree
    }
}

impl FromStr for Query {
    type Err = QueryError;

    fn from_str(text: &str) -> Result<Self, QueryError> {
        Self::parse(text)
    }
}

impl fmt::Display for Query {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.tree.fmt(f)
    }
}
