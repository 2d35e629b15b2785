//! Commands that need this machine's files only.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::Value;

use crate::support::Home;

fn id(home: &Home, what: &str) -> String {
    let made: Value = serde_json::from_str(&home.ok(&["init", "-o", "json"])).expect("JSON");
    made[what].as_str().expect("an id").to_owned()
}

#[test]
fn nothing_works_without_a_mesh_and_says_what_to_do() {
    let home = Home::new();
    let commands: [&[&str]; 5] = [
        &["ps"],
        &["run", "x"],
        &["invite"],
        &["status"],
        &["token", "revoke", "--node", OTHER],
    ];
    for args in commands {
        insta::allow_duplicates! {
            insta::assert_snapshot!(home.fails(1, args), @"error[E101] there is no mesh in HOME. fix: meshwork init, or meshwork join TICKET");
        }
    }
    assert!(!home.path().join("home").exists(), "looking makes nothing");
}

/// Some node.
const OTHER: &str = "cuz5zlwqlzuupsm6xjhvj2wkd6hf2eipkgmbj5ec4pa3qgbaurpq";

#[test]
fn init_makes_secrets_that_nobody_else_reads_and_never_a_second_mesh() {
    let home = Home::new();
    let text = home.ok(&["init", "--name", "attic"]);
    assert!(text.ends_with("next: meshwork up\n"), "{text}");
    for name in [
        "authority.key",
        "node.key",
        "user.key",
        "psk",
        "tokens/user.token",
    ] {
        let mode = fs::metadata(home.path().join("home").join(name))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    insta::assert_snapshot!(home.fails(1, &["init"]), @"error[E102] there is a mesh in HOME already. fix: use another folder: --home DIR");
}

#[test]
fn an_interrupted_init_is_finished_by_the_next() {
    let home = Home::new();
    home.ok(&["init"]);
    let folder = home.path().join("home");
    let before = fs::read(folder.join("authority.key")).unwrap();
    fs::remove_file(folder.join("mesh.toml")).unwrap();
    fs::remove_file(folder.join("tokens/node.token")).unwrap();
    home.ok(&["init"]);
    assert_eq!(fs::read(folder.join("authority.key")).unwrap(), before);
    assert!(folder.join("tokens/node.token").exists());
}

#[test]
fn tokens_are_issued_shown_verified_and_narrowed() {
    let home = Home::new();
    let user = id(&home, "user");
    let issue = [
        "token",
        "issue",
        "--to",
        OTHER,
        "--resource",
        "agent/*",
        "--ttl",
        "8h",
        "--gpus",
        "2",
        "--tag",
        "lab-a",
    ];
    let token = home.ok(&issue);
    let token = token.trim();
    assert!(token.starts_with("mwt1"));

    let shown: Value =
        serde_json::from_str(&home.ok(&["token", "show", token, "-o", "json"])).unwrap();
    let links = shown["links"].as_array().unwrap();
    assert_eq!(links.len(), 2, "the user's own, and the one passed on");
    assert_eq!(
        (links[1]["issuer"].as_str(), links[1]["subject"].as_str()),
        (Some(&*user), Some(OTHER))
    );
    assert_eq!(
        links[1]["limits"],
        serde_json::json!(["2 GPUs", "nodes tagged lab-a"])
    );
    assert!(
        home.ok(&["token", "verify", token])
            .contains("call on agent/*")
    );

    let file = home.path().join("token");
    fs::write(&file, token).unwrap();
    assert!(
        home.ok(&["token", "show", file.to_str().unwrap()])
            .contains(OTHER)
    );

    insta::assert_snapshot!(
        home.fails(3, &["token", "verify", &token.replace("mwt1a", "mwt1b")]),
        @"error[E305] the token is malformed: its text was mistyped or cut off."
    );
    let other = Home::new();
    other.ok(&["init"]);
    let foreign = other.fails(3, &["token", "verify", token]);
    assert!(
        foreign.contains("E305") && foreign.contains("not this mesh's authority"),
        "{foreign}"
    );
    let used = home.fails(3, &["token", "use", token]);
    assert!(
        used.contains("E305"),
        "someone else's token is not taken: {used}"
    );
}

#[test]
fn a_token_for_no_time_or_beyond_ones_own_is_refused() {
    let home = Home::new();
    home.ok(&["init"]);
    insta::assert_snapshot!(
        home.fails(3, &["token", "issue", "--to", OTHER, "--ttl", "0s"]),
        @"error[E305] a token must be valid for some time; give a lifetime above zero."
    );
    insta::assert_snapshot!(
        home.fails(3, &["token", "issue", "--to", OTHER, "--ttl", "9000d"]),
        @"error[E305] a delegated token cannot start before or outlive its parent."
    );
}

#[test]
fn a_key_that_others_can_read_is_refused() {
    let home = Home::new();
    home.ok(&["init"]);
    let key = home.path().join("home/user.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let error = home.fails(1, &["token", "issue", "--to", OTHER]);
    assert!(
        error.contains("error[E104]") && error.contains("chmod 600 HOME/user.key"),
        "{error}"
    );
}

#[test]
fn bad_tickets_are_told_apart() {
    let home = Home::new();
    insta::assert_snapshot!(home.fails(3, &["join", "hello"]), @"error[E306] this is not a ticket: tickets begin with `mw1`.");
    insta::assert_snapshot!(home.fails(3, &["join", "mw9aaaa"]), @"error[E306] this ticket has a version that this program does not know; update meshwork, or ask for a new ticket.");
    insta::assert_snapshot!(home.fails(3, &["join", "mw1aaaaaaaaaaaaaaaa"]), @"error[E306] the ticket was mistyped or cut off: its checksum does not match; copy the whole line.");
    assert!(!home.path().join("home").exists());
}

#[test]
fn without_a_running_node_there_is_nobody_to_call() {
    let home = Home::new();
    home.ok(&["init"]);
    insta::assert_snapshot!(
        home.fails(4, &["node", "ls"]),
        @"error[E405] no node of the mesh runs here and none elsewhere is known. fix: meshwork up, or --server NODE-ID@HOST:PORT"
    );
    insta::assert_snapshot!(
        home.fails(1, &["ps", "--server", "127.0.0.1:1"]),
        @"error[E106] --server 127.0.0.1:1: no known node has this address. fix: write NODE-ID@HOST:PORT"
    );
}

#[test]
fn a_wrong_setting_is_named_with_its_line() {
    let home = Home::new();
    home.ok(&["init"]);
    fs::write(
        home.path().join("home/config.toml"),
        "listen = \"[::]:4460\"\nlisten_on = 1\n",
    )
    .unwrap();
    let error = home.fails(1, &["up"]);
    assert!(
        error.contains("error[E103] HOME/config.toml") && error.contains("line 2"),
        "{error}"
    );
}

#[test]
fn output_forms() {
    let home = Home::new();
    let authority = home.ok(&["init", "--quiet"]);
    assert_eq!(authority.trim().len(), OTHER.len());
    let yaml = home.ok(&["token", "issue", "--to", OTHER, "-o", "yaml"]);
    assert!(
        yaml.starts_with("id: \"") && yaml.contains("\ntoken: \"mwt1"),
        "{yaml}"
    );
    let done = home.command(&["doctor", "-o", "json"]).output().unwrap();
    let findings: Value = serde_json::from_slice(&done.stdout).unwrap();
    let mesh = findings
        .as_array()
        .unwrap()
        .iter()
        .find(|f| f["check"] == "mesh")
        .unwrap();
    assert_eq!(mesh["health"], "failed");
    assert_eq!(done.status.code(), Some(1));
}

#[test]
fn memory_without_a_unit_is_refused() {
    let home = Home::new();
    home.ok(&["init"]);
    let commands: [&[&str]; 5] = [
        &["run", "--mem", "4096", "x"],
        &["run", "--shm", "64", "x"],
        &["run", "--gpu", "40..80", "x"],
        &["invite", "--mem", "2"],
        &["token", "issue", "--to", OTHER, "--mem", "2"],
    ];
    for args in commands {
        let error = home.fails(1, args);
        assert!(
            error.contains("error[E100]") && error.contains("write a unit: 40GB"),
            "{args:?}: {error}"
        );
    }
}

#[test]
fn settings_that_cannot_work_are_refused_once() {
    let home = Home::new();
    home.ok(&["init"]);
    for (setting, says) in [
        ("mock_accelerators = \"/nowhere.toml\"", "/nowhere.toml"),
        (
            "reserved_cpus = 100000",
            "reserved_cpus = 100000 leaves none",
        ),
    ] {
        let text = format!("listen = \"127.0.0.1:0\"\n[agent]\n{setting}\n");
        fs::write(home.path().join("home/config.toml"), text).unwrap();
        let error = home.fails(1, &["up"]);
        assert!(
            error.starts_with("error[E103] HOME/config.toml: ")
                && error.contains(says)
                && error.contains(". fix: "),
            "{error}"
        );
        assert_eq!(error.lines().count(), 1, "{error}");
        assert_eq!(home.fails(1, &["up", "-d"]), error, "the same from afar");
    }
}

#[test]
fn a_detached_node_is_told_of_and_stopped() {
    let home = Home::new();
    assert!(home.fails(1, &["down"]).starts_with("error[E101]"));
    let user = id(&home, "user");
    assert_eq!(home.ok(&["whoami", "-q"]).trim(), user);
    let me: Value = serde_json::from_str(&home.ok(&["whoami", "-o", "json"])).unwrap();
    assert_eq!(me["user"]["id"].as_str(), Some(&*user));
    assert_eq!(me["roles"], serde_json::json!([]), "not decided yet");
    assert!(me["node"]["expires"].is_string(), "{me}");

    let up = ["up", "-d", "--role", "manager", "--listen", "127.0.0.1:0"];
    home.ok(&up);
    let mode = fs::metadata(home.path().join("home/run")).unwrap();
    assert_eq!(mode.permissions().mode() & 0o777, 0o700);
    assert!(home.ok(&["whoami"]).contains("  roles  manager"));
    assert!(home.fails(1, &up).starts_with("error[E105]"));
    assert!(home.ok(&["down"]).contains("ended"));
    assert!(!home.path().join("home/run/node.addr").exists());
    assert!(home.ok(&["down"]).contains("no node runs here"));
}

#[test]
fn a_token_says_exactly_what_it_limits_and_how_deep_it_goes() {
    let home = Home::new();
    home.ok(&["init"]);
    let issue = ["token", "issue", "--to", OTHER];
    let limits = [
        "--gpus",
        "1",
        "--cpu",
        "1.5",
        "--mem",
        "2GiB",
        "--kernels",
        "1",
    ];
    let token = home.ok(&[&issue[..], &limits].concat());
    let shown: Value =
        serde_json::from_str(&home.ok(&["token", "show", token.trim(), "-o", "json"])).unwrap();
    assert_eq!(
        shown["links"][1]["limits"],
        serde_json::json!(["1 GPU", "1.5 cpu", "2GiB memory", "1 kernel"])
    );
    insta::assert_snapshot!(
        home.fails(3, &[&issue[..], &["--depth", "3"]].concat()),
        @"error[E305] your token may be passed on 3 more times, so --depth 3 is too deep. fix: --depth 2 or less"
    );
}
