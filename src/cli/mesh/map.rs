//! `meshwork mesh map`: asks every node whom it sees, and draws the answers.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::time::Duration;

use clap::{Args, ValueEnum};
use futures_util::StreamExt;
use futures_util::stream;
use meshwork_identity::NodeId;
use meshwork_proto::mesh::{NeighbourView, PeerView, Survey};
use meshwork_proto::rpc::RpcError;
use meshwork_proto::service::{self, CallOptions};
use serde::Serialize;

use super::{AT_ONCE, nodes};
use crate::cli::client::Client;
use crate::cli::error::CliError;
use crate::cli::out::{Row, clean};

/// Time for one node to be reached and to answer.
const ANSWER: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
pub(in crate::cli) struct MapArgs {
    /// Form of the map: a table, or a drawing for Graphviz or Mermaid
    #[arg(long, value_enum, default_value_t)]
    format: Form,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Form {
    #[default]
    Table,
    Dot,
    Mermaid,
}

pub(super) async fn map(client: &Client, args: MapArgs) -> Result<(), CliError> {
    let (known, total) = nodes(client).await?;
    if (known.len() as u64) < total {
        client.out.note(format_args!(
            "! the map has the first {} of {total} nodes",
            known.len()
        ));
    }
    let views = stream::iter(known.iter().map(|(node, _)| async {
        let options = CallOptions::within(ANSWER);
        let answer = service::call::<Survey>(client.mesh(), *node, &(), options).await;
        (*node, answer)
    }));
    let views: BTreeMap<_, _> = views.buffer_unordered(AT_ONCE).collect().await;
    let map = Map::new(known, views);
    match args.format {
        _ if client.out.is_machine() => client.out.value(&map),
        Form::Table => client.out.list(&map.nodes),
        Form::Dot => client.out.data(&map.dot()),
        Form::Mermaid => client.out.data(&map.mermaid()),
    }
}

/// The whole picture.
#[derive(Debug, Serialize)]
struct Map {
    nodes: Vec<MapRow>,
    links: Vec<Link>,
}

/// A node in the map.
#[derive(Debug, Serialize)]
struct MapRow {
    node: NodeId,
    name: String,
    /// Why it did not answer.
    unreachable: Option<String>,
    /// Nodes that it knows.
    known: Option<u64>,
    /// Nodes that it suspects.
    suspects: Vec<NodeId>,
    /// Names of nodes that it has a connection with; neighbours first.
    sees: Vec<String>,
    /// How many of these are neighbours.
    neighbours: usize,
}

/// A connection between two nodes of the map.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Link {
    from: NodeId,
    to: NodeId,
    /// Whether both tell of it. Else only `from` does: it has just come up or gone down, or `to` did
    /// not answer.
    mutual: bool,
    /// Whether news spreads over it.
    neighbour: bool,
    path: String,
    rtt_us: u64,
}

impl Map {
    fn new(
        known: Vec<(NodeId, String)>,
        mut views: BTreeMap<NodeId, Result<NeighbourView, RpcError>>,
    ) -> Self {
        let names: BTreeMap<NodeId, String> = known.iter().cloned().collect();
        let mut links: BTreeMap<(NodeId, NodeId), Link> = BTreeMap::new();
        let mut rows = Vec::new();
        for (node, name) in known {
            let mut row = MapRow {
                node,
                name,
                unreachable: None,
                known: None,
                suspects: Vec::new(),
                sees: Vec::new(),
                neighbours: 0,
            };
            match views.remove(&node) {
                Some(Ok(view)) => row.fill(&view, &names, &mut links),
                Some(Err(error)) => row.unreachable = Some(error.to_string()),
                None => row.unreachable = Some("it was not asked".to_owned()),
            }
            rows.push(row);
        }
        Self {
            nodes: rows,
            links: links.into_values().collect(),
        }
    }

