//! `meshwork status`: the called node's own account of itself.

use meshwork_proto::mesh::{Inspect, PeerView};
use serde::Serialize;

use super::client::Client;
use super::error::CliError;
use super::out::{Row, address, span};

/// A connection in a list.
#[derive(Debug, Serialize)]
struct PeerRow {
    node: String,
    path: String,
    address: String,
    rtt_ms: f64,
    lost: u64,
    sent: u64,
    age_ms: u64,
    #[serde(skip)]
    short: String,
}

#[expect(clippy::cast_precision_loss, reason = "shown with few digits")]
impl From<&PeerView> for PeerRow {
    fn from(peer: &PeerView) -> Self {
        Self {
            node: peer.node.to_string(),
            path: peer.path.clone(),
            address: address(peer.address).to_string(),
            rtt_ms: peer.rtt.as_micros() as f64 / 1000.0,
            lost: peer.lost,
            sent: peer.sent,
            age_ms: u64::try_from(peer.age.as_millis()).unwrap_or(u64::MAX),
            short: peer.node.short(),
        }
    }
}

impl Row for PeerRow {
    fn head(_wide: bool) -> Vec<&'static str> {
        vec!["PEER", "PATH", "ADDRESS", "RTT", "LOST", "AGE"]
    }

    fn cells(&self, wide: bool) -> Vec<String> {
        vec![
            if wide { &self.node } else { &self.short }.clone(),
            self.path.clone(),
            self.address.clone(),
            format!("{:.1}ms", self.rtt_ms),
            format!("{} of {}", self.lost, self.sent),
            span(std::time::Duration::from_millis(self.age_ms)),
        ]
    }

    fn id(&self) -> String {
        self.node.clone()
    }
}

pub(super) async fn status(client: &Client) -> Result<(), CliError> {
    let status = client.call::<Inspect>(&()).await?;
    let peers: Vec<PeerRow> = status.peers.iter().map(PeerRow::from).collect();
    let roles: Vec<String> = status.roles.iter().map(ToString::to_string).collect();
    let listening: Vec<String> = status.listening.iter().map(ToString::to_string).collect();
    let value = serde_json::json!({
        "node": status.node, "authority": status.authority,
        "fingerprint": meshwork_identity::fingerprint(&status.authority),
        "version": status.version, "roles": roles, "listening": listening,
        "uptime_ms": u64::try_from(status.uptime.as_millis()).unwrap_or(u64::MAX),
        "known": status.known, "peers": peers, "strangers": status.strangers,
        "failed_handshakes": status.failed_handshakes,
        "refused_announcements": status.refused_announcements,
    });
    let facts = [
        ("node", status.node.to_string()),
        ("mesh", meshwork_identity::fingerprint(&status.authority)),
        ("version", status.version),
        (
            "roles",
            if roles.is_empty() {
                "none".into()
            } else {
                roles.join(", ")
            },
        ),
        ("listening", listening.join(", ")),
        ("up", span(status.uptime)),
        ("known nodes", status.known.to_string()),
        (
            "strangers",
            format!(
                "{} first packets that no key of ours opened",
                status.strangers
            ),
        ),
        ("failed", format!("{} handshakes", status.failed_handshakes)),
        (
            "refused",
            format!("{} announcements", status.refused_announcements),
        ),
    ];
    client.out.facts(&value, &status.node.to_string(), &facts)?;
    if client.out.is_machine() || client.out.quiet || peers.is_empty() {
        return Ok(());
    }
    client.out.data("\n")?;
    client.out.list(&peers)
}
