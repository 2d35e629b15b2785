//! Random announcements and random queries over the same few words, so that they often meet.

use std::collections::BTreeSet;

use meshwork_proto::announcement::{Disk, Gpu, Hardware, Role, Software, Subnet};
use meshwork_proto::path::NatClass;
use meshwork_proto::{Announcement, Availability};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use crate::fixture::{NOW, TTL};

const WORDS: [&str; 6] = ["eu", "us", "EU", "lab-a", "docker", "x"];
const TAGS: [&str; 6] = [
    "prod",
    "lab-a",
    "scope:subnet-local",
    "scope:tenant:acme",
    "scope:region:eu",
    "scope:odd",
];
const SIZES: [u64; 4] = [24_000_000_000, 40_000_000_000, 40 << 30, 80_000_000_000];
const VERSIONS: [&str; 6] = [
    "550.54.14",
    "535.10",
    "amdgpu",
    "12.4",
    "12",
    "6.8.0-45-generic",
];
const VENDORS: [&str; 3] = ["nvidia", "NVIDIA", "AMD"];
const MODELS: [&str; 3] = ["A100 80GB", "H100", "rtx \"4090\""];
const SUBNETS: [&str; 4] = ["3", "3.7", "3.7.2", "4"];

fn word() -> impl Strategy<Value = String> {
    select(&WORDS[..]).prop_map(String::from)
}

fn set(words: &'static [&'static str]) -> impl Strategy<Value = BTreeSet<String>> {
    subsequence(words, 0..=3).prop_map(|words| words.into_iter().map(String::from).collect())
}

fn gpu() -> impl Strategy<Value = Gpu> {
    let text = (
        select(&VENDORS[..]),
        select(&MODELS[..]),
        select(&VERSIONS[..]),
    );
    let rest = (
        select(&SIZES[..]),
        proptest::option::of((8u8..10, 0u8..2)),
        any::<bool>(),
    );
    (text, rest, 0u32..3).prop_map(|((vendor, model, driver), (vram, cc, mig), index)| Gpu {
        index,
        vendor: vendor.into(),
        model: model.into(),
        vram,
        compute_capability: cc,
        driver: driver.into(),
        uuid: format!("GPU-{index}"),
        mig,
        numa: None,
    })
}

/// Often alike but for index and UUID, as in real machines; sometimes none.
fn gpus() -> impl Strategy<Value = Vec<Gpu>> {
    let number = |gpus: Vec<Gpu>| -> Vec<Gpu> {
        let numbered = (0u32..).zip(gpus).map(|(index, gpu)| Gpu {
            index,
            uuid: format!("GPU-{index}"),
            ..gpu
        });
        numbered.collect()
    };
    prop_oneof![
        (gpu(), 0usize..4).prop_map(move |(gpu, count)| number(vec![gpu; count])),
        proptest::collection::vec(gpu(), 0..4),
    ]
}

fn hardware() -> impl Strategy<Value = Hardware> {
    (word(), 0u32..4, select(&SIZES[..]), gpus(), any::<bool>()).prop_map(
        |(arch, cores, memory, gpus, disk)| Hardware {
            cpu_model: format!("{arch} cpu"),
            arch,
            cpu_threads: cores * 2,
            cpu_cores: cores,
            memory,
            numa_nodes: 1,
            disks: disk
                .then(|| Disk {
                    purpose: "data".into(),
                    total: memory,
                })
                .into_iter()
                .collect(),
            gpus,
        },
    )
}

fn software() -> impl Strategy<Value = Software> {
    let version = || proptest::option::of(select(&VERSIONS[..]).prop_map(String::from));
    (word(), version(), version(), version()).prop_map(|(os, cuda, rocm, backend)| Software {
        os,
        kernel: "6.8.0-45-generic".into(),
        container_backend: backend.map(|version| format!("docker {version}")),
        cuda,
        rocm,
        meshwork: "0.1.0".into(),
    })
}

/// An announcement that holds at [`NOW`].
pub(crate) fn announcement() -> impl Strategy<Value = Announcement> {
    let roles = subsequence(Role::ALL.to_vec(), 0..=4);
    let subnet = proptest::option::of(select(&SUBNETS[..]));
    let region = proptest::option::of(word());
    let places = (word(), subnet, region, roles);
    (
        places,
        hardware(),
        software(),
        set(&TAGS),
        set(&WORDS),
        set(&WORDS),
    )
        .prop_map(
            |((name, subnet, region, roles), hardware, software, tags, images, services)| {
                Announcement {
                    version: 1,
                    issued_at: NOW,
                    ttl: TTL,
                    name,
                    roles: roles.into_iter().collect(),
                    addresses: Vec::new(),
                    relays: Vec::new(),
                    nat: NatClass::Unknown,
                    tools: services.clone(),
                    services,
                    hardware,
                    software,
                    models: images.clone(),
                    images: images.into_iter().collect(),
                    tags,
                    subnet: subnet.map(|s| s.parse::<Subnet>().unwrap()),
                    region,
                }
            },
        )
}

