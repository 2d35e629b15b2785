//! What `doctor` says about this machine and the network: what NAT it is behind, what that means for
//! whoever wants to reach it, and what would make it better.
//!
//! Everything here follows from what the node says of itself ([`MeshStatus`]), so that it can be told
//! without asking the node as a user.

use std::fs;
use std::path::Path;

use meshwork_identity::NodeId;
use meshwork_proto::mesh::MeshStatus;
use meshwork_proto::path::NatClass;

use super::Finding;
use crate::cli::out::{address, counted};
use crate::cli::up::in_words;
use crate::config::Config;

/// Packets of a QUIC connection have 1,200 bytes at least (RFC 9000 §14), and 48 of UDP and IPv6
/// around them. IPv6 asks every link for 1,280.
const LEAST_MTU: u32 = 1280;

/// What the node's account of itself shows. `contacts`: how many nodes it was told to call.
pub(super) fn findings(status: &MeshStatus, config: &Config, contacts: usize) -> Vec<Finding> {
    let mut found = vec![udp(status, contacts)];
    if status.peers.is_empty() {
        // Without peers nothing else can have been found out.
        return found;
    }
    found.push(nat(status, config));
    found.extend(relays(status));
    found.extend(port_mapping(status, config));
    found.extend(health(status));
    found
}

/// Whether anybody is reached at all.
fn udp(status: &MeshStatus, contacts: usize) -> Finding {
    match status.peers.len() {
        0 if contacts == 0 && status.known <= 1 => {
            Finding::ok("peers", "none yet: this is the mesh's only node")
        }
        0 => Finding::warning(
            "peers",
            format!(
                "no node answers this one, of {} that it was told to call",
                counted(contacts, "node")
            ),
            "let outgoing UDP through the firewall; a node with another pre-shared key stays silent, too: \
             compare the psk files, or join again with a new ticket",
        ),
        peers => {
            let relayed = status.peers.iter().filter(|p| p.path.starts_with("relay"));
            let text = match relayed.count() {
                0 => format!("{} reached directly", counted(peers, "peer")),
                relayed => format!(
                    "{} reached, {relayed} of them through a relay",
                    counted(peers, "peer")
                ),
            };
            Finding::ok("peers", text)
        }
    }
}

/// The kind of NAT, and what it means.
fn nat(status: &MeshStatus, config: &Config) -> Finding {
    let seen = status
        .reflex
        .map_or_else(String::new, |at| format!(", others see {}", address(at)));
    let text = format!("{}{seen}: {}", status.nat, in_words(status.nat));
    match status.nat {
        NatClass::Open | NatClass::Cone => Finding::ok("nat", text),
        NatClass::Symmetric => {
            let port = config.listen.port();
            let fix = format!(
                "forward UDP port {port} of the router to this machine and set advertise = [\"PUBLIC-IP:{port}\"], \
                 or turn UPnP, NAT-PMP or PCP on in the router; without that relays carry its traffic"
            );
            Finding::warning("nat", text, &fix)
        }
        NatClass::Unknown => Finding::warning(
            "nat",
            text,
            "two nodes with a public address are needed to find it out: wait a moment, or run another one",
        ),
    }
}

/// Whether others find this machine when they cannot reach it directly.
fn relays(status: &MeshStatus) -> Option<Finding> {
    if status.nat == NatClass::Open {
        return None;
    }
    let names: Vec<String> = status.relays.iter().map(NodeId::short).collect();
    Some(if names.is_empty() {
        Finding::warning(
            "relay",
            "none known: nodes that cannot reach this machine directly cannot reach it at all",
            "run a node where UDP comes in: meshwork invite --role relay; there: meshwork join TICKET",
        )
    } else {
        Finding::ok("relay", format!("reached through {}", names.join(", ")))
    })
}

/// What the router said to being asked for a port.
fn port_mapping(status: &MeshStatus, config: &Config) -> Option<Finding> {
    let check = "port map";
    if let Some(mapped) = status.mapped {
        let text = format!("{} by {}", address(mapped), status.mapping);
        return Some(Finding::ok(check, text));
    }
    if status.nat == NatClass::Open {
        return None;
    }
    Some(if config.port_mapping {
        Finding::warning(
            check,
            format!("no port of the router is used: {}", status.mapping),
            "turn UPnP, NAT-PMP or PCP on in the router; it is optional: others find this machine without it, too",
        )
    } else {
        Finding::warning(
            check,
            "off: the router is not asked to forward a port",
            "port_mapping = true in config.toml",
        )
    })
}

/// Whether the node itself is slow or cut off, and who knocks with another key.
fn health(status: &MeshStatus) -> Vec<Finding> {
    let mut found = Vec::new();
    if status.health > 0 {
        let text = format!(
            "the node doubts itself ({} on a scale where 0 is well): its probes of others go unanswered",
            status.health
        );
        let fix = "is the machine overloaded, or its network lossy? ping a peer";
        found.push(Finding::warning("self", text, fix));
    }
    if !status.suspects.is_empty() {
        let names: Vec<String> = status.suspects.iter().map(NodeId::short).collect();
        let text = format!("no sign of life from {}", names.join(", "));
        found.push(Finding::ok("suspects", text));
    }
    if status.strangers > 0 {
        let text = format!(
            "{} came with another pre-shared key or none, and got no answer",
            counted(
                usize::try_from(status.strangers).unwrap_or(usize::MAX),
                "packet"
            )
        );
        found.push(Finding::ok("strangers", text));
    }
    found
}

