//! A lab: a public segment, machines on it, and routers with LANs behind them, each a network
//! namespace of its own. Nothing of it touches the host's network.

use std::cell::Cell;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::address::{V4_PREFIX, V6_PREFIX, lan, lan6, public, public6};
use super::shell::{feed, run, try_run};

/// How the namespaces of these tests begin, so that no others are ever swept.
const PREFIX: &str = "mwnat";
/// Where `ip netns` keeps them.
pub(crate) const NETNS: &str = "/run/netns";
/// Hardware address of every bridge. Without one of its own, a bridge takes another one whenever a
/// machine is connected, and those that were there write to the old one for a while.
const BRIDGE: &str = "02:00:00:00:00:01";
/// What the lab is made with, and the Debian packages that have it.
const TOOLS: [(&str, &str); 2] = [("ip", "iproute2"), ("iptables", "iptables")];

/// What a router does to the packets of its LAN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Nat {
    /// Keeps source ports where it can: the same mapping to everybody. It lets in only answers from
    /// the very address and port that was written to (RFC 4787: address and port dependent
    /// filtering).
    Preserve,
    /// Another random port for each partner (`--random`).
    Random,
    /// The same by the kernel's other generator (`--random-fully`).
    RandomFully,
    /// Keeps ports, and passes everything that comes in on to the LAN's first machine.
    Open,
    /// No translation: a firewall for the LAN's own IPv6 addresses, and none for IPv4.
    Firewall6,
}

/// The whole of it. Dropping it ends every process in it and removes it.
pub(crate) struct Lab {
    id: String,
    next_public: Cell<u8>,
    next_lan: Cell<u8>,
}

/// A machine.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    namespace: String,
    /// Its IPv4 address.
    pub(crate) ip: Ipv4Addr,
    /// Its global IPv6 address, on a network that has any.
    pub(crate) ip6: Option<Ipv6Addr>,
}

/// A router between the public segment and a LAN.
pub(crate) struct Router {
    /// As a machine of the public segment.
    pub(crate) wan: Host,
    nat: Nat,
    lan: u8,
    next: Cell<u8>,
}

impl Lab {
    /// An empty public segment; none, when these tests are switched off.
    pub(crate) fn new() -> Option<Self> {
        static LABS: AtomicU32 = AtomicU32::new(0);
        if !wanted() {
            return None;
        }
        sweep();
        let number = LABS.fetch_add(1, Ordering::Relaxed);
        let lab = Self {
            id: format!("{PREFIX}-{}-{number}", std::process::id()),
            next_public: Cell::new(2),
            next_lan: Cell::new(1),
        };
        let backbone = lab.namespace("net");
        feed(
            &["ip", "-n", &backbone, "-batch", "-"],
            &format!(
                "link add br0 address {BRIDGE} type bridge\nlink set br0 up\n\
                 addr add {}/{V4_PREFIX} dev br0\naddr add {}/{V6_PREFIX} dev br0 nodad\n",
                public(1),
                public6(1)
            ),
        );
        set(&backbone, "net.ipv6.conf.all.forwarding", "1");
        Some(lab)
    }

    /// A machine on the public segment, which everybody can reach.
    pub(crate) fn public(&self, name: &str) -> Host {
        let n = take(&self.next_public);
        let namespace = self.namespace(name);
        let backbone = self.name("net");
        connect(&namespace, "wan", &backbone, &format!("p{n}"), "br0");
        let host = Host {
            namespace,
            ip: public(n),
            ip6: None,
        };
        host.address(&host.ip.into(), "wan", &public(1).into());
        host
    }

    /// The same with an IPv6 address, too.
    pub(crate) fn public_with_ipv6(&self, name: &str) -> Host {
        let mut host = self.public(name);
        let [.., n] = host.ip.octets();
        host.ip6 = Some(public6(n));
        host.address(&public6(n).into(), "wan", &public6(1).into());
        host
    }

    /// A router with an empty LAN behind it.
    pub(crate) fn router(&self, name: &str, nat: Nat) -> Router {
        let lan_number = take(&self.next_lan);
        let wan = match nat {
            Nat::Firewall6 => self.public_with_ipv6(name),
            _ => self.public(name),
        };
        feed(
            &["ip", "-n", &wan.namespace, "-batch", "-"],
            &format!(
                "link add lan address {BRIDGE} type bridge\nlink set lan up\naddr add {}/{V4_PREFIX} dev lan\n",
                lan(1)
            ),
        );
        set(&wan.namespace, "net.ipv4.ip_forward", "1");
        let router = Router {
            wan,
            nat,
            lan: lan_number,
            next: Cell::new(2),
        };
        router.filter();
        if nat == Nat::Firewall6 {
            self.route6(&router);
        } else {
            router.translate();
        }
        router
    }

