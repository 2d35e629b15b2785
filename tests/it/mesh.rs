//! Commands that call a node: real processes and sockets on this machine, no containers.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::Value;

use crate::support::{Home, Node, signal};

/// A mesh with a manager, and its first user's home.
fn mesh() -> (Home, Node) {
    let home = Home::new();
    let node = home.start(&["up", "--role", "manager", "--name", "boss"]);
    (home, node)
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).expect("JSON")
}

fn ticket(home: &Home, args: &[&str]) -> String {
    home.ok(&[&["invite", "-q"], args].concat())
        .trim()
        .to_owned()
}

/// A person who joined with a ticket.
fn user(home: &Home, args: &[&str]) -> Home {
    let user = Home::new();
    user.ok(&["join", &ticket(home, &[&["--role", "user"], args].concat())]);
    user
}

#[test]
fn a_machine_joins_with_one_line_once_and_is_found_by_query() {
    let (boss, _running) = mesh();
    let line = ticket(&boss, &["--role", "agent"]);
    let lab = Home::new();
    fs::create_dir(lab.path().join("home")).unwrap();
    let mock = lab.path().join("gpus.toml");
    fs::write(&mock, "slot_name = \"cuda\"\n[[devices]]\nmother_uuid = \"a\"\nmodel_name = \"A100 80GB\"\nmemory_size = \"80GB\"\n").unwrap();
    let config = format!("tags = [\"lab-a\"]\n[agent]\nmock_accelerators = {mock:?}\n");
    fs::write(lab.path().join("home/config.toml"), config).unwrap();
    let _agent = lab.start(&["join", &line, "--name", "lab-2"]);

    let ls = [
        "node",
        "ls",
        "-o",
        "json",
        "gpu.vram >= 40GB and tags has \"lab-a\"",
    ];
    let found = boss.eventually(&ls, |done| {
        json(&done.out).as_array().is_some_and(|a| a.len() == 1)
    });
    let node = &json(&found.out)[0];
    assert_eq!(
        (node["name"].as_str(), node["state"].as_str()),
        (Some("lab-2"), Some("online"))
    );
    assert_eq!(node["gpus"][0]["vram"], 80_000_000_000_u64);
    assert_eq!(boss.ok(&["node", "ls", "-q", "gpu.vram > 80GB"]), "");

    let id = node["node"].as_str().unwrap();
    for name in ["lab-2", id, &id[..8]] {
        assert!(boss.ok(&["node", "show", name]).contains(id), "{name}");
    }
    let missing = boss.fails(1, &["node", "show", "lab-3"]);
    assert_eq!(
        missing,
        "error[E203] there is no node `lab-3`. fix: meshwork node ls\n"
    );

    let again = Home::new().fails(3, &["join", &line]);
    assert!(
        again.starts_with("error[E306]"),
        "a ticket of one use: {again}"
    );
    let twice = lab.fails(1, &["join", &line]);
    assert!(
        twice.starts_with("error[E102] HOME has a node of this mesh already. fix: meshwork up"),
        "{twice}"
    );
}

#[test]
fn a_person_joins_from_afar_and_is_cut_off() {
    let (boss, _running) = mesh();
    let user = user(&boss, &[]);
    assert!(user.ok(&["node", "ls"]).contains("boss"));
    assert_eq!(json(&user.ok(&["ps", "-o", "json"])), serde_json::json!([]));
    let invite = user.fails(3, &["invite"]);
    assert!(
        invite.starts_with("error[E302]"),
        "only an admin invites: {invite}"
    );

    let token = fs::read_to_string(user.path().join("home/tokens/user.token")).unwrap();
    // A user without a node is told apart from nobody.
    let no_node = user.fails(1, &["up"]);
    assert!(
        no_node.starts_with("error[E101] nothing to run here: only a user joined"),
        "{no_node}"
    );
    assert_eq!(user.fails(1, &["up", "-d"]), no_node);
    assert!(!user.path().join("home/run").exists());
    let used = json(&user.ok(&["token", "use", token.trim(), "-o", "json"]));
    let revoked = json(&boss.ok(&["token", "revoke", token.trim(), "-o", "json"]));
    assert_eq!(
        revoked["token"].as_str(),
        Some(user.ok(&["token", "show", "-q", token.trim()]).trim()),
        "{used}"
    );
    let cut = user.fails(3, &["ps"]);
    assert!(cut.starts_with("error[E304]"), "{cut}");
}

