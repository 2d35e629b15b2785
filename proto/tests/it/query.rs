//! The query language by example: what matches, how it prints, how it refuses.

use meshwork_proto::Announcement;
use meshwork_proto::announcement::{Disk, Role};
use meshwork_proto::query::{JsonFilter, MAX_DEPTH, MAX_TERMS, Query};

use crate::fixture::{body, gpu, identity};

const GB: u64 = 1_000_000_000;

/// One 24 GB card of AMD and one 80 GB card of NVIDIA.
fn mixed() -> Announcement {
    let mut small = gpu("Radeon Pro", 24 * GB);
    small.vendor = "amd".into();
    small.driver = "6.10.5".into();
    small.compute_capability = None;
    let mut node = body(1, vec![small, gpu("A100 80GB", 80 * GB)]);
    node.roles.insert(Role::Manager);
    node.subnet = Some("3.7.2".parse().unwrap());
    node.images = vec!["docker.io/library/pytorch:2".into()];
    node.hardware.disks = vec![Disk {
        purpose: "data".into(),
        total: 2000 * GB,
    }];
    node
}

fn matches(query: &str) -> bool {
    let query = Query::parse(query).unwrap_or_else(|e| panic!("{e}"));
    query.matches(&identity(1).node_id(), &mixed())
}

