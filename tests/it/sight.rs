//! What operators see of the mesh: connections, the map, numbers, and a change of the key.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::Value;

use crate::support::{Home, Node};

/// A manager and an agent, as two homes with their nodes.
fn two() -> (Home, Node, Home, Node) {
    let boss = Home::new();
    let running = boss.start(&["up", "--role", "manager", "--name", "boss"]);
    let lab = Home::new();
    let ticket = boss.ok(&["invite", "-q", "--role", "agent"]);
    let agent = lab.start(&["join", ticket.trim(), "--name", "lab"]);
    (boss, running, lab, agent)
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).expect("JSON")
}

#[test]
fn the_connections_and_the_map_show_who_sees_whom() {
    let (boss, _boss, lab, agent) = two();
    let is_neighbour = |peers: &Value| {
        let mut peers = peers.as_array().into_iter().flatten();
        peers.any(|p| p["name"] == "lab" && p["path"] == "direct" && p["neighbour"] == true)
    };
    let ls = ["peer", "ls", "-o", "json"];
    let peers = boss.eventually(&ls, |done| is_neighbour(&json(&done.out)));
    let peer = &json(&peers.out)[0];
    assert!(peer["bytes_sent"].as_u64() > Some(0), "{peer}");
    assert!(peer["rtt_ms"].as_f64() > Some(0.0), "{peer}");
    let table = boss.ok(&["peer", "ls"]);
    for word in [
        "PEER",
        "NAME",
        "PATH",
        "RTT",
        "LOSS",
        "AGE",
        "NEIGHBOUR",
        "lab",
        "direct",
    ] {
        assert!(table.contains(word), "{word}: {table}");
    }

    let map = ["mesh", "map", "-o", "json"];
    let drawn = boss.eventually(&map, |done| {
        let links = &json(&done.out)["links"];
        links[0]["mutual"] == true && links[0]["neighbour"] == true
    });
    let drawn = json(&drawn.out);
    assert_eq!(drawn["nodes"].as_array().map(Vec::len), Some(2), "{drawn}");
    assert_eq!(drawn["links"].as_array().map(Vec::len), Some(1), "{drawn}");
    let dot = boss.ok(&["mesh", "map", "--format", "dot"]);
    assert!(
        dot.starts_with("graph mesh {") && dot.contains("lab"),
        "{dot}"
    );
    let mermaid = boss.ok(&["mesh", "map", "--format", "mermaid"]);
    assert!(
        mermaid.starts_with("graph LR") && mermaid.contains(" ---|"),
        "{mermaid}"
    );

    let doctor = boss.run(&["doctor"]).out;
    assert!(doctor.contains("1 peer reached directly"), "{doctor}");
    // Without a user, too: the agent's machine has none.
    let doctor = lab.run(&["doctor"]).out;
    assert!(
        doctor.contains("peers") && doctor.contains("mtu"),
        "{doctor}"
    );
    // Whoever stopped in order is not in the map any more.
    drop(agent);
    boss.eventually(&map, |done| {
        json(&done.out)["nodes"]
            .as_array()
            .is_some_and(|nodes| nodes.len() == 1)
    });
}

#[test]
fn a_node_of_any_home_is_called_by_its_id() {
    let (boss, _boss, lab, _agent) = two();
    let id = json(&lab.ok(&["whoami", "-o", "json"]))["node"].clone();
    let id = id["id"].as_str().or(id.as_str()).expect("an id").to_owned();
    let status = ["--server", &id, "status", "-o", "json"];
    let status = boss.eventually(&status, |done| done.code == 0);
    assert_eq!(json(&status.out)["node"], id.as_str());
    let nobody = json(&boss.ok(&["whoami", "-o", "json"]))["user"].clone();
    let nobody = nobody["id"]
        .as_str()
        .or(nobody.as_str())
        .expect("an id")
        .to_owned();
    let unknown = boss.fails(1, &["--server", &nobody, "status"]);
    assert!(unknown.starts_with("error[E203] no node"), "{unknown}");
}

#[test]
fn numbers_are_served_where_the_operator_says() {
    let home = Home::new();
    fs::create_dir(home.path().join("home")).unwrap();
    let config = home.path().join("home/config.toml");
    fs::write(&config, "metrics = \"127.0.0.1:0\"\n").unwrap();
    let running = home.start(&["up", "--role", "manager"]);
    let run = fs::read_to_string(home.path().join("home/run/node.addr")).unwrap();
    let address = run
        .lines()
        .find_map(|line| line.strip_prefix("metrics = "))
        .expect("it is written down")
        .trim_matches('"');
    let mut stream = TcpStream::connect(address).unwrap();
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        .unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).unwrap();
    assert!(page.starts_with("HTTP/1.1 200"), "{page}");
    assert!(
        page.contains("\nmeshwork_membership_known_nodes "),
        "{page}"
    );

    // A second node cannot have the same address, and says so.
    let other = Home::new();
    fs::create_dir(other.path().join("home")).unwrap();
    let taken = format!("metrics = \"{address}\"\n");
    fs::write(other.path().join("home/config.toml"), taken).unwrap();
    let refused = other.fails(1, &["up", "--role", "manager", "--listen", "127.0.0.1:0"]);
    assert!(
        refused.starts_with("error[E108] metrics = ") && refused.contains("config.toml"),
        "{refused}"
    );
    drop(running);
    assert!(TcpStream::connect(address).is_err());
}

#[test]
fn the_key_of_the_mesh_is_changed_under_its_nodes_and_users() {
    let (boss, _boss, lab, _agent) = two();
    let [user, absent] = [Home::new(), Home::new()];
    for home in [&user, &absent] {
        let ticket = boss.ok(&["invite", "-q", "--role", "user"]);
        home.ok(&["join", ticket.trim()]);
    }
    let key = |home: &Home| fs::read_to_string(home.path().join("home/psk")).unwrap();
    let before = key(&boss);
    assert!(
        [&lab, &user, &absent]
            .iter()
            .all(|home| key(home) == before)
    );
    boss.eventually(&["mesh", "map", "-o", "json"], |done| {
        json(&done.out)["nodes"]
            .as_array()
            .is_some_and(|nodes| nodes.len() == 2)
    });

    let rotate = ["mesh", "rotate-psk", "--overlap", "20s", "-o", "json"];
    let rotated = json(&boss.ok(&rotate));
    assert_eq!(rotated["confirmed"], 2, "{rotated}");
    assert!(key(&boss) != before);
    // Nodes write it down when they begin to use it, users when a command hears of it.
    lab.eventually(&["doctor"], |_| key(&lab) == key(&boss));
    user.eventually(&["node", "ls"], |done| {
        done.code == 0 && key(&user) == key(&boss)
    });
    boss.ok(&["node", "ls"]);
    // Whoever was away for too long is a stranger.
    assert_eq!(key(&absent), before);
    let late = absent.eventually(&["ps"], |done| done.code != 0 || key(&absent) != before);
    assert!(
        late.code == 0 || late.err.starts_with("error[E402]"),
        "{late:?}"
    );
    // Only an admin may.
    let denied = user.fails(3, &["mesh", "rotate-psk"]);
    assert!(denied.starts_with("error[E30"), "{denied}");
}
