//! Everybody who must not get in or may not do it, each refused with an error of its own; who is
//! no member at all, with silence.

use std::fs;
use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::time::Duration;

use meshwork_identity::{Identity, Limits, NodeId, Timestamp, Token, TokenRequest, load_identity};
use serde_json::json;

use crate::support::command::{Done, Running, meshwork};
use crate::support::docker;
use crate::support::mesh::{Mesh, small};
use crate::support::{eventually, so};

/// How long silence is listened to.
const SILENCE: Duration = Duration::from_millis(300);

#[track_caller]
fn run(home: &Path, args: &[&str]) -> Done {
    Running::start(meshwork(home, args)).finish()
}

fn strangers(mesh: &Mesh) -> u64 {
    mesh.json(&["status"])["strangers"]
        .as_u64()
        .expect("a count")
}

/// Whose identity a folder holds.
fn user_of(home: &Path) -> NodeId {
    load_identity(&home.join("user.key")).unwrap().node_id()
}

/// Makes the user of `home` act with a token that `issuer` signs, valid for an hour from `start`.
fn give(home: &Path, issuer: &Identity, scopes: &str, resource: &str, start: Timestamp) {
    let request = TokenRequest {
        subject: user_of(home),
        scopes: scopes.parse().unwrap(),
        resource: resource.parse().unwrap(),
        not_before: None,
        ttl: Duration::from_hours(1),
        depth: 0,
        limits: Limits::none(),
    };
    let token = Token::issue_root(issuer, request, start, [7; 16]).unwrap();
    fs::write(home.join("tokens/user.token"), format!("{token}\n")).unwrap();
}

fn now() -> Timestamp {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    Timestamp::from_secs(now.as_secs())
}

fn authority(mesh: &Mesh) -> Identity {
    load_identity(&mesh.manager.home.join("authority.key")).unwrap()
}

#[test]
fn a_bystander_gets_silence_and_is_counted() {
    let mesh = Mesh::new();
    let before = strangers(&mesh);
    let mut quic_v1 = vec![0xc3, 0, 0, 0, 1, 8];
    quic_v1.extend([0x55; 8]);
    quic_v1.extend([0, 0, 0x44, 0x9e]);
    quic_v1.resize(1200, 0xaa);
    let mut of_no_version = quic_v1.clone();
    of_no_version[1..5].copy_from_slice(&[0xba, 0xba, 0xba, 0xba]);
    let packets = [
        b"hello?\r\n".to_vec(),
        vec![0; 1200],
        vec![0xff; 1200],
        vec![0x80],
        quic_v1,
        of_no_version,
    ];
    for packet in &packets {
        assert_eq!(
            answer(mesh.manager.address, packet),
            None,
            "{:02x?}…",
            &packet[..packet.len().min(16)]
        );
    }
    eventually("each is counted", || {
        let counted = strangers(&mesh) - before;
        so(counted == packets.len() as u64, counted)
    });
    // What looks like a packet of a connection that is not there belongs to no member's handshake,
    // so it is not counted as one; but neither is it answered.
    assert_eq!(answer(mesh.manager.address, &[0x40; 200]), None);
}

