//! A router that forwards ports on request: the node asks, is reachable from everywhere, and takes
//! the request back when it ends.

use crate::support::node::{Member, PORT};
use crate::support::upnp::{PortMapper, Speaks};
use crate::support::{Lab, Nat, eventually, so};

fn a_port_is_forwarded_while_the_node_runs(speaks: Speaks) {
    let Some(lab) = Lab::new() else { return };
    let hub = Member::hub(&lab.public("hub"));
    // Without a forwarded port, nobody gets to a machine behind this one unless it asks first.
    let router = lab.router("r", Nat::Random);
    let mapper = PortMapper::start(&router, speaks);
    let mut agent = Member::joins(&hub, &lab.behind(&router, "a"), "a", "agent", "");
    let mapped = eventually("a forwarded port", || {
        let status = agent.status()?;
        so(status["nat"] == "open", &status)?;
        let mapped = status["mapped"].as_str().map(str::to_owned);
        mapped.ok_or_else(|| status.to_string())
    });
    assert!(mapped.starts_with(&router.wan.ip.to_string()), "{mapped}");
    let mappings = mapper.mappings();
    assert!(
        mappings.iter().any(|m| m.contains(&PORT.to_string())),
        "{mappings:?}"
    );

    // A stranger to the router dials it.
    let outside = Member::new(&lab.public("x"), "x");
    outside.ok(&["join", &hub.ticket("user")]);
    let at = format!("{}@{mapped}", agent.id());
    let status = eventually("a call from outside", || {
        outside.json(&["--server", &at, "status"])
    });
    assert_eq!(status["node"], agent.id().as_str());
    let doctor = agent.run(&["doctor"]).out;
    assert!(doctor.contains(&format!("port map   {mapped}")), "{doctor}");

    agent.stop();
    eventually("the forwarding's end", || {
        let left = mapper.mappings();
        so(left.is_empty(), left)
    });
}

#[test]
fn by_upnp() {
    a_port_is_forwarded_while_the_node_runs(Speaks::Upnp);
}

#[test]
fn by_nat_pmp_or_pcp() {
    a_port_is_forwarded_while_the_node_runs(Speaks::Pmp);
}

#[test]
fn not_where_the_router_is_wrong_about_its_address() {
    for nat in [Nat::Preserve, Nat::Random] {
        let Some(lab) = Lab::new() else { return };
        let hub = Member::hub(&lab.public("hub"));
        let router = lab.router("r", nat);
        let mapper = PortMapper::start_with(&router, Speaks::Upnp, "ext_ip=45.1.2.3");
        let mut agent = Member::joins(&hub, &lab.behind(&router, "a"), "a", "agent", "");
        let why = format!("peers see this node at {}", router.wan.ip);
        eventually("a port that is not used", || {
            let status = agent.status()?;
            let mapping = status["mapping"].as_str().unwrap_or_default();
            let told = mapping.contains("45.1.2.3") && mapping.contains(&why);
            so(
                told && status["mapped"].is_null() && status["nat"] != "open",
                &status,
            )
        });
        let doctor = agent.run(&["doctor"]).out;
        assert!(doctor.contains(&why), "{doctor}");
        agent.stop();
        eventually("the forwarding's end", || {
            let left = mapper.mappings();
            so(left.is_empty(), left)
        });
    }
}

#[test]
fn not_at_all_when_the_operator_says_so() {
    let Some(lab) = Lab::new() else { return };
    let hub = Member::hub(&lab.public("hub"));
    let router = lab.router("r", Nat::Preserve);
    let mapper = PortMapper::start(&router, Speaks::Upnp);
    let config = "port_mapping = false\n";
    let agent = Member::joins(&hub, &lab.behind(&router, "a"), "a", "agent", config);
    // When it is classified, it has had the time to ask.
    let more = Member::joins(&hub, &lab.public("y"), "y", "agent", "");
    agent.reaches(&more, "direct");
    eventually("the kind of NAT", || {
        let status = agent.status()?;
        so(status["nat"] == "cone", &status)
    });
    assert_eq!(mapper.mappings(), Vec::<String>::new());
    let doctor = agent.run(&["doctor"]).out;
    assert!(doctor.contains("port_mapping = true"), "{doctor}");
}
