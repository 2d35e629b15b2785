//! Calls from a shell: `meshwork rpc`.

use serde_json::Value;

use crate::support::Home;

#[test]
fn methods_are_listed_and_called_with_json() {
    let boss = Home::new();
    let _running = boss.start(&["up", "--role", "manager", "--name", "boss"]);
    let methods = boss.ok(&["rpc", "ls", "-o", "json"]);
    let methods: Value = serde_json::from_str(&methods).expect("JSON");
    let find = |service: &str, method: &str| {
        let mut all = methods.as_array().expect("a list").iter();
        all.find(|m| m["service"] == service && m["method"] == method)
            .unwrap_or_else(|| panic!("{service}/{method}: {methods}"))
    };
    assert_eq!(find("mesh", "ping")["access"], "open");
    assert_eq!(find("manager", "session.logs")["kind"], "ServerStream");
    let table = boss.ok(&["rpc", "ls", "."]);
    for word in ["METHOD", "KIND", "mesh/ping", "server stream", "yes"] {
        assert!(table.contains(word), "{word}: {table}");
    }

    let pong = boss.ok(&["rpc", "call", ".", "mesh/ping"]);
    let pong: Value = serde_json::from_str(&pong).expect("JSON");
    assert!(pong["version"].is_string(), "{pong}");
    // By its name, once it is known to itself.
    let nodes = [
        "rpc",
        "call",
        "boss",
        "manager/node.list",
        "--json",
        r#"{"query": null}"#,
    ];
    let nodes = boss.eventually(&nodes, |done| done.code == 0 && done.out.contains("boss"));
    assert!(nodes.out.contains("\"name\": \"boss\""), "{nodes:?}");
    let any = [
        "rpc",
        "call",
        "any",
        "manager/node.list",
        "--json",
        r#"{"query": null}"#,
    ];
    assert!(boss.ok(&any).contains("boss"));
}

#[test]
fn what_cannot_be_called_is_named() {
    let boss = Home::new();
    let _running = boss.start(&["up", "--role", "manager", "--name", "boss"]);
    for (args, code, words) in [
        (&["ping"][..], "E106", "SERVICE/METHOD"),
        (&["mesh/nothing"], "E203", "mesh/nothing"),
        (&["mesh/ping", "--json", "{"], "E106", "no JSON"),
        (
            &["mesh/ping", "--json", "1", "--json", "2"],
            "E106",
            "one request",
        ),
        (&["mesh/find", "--json", "17"], "E210", "does not decode"),
    ] {
        let error = boss.fails(1, &[&["rpc", "call", "."], args].concat());
        assert!(
            error.contains(code) && error.contains(words),
            "{args:?}: {error}"
        );
    }
    let error = boss.fails(1, &["rpc", "call", "nobody", "mesh/ping"]);
    assert!(error.contains("E203"), "{error}");
    let error = boss.fails(1, &["rpc", "call", "any", "nothing/here"]);
    assert!(error.contains("nothing"), "{error}");
}