#[test]
fn who_has_no_token_or_a_narrow_one_is_denied() {
    let (boss, _running) = mesh();
    let stranger = user(&boss, &[]);
    let token = stranger.path().join("home/tokens/user.token");
    fs::remove_file(&token).unwrap();
    for args in [&["ps"][..], &["node", "ls"], &["run", "x"], &["stop", "x"]] {
        let denied = stranger.fails(3, args);
        assert!(denied.starts_with("error[E301]"), "{args:?}: {denied}");
    }

    let id = json(&boss.ok(&["status", "-o", "json"]))["peers"].clone();
    assert!(id.is_array());
    let narrow = user(&boss, &[]);
    let key = narrow.ok(&[
        "token",
        "show",
        &narrow
            .path()
            .join("home/tokens/user.token")
            .display()
            .to_string(),
        "-o",
        "json",
    ]);
    let subject = json(&key)["links"]
        .as_array()
        .and_then(|l| l.last())
        .unwrap()["subject"]
        .clone();
    let subject = subject.as_str().unwrap();
    let issue = [
        "token",
        "issue",
        "--to",
        subject,
        "--scope",
        "call",
        "--resource",
        "manager/node.list",
    ];
    narrow.ok(&["token", "use", boss.ok(&issue).trim()]);
    narrow.ok(&["node", "ls"]);
    let denied = narrow.fails(3, &["ps"]);
    assert!(
        denied.starts_with("error[E302]") && denied.contains("manager/session.list"),
        "{denied}"
    );
}

#[test]
fn another_pre_shared_key_looks_like_silence_and_doctor_says_so() {
    let (boss, _running) = mesh();
    let user = user(&boss, &[]);
    let psk = user.path().join("home/psk");
    fs::write(&psk, "ab".repeat(32) + "\n").unwrap();
    let silent = user.fails(4, &["ps"]);
    assert!(silent.starts_with("error[E402]"), "{silent}");
    let doctor = user.run(&["doctor"]);
    assert!(
        doctor.code == 1 && doctor.out.contains("another pre-shared key"),
        "{doctor:?}"
    );
    let status = json(&boss.ok(&["status", "-o", "json"]));
    assert!(status["strangers"].as_u64().unwrap() > 0, "{status}");
}

#[test]
fn an_expired_ticket_is_told_from_an_unknown_one() {
    let (boss, _running) = mesh();
    let line = ticket(&boss, &["--ttl", "1s"]);
    let home = Home::new();
    let late = home.eventually(&["join", &line, "--no-up"], |done| {
        done.code != 0 || {
            // It joined in time: try the next one.
            fs::remove_dir_all(home.path().join("home")).unwrap();
            false
        }
    });
    assert!(late.code == 3, "{late:?}");
    assert!(
        late.err.starts_with("error[E303]") || late.err.starts_with("error[E306]"),
        "{late:?}"
    );
}

