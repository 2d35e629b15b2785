//! A real `miniupnpd` in a router: UPnP-IGD, NAT-PMP and PCP as homes have them.

use std::fs;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use super::eventually;
use super::lab::Router;
use super::shell::feed;

/// The chains that it fills, beside those of `iptables`: a packet must be let through by both.
const TABLES: &str = "\
table inet filter {
    chain forward { type filter hook forward priority 0; policy accept; jump miniupnpd; }
    chain prerouting { type nat hook prerouting priority -100; policy accept; jump prerouting_miniupnpd; }
    chain postrouting { type nat hook postrouting priority 100; policy accept; jump postrouting_miniupnpd; }
    chain miniupnpd { }
    chain prerouting_miniupnpd { }
    chain postrouting_miniupnpd { }
}
";

/// Which of its protocols it speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Speaks {
    /// UPnP-IGD only.
    Upnp,
    /// NAT-PMP and PCP only.
    Pmp,
}

/// The running daemon. Dropping it ends it.
pub(crate) struct PortMapper {
    child: Child,
    router: super::Host,
    folder: TempDir,
}

impl PortMapper {
    /// Starts it; returns when it listens to the LAN.
    pub(crate) fn start(router: &Router, speaks: Speaks) -> Self {
        Self::start_with(router, speaks, "")
    }

    /// The same with more lines of its configuration.
    pub(crate) fn start_with(router: &Router, speaks: Speaks, more: &str) -> Self {
        require();
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = |name: &str| folder.path().join(name).display().to_string();
        let yes = |on: bool| if on { "yes" } else { "no" };
        let config = format!(
            "ext_ifname=wan\nlistening_ip=lan\nport=5000\nsecure_mode=yes\nsystem_uptime=yes\n\
             enable_upnp={}\nenable_natpmp={}\nlease_file={}\nuuid=2474a57d-74c6-4f69-b413-32792592ada3\n\
             allow 1024-65535 192.168.1.0/24 1024-65535\ndeny 0-65535 0.0.0.0/0 0-65535\n{more}\n",
            yes(speaks == Speaks::Upnp),
            yes(speaks == Speaks::Pmp),
            path("leases"),
        );
        fs::write(path("config"), config).expect("a folder of our own");
        let nft = router.wan.namespace();
        feed(&["ip", "netns", "exec", nft, "nft", "-f", "-"], TABLES);
        let log = fs::File::create(path("log")).expect("a folder of our own");
        let child = router
            .wan
            .command("miniupnpd")
            .args(["-d", "-f", &path("config"), "-P", &path("pid")])
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file"))
            .stderr(log)
            .spawn()
            .expect("it was found before");
        let mut mapper = Self {
            child,
            router: router.wan.clone(),
            folder,
        };
        let port = match speaks {
            Speaks::Upnp => ":1900",
            Speaks::Pmp => ":5351",
        };
        eventually("miniupnpd listens", || {
            let ended = mapper.child.try_wait().expect("our own child");
            let sockets = mapper.router.run(&["ss", "-lnu"]);
            let log = || fs::read_to_string(mapper.folder.path().join("log"));
            assert!(ended.is_none(), "miniupnpd ended: {:?}", log());
            super::so(sockets.contains(port), sockets)
        });
        mapper
    }

    /// The mappings that it holds, one a line: what an operator sees in the packet filter.
    pub(crate) fn mappings(&self) -> Vec<String> {
        let chain = [
            "nft",
            "list",
            "chain",
            "inet",
            "filter",
            "prerouting_miniupnpd",
        ];
        let text = self.router.run(&chain);
        let lines = text.lines().map(str::trim);
        lines
            .filter(|line| line.contains("dnat"))
            .map(str::to_owned)
            .collect()
    }
}

impl Drop for PortMapper {
    fn drop(&mut self) {
        // The lab's end would end it, too.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Fails with the fix where there is no daemon that fills the tables above.
fn require() {
    let version = Command::new("miniupnpd").arg("--version").output();
    let text = version.map(|v| String::from_utf8_lossy(&v.stdout).into_owned());
    assert!(
        text.as_ref().is_ok_and(|t| t.contains("nftables")),
        "no miniupnpd for nftables here: {text:?}\nfix: apt-get install miniupnpd-nftables nftables, \
         or leave these tests out: MESHWORK_SKIP_DOCKER=1"
    );
}
