//! The page's text, made of a node's status.

use meshwork_identity::NodeId;
use meshwork_proto::mesh::{MeshStatus, PeerView};
use meshwork_proto::path::NatClass;
use prometheus::core::Collector;
use prometheus::{Gauge, GaugeVec, IntCounter, IntCounterVec, Opts, Registry, TextEncoder};

/// Peers that get numbers of their own, neighbours first: each makes seven lines of the page and
/// seven series of the database. How many got none is told.
const MAX_PEERS: usize = 64;

/// The page's text.
pub(super) fn render(status: &MeshStatus) -> String {
    let page = Sheet(Registry::new());
    page.node(status);
    page.membership(status);
    page.paths(status);
    page.peers(&status.peers);
    TextEncoder::new()
        .encode_to_string(&page.0.gather())
        .expect("our own names and numbers have a text form")
}

/// A page in the making.
struct Sheet(Registry);

impl Sheet {
    /// The process, and who knocks at its socket.
    fn node(&self, status: &MeshStatus) {
        self.one(
            "meshwork_node_info",
            "The node: always 1.",
            &["node", "version"],
            &[(&[&status.node.short(), &status.version], 1.0)],
        );
        let uptime = status.uptime.as_secs_f64();
        self.gauge(
            "meshwork_node_uptime_seconds",
            "Time since the node started.",
            uptime,
        );
        self.counter(
            "meshwork_transport_strangers_total",
            "First packets that no key of ours opened: bystanders, and peers with another PSK.",
            status.strangers,
        );
        self.counter(
            "meshwork_transport_failed_handshakes_total",
            "Handshakes that failed although the pre-shared key was right.",
            status.failed_handshakes,
        );
    }

    /// Who is there, and how news of it spreads.
    fn membership(&self, status: &MeshStatus) {
        let counts = &status.membership;
        self.gauge(
            "meshwork_membership_known_nodes",
            "Nodes whose announcements are held.",
            whole(status.known),
        );
        self.gauge(
            "meshwork_membership_suspected_nodes",
            "Nodes that are suspected to be dead.",
            whole(status.suspects.len() as u64),
        );
        self.gauge(
            "meshwork_membership_dead_nodes",
            "Nodes that are known and held to be dead.",
            whole(status.dead),
        );
        let neighbours = status.peers.iter().filter(|peer| peer.neighbour).count();
        self.gauge(
            "meshwork_membership_neighbours",
            "Neighbours, over which news spreads.",
            whole(neighbours as u64),
        );
        self.gauge(
            "meshwork_membership_self_doubt",
            "Lifeguard's local health score: 0 is well.",
            f64::from(status.health),
        );
        for (name, help, count) in [
            ("probes", "Liveness probes sent.", counts.probes),
            (
                "probe_failures",
                "Probes that nobody answered, indirect ones included.",
                counts.failed,
            ),
            (
                "suspicions_raised",
                "Suspicions that this node raised.",
                counts.raised,
            ),
            (
                "suspicions_refuted",
                "Suspicions that a sign of life ended.",
                counts.refuted,
            ),
            ("deaths", "Nodes declared dead.", counts.deaths),
        ] {
            self.counter(&format!("meshwork_membership_{name}_total"), help, count);
        }
        for (name, help, count) in [
            ("floods", "Facts passed on to neighbours.", counts.floods),
            ("duplicates", "Facts that came again.", counts.duplicates),
            (
                "repairs",
                "Facts that a comparison with a neighbour brought.",
                counts.repairs,
            ),
        ] {
            self.counter(&format!("meshwork_gossip_{name}_total"), help, count);
        }
        self.counter(
            "meshwork_facts_refused_total",
            "Facts refused: badly signed, replayed, rolled back, without a token, too large.",
            status.refused_announcements,
        );
    }

    /// How it reaches others, and helps them.
    fn paths(&self, status: &MeshStatus) {
        let stats = &status.traversal;
        let classes = NatClass::ALL.map(|class| {
            let here = if class == status.nat { 1.0 } else { 0.0 };
            ([class.name()], here)
        });
        let classes: Vec<(&[&str], f64)> = classes.iter().map(|(c, n)| (&c[..], *n)).collect();
        self.one(
            "meshwork_traversal_nat",
            "1 for the kind of NAT that the node is behind.",
            &["class"],
            &classes,
        );
        self.gauge(
            "meshwork_traversal_home_relays",
            "Relays that the node keeps a connection with, to be reached through.",
            whole(status.relays.len() as u64),
        );
        for (name, help, count) in [
            (
                "punches_attempted",
                "Hole punching begun with a peer.",
                stats.punches_attempted,
            ),
            (
                "punches_succeeded",
                "Hole punching that gave a direct path.",
                stats.punches_succeeded,
            ),
            (
                "relay_fallbacks",
                "Connections that stayed on a relay.",
                stats.relay_fallbacks,
            ),
            (
                "rotations",
                "Moves to a new socket before a mapping ended.",
                stats.rotations,
            ),
        ] {
            self.counter(&format!("meshwork_traversal_{name}_total"), help, count);
        }
        self.counter(
            "meshwork_relay_forwarded_bytes_total",
            "Bytes handed on for others.",
            stats.relayed_bytes,
        );
        let drops = &stats.relay_drops;
        self.counters(
            "meshwork_relay_dropped_frames_total",
            "Frames not handed on, by cause.",
            &["cause"],
            &[
                (&["not_serving"], drops.not_serving),
                (&["not_member"], drops.not_member),
                (&["unknown_peer"], drops.unknown_peer),
                (&["over_rate"], drops.over_rate),
                (&["over_total"], drops.over_total),
                (&["congested"], drops.congested),
                (&["malformed"], drops.malformed),
            ],
        );
        let relayed = status.peers.iter().filter(|peer| is_relayed(peer)).count();
        let direct = status.peers.len() - relayed;
        self.one(
            "meshwork_path_connections",
            "Connections by the way that their packets take.",
            &["path"],
            &[
                (&["direct"], whole(direct as u64)),
                (&["relay"], whole(relayed as u64)),
            ],
        );
    }

