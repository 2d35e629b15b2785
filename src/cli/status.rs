//! `meshwork status`: the called node's own account of itself.

use meshwork_identity::NodeId;
use meshwork_proto::ByteSize;
use meshwork_proto::mesh::{Inspect, MeshStatus};

use super::client::Client;
use super::error::CliError;
use super::out::{address, counted, span};
use super::peer;

pub(super) async fn status(client: &Client) -> Result<(), CliError> {
    let status = client.call::<Inspect>(&()).await?;
    let peers = peer::rows(client, &status.peers).await;
    let mut value = value(&status);
    value["peers"] = serde_json::to_value(&peers).map_err(std::io::Error::from)?;
    client
        .out
        .facts(&value, &status.node.to_string(), &facts(&status))?;
    if client.out.is_machine() || client.out.quiet || peers.is_empty() {
        return Ok(());
    }
    client.out.data("\n")?;
    client.out.list(&peers)
}

/// For programs.
fn value(status: &MeshStatus) -> serde_json::Value {
    let listening: Vec<String> = status.listening.iter().map(ToString::to_string).collect();
    let roles: Vec<String> = status.roles.iter().map(ToString::to_string).collect();
    serde_json::json!({
        "node": status.node, "authority": status.authority,
        "fingerprint": meshwork_identity::fingerprint(&status.authority),
        "version": status.version, "roles": roles, "listening": listening,
        "uptime_ms": u64::try_from(status.uptime.as_millis()).unwrap_or(u64::MAX),
        "known": status.known, "strangers": status.strangers,
        "failed_handshakes": status.failed_handshakes,
        "refused_announcements": status.refused_announcements,
        "nat": status.nat, "reflex": status.reflex, "mapped": status.mapped,
        "mapping": status.mapping, "relays": status.relays,
        "traversal": status.traversal, "health": status.health,
        "suspects": status.suspects, "dead": status.dead, "membership": status.membership,
    })
}

/// For people.
fn facts(status: &MeshStatus) -> Vec<(&'static str, String)> {
    let listening: Vec<String> = status.listening.iter().map(ToString::to_string).collect();
    let roles: Vec<String> = status.roles.iter().map(ToString::to_string).collect();
    let relays: Vec<String> = status.relays.iter().map(NodeId::short).collect();
    let or_none = |list: Vec<String>| {
        if list.is_empty() {
            "none".to_owned()
        } else {
            list.join(", ")
        }
    };
    let seen = match status.reflex {
        Some(reflex) => format!("{}, seen as {}", status.nat, address(reflex)),
        None => status.nat.to_string(),
    };
    let (traversal, members) = (&status.traversal, &status.membership);
    let mut facts = vec![
        ("node", status.node.to_string()),
        ("mesh", meshwork_identity::fingerprint(&status.authority)),
        ("version", status.version.clone()),
        ("roles", or_none(roles)),
        ("listening", listening.join(", ")),
        ("up", span(status.uptime)),
        (
            "known nodes",
            format!(
                "{}, {} suspected, {} dead",
                status.known,
                status.suspects.len(),
                status.dead
            ),
        ),
        ("nat", seen),
        (
            "port map",
            match status.mapped {
                Some(at) => format!("{} by {}", address(at), status.mapping),
                None => status.mapping.clone(),
            },
        ),
        ("home relays", or_none(relays)),
        (
            "punching",
            format!(
                "{} of {} tries gave a direct path, {} stayed on a relay",
                traversal.punches_succeeded,
                traversal.punches_attempted,
                counted(small(traversal.relay_fallbacks), "connection"),
            ),
        ),
        (
            "relayed",
            format!(
                "{} for others, {} dropped",
                ByteSize(traversal.relayed_bytes),
                counted(small(traversal.relay_dropped), "frame")
            ),
        ),
        (
            "probes",
            format!("{} sent, {} failed", members.probes, members.failed),
        ),
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
    if status.health > 0 {
        let text = format!(
            "{} (0 is well): its own probes fail too often",
            status.health
        );
        facts.push(("self-doubt", text));
    }
    facts
}

/// A count for a sentence.
fn small(count: u64) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}