    /// A machine on the LAN of `router`.
    pub(crate) fn behind(&self, router: &Router, name: &str) -> Host {
        let n = take(&router.next);
        let namespace = self.namespace(name);
        connect(
            &namespace,
            "eth0",
            &router.wan.namespace,
            &format!("l{n}"),
            "lan",
        );
        let mut host = Host {
            namespace,
            ip: lan(n),
            ip6: None,
        };
        if router.nat == Nat::Firewall6 {
            let address = lan6(router.lan, n);
            host.ip6 = Some(address);
            host.address(&address.into(), "eth0", &lan6(router.lan, 1).into());
        } else {
            host.address(&host.ip.into(), "eth0", &lan(1).into());
        }
        host
    }

    /// The IPv6 prefix of the router's LAN, with the ways to and from it.
    fn route6(&self, router: &Router) {
        let (inside, outside) = (router.wan.namespace.as_str(), self.name("net"));
        let own = format!("{}/{V6_PREFIX}", lan6(router.lan, 1));
        run(&[
            "ip", "-n", inside, "addr", "add", &own, "dev", "lan", "nodad",
        ]);
        set(inside, "net.ipv6.conf.all.forwarding", "1");
        let prefix = format!("{}/{V6_PREFIX}", lan6(router.lan, 0));
        let via = router.wan.ip6.expect("such a router has one").to_string();
        run(&[
            "ip", "-n", &outside, "-6", "route", "add", &prefix, "via", &via,
        ]);
    }

    /// The whole name of a namespace of this lab.
    fn name(&self, name: &str) -> String {
        format!("{}-{name}", self.id)
    }

    /// Makes a namespace.
    fn namespace(&self, name: &str) -> String {
        let name = self.name(name);
        run(&["ip", "netns", "add", &name]);
        run(&["ip", "-n", &name, "link", "set", "lo", "up"]);
        name
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for namespace in namespaces(&format!("{}-", self.id)) {
            remove(&namespace);
        }
    }
}

impl Host {
    /// The namespace's name.
    pub(crate) fn namespace(&self) -> &str {
        &self.namespace
    }

    /// A command that runs on this machine.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace, program]);
        command
    }

    /// Runs a tool on this machine that must go well; tells what it printed.
    #[track_caller]
    pub(crate) fn run(&self, line: &[&str]) -> String {
        run(&[&["ip", "netns", "exec", &self.namespace], line].concat())
    }

    /// A UDP socket of this machine. It stays there, whichever thread uses it.
    pub(crate) fn udp(&self, port: u16) -> UdpSocket {
        let any: IpAddr = match self.ip6 {
            Some(_) => Ipv6Addr::UNSPECIFIED.into(),
            None => Ipv4Addr::UNSPECIFIED.into(),
        };
        let path = Path::new(NETNS).join(&self.namespace);
        // A thread of its own enters the namespace, and ends there.
        let enter = move || {
            let namespace = File::open(path)?;
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
            UdpSocket::bind((any, port))
        };
        let socket: std::io::Result<UdpSocket> =
            std::thread::spawn(enter).join().expect("no panic");
        socket.expect("root may enter a namespace of its own")
    }

    /// Moves a machine of a LAN to the LAN of another router, as when a laptop changes networks:
    /// its address and its way out are others from now on.
    pub(crate) fn roam(&mut self, to: &Router) {
        let n = take(&to.next);
        run(&["ip", "-n", &self.namespace, "link", "del", "eth0"]);
        connect(
            &self.namespace,
            "eth0",
            &to.wan.namespace,
            &format!("l{n}"),
            "lan",
        );
        self.ip = lan(n);
        self.address(&self.ip.into(), "eth0", &lan(1).into());
    }

    /// Gives it an address, and the way to everybody else.
    fn address(&self, ip: &IpAddr, device: &str, gateway: &IpAddr) {
        let (family, prefix, detect) = match ip {
            IpAddr::V4(_) => ("-4", V4_PREFIX, ""),
            // No wait for others that may have it.
            IpAddr::V6(_) => ("-6", V6_PREFIX, "nodad"),
        };
        feed(
            &["ip", "-n", &self.namespace, family, "-batch", "-"],
            &format!(
                "addr add {ip}/{prefix} dev {device} {detect}\nroute add default via {gateway}\n"
            ),
        );
    }
}

impl Router {
    /// Ends mappings that carry no packet for so long. UDP only; a mapping is a stream once packets
    /// went both ways for a while.
    pub(crate) fn mapping_lifetime(&self, seconds: u32) {
        for name in [
            "nf_conntrack_udp_timeout",
            "nf_conntrack_udp_timeout_stream",
        ] {
            let value = seconds.to_string();
            set(
                &self.wan.namespace,
                &format!("net.netfilter.{name}"),
                &value,
            );
        }
    }