#[test]
fn what_cannot_be_placed_ends_with_2_and_a_bad_query_shows_where() {
    let (boss, _running) = mesh();
    let nowhere = boss.fails(2, &["run", "busybox"]);
    assert!(nowhere.starts_with("error[E201]"), "{nowhere}");
    insta::assert_snapshot!(boss.fails(1, &["node", "ls", "gpu.vram >= 40 apples"]), @r"
    error[E202] column 13: `40` has no unit: write 40GB or 40GiB
      gpu.vram >= 40 apples
                  ^^
    ");
    let unknown = boss.fails(1, &["logs", "nothing"]);
    assert!(unknown.starts_with("error[E203]"), "{unknown}");
}

#[test]
fn nodes_are_listed_by_scope() {
    let (boss, _running) = mesh();
    let line = ticket(&boss, &["--role", "relay"]);
    let lab = Home::new();
    fs::create_dir(lab.path().join("home")).unwrap();
    let tags = "tags = [\"lab-a\", \"scope:tenant:acme\", \"scope:region:eu\"]\n";
    fs::write(lab.path().join("home/config.toml"), tags).unwrap();
    let _relay = lab.start(&["join", &line, "--name", "lab-2"]);

    let ls = ["node", "ls", "-o", "json", "--scope", "tenant:other,acme"];
    let found = boss.eventually(&ls, |done| {
        json(&done.out).as_array().is_some_and(|a| a.len() == 2)
    });
    let found = json(&found.out);
    let names: Vec<_> = found.as_array().unwrap().iter().collect();
    assert_eq!(names[0]["scopes"], serde_json::json!([]));
    assert_eq!(names[1]["name"], "lab-2");
    assert_eq!(
        names[1]["scopes"],
        serde_json::json!(["scope:tenant:acme"]),
        "the strictest decides"
    );
    for (scope, count) in [
        ("any", 2),
        ("everything", 2),
        ("same-subnet", 2),
        ("own", 1),
        ("global-only", 1),
        ("region:eu", 1),
        ("tenant:other", 1),
    ] {
        let nodes = boss.ok(&["node", "ls", "-q", "--scope", scope]);
        assert_eq!(nodes.lines().count(), count, "{scope}: {nodes}");
    }
    let shown = boss.ok(&["node", "ls", "-q", "--scope", "any", "tags has \"lab-a\""]);
    assert_eq!(shown.lines().count(), 1);
    // Nobody has said what is free there.
    let free = ["node", "ls", "-q", "--scope", "any", "free.gpus >= 0"];
    assert_eq!(boss.ok(&free), "");

    let wrong = boss.fails(1, &["node", "ls", "--scope", "tenat:acme"]);
    assert!(
        wrong.starts_with("error[E202] --scope: column 1: `tenat` is no kind of scope"),
        "{wrong}"
    );
    assert!(
        wrong.contains("did you mean `tenant`?") && wrong.contains("^^^^^"),
        "{wrong}"
    );

    let anna = user(&boss, &[]);
    let all = anna.fails(3, &["node", "ls", "--scope", "everything"]);
    assert!(all.contains("needs a token with scope `admin`"), "{all}");
    assert!(all.contains("use the scope `any`"), "{all}");
    assert_eq!(
        anna.ok(&["node", "ls", "-q", "--scope", "any"])
            .lines()
            .count(),
        2
    );
}

#[test]
fn one_home_runs_one_node() {
    let (boss, running) = mesh();
    let second = boss.fails(1, &["up", "--listen", "127.0.0.1:0"]);
    assert_eq!(
        second,
        "error[E105] a node runs from HOME already. fix: meshwork down stops it; for a second one use another folder: --home DIR\n"
    );
    drop(running);
    let gone = boss.fails(4, &["ps"]);
    assert!(
        gone.starts_with("error[E405]"),
        "a node that ended leaves no address: {gone}"
    );
}

#[test]
fn names_from_afar_do_not_steer_the_terminal() {
    let (boss, _running) = mesh();
    let evil = Home::new();
    let line = ticket(&boss, &[]);
    fs::create_dir(evil.path().join("home")).unwrap();
    // A device's name is the driver's, so anything may stand in it.
    let mock = evil.path().join("gpus.toml");
    fs::write(&mock, "slot_name = \"cuda\"\n[[devices]]\nmother_uuid = \"a\"\nmodel_name = \"t\\u001b[2J\\u202eag\"\nmemory_size = \"80GB\"\n").unwrap();
    let config = format!("[agent]\nmock_accelerators = {mock:?}\n");
    fs::write(evil.path().join("home/config.toml"), config).unwrap();
    let _agent = evil.start(&["join", &line, "--name", "evil"]);
    let ls = boss.eventually(&["node", "ls", "-o", "wide"], |done| {
        done.out.contains("evil")
    });
    let show = boss.ok(&["node", "show", "evil"]);
    for text in [ls.out, show] {
        assert!(
            text.contains("t[2Jag") && !text.contains(['\u{1b}', '\u{202e}']),
            "{text:?}"
        );
    }
}

#[test]
fn a_node_leaves_its_folder_closed_to_others() {
    let (boss, _running) = mesh();
    for name in ["", "state", "manager", "run"] {
        let path = boss.path().join("home").join(name);
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o022, 0, "{} has mode {mode:o}", path.display());
    }
    assert_eq!(
        fs::metadata(boss.path().join("home"))
            .unwrap()
            .permissions()
            .mode()
            & 0o777,
        0o700
    );
}

#[test]
fn a_detached_node_is_ready_when_the_command_returns_and_drains_when_told() {
    let home = Home::new();
    let up = [
        "up",
        "--detach",
        "--role",
        "manager",
        "--listen",
        "127.0.0.1:0",
    ];
    let run = json(&home.ok(&[&up[..], &["-o", "json", "--name", "boss"]].concat()));
    let ls = json(&home.ok(&["node", "ls", "-o", "json"]));
    assert_eq!(ls[0]["node"], run["node"]);
    let again = home.fails(1, &up);
    assert!(again.starts_with("error[E105]"), "{again}");

    let process = run["pid"]
        .as_u64()
        .and_then(|pid| u32::try_from(pid).ok())
        .unwrap();
    signal("TERM", process);
    home.eventually(&["ps"], |done| done.err.starts_with("error[E405]"));
    assert!(
        !home.path().join("home/run/node.addr").exists(),
        "it ended in order"
    );
    let log = fs::read_to_string(home.path().join("home/run/node.log")).unwrap();
    assert!(log.contains("stopping; kernels go on"), "{log}");
}

#[test]
fn a_detached_node_that_cannot_start_says_why() {
    let (boss, _running) = mesh();
    let status = json(&boss.ok(&["status", "-o", "json"]));
    let taken = status["listening"][0].as_str().unwrap();
    let home = Home::new();
    let failed = home.fails(1, &["up", "--detach", "--listen", taken]);
    assert!(
        failed.starts_with("error[E108]") && failed.contains("Address already in use"),
        "{failed}"
    );
}