/// What a node has free; often of some GPUs only, of more than there are, or of none.
pub(crate) fn availability() -> impl Strategy<Value = Availability> {
    let cpu = select(&[0u64, 999, 1000, 1500, 2000, 64_000, 64_001][..]);
    let mem = prop_oneof![select(&SIZES[..]), any::<u64>(), Just(0)];
    let used = select(&[0u64, 1, 16_000_000_000, 40_000_000_000, 40 << 30, u64::MAX][..]);
    let vram_used = proptest::collection::vec(used, 0..4);
    let slots = (
        proptest::option::of(cpu),
        proptest::option::of(mem),
        proptest::option::of((select(&["gpu", "cuda.device"][..]), 0u64..4)),
    );
    (slots, vram_used, any::<bool>()).prop_map(|((cpu, mem, gpu), vram_used, healthy)| {
        let amounts = [("cpu", cpu), ("mem", mem)];
        let amounts = amounts.into_iter().filter_map(|(slot, n)| Some((slot, n?)));
        let free = amounts.chain(gpu).map(|(slot, n)| (slot.to_owned(), n));
        Availability {
            free: free.collect(),
            vram_used,
            healthy,
        }
    })
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

fn test(
    fields: &'static [&'static str],
    ops: &'static [&'static str],
    values: Vec<String>,
) -> impl Strategy<Value = String> {
    (
        select(fields),
        select(ops),
        select(values.clone()),
        select(values),
    )
        .prop_map(|(field, op, a, b)| match op {
            "in" => format!("{field} in ({a}, {b})"),
            op => format!("{field} {op} {a}"),
        })
}

const ORDERED: [&str; 7] = ["=", "!=", "<", "<=", ">", ">=", "in"];

fn numbers() -> Vec<String> {
    ["0", "1", "2", "3"].map(String::from).into()
}

fn sizes() -> Vec<String> {
    ["24GB", "40 GB", "40GiB", "80GB", "0"]
        .map(String::from)
        .into()
}

fn versions() -> Vec<String> {
    ["550", "550.54.14", "12.4", "12", "13", "6.8", "0"]
        .map(String::from)
        .into()
}

fn words() -> Vec<String> {
    WORDS.iter().chain(&TAGS).map(|word| quoted(word)).collect()
}

/// One test of a node's field, in text.
fn node_test() -> impl Strategy<Value = String> {
    const TEXTS: [&str; 7] = [
        "name",
        "region",
        "arch",
        "os",
        "backend",
        "cpu.model",
        "kernel",
    ];
    const SETS: [&str; 5] = ["tags", "images", "models", "tools", "services"];
    let subnets = SUBNETS.map(String::from).to_vec();
    let roles = Role::ALL.map(|role| role.to_string()).to_vec();
    prop_oneof![
        test(&TEXTS, &["=", "!=", "~", "in"], words()),
        test(&SETS, &["has", "~", "in"], words()),
        test(&["cpu.cores", "cpu.threads"], &ORDERED, numbers()),
        test(&["mem", "disk.data", "disk.images"], &ORDERED, sizes()),
        test(
            &["cuda", "rocm", "version", "backend.version"],
            &ORDERED,
            versions()
        ),
        test(&["subnet"], &["=", "!=", "~", "in"], subnets),
        test(&["roles"], &["has", "in"], roles),
    ]
}

/// One test of what a node has free, in text.
fn free_test() -> impl Strategy<Value = String> {
    let threads = ["0", "1", "1.5", "2", "64"].map(String::from).to_vec();
    prop_oneof![
        test(&["free.cpu"], &ORDERED, threads),
        test(&["free.mem"], &ORDERED, sizes()),
        test(&["free.gpus"], &ORDERED, numbers()),
        test(
            &["healthy"],
            &["=", "!="],
            vec!["true".into(), "false".into()]
        ),
    ]
}

/// One test of a GPU's field, in text.
fn gpu_test() -> impl Strategy<Value = String> {
    let texts = VENDORS
        .iter()
        .chain(&MODELS)
        .map(|text| quoted(text))
        .collect();
    prop_oneof![
        test(&["vram"], &ORDERED, sizes()),
        test(&["free"], &ORDERED, sizes()),
        test(&["vendor", "model"], &["=", "!=", "~", "in"], texts),
        test(&["driver", "cc"], &ORDERED, versions()),
        test(&["mig"], &["=", "!="], vec!["true".into(), "false".into()]),
        test(&["index"], &ORDERED, numbers()),
        test(
            &["uuid"],
            &["=", "!=", "~"],
            vec!["GPU-0".into(), "GPU-1".into()]
        ),
    ]
}

fn combined(leaf: BoxedStrategy<String>) -> BoxedStrategy<String> {
    leaf.prop_recursive(3, 12, 3, |inner| {
        let some = || proptest::collection::vec(inner.clone(), 1..4);
        prop_oneof![
            some().prop_map(|items| items.join(" and ")),
            some().prop_map(|items| format!("({})", items.join(" or "))),
            some().prop_map(|items| format!("({})", items.join(", "))),
            inner.clone().prop_map(|item| format!("not ({item})")),
        ]
    })
    .boxed()
}

/// A well-formed query, in text.
pub(crate) fn query() -> BoxedStrategy<String> {
    let gpu_tree = || combined(gpu_test().boxed());
    let bare = gpu_test().prop_map(|test| format!("gpu.{test}"));
    let counted = (gpu_tree(), select(&ORDERED[..6]), 0u32..4);
    let leaf = prop_oneof![
        4 => node_test(),
        2 => free_test(),
        3 => bare,
        2 => gpu_tree().prop_map(|tree| format!("gpu[{tree}]")),
        2 => counted.prop_map(|(tree, op, n)| format!("count(gpu[{tree}]) {op} {n}")),
        1 => (select(&ORDERED[..6]), 0u32..4).prop_map(|(op, n)| format!("count(gpu) {op} {n}")),
    ];
    combined(leaf.boxed())
}