/// Whether packets of the least size fit through the way out.
pub(super) fn mtu() -> Finding {
    let Some(device) = way_out() else {
        let fix = "connect the machine; on one without IPv4 this check says nothing";
        return Finding::warning("mtu", "there is no default route of IPv4", fix);
    };
    let path = Path::new("/sys/class/net").join(&device).join("mtu");
    let mtu = fs::read_to_string(path).ok();
    let mtu = mtu.and_then(|text| text.trim().parse::<u32>().ok());
    judge_mtu(&device, mtu)
}

fn judge_mtu(device: &str, mtu: Option<u32>) -> Finding {
    match mtu {
        Some(mtu) if mtu < LEAST_MTU => Finding::warning(
            "mtu",
            format!("{mtu} bytes on {device}: full packets are cut or lost"),
            &format!("ip link set {device} mtu {LEAST_MTU}, or more"),
        ),
        Some(mtu) => Finding::ok("mtu", format!("{mtu} bytes on {device}")),
        None => Finding::warning(
            "mtu",
            format!("unknown on {device}"),
            "look at it with: ip link",
        ),
    }
}

/// The device of the default route.
fn way_out() -> Option<String> {
    default_device(&fs::read_to_string("/proc/net/route").ok()?)
}

/// In the kernel's table: name, then destination, which is zero for the default.
fn default_device(table: &str) -> Option<String> {
    let rows = table.lines().skip(1);
    let mut fields = rows.map(|row| row.split_whitespace().collect::<Vec<_>>());
    let default = fields.find(|row| row.get(1) == Some(&"00000000"))?;
    default.first().map(|device| (*device).to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::Health;
    use super::*;
    use crate::metrics::tests::status;

    fn checks(status: &MeshStatus, config: &Config) -> Vec<(&'static str, Health)> {
        let found = findings(status, config, 1);
        found.iter().map(|f| (f.check, f.health)).collect()
    }

    fn text(status: &MeshStatus, config: &Config) -> String {
        let lines = findings(status, config, 1);
        let line = |f: &Finding| format!("{}: {} fix: {:?}\n", f.check, f.text, f.fix);
        lines.iter().map(line).collect()
    }

    #[test]
    fn each_kind_of_nat_is_explained() {
        let config = Config::default();
        let mut status = status(2);
        for (class, words) in [
            (NatClass::Open, "others reach this machine directly"),
            (NatClass::Cone, "once both sides knock"),
            (NatClass::Symmetric, "forward UDP port 4460"),
            (NatClass::Unknown, "two nodes with a public address"),
        ] {
            status.nat = class;
            let text = text(&status, &config);
            assert!(text.contains(words), "{class}: {text}");
        }
    }

    #[test]
    fn whoever_is_behind_a_nat_needs_a_relay_and_is_told_of_port_mapping() {
        let mut status = status(2);
        status.nat = NatClass::Cone;
        status.relays.clear();
        status.mapped = None;
        let mut config = Config::default();
        let found = checks(&status, &config);
        assert!(found.contains(&("relay", Health::Warning)), "{found:?}");
        assert!(found.contains(&("port map", Health::Warning)), "{found:?}");
        status.mapping =
            "the router opened 10.0.0.9:4460 by upnp, which is behind another NAT".into();
        let ignored = "port map: no port of the router is used: the router opened 10.0.0.9:4460";
        assert!(text(&status, &config).contains(ignored));
        config.port_mapping = false;
        assert!(text(&status, &config).contains("port_mapping = true"));
        status.mapped = Some("45.0.0.9:4460".parse().unwrap());
        status.mapping = "upnp".to_owned();
        assert!(text(&status, &config).contains("port map: 45.0.0.9:4460 by upnp"));
    }

    #[test]
    fn silence_names_both_of_its_causes() {
        let mut status = status(0);
        status.known = 3;
        let text = text(&status, &Config::default());
        assert!(
            text.contains("outgoing UDP") && text.contains("pre-shared key"),
            "{text}"
        );
        assert_eq!(findings(&status, &Config::default(), 1).len(), 1);
        status.known = 1;
        let alone = findings(&status, &Config::default(), 0);
        assert_eq!(alone[0].health, Health::Ok);
    }

    #[test]
    fn small_packets_are_found_out() {
        let table = "Iface\tDestination\tGateway\neth1\t0001A8C0\t0\nwg0\t00000000\t0101A8C0\n";
        assert_eq!(default_device(table).as_deref(), Some("wg0"));
        assert_eq!(default_device("Iface\tDestination\n"), None);
        assert_eq!(judge_mtu("wg0", Some(1279)).health, Health::Warning);
        assert_eq!(judge_mtu("wg0", Some(1280)).health, Health::Ok);
    }
}