    /// For Graphviz: `meshwork mesh map --format dot | dot -Tsvg`.
    fn dot(&self) -> String {
        let mut text = "graph mesh {\n  node [shape=box];\n".to_owned();
        for row in &self.nodes {
            let style = match &row.unreachable {
                Some(_) => ", style=dashed, color=red",
                None => "",
            };
            let (id, label) = (row.node.short(), row.label("\\n"));
            let _ = writeln!(text, "  \"{id}\" [label=\"{label}\"{style}];");
        }
        for link in &self.links {
            let mut style = String::new();
            if !link.neighbour {
                style += ", style=dashed";
            }
            if link.is_relayed() {
                style += ", color=orange";
            }
            if !link.mutual {
                style += ", dir=forward";
            }
            let (from, to, label) = (link.from.short(), link.to.short(), link.label());
            let _ = writeln!(text, "  \"{from}\" -- \"{to}\" [label=\"{label}\"{style}];");
        }
        text + "}\n"
    }

    /// For Mermaid, which GitHub and many editors draw.
    fn mermaid(&self) -> String {
        let mut text = "graph LR\n".to_owned();
        for row in &self.nodes {
            let (id, label) = (row.node.short(), row.label("<br>"));
            let _ = writeln!(text, "  {id}[\"{label}\"]");
        }
        for link in &self.links {
            let line = match (link.neighbour, link.mutual) {
                (true, true) => "---",
                (true, false) => "-->",
                (false, true) => "-.-",
                (false, false) => "-.->",
            };
            let (from, to, label) = (link.from.short(), link.to.short(), link.label());
            let _ = writeln!(text, "  {from} {line}|\"{label}\"| {to}");
        }
        let lost = self.nodes.iter().filter(|row| row.unreachable.is_some());
        let lost: Vec<String> = lost.map(|row| row.node.short()).collect();
        if !lost.is_empty() {
            text += "  classDef lost stroke:#c00,stroke-dasharray:4\n";
            let _ = writeln!(text, "  class {} lost", lost.join(","));
        }
        text
    }
}

impl MapRow {
    /// Takes over what the node told, and its connections with other nodes of the map: those with
    /// users and programs are nobody's business.
    fn fill(
        &mut self,
        view: &NeighbourView,
        names: &BTreeMap<NodeId, String>,
        links: &mut BTreeMap<(NodeId, NodeId), Link>,
    ) {
        self.known = Some(view.known);
        self.suspects.clone_from(&view.suspects);
        let mut seen = BTreeSet::new();
        for peer in &view.neighbours {
            let Some(name) = names.get(&peer.node) else {
                continue;
            };
            // Two that dial each other at once have two connections for a moment.
            seen.insert((!peer.neighbour, name, peer.node));
            let ends = (self.node.min(peer.node), self.node.max(peer.node));
            links
                .entry(ends)
                .and_modify(|link| link.confirm(self.node, peer))
                .or_insert_with(|| Link::new(self.node, peer));
        }
        self.neighbours = seen.iter().filter(|(other, ..)| !other).count();
        self.sees = seen.into_iter().map(|(_, name, _)| name.clone()).collect();
    }

    /// Name and id for a drawing, with nothing in it that could end the label.
    fn label(&self, line_end: &str) -> String {
        let name: String = clean(&self.name)
            .chars()
            .filter(|c| !matches!(c, '"' | '\\' | '<' | '>' | '[' | ']' | '`'))
            .collect();
        format!("{name}{line_end}{}", self.node.short())
    }
}

impl Link {
    fn new(from: NodeId, peer: &PeerView) -> Self {
        Self {
            from,
            to: peer.node,
            mutual: false,
            neighbour: peer.neighbour,
            path: clean(&peer.path),
            rtt_us: u64::try_from(peer.rtt.as_micros()).unwrap_or(u64::MAX),
        }
    }

    /// `teller` tells of it, too, or of another connection with the same node.
    fn confirm(&mut self, teller: NodeId, peer: &PeerView) {
        self.mutual |= teller != self.from;
        self.neighbour |= peer.neighbour;
    }

    fn is_relayed(&self) -> bool {
        self.path.starts_with("relay")
    }

    #[expect(clippy::cast_precision_loss, reason = "shown with few digits")]
    fn label(&self) -> String {
        let ms = self.rtt_us as f64 / 1000.0;
        let way = if self.is_relayed() { " relay" } else { "" };
        format!("{ms:.1}ms{way}")
    }
}