    /// Drops everything between this LAN and one machine, both ways: the two cannot talk directly.
    pub(crate) fn cut_off(&self, from: Ipv4Addr) {
        let ip = from.to_string();
        for (flag, chain) in [("-s", "FORWARD"), ("-d", "FORWARD")] {
            self.wan
                .run(&["iptables", "-I", chain, flag, &ip, "-j", "DROP"]);
        }
    }

    /// Lets in what was asked for, and drops the rest unanswered. A dropped packet leaves no trace in
    /// the router; one that it took for its own would hold the port against the LAN.
    fn filter(&self) {
        for tool in ["iptables", "ip6tables"] {
            for chain in ["INPUT", "FORWARD"] {
                let answers = "conntrack --ctstate ESTABLISHED,RELATED,DNAT -j ACCEPT";
                let answers =
                    answers.replace(",DNAT", if tool == "iptables" { ",DNAT" } else { "" });
                self.rule(tool, &format!("-A {chain} -i wan -m {answers}"));
                if tool == "ip6tables" {
                    // Neighbours are found by it.
                    self.rule(tool, &format!("-A {chain} -i wan -p icmpv6 -j ACCEPT"));
                }
                self.rule(tool, &format!("-A {chain} -i wan -j DROP"));
            }
        }
    }

    fn translate(&self) {
        let option = match self.nat {
            Nat::Random => "--random",
            Nat::RandomFully => "--random-fully",
            _ => "",
        };
        let masquerade = format!("-t nat -A POSTROUTING -o wan -j MASQUERADE {option}");
        self.rule("iptables", masquerade.trim_end());
        if self.nat == Nat::Open {
            let first = format!(
                "-t nat -A PREROUTING -i wan -j DNAT --to-destination {}",
                lan(2)
            );
            self.rule("iptables", &first);
        }
    }

    fn rule(&self, tool: &str, rule: &str) {
        let words: Vec<&str> = rule.split(' ').collect();
        self.wan.run(&[&[tool], &words[..]].concat());
    }
}

/// Whether these tests are to run: no, when they are switched off; then it says so. Fails with the
/// fix where they cannot.
fn wanted() -> bool {
    if std::env::var_os("MESHWORK_SKIP_DOCKER").is_some_and(|v| v == "1") {
        eprintln!("skipped: MESHWORK_SKIP_DOCKER=1");
        return false;
    }
    let out = "or leave these tests out: MESHWORK_SKIP_DOCKER=1";
    assert!(
        rustix::process::geteuid().is_root(),
        "network namespaces need root\nfix: run ./test.sh as root, {out}"
    );
    for (tool, package) in TOOLS {
        let found = Command::new(tool).arg("-V").output().is_ok();
        assert!(
            found,
            "`{tool}` is missing\nfix: apt-get install {package}, {out}"
        );
    }
    true
}

/// Removes what runs left behind that ended without their clean-up.
pub(crate) fn sweep() {
    for namespace in namespaces(&format!("{PREFIX}-")) {
        let owner = namespace.split('-').nth(1).expect("our own names have it");
        if !Path::new("/proc").join(owner).exists() {
            remove(&namespace);
        }
    }
}

/// Namespaces whose names begin like this.
pub(crate) fn namespaces(prefix: &str) -> Vec<String> {
    let entries = std::fs::read_dir(NETNS).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with(prefix))
        .collect()
}

/// Ends what runs in the namespace, and removes it. Others may remove it at the same time.
fn remove(namespace: &str) {
    let processes = try_run(&["ip", "netns", "pids", namespace]).unwrap_or_default();
    for process in processes.lines() {
        let _ = try_run(&["kill", "-KILL", process]);
    }
    let _ = try_run(&["ip", "netns", "del", namespace]);
}

/// Lays a cable from a machine to a bridge.
fn connect(namespace: &str, device: &str, other: &str, port: &str, bridge: &str) {
    run(&[
        "ip", "-n", namespace, "link", "add", device, "type", "veth", "peer", "name", port,
        "netns", other,
    ]);
    run(&["ip", "-n", namespace, "link", "set", device, "up"]);
    run(&[
        "ip", "-n", other, "link", "set", port, "master", bridge, "up",
    ]);
}

/// A kernel setting of a namespace.
fn set(namespace: &str, name: &str, value: &str) {
    let write = format!("echo {value} > /proc/sys/{}", name.replace('.', "/"));
    run(&["ip", "netns", "exec", namespace, "sh", "-c", &write]);
}

fn take(counter: &Cell<u8>) -> u8 {
    let n = counter.get();
    counter.set(n.checked_add(1).expect("a lab is small"));
    n
}
