//! `meshwork mesh`: the mesh as a whole.

mod map;
mod rotate;

use std::collections::BTreeSet;

use clap::Subcommand;
use meshwork_identity::NodeId;
use meshwork_proto::mesh::{Find, FindNodes};

use super::Context;
use super::client::{self, Client};
use super::error::CliError;

/// Nodes asked at a time: their answers come back over as many connections.
const AT_ONCE: usize = 16;
/// Most nodes that are asked one by one; the called node tells of no more at a time.
const MAX_NODES: u32 = 1024;

#[derive(Debug, Subcommand)]
pub(super) enum MeshCommand {
    /// Show who sees whom, as each node tells
    Map(map::MapArgs),
    /// Replace the mesh's pre-shared key on every node
    RotatePsk(rotate::RotateArgs),
}

pub(super) fn mesh(cx: &Context, command: MeshCommand) -> Result<(), CliError> {
    match command {
        MeshCommand::Map(args) => client::with(cx, async |c| map::map(c, args).await),
        MeshCommand::RotatePsk(args) => rotate::rotate(cx, &args),
    }
}

/// The nodes that the called one knows, by id, with their names; how many there are in all.
async fn nodes(client: &Client) -> Result<(Vec<(NodeId, String)>, u64), CliError> {
    let find = Find {
        query: String::new(),
        limit: MAX_NODES,
        tenants: BTreeSet::new(),
        region: None,
    };
    let found = client.call::<FindNodes>(&find).await?;
    let named = found.nodes.iter().filter_map(|node| {
        let said = node.open().ok()?;
        Some((node.node(), said.name))
    });
    let named = named.collect();
    client.mesh().learn(found.nodes);
    Ok((named, found.total))
}
