//! `meshwork peer`: the connections of the called node.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use clap::Subcommand;
use meshwork_identity::NodeId;
use meshwork_proto::ByteSize;
use meshwork_proto::mesh::{Find, FindNodes, Inspect, PeerView};
use serde::Serialize;

use super::client::Client;
use super::error::CliError;
use super::out::{Row, address, span};

/// Node ids that one query asks for: within a query's bounds on length and on values.
const IDS_PER_QUERY: usize = 50;

#[derive(Debug, Subcommand)]
pub(super) enum PeerCommand {
    /// List the called node's connections: the way of each, its speed and its age
    Ls,
}

pub(super) async fn peer(client: &Client, command: PeerCommand) -> Result<(), CliError> {
    let PeerCommand::Ls = command;
    let status = client.call::<Inspect>(&()).await?;
    client.out.list(&rows(client, &status.peers).await)
}

/// A connection in a list.
#[derive(Debug, Serialize)]
pub(super) struct PeerRow {
    node: String,
    name: Option<String>,
    path: String,
    address: String,
    rtt_ms: f64,
    lost: u64,
    sent: u64,
    bytes_sent: u64,
    bytes_received: u64,
    age_ms: u64,
    neighbour: bool,
    #[serde(skip)]
    short: String,
}

/// The connections with the names of their nodes.
pub(super) async fn rows(client: &Client, peers: &[PeerView]) -> Vec<PeerRow> {
    let names = names(client, peers.iter().map(|peer| peer.node)).await;
    let row = |peer: &PeerView| PeerRow::new(peer, names.get(&peer.node).cloned());
    peers.iter().map(row).collect()
}

/// What the nodes call themselves. One that is not announced, as a user or a program, has no name
/// here; nor has any, when the called node does not tell.
pub(super) async fn names(
    client: &Client,
    nodes: impl Iterator<Item = NodeId>,
) -> BTreeMap<NodeId, String> {
    let ids: Vec<String> = nodes.map(|node| node.to_string()).collect();
    let mut names = BTreeMap::new();
    for ids in ids.chunks(IDS_PER_QUERY) {
        let find = Find {
            query: format!("id in ({})", ids.join(",")),
            limit: u32::try_from(ids.len()).unwrap_or(u32::MAX),
            tenants: BTreeSet::new(),
            region: None,
        };
        let Ok(found) = client.call::<FindNodes>(&find).await else {
            break;
        };
        for node in found.nodes {
            if let Ok(said) = node.open() {
                names.insert(node.node(), said.name);
            }
        }
    }
    names
}

#[expect(clippy::cast_precision_loss, reason = "shown with few digits")]
impl PeerRow {
    fn new(peer: &PeerView, name: Option<String>) -> Self {
        Self {
            node: peer.node.to_string(),
            name,
            path: peer.path.clone(),
            address: address(peer.address).to_string(),
            rtt_ms: peer.rtt.as_micros() as f64 / 1000.0,
            lost: peer.lost,
            sent: peer.sent,
            bytes_sent: peer.bytes_sent,
            bytes_received: peer.bytes_received,
            age_ms: u64::try_from(peer.age.as_millis()).unwrap_or(u64::MAX),
            neighbour: peer.neighbour,
            short: peer.node.short(),
        }
    }

    /// The share of packets that were lost.
    fn loss(&self) -> String {
        match self.sent {
            0 => "-".to_owned(),
            sent => format!("{:.1}%", self.lost as f64 * 100.0 / sent as f64),
        }
    }
}

impl Row for PeerRow {
    fn head(wide: bool) -> Vec<&'static str> {
        let mut head = vec![
            "PEER",
            "NAME",
            "PATH",
            "RTT",
            "LOSS",
            "SENT",
            "RECEIVED",
            "AGE",
            "NEIGHBOUR",
        ];
        if wide {
            head.extend(["ADDRESS", "PACKETS LOST"]);
        }
        head
    }

    fn cells(&self, wide: bool) -> Vec<String> {
        let mut cells = vec![
            if wide { &self.node } else { &self.short }.clone(),
            self.name.clone().unwrap_or_else(|| "-".to_owned()),
            self.path.clone(),
            format!("{:.1}ms", self.rtt_ms),
            self.loss(),
            ByteSize(self.bytes_sent).to_string(),
            ByteSize(self.bytes_received).to_string(),
            span(Duration::from_millis(self.age_ms)),
            if self.neighbour { "yes" } else { "no" }.to_owned(),
        ];
        if wide {
            cells.push(self.address.clone());
            cells.push(format!("{} of {}", self.lost, self.sent));
        }
        cells
    }

    fn id(&self) -> String {
        self.node.clone()
    }
}
