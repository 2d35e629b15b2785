//! Golden encodings and the golden table of methods: an encoding that changes by accident fails
//! here. `BLESS=1 cargo test -p meshwork-proto` writes them anew; a changed line means that old
//! and new nodes do not understand each other.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use bytes::{Bytes, BytesMut};
use data_encoding::HEXLOWER;
use meshwork_proto::rpc::lane::{Declare, LaneCall, ToCallee, ToCaller};
use meshwork_proto::rpc::{Codec, RpcError, TraceContext};
use meshwork_proto::service::MethodInfo;
use meshwork_proto::{agent, manager, mesh};

use crate::samples;

fn methods() -> impl Iterator<Item = &'static MethodInfo> {
    [mesh::METHODS, agent::METHODS, manager::METHODS]
        .into_iter()
        .flatten()
}

/// Compares with the file, or writes it when blessing.
fn golden(file: &str, actual: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("vectors")
        .join(file);
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, actual).unwrap();
        return;
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    for (expected, actual) in expected.lines().zip(actual.lines()) {
        assert_eq!(expected, actual, "{file} changed; BLESS=1 if that is meant");
    }
    assert_eq!(
        expected.lines().count(),
        actual.lines().count(),
        "lines of {file}"
    );
}

#[test]
fn encodings_have_not_changed() {
    let mut files: BTreeSet<&str> = BTreeSet::new();
    let samples = samples::all();
    files.extend(samples.iter().map(|sample| sample.file));
    for file in files {
        let mut text = String::new();
        for sample in samples.iter().filter(|sample| sample.file == file) {
            let hex = HEXLOWER.encode(&sample.bytes);
            writeln!(text, "{}: {hex}", sample.name).unwrap();
        }
        golden(&format!("{file}.hex"), &text);
    }
}

#[test]
fn frames_of_lanes_have_not_changed() {
    let call = LaneCall {
        id: 300,
        method: 2,
        deadline_ms: Some(10_000),
        idempotency_key: Some([9; 16]),
        trace: Some(TraceContext {
            trace_id: [1; 16],
            span_id: [2; 8],
            flags: 1,
        }),
    };
    let bare = LaneCall {
        deadline_ms: None,
        idempotency_key: None,
        trace: None,
        ..call
    };
    let declare = Declare {
        index: 2,
        codec: Codec::Json,
        service: "agent".into(),
        method: "kernel.list".into(),
    };
    let body = Bytes::from_static(b"body");
    let error = RpcError::denied("the token expired").reason("token_expired");
    let mut text = String::new();
    for (name, frame) in [
        ("Declare", ToCallee::Declare(declare)),
        ("Call", ToCallee::Call(call, body.clone())),
        ("Call bare", ToCallee::Call(bare, body.clone())),
        ("Cancel", ToCallee::Cancel(300)),
        ("Settled", ToCallee::Settled(1 << 40)),
    ] {
        let mut out = BytesMut::new();
        frame.put(&mut out);
        writeln!(text, "ToCallee::{name}: {}", HEXLOWER.encode(&out)).unwrap();
    }
    for (name, frame) in [
        ("Item", ToCaller::Item(300, body)),
        ("Failed", ToCaller::Failed(300, error)),
        ("NotServed", ToCaller::NotServed(300)),
        ("Settle", ToCaller::Settle(1 << 40)),
    ] {
        let mut out = BytesMut::new();
        frame.put(&mut out);
        writeln!(text, "ToCaller::{name}: {}", HEXLOWER.encode(&out)).unwrap();
    }
    golden("lane.hex", &text);
}

#[test]
fn every_method_has_vectors() {
    let names: BTreeSet<String> = samples::all().into_iter().map(|s| s.name).collect();
    for method in methods() {
        for part in ["request", "response 0"] {
            let name = format!("{} {part}", method.path());
            assert!(names.contains(&name), "no vector of {name}");
        }
    }
}

#[test]
fn methods_have_not_changed() {
    let mut table = String::from("# service/method kind access idempotent\n");
    for method in methods() {
        let (path, repeat) = (
            method.path(),
            if method.idempotent {
                "idempotent"
            } else {
                "once"
            },
        );
        writeln!(
            table,
            "{path} {:?} {:?} {repeat}",
            method.kind, method.access
        )
        .unwrap();
    }
    golden("methods.txt", &table);
    let paths: BTreeSet<String> = methods().map(MethodInfo::path).collect();
    assert_eq!(paths.len(), methods().count(), "two methods share a path");
}

#[test]
fn values_survive_both_codecs() {
    for sample in samples::all() {
        assert_eq!(
            (sample.reread)(&sample.bytes).as_ref(),
            Ok(&sample.bytes),
            "{}",
            sample.name
        );
        assert_eq!(
            (sample.through_json)(&sample.bytes),
            sample.bytes,
            "{}",
            sample.name
        );
    }
}
