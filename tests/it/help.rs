//! Golden texts of every command's help: what users see changes on purpose only.

use crate::support::Home;

#[test]
fn help_of_every_command() {
    let home = Home::new();
    let commands: &[&[&str]] = &[
        &[],
        &["init"],
        &["up"],
        &["down"],
        &["invite"],
        &["join"],
        &["node"],
        &["node", "ls"],
        &["node", "show"],
        &["peer"],
        &["peer", "ls"],
        &["mesh"],
        &["mesh", "map"],
        &["mesh", "rotate-psk"],
        &["rpc"],
        &["rpc", "ls"],
        &["rpc", "call"],
        &["run"],
        &["ps"],
        &["logs"],
        &["exec"],
        &["stop"],
        &["rm"],
        &["status"],
        &["doctor"],
        &["whoami"],
        &["token"],
        &["token", "issue"],
        &["token", "show"],
        &["token", "verify"],
        &["token", "use"],
        &["token", "revoke"],
        &["bus"],
        &["bus", "bench"],
        &["log"],
        &["log", "append"],
        &["log", "tail"],
        &["log", "info"],
        &["log", "verify"],
        &["demo"],
    ];
    for command in commands {
        let text = home.ok(&[command, &["--help"][..]].concat());
        let name = if command.is_empty() {
            "help".to_owned()
        } else {
            format!("help_{}", command.join("_"))
        };
        insta::assert_snapshot!(name, text);
    }
}

#[test]
fn every_command_of_the_help_is_in_the_golden_list() {
    let text = Home::new().ok(&["--help"]);
    let listed = text
        .lines()
        .skip_while(|l| *l != "Commands:")
        .skip(1)
        .take_while(|l| !l.is_empty());
    let names: Vec<&str> = listed.filter_map(|l| l.split_whitespace().next()).collect();
    assert_eq!(
        names,
        [
            "init", "up", "down", "invite", "join", "node", "peer", "mesh", "rpc", "run", "ps",
            "logs", "exec", "stop", "rm", "status", "doctor", "whoami", "token", "bus", "log",
            "demo", "help"
        ]
    );
}

#[test]
fn mistyped_lines_are_errors_not_refused_placements() {
    let home = Home::new();
    for args in [
        &["rum"][..],
        &["run"],
        &["run", "--gpu", "0", "x"],
        &["ps", "--bogus"],
        &["-o", "xml", "ps"],
        &[],
    ] {
        let done = home.run(args);
        assert_eq!((done.code, done.out.as_str()), (1, ""), "{args:?}");
        assert!(done.err.starts_with("error[E100] "), "{args:?}: {done:?}");
    }
}
