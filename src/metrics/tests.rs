//! The page's text and its serving, and that what is shipped for it uses names that exist.

#![allow(
    clippy::float_cmp,
    reason = "the numbers are read as they were written"
)]

use std::collections::{BTreeMap, BTreeSet};

use meshwork_identity::{Identity, NodeId};
use meshwork_proto::announcement::Role;
use meshwork_proto::mesh::{MembershipCounters, PeerView, RelayDrops, TraversalStats};
use meshwork_proto::path::NatClass;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

fn id(n: u16) -> NodeId {
    let mut seed = [0; 32];
    seed[..2].copy_from_slice(&n.to_be_bytes());
    Identity::from_seed(&seed).node_id()
}

fn peer(n: u16) -> PeerView {
    PeerView {
        node: id(n),
        path: if n.is_multiple_of(2) {
            "direct"
        } else {
            "relay via x"
        }
        .to_owned(),
        address: SocketAddr::from(([45, 0, 0, 1], 4460)),
        rtt: Duration::from_micros(1500),
        lost: 1,
        sent: 100,
        bytes_sent: 120_000,
        bytes_received: 90_000,
        age: Duration::from_mins(1),
        neighbour: n < 5,
    }
}

/// A node with so many peers, each count another number.
pub(crate) fn status(peers: u16) -> MeshStatus {
    MeshStatus {
        node: id(999),
        authority: id(998),
        version: "0.1.0".to_owned(),
        roles: [Role::Agent].into(),
        listening: vec![SocketAddr::from(([0, 0, 0, 0], 4460))],
        uptime: Duration::from_millis(12_500),
        peers: (1..=peers).map(peer).collect(),
        known: 10,
        strangers: 11,
        failed_handshakes: 12,
        refused_announcements: 13,
        nat: NatClass::Cone,
        reflex: Some(SocketAddr::from(([45, 0, 0, 7], 4460))),
        relays: vec![id(1)],
        mapped: None,
        mapping: "off".to_owned(),
        traversal: TraversalStats {
            punches_attempted: 14,
            punches_succeeded: 15,
            relay_fallbacks: 16,
            rotations: 17,
            relayed_bytes: 18,
            relay_dropped: 19,
            relay_drops: RelayDrops {
                over_rate: 19,
                ..RelayDrops::default()
            },
        },
        health: 20,
        suspects: vec![id(1), id(2)],
        dead: 21,
        membership: MembershipCounters {
            probes: 22,
            failed: 23,
            raised: 24,
            refuted: 25,
            deaths: 26,
            floods: 27,
            duplicates: 28,
            repairs: 29,
        },
    }
}

/// Reads the text format (<https://prometheus.io/docs/instrumenting/exposition_formats>) and
/// panics at whatever breaks its rules; tells the samples with their labels.
fn parse(text: &str) -> BTreeMap<String, f64> {
    let mut samples = BTreeMap::new();
    let (mut helped, mut typed) = (BTreeSet::new(), BTreeMap::new());
    assert!(text.ends_with('\n'));
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').expect("a sentence");
            assert!(helped.insert(name) && help.ends_with('.'), "{line}");
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a kind");
            assert!(helped.contains(name), "{name} has no help");
            assert!(typed.insert(name, kind).is_none(), "{name} twice");
            // The naming rules of Prometheus: base units, and counters say what they are.
            assert_eq!(
                kind == "counter",
                name.ends_with("_total"),
                "{name} is a {kind}"
            );
        } else {
            let (series, value) = line.rsplit_once(' ').expect("a value");
            let name = series.split('{').next().expect("a name");
            let fits = |c: char| c.is_ascii_lowercase() || c == '_';
            assert!(
                name.starts_with("meshwork_") && name.chars().all(fits),
                "{name}"
            );
            assert!(typed.contains_key(name), "{name} has no type");
            if let Some(labels) = series.strip_prefix(name).filter(|l| !l.is_empty()) {
                labels_parse(labels);
            }
            let value = value.parse().expect("a number");
            assert!(
                samples.insert(series.to_owned(), value).is_none(),
                "{series} twice"
            );
        }
    }
    samples
}

