//! One value of every wire type, with every variant of every enum, the same in each run.

mod agent;
mod facts;
mod manager;
mod mesh;
mod orders;

use std::collections::BTreeSet;

use meshwork_proto::announcement::{Announcement, Disk, Role, SignedAnnouncement};
use meshwork_proto::codec::{DecodeError, decode, encode};
use meshwork_proto::path::NatClass;
use meshwork_proto::rpc::{Codec, Kind, RequestHeader, RpcError, Status, TraceContext};
use meshwork_proto::service::Method;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::fixture::{Mesh, body, gpu, identity};

/// Largest encoding that the tests read.
pub(crate) const MAX: usize = 64 * 1024;

/// A value in its encoding, and how to read it.
pub(crate) struct Sample {
    /// Vector file.
    pub(crate) file: &'static str,
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
    /// Reads an encoding of the type and writes it again.
    pub(crate) reread: fn(&[u8]) -> Result<Vec<u8>, DecodeError>,
    /// Through JSON and back to postcard.
    pub(crate) through_json: fn(&[u8]) -> Vec<u8>,
}

fn sample<T: Serialize + DeserializeOwned>(
    file: &'static str,
    name: impl Into<String>,
    value: &T,
) -> Sample {
    Sample {
        file,
        name: name.into(),
        bytes: encode(value),
        reread: |bytes| decode::<T>(bytes, MAX).map(|value| encode(&value)),
        through_json: |bytes| {
            let json = serde_json::to_vec(&decode::<T>(bytes, MAX).unwrap()).unwrap();
            encode(&serde_json::from_slice::<T>(&json).unwrap())
        },
    }
}

/// Request and response of one method. A vector per response: enums have many.
fn method<M: Method>(request: &M::Request, responses: &[M::Response]) -> Vec<Sample> {
    let path = M::INFO.path();
    let mut samples = vec![sample(M::INFO.service, format!("{path} request"), request)];
    for (i, response) in responses.iter().enumerate() {
        samples.push(sample(
            M::INFO.service,
            format!("{path} response {i}"),
            response,
        ));
    }
    samples
}

/// Every sample.
pub(crate) fn all() -> Vec<Sample> {
    [
        rpc(),
        announcements(),
        facts::facts(),
        orders::orders(),
        mesh::mesh_service(),
        agent::agent_service(),
        manager::manager_service(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn rpc() -> Vec<Sample> {
    let full = RequestHeader {
        id: 300,
        service: "agent".into(),
        method: "kernel.create".into(),
        codec: Codec::Json,
        kind: Kind::ServerStream,
        deadline_ms: Some(10_000),
        idempotency_key: Some([9; 16]),
        trace: Some(TraceContext {
            trace_id: [1; 16],
            span_id: [2; 8],
            flags: 1,
        }),
    };
    let bare = RequestHeader {
        codec: Codec::Postcard,
        kind: Kind::Unary,
        deadline_ms: None,
        idempotency_key: None,
        trace: None,
        ..full.clone()
    };
    let statuses: Vec<Status> = Status::ALL
        .into_iter()
        .chain([Status::App(0x8001)])
        .collect();
    let error = RpcError::denied("the token expired")
        .reason("token_expired")
        .fix("ask for a new one");
    vec![
        sample("rpc", "RequestHeader", &full),
        sample("rpc", "RequestHeader bare", &bare),
        sample("rpc", "RpcError", &error),
        sample("rpc", "RpcError bare", &RpcError::internal("x")),
        sample("rpc", "Status", &statuses),
    ]
}

fn announcement() -> Announcement {
    let mut card = gpu("A100 80GB", 80 << 30);
    card.index = 1;
    card.mig = true;
    let mut node = body(7, vec![gpu("A100 80GB", 80 << 30), card]);
    node.roles = Role::ALL.into();
    node.addresses = addresses();
    node.relays = vec![identity(2).node_id()];
    node.nat = NatClass::Cone;
    node.services = texts(&["agent", "mesh"]);
    node.hardware.disks = vec![Disk {
        purpose: "data".into(),
        total: 1 << 40,
    }];
    node.software.rocm = Some("6.2".into());
    node.images = vec!["busybox:1".into()];
    node.models = texts(&["llama3-70b"]);
    node.tools = texts(&["shell"]);
    node.subnet = Some("3.7.2".parse().unwrap());
    node
}

fn addresses() -> Vec<std::net::SocketAddr> {
    vec![
        "192.0.2.1:4433".parse().unwrap(),
        "[2001:db8::1]:4433".parse().unwrap(),
    ]
}

fn texts(texts: &[&str]) -> BTreeSet<String> {
    texts.iter().map(ToString::to_string).collect()
}

fn signed() -> SignedAnnouncement {
    SignedAnnouncement {
        hops: 3,
        ..Mesh::new().announce(1, &announcement())
    }
}

fn announcements() -> Vec<Sample> {
    vec![
        sample("announcement", "Announcement", &announcement()),
        sample(
            "announcement",
            "Announcement empty",
            &Announcement::default(),
        ),
        sample("announcement", "SignedAnnouncement", &signed()),
    ]
}