/// Sends a packet as somebody new, and listens for an answer.
fn answer(to: SocketAddr, packet: &[u8]) -> Option<Vec<u8>> {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(SILENCE)).unwrap();
    socket.send_to(packet, to).unwrap();
    let mut buffer = [0; 2048];
    match socket.recv(&mut buffer) {
        Ok(n) => Some(buffer[..n].to_vec()),
        Err(error) if error.kind() == ErrorKind::WouldBlock => None,
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn who_has_another_psk_gets_silence_and_learns_what_that_may_mean() {
    let mesh = Mesh::new();
    let user = mesh.user("user");
    run(&user, &["ps"]).ok();
    let before = strangers(&mesh);
    fs::write(user.join("psk"), "5a".repeat(32) + "\n").unwrap();
    run(&user, &["ps"]).fails(4, "E402", &["pre-shared key"]);
    assert!(strangers(&mesh) > before);
}

#[test]
fn every_token_that_does_not_hold_is_refused_for_its_own_reason() {
    let mesh = Mesh::new();
    let (user, other) = (mesh.user("user"), mesh.user("other"));
    let (root, token) = (authority(&mesh), user.join("tokens/user.token"));
    run(&user, &["ps"]).ok();

    fs::copy(other.join("tokens/user.token"), &token).unwrap();
    run(&user, &["ps"]).fails(3, "E305", &["the token is for"]);

    give(
        &user,
        &root,
        "call",
        "*",
        now().saturating_sub(Duration::from_hours(2)),
    );
    run(&user, &["ps"]).fails(3, "E303", &["the token expired at"]);

    give(
        &user,
        &root,
        "call",
        "*",
        now().saturating_add(Duration::from_hours(1)),
    );
    run(&user, &["ps"]).fails(3, "E305", &["not valid before"]);

    give(&user, &Identity::from_seed(&[9; 32]), "call", "*", now());
    run(&user, &["ps"]).fails(3, "E305", &["not this mesh's authority"]);

    give(&user, &root, "join,announce", "*", now());
    run(&user, &["ps"]).fails(3, "E302", &["the scope `call`"]);

    give(&user, &root, "call", "agent/*", now());
    run(&user, &["ps"]).fails(3, "E302", &["covers `agent/*`, not `manager/"]);

    give(
        &user,
        &root,
        "call",
        &format!("*@{}", user_of(&other)),
        now(),
    );
    run(&user, &["ps"]).fails(3, "E302", &["covers `*@"]);

    give(&user, &root, "call", "*", now());
    run(&user, &["ps"]).ok();
    run(&user, &["ps", "--all-users"]).fails(3, "E302", &["`admin`"]);
    run(&user, &["invite"]).fails(3, "E302", &["the scope `admin`"]);

    fs::remove_file(&token).unwrap();
    run(&user, &["ps"]).fails(3, "E301", &["none was presented"]);
}

#[test]
fn a_ticket_admits_as_many_as_it_says() {
    let mesh = Mesh::new();
    let ticket = mesh.ok(&["--quiet", "invite", "--role", "user"]);
    run(&mesh.path("first"), &["join", ticket.trim()]).ok();
    run(&mesh.path("second"), &["join", ticket.trim()]).fails(3, "E306", &["used"]);
    assert!(!mesh.path("second/mesh.toml").exists());
}

#[test]
fn a_token_holds_on_its_node_within_its_limits_and_for_its_owners_sessions() {
    if !docker::wanted() {
        return;
    }
    let mesh = Mesh::new();
    let box_ = mesh.agent("box", 2);
    mesh.ready(&["box"]);
    let user = mesh.user("user");
    run(&user, &small(&["--gpu", "2"], "true")).ok();

    let id = user_of(&user).to_string();
    let token = mesh.ok(&[
        "token", "issue", "--to", &id, "--gpus", "1", "--mem", "64MiB",
    ]);
    run(&user, &["token", "use", token.trim()]).ok();
    run(&user, &small(&["--gpu", "1"], "true")).ok();
    run(&user, &small(&["--gpu", "2"], "true")).fails(3, "E302", &["at most 1 gpu"]);
    run(&user, &["run", docker::IMAGE]).fails(3, "E302", &["memory"]);

    // The manager may be called, but kernels made only on another node than the one there is.
    let manager = &mesh.manager.id;
    give(
        &user,
        &authority(&mesh),
        "call",
        &format!("*@{manager}"),
        now(),
    );
    run(&user, &["node", "ls"]).ok();
    run(&user, &small(&[], "true")).fails(3, "E302", &["agent/kernel.create"]);

    let session = mesh
        .ok(&small(&["-d", "--name", "mine"], "sleep 60"))
        .trim()
        .to_owned();
    mesh.reaches(&session, "running");
    give(&user, &authority(&mesh), "call", "*", now());
    for args in [
        &["logs", &*session][..],
        &["stop", &session],
        &["exec", &session, "true"],
    ] {
        run(&user, args).fails(1, "E203", &[&session]);
    }
    assert_eq!(docker::containers(&box_.id), [&*session]);
    mesh.ok(&["stop", "--grace", "0s", "mine"]);
}

#[test]
fn revocation_cuts_what_is_under_way_and_stays() {
    if !docker::wanted() {
        return;
    }
    let mut mesh = Mesh::new();
    let box_ = mesh.agent("box", 0);
    mesh.ready(&["box"]);
    let user = mesh.user("user");
    let script = "while true; do echo tick; sleep 0.1; done";
    let attached = Running::start(meshwork(&user, &small(&["--name", "theirs"], script)));
    attached.prints("tick");

    let token = user.join("tokens/user.token");
    mesh.ok(&["token", "revoke", token.to_str().unwrap()]);
    attached.finish().fails(3, "E304", &["revoked"]);
    run(&user, &["ps"]).fails(3, "E304", &["the token is revoked"]);
    mesh.manager.kill();
    mesh.manager.restart();
    run(&user, &["ps"]).fails(3, "E304", &["the token is revoked"]);

    // The kernel goes on until an admin ends it.
    mesh.ready(&["box"]);
    assert_eq!(docker::containers(&box_.id).len(), 1);
    let sessions = mesh.json(&["ps", "--all-users"]);
    assert_eq!(sessions[0]["name"], json!("theirs"));
    mesh.ok(&[
        "stop",
        "--grace",
        "0s",
        sessions[0]["session"].as_str().unwrap(),
    ]);
    eventually("its end", || {
        let left = docker::containers(&box_.id);
        so(left.is_empty(), left)
    });

    let node = user_of(&user).to_string();
    mesh.ok(&["token", "revoke", "--node", &node]);
    give(&user, &authority(&mesh), "call", "*", now());
    run(&user, &["ps"]).fails(3, "E304", &["revoked"]);
}