    /// Connections one by one.
    fn peers(&self, peers: &[PeerView]) {
        let mut shown: Vec<&PeerView> = peers.iter().collect();
        shown.sort_by_key(|peer| (!peer.neighbour, peer.node));
        // A second connection with the same node would be the same series again.
        shown.dedup_by_key(|peer| peer.node);
        let left_out = shown.len().saturating_sub(MAX_PEERS);
        shown.truncate(MAX_PEERS);
        self.gauge(
            "meshwork_peers_not_shown",
            "Peers without numbers of their own here: only so many have.",
            whole(left_out as u64),
        );
        let names: Vec<String> = shown.iter().map(|peer| label(&peer.node)).collect();
        let gauge = |name: &str, help: &str, value: &dyn Fn(&PeerView) -> f64| {
            let family = gauges(name, help, &["peer"]);
            for (peer, label) in shown.iter().zip(&names) {
                family.with_label_values(&[label]).set(value(peer));
            }
            self.add(family);
        };
        let rtt = |peer: &PeerView| peer.rtt.as_secs_f64();
        gauge(
            "meshwork_peer_rtt_seconds",
            "Smoothed round-trip time.",
            &rtt,
        );
        let age = |peer: &PeerView| peer.age.as_secs_f64();
        gauge(
            "meshwork_peer_connection_age_seconds",
            "Age of the connection.",
            &age,
        );
        let direct = |peer: &PeerView| if is_relayed(peer) { 0.0 } else { 1.0 };
        gauge(
            "meshwork_peer_direct",
            "1 on a direct path, 0 over a relay.",
            &direct,
        );
        let counter = |name: &str, help: &str, value: &dyn Fn(&PeerView) -> u64| {
            let family = counters(name, help, &["peer"]);
            for (peer, label) in shown.iter().zip(&names) {
                family.with_label_values(&[label]).inc_by(value(peer));
            }
            self.add(family);
        };
        for (name, help, value) in [
            (
                "packets_sent",
                "QUIC packets sent.",
                (|p| p.sent) as fn(&PeerView) -> u64,
            ),
            ("packets_lost", "Of these, lost.", |p| p.lost),
            ("bytes_sent", "Bytes sent.", |p| p.bytes_sent),
            ("bytes_received", "Bytes received.", |p| p.bytes_received),
        ] {
            counter(&format!("meshwork_peer_{name}_total"), help, &value);
        }
    }

    fn gauge(&self, name: &str, help: &str, value: f64) {
        let gauge = Gauge::new(name, help).expect("the name is sound");
        gauge.set(value);
        self.add(gauge);
    }

    fn one(&self, name: &str, help: &str, labels: &[&str], values: &[(&[&str], f64)]) {
        let family = gauges(name, help, labels);
        for (names, value) in values {
            family.with_label_values(names).set(*value);
        }
        self.add(family);
    }

    fn counter(&self, name: &str, help: &str, value: u64) {
        let counter = IntCounter::new(name, help).expect("the name is sound");
        counter.inc_by(value);
        self.add(counter);
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str], values: &[(&[&str], u64)]) {
        let family = counters(name, help, labels);
        for (names, value) in values {
            family.with_label_values(names).inc_by(*value);
        }
        self.add(family);
    }

    fn add(&self, metric: impl Collector + 'static) {
        self.0
            .register(Box::new(metric))
            .expect("each name is used once");
    }
}

fn gauges(name: &str, help: &str, labels: &[&str]) -> GaugeVec {
    GaugeVec::new(Opts::new(name, help), labels).expect("the names are sound")
}

fn counters(name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    IntCounterVec::new(Opts::new(name, help), labels).expect("the names are sound")
}

/// The peer in a label: enough to tell it from others, too little to be a directory of the mesh.
fn label(node: &NodeId) -> String {
    node.short()
}

fn is_relayed(peer: &PeerView) -> bool {
    peer.path.starts_with("relay")
}

/// A count as a gauge shows it.
#[expect(
    clippy::cast_precision_loss,
    reason = "exact up to 2^53, which no mesh has"
)]
fn whole(count: u64) -> f64 {
    count as f64
}