fn labels_parse(labels: &str) {
    let inside = labels.strip_prefix('{').and_then(|l| l.strip_suffix('}'));
    for label in inside.expect("braces").split(',') {
        let (name, value) = label.split_once('=').expect("a label has a value");
        assert!(
            name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'),
            "{label}"
        );
        let value = value.strip_prefix('"').and_then(|v| v.strip_suffix('"'));
        assert!(
            value.is_some_and(|v| !v.contains(['"', '\\', '\n'])),
            "{label}"
        );
    }
}

/// Names without labels.
fn names() -> BTreeSet<String> {
    let samples = parse(&render(&status(4)));
    let name = |series: &String| series.split('{').next().map(str::to_owned);
    samples.keys().filter_map(name).collect()
}

#[test]
fn every_number_of_the_status_is_on_the_page() {
    let samples = parse(&render(&status(2)));
    for n in 10..=29_u32 {
        assert!(
            samples.values().any(|v| *v == f64::from(n)),
            "{n} is missing"
        );
    }
    let value = |name: &str| samples[name];
    assert_eq!(value("meshwork_node_uptime_seconds"), 12.5);
    assert_eq!(value("meshwork_traversal_nat{class=\"cone\"}"), 1.0);
    assert_eq!(value("meshwork_traversal_nat{class=\"open\"}"), 0.0);
    assert_eq!(value("meshwork_path_connections{path=\"relay\"}"), 1.0);
    let rtt = format!("meshwork_peer_rtt_seconds{{peer=\"{}\"}}", id(2).short());
    assert_eq!(value(&rtt), 0.0015);
}

#[test]
fn the_page_stays_small_with_many_peers() {
    let (few, many) = (parse(&render(&status(64))), parse(&render(&status(1000))));
    assert_eq!(few.len(), many.len());
    assert_eq!(many["meshwork_peers_not_shown"], 936.0);
    // Neighbours are among those that are shown.
    for n in 1..5 {
        let series = format!("meshwork_peer_direct{{peer=\"{}\"}}", id(n).short());
        assert!(many.contains_key(&series), "{series}");
    }
}

/// Words of a text that are names of ours.
fn mentioned(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let ours = words.filter(|word| word.starts_with("meshwork_"));
    ours.map(str::to_owned).collect()
}

#[test]
fn the_shipped_dashboard_and_alerts_use_names_that_exist() {
    let names = names();
    for (file, text) in [
        (
            "grafana",
            include_str!("../../configs/grafana-dashboard.json"),
        ),
        (
            "alerts",
            include_str!("../../configs/prometheus-alerts.yml"),
        ),
    ] {
        let used = mentioned(text);
        assert!(used.len() > 3, "{file}: {used:?}");
        let unknown: Vec<_> = used.difference(&names).collect();
        assert!(unknown.is_empty(), "{file}: {unknown:?}");
    }
    let dashboard = include_str!("../../configs/grafana-dashboard.json");
    let dashboard: serde_json::Value = serde_json::from_str(dashboard).unwrap();
    assert!(dashboard["panels"].as_array().unwrap().len() > 5);
    let scrape = include_str!("../../configs/prometheus.yml");
    assert!(scrape.contains("127.0.0.1:9460") && scrape.contains("prometheus-alerts.yml"));
}

#[test]
fn the_documented_names_are_those_that_exist() {
    let documented = mentioned(include_str!("../../docs/metrics.md"));
    assert_eq!(documented, names());
}

async fn ask(address: SocketAddr, request: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn the_page_is_served_until_the_node_stops() {
    let page = Page::bind(SocketAddr::from(([127, 0, 0, 1], 0)))
        .await
        .unwrap();
    let address = page.address;
    let (stop, stopped) = watch::channel(false);
    let serving = tokio::spawn(page.serve(Arc::new(|| status(2)), stopped));
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");

    let answer = ask(address, &get("/metrics")).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(head.contains("text/plain; version=0.0.4"), "{head}");
    assert_eq!(parse(body), parse(&render(&status(2))));
    assert!(ask(address, &get("/")).await.starts_with("HTTP/1.1 404"));
    let post = "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n";
    assert!(ask(address, post).await.starts_with("HTTP/1.1 405"));
    let garbage = ask(address, "\u{1}\u{2}\r\n\r\n").await;
    assert!(garbage.starts_with("HTTP/1.1 400"), "{garbage}");

    stop.send_replace(true);
    serving.await.unwrap();
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
}