#[test]
fn queries_say_what_they_mean() {
    let id = identity(1).node_id().to_string();
    for (query, expected) in [
        ("", true),
        // The design's own example: the one GPU with 40 GB is NVIDIA's, but the region is eu.
        (
            r#"gpu.vram >= 40GB and gpu.vendor = "nvidia" and tags has "prod" and not region = "eu""#,
            false,
        ),
        (
            r#"gpu.vram >= 40GB and gpu.vendor = "nvidia" and tags has "prod""#,
            true,
        ),
        // One GPU satisfies all, whatever stands between, and through `or` and parentheses.
        ("gpu.vram >= 40GB and gpu.vendor = amd", false),
        (
            "gpu.vram >= 40GB and region = eu and gpu.vendor = amd",
            false,
        ),
        ("vram>=40GB,vendor=amd", false),
        (
            "gpu.vram >= 40GB and (gpu.vendor = amd or gpu.model ~ radeon)",
            false,
        ),
        (
            "gpu.vram >= 40GB and (gpu.vendor = amd or gpu.model ~ a100)",
            true,
        ),
        // An `or` with the node stands by itself.
        (
            "gpu.vram >= 40GB and (gpu.vendor = amd or region = us)",
            true,
        ),
        ("gpu[vram >= 40GB] and gpu[vendor = amd]", true),
        ("gpu[vram >= 40GB and model ~ \"A100\"]", true),
        ("gpu[gpu.vram >= 40GB, not model ~ a100]", false),
        // `not` outside brackets is about all GPUs, `!=` about some one.
        ("not gpu.vendor = amd", false),
        ("gpu.vendor != amd", true),
        ("not gpu.vendor = intel", true),
        ("gpu.vram >= 40GB and not gpu.vendor = amd", false),
        ("count(gpu) = 2", true),
        ("gpus >= 3", false),
        ("count(gpu[vram >= 40GB]) >= 2", false),
        ("count(gpu[vram >= 20GB]) >= 2", true),
        ("count(gpu[vendor = intel]) = 0", true),
        // Precedence: not, and, or, comma.
        ("region = us and name = lab-1 or arch = x86_64", true),
        ("region = us and (name = lab-1 or arch = x86_64)", false),
        ("arch = x86_64 or region = us, name = other", false),
        ("not region = us and name = lab-1", true),
        ("not (region = us or name = lab-1)", false),
        ("region=eu,driver>=550", true),
        // Versions.
        ("driver >= 550.54", true),
        ("driver = 550", true),
        ("driver > 550", false),
        ("gpu.driver < 550", true),
        ("cuda >= 12.3 and cuda < 12.10", true),
        ("rocm >= 0", false),
        ("rocm != 6", true),
        ("backend = Docker and backend.version >= 27", true),
        ("version < 1", true),
        ("gpu.cc >= 8", true),
        // What people chose is exact, what machines report is not; `~` never is.
        ("nat = Unknown and not nat = cone", true),
        ("region = EU", false),
        ("region ~ EU", true),
        ("arch = X86_64 and gpu.vendor = NVIDIA", true),
        ("os ~ debian", true),
        ("images ~ PyTorch and not images has pytorch", true),
        ("tags has Prod", false),
        ("tags in (a, prod)", true),
        ("region in (us, 'eu')", true),
        ("roles has manager and role has agent", true),
        ("roles has relay", false),
        ("subnet = 3.7", false),
        ("subnet ~ 3.7 and subnet ~ 3.7.2", true),
        ("subnet ~ 3.72", false),
        ("cores >= 64 and threads = 128", true),
        ("mem >= 512 GiB and mem < 513GiB", true),
        ("disk >= 2TB and disk.images >= 0B", false),
        ("gpu.mig = false and gpu.index = 0", true),
        ("NOT Region = us AND Tags HAS prod", true),
        (&format!("id = {id}"), true),
        (&format!("id ~ {}", &id[..10]), true),
        (r#"name = "lab\-1""#, true),
        ("name = 'a\"b'", false),
    ] {
        assert_eq!(matches(query), expected, "{query}");
    }
}

#[test]
fn queries_print_in_one_form() {
    for (written, printed) in [
        ("", ""),
        (
            " region=eu , driver>=550 ",
            r#"gpu[driver >= 550] and region = "eu""#,
        ),
        ("(((gpus>1)))", "count(gpu) > 1"),
        ("vram>=40 gib", "gpu[vram >= 40GiB]"),
        ("vram>=1.5TB", "gpu[vram >= 1500GB]"),
        ("not (name=b or os=d)", r#"not (name = "b" or os = "d")"#),
        (
            "name=a and (name=b and name=c)",
            r#"name = "a" and name = "b" and name = "c""#,
        ),
        ("not not tag has x", r#"not not tags has "x""#),
        (
            "name = a, name = b or name = c",
            r#"name = "a" and (name = "b" or name = "c")"#,
        ),
        (r#"name = 'q"\\'"#, r#"name = "q\"\\""#),
        (
            "gpu.vram >= 40GB and tags has a and (gpu.mig = yes or gpu.cc >= 9)",
            r#"gpu[vram >= 40GB and (mig = true or cc >= 9)] and tags has "a""#,
        ),
        ("count(gpu[vram>=40GB])>=2", "count(gpu[vram >= 40GB]) >= 2"),
        ("region in (a,'b c')", r#"region in ("a", "b c")"#),
    ] {
        let query = Query::parse(written).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(query.to_string(), printed, "{written}");
        assert_eq!(Query::parse(printed), Ok(query));
    }
}

#[test]
fn refusals_point_at_the_fault() {
    for (query, refusal) in [
        (
            "gpu.vrm >= 40GB",
            "column 1: there is no field `gpu.vrm`; did you mean `gpu.vram`?
  gpu.vrm >= 40GB
  ^^^^^^^",
        ),
        (
            "region = eu and vram >= 40",
            "column 25: `40` has no unit: write 40GB or 40GiB
  region = eu and vram >= 40
                          ^^",
        ),
        (
            "gpu[region = eu]",
            "column 5: `region` is a field of the node: write it outside `gpu[…]`
  gpu[region = eu]
      ^^^^^^",
        ),
        (
            "tags = prod",
            "column 6: `tags` cannot be compared with `=`: use `has`, `~`, `in`
  tags = prod
       ^",
        ),
        (
            "region < eu",
            "column 8: `region` cannot be compared with `<`: use `=`, `!=`, `~`, `in`
  region < eu
         ^",
        ),
        (
            "roles has agnt",
            "column 11: `agnt` is no role: use agent, manager, relay or storage
  roles has agnt
            ^^^^",
        ),
        (
            "region = eu west",
            "column 13: expected `and`, `or`, `,` or the end, found `west`
  region = eu west
              ^^^^",
        ),
        (
            "gpu[vram >= 40GB",
            "column 17: expected `]`, found the end
  gpu[vram >= 40GB
                  ^",
        ),
        (
            "name = \"lab",
            "column 8: this quote is not closed: a \" is missing
  name = \"lab
         ^",
        ),
        (
            "region",
            "column 7: expected an operator (`=`, `!=`, `<`, `<=`, `>`, `>=`, `~`, `has`, `in`), \
             found the end
  region
        ^",
        ),
        (
            "not",
            "column 4: expected a field, `not`, `(` or `gpu[`, found the end
  not
     ^",
        ),
        (
            "count(gpu) >= many",
            "column 15: `many` is no number of GPUs
  count(gpu) >= many
                ^^^^",
        ),
        (
            "!region = eu",
            "column 1: `!` stands before `=` only; the opposite of a condition is `not …`
  !region = eu
  ^",
        ),
        (
            "driver >= 550.x",
            "column 11: `550.x` is no version: write numbers with points, like 550.54
  driver >= 550.x
            ^^^^^",
        ),
        (
            "name ~ ''",
            "column 8: everything contains the empty text
  name ~ ''
         ^^",
        ),
        (
            "id = abc",
            "column 6: a node id has 52 characters, this text has 3; for a part of an id use `~`
  id = abc
       ^^^",
        ),
    ] {
        assert_eq!(
            Query::parse(query).unwrap_err().to_string(),
            refusal,
            "{query}"
        );
    }
}

#[test]
fn what_is_no_query_is_refused() {
    for text in [
        "and",
        "region = ",
        "region = eu and",
        "region = eu or or name = x",
        "()",
        "gpu[]",
        "gpu",
        "count(cpu) = 1",
        "count(gpu) ~ 1",
        "count(gpu) in (1)",
        "gpu[count(gpu) = 1]",
        "gpu[gpu[vram > 1GB]]",
        "region in ()",
        "region in eu",
        "region = eu,",
        ", region = eu",
        "region = eu)",
        "gpu.name = x",
        "price < 3",
        "mem > 1e3",
        "cores >= 4.5",
        "cores >= -1",
        "mig = maybe",
        "subnet = 256",
        "subnet = 1.2.3.4.5",
        "a\u{0}b = c",
        "driver >= 1.2.3.4.5.6.7.8.9",
    ] {
        assert!(Query::parse(text).is_err(), "{text}");
    }
}

#[test]
fn work_is_bounded() {
    let nested = |open: &str, close: &str, depth: usize| {
        format!("{}name = x{}", open.repeat(depth), close.repeat(depth))
    };
    for (open, close) in [("(", ")"), ("not ", ""), ("not (", ")")] {
        let per_level = open.matches(['n', '(']).count();
        let most = MAX_DEPTH / per_level;
        assert!(Query::parse(&nested(open, close, most)).is_ok(), "{open}");
        let error = Query::parse(&nested(open, close, most + 1)).unwrap_err();
        assert!(error.message().contains("levels deep"), "{error}");
    }
    // Far beyond the bound: still no deep recursion.
    assert!(Query::parse(&"(".repeat(4096)).is_err());
    assert!(Query::parse(&"not ".repeat(1000)).is_err());
    let terms = |n: usize| vec!["name = x"; n].join(" or ");
    assert!(Query::parse(&terms(MAX_TERMS)).is_ok());
    assert!(Query::parse(&terms(MAX_TERMS + 1)).is_err());
    let error = Query::parse(&" ".repeat(4097)).unwrap_err();
    assert!(error.message().contains("4096"), "{error}");
    assert!(Query::parse(&" ".repeat(4096)).unwrap().is_all());
}

#[test]
fn json_says_the_same() {
    let text = r"gpu.vram >= 40GB and gpu.vendor = nvidia and count(gpu[mig = false]) >= 2
        and (tags has prod or region in (eu, us)) and not cuda < 12.4 and gpus < 9";
    let json = r#"{"and": [
        {"field": "gpu.vram", "op": ">=", "value": "40GB"},
        {"field": "gpu.vendor", "op": "=", "value": "nvidia"},
        {"count": {"field": "mig", "op": "=", "value": false}, "op": ">=", "value": 2},
        {"or": [
            {"field": "tags", "op": "has", "value": "prod"},
            {"field": "region", "op": "in", "value": ["eu", "us"]}]},
        {"not": {"field": "cuda", "op": "<", "value": "12.4"}},
        {"field": "gpus", "op": "<", "value": 9}]}"#;
    let query = Query::parse(text).unwrap();
    assert_eq!(Query::from_json(json).unwrap(), query);
    assert_eq!(Query::try_from(&query.to_json()).unwrap(), query);
    assert_eq!(Query::from_json(r#"{"and": []}"#).unwrap(), Query::all());
    let filter: JsonFilter =
        serde_json::from_str(r#"{"gpu": {"field": "vram", "op": ">=", "value": "40GB"}}"#).unwrap();
    assert_eq!(Query::try_from(&filter), Query::parse("gpu[vram >= 40GB]"));
}

#[test]
fn json_refusals_name_the_path() {
    for (json, refusal) in [
        (
            r#"{"and": [{"field": "gpu.vrm", "op": ">=", "value": "40GB"}]}"#,
            "and[0].field: there is no field `gpu.vrm`; did you mean `gpu.vram`?",
        ),
        (
            r#"{"not": {"field": "vram", "op": ">=", "value": 40}}"#,
            "not.value: `40` has no unit: write 40GB or 40GiB",
        ),
        (
            r#"{"field": "cuda", "op": "=", "value": 12.10}"#,
            "value: a value is a string, a whole number or a boolean; versions are strings",
        ),
        (
            r#"{"field": "name", "op": "is", "value": "x"}"#,
            "op: there is no operator `is`",
        ),
        (r#"{"or": []}"#, "or: the list is empty"),
        (r#"{"not": {"and": []}}"#, "not.and: the list is empty"),
        (
            r#"{"gpu": {"field": "name", "op": "=", "value": "x"}}"#,
            "gpu.field: `name` is a field of the node: write it outside `gpu[…]`",
        ),
        (
            r#"{"gpu": {"count": {"field": "mig", "op": "=", "value": true}, "op": "=", "value": 1}}"#,
            "gpu.count: inside `gpu` and `count` only GPU fields are compared",
        ),
        (
            r#"{"field": "name", "op": "in", "value": "x"}"#,
            "value: `in` takes a list of values",
        ),
    ] {
        assert_eq!(
            Query::from_json(json).unwrap_err().to_string(),
            refusal,
            "{json}"
        );
    }
    for json in [
        "{}",
        "[]",
        r#"{"min_vram_mb": 40000}"#,
        r#"{"and": [], "or": []}"#,
        r#"{"field": "name", "op": "=", "value": "x", "extra": 1}"#,
        r#"{"field": "name", "value": "x"}"#,
        r#"{"count": {"field": "mig", "op": "=", "value": true}}"#,
        r#"{"field": "name", "op": "=", "value": null}"#,
    ] {
        assert!(Query::from_json(json).is_err(), "{json}");
    }
    let leaf = r#"{"field": "name", "op": "=", "value": "x"}"#;
    for (depth, fits) in [
        (MAX_DEPTH, true),
        (MAX_DEPTH + 1, false),
        (120, false),
        (300, false),
    ] {
        let json = format!("{}{leaf}{}", r#"{"not":"#.repeat(depth), "}".repeat(depth));
        assert_eq!(Query::from_json(&json).is_ok(), fits, "{depth}");
    }
}