impl Row for MapRow {
    fn head(wide: bool) -> Vec<&'static str> {
        let mut head = vec!["NODE", "NAME", "KNOWS", "SUSPECTS", "NEIGHBOURS", "SEES"];
        if wide {
            head.push("ID");
        }
        head
    }

    fn cells(&self, wide: bool) -> Vec<String> {
        let sees = match &self.unreachable {
            Some(why) => format!("unreachable: {why}"),
            None if self.sees.is_empty() => "nobody".to_owned(),
            None => self.sees.join(", "),
        };
        let dash = || "-".to_owned();
        let answered = self.unreachable.is_none();
        let mut cells = vec![
            self.node.short(),
            self.name.clone(),
            self.known.map_or_else(dash, |known| known.to_string()),
            if answered {
                self.suspects.len().to_string()
            } else {
                dash()
            },
            if answered {
                self.neighbours.to_string()
            } else {
                dash()
            },
            sees,
        ];
        if wide {
            cells.push(self.node.to_string());
        }
        cells
    }

    fn id(&self) -> String {
        self.node.to_string()
    }
}

#[cfg(test)]
mod tests {
    use meshwork_identity::Identity;
    use meshwork_proto::rpc::Status;

    use super::*;

    fn id(n: u8) -> NodeId {
        Identity::from_seed(&[n; 32]).node_id()
    }

    fn peer(n: u8, path: &str, neighbour: bool) -> PeerView {
        PeerView {
            node: id(n),
            path: path.to_owned(),
            address: "127.0.0.1:4460".parse().unwrap(),
            rtt: Duration::from_micros(1500),
            lost: 0,
            sent: 1,
            bytes_sent: 0,
            bytes_received: 0,
            age: Duration::from_secs(1),
            neighbour,
        }
    }

    fn view(n: u8, neighbours: Vec<PeerView>) -> NeighbourView {
        NeighbourView {
            node: id(n),
            neighbours,
            known: 2,
            suspects: vec![id(3)],
        }
    }

    /// Two that see each other and a user, and a third that does not answer.
    fn example() -> Map {
        let names = [(1, "attic"), (2, "lab\"2<b>"), (3, "gone")];
        let known = names.map(|(n, name)| (id(n), name.to_owned())).to_vec();
        let silent = RpcError::new(Status::NoRoute, "no answer");
        let first = view(1, vec![peer(2, "direct", true), peer(9, "direct", false)]);
        let second = view(
            2,
            vec![peer(1, "direct", true), peer(3, "relay via x", false)],
        );
        let views = [
            (id(1), Ok(first)),
            (id(2), Ok(second)),
            (id(3), Err(silent)),
        ];
        Map::new(known, views.into())
    }

    #[test]
    fn a_link_is_drawn_once_and_users_are_left_out() {
        let map = example();
        assert_eq!(map.links.len(), 2);
        let between = |a, b| {
            let ends = |l: &&Link| [(l.from, l.to), (l.to, l.from)].contains(&(id(a), id(b)));
            map.links.iter().find(ends).unwrap()
        };
        assert!(between(1, 2).mutual && between(1, 2).neighbour);
        assert!(!between(2, 3).mutual && between(2, 3).is_relayed());
        assert_eq!(map.nodes[0].sees, ["lab\"2<b>"]);
        assert!(map.nodes[2].unreachable.is_some());
    }

    #[test]
    fn two_connections_with_one_node_are_one_link_and_no_confirmation() {
        let names = [(1, "attic"), (2, "lab")];
        let known = names.map(|(n, name)| (id(n), name.to_owned())).to_vec();
        let twice = vec![peer(2, "direct", true), peer(2, "direct", true)];
        let map = Map::new(known, [(id(1), Ok(view(1, twice)))].into());
        assert_eq!(map.links.len(), 1);
        assert!(!map.links[0].mutual, "the other end has said nothing");
        assert_eq!((map.nodes[0].neighbours, map.nodes[0].sees.len()), (1, 1));
    }

    #[test]
    fn drawings() {
        let map = example();
        insta::assert_snapshot!("map_dot", map.dot());
        insta::assert_snapshot!("map_mermaid", map.mermaid());
    }
}
