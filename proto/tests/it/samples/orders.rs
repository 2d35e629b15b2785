//! What users sign.

use std::collections::BTreeMap;
use std::time::Duration;

use meshwork_identity::{Scope, Warrant};
use meshwork_proto::agent::ExecOrder;
use meshwork_proto::kernel::{KernelSpec, Mount, PullPolicy};
use meshwork_proto::session::{SessionOrder, SessionSpec};
use meshwork_proto::slots::{GpuRequest, Resources};
use meshwork_proto::{KernelId, SessionId};
use serde::Serialize;

use super::{Sample, sample};
use crate::fixture::{Mesh, NOW, identity};

pub(super) fn session() -> SessionId {
    SessionId::from_bytes([5; 16])
}

pub(super) fn kernel() -> KernelId {
    session().kernel(0)
}

pub(super) fn session_order() -> SessionOrder {
    let gpus = GpuRequest {
        count: 2,
        min_vram: Some(40_000_000_000),
        max_vram: Some(80_000_000_000),
        model: Some("A100".into()),
        vendor: Some("nvidia".into()),
    };
    let pair = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
    let kernel = KernelSpec {
        image: "busybox:1".into(),
        pull: PullPolicy::Digest,
        command: vec!["echo".into(), "hi".into()],
        entrypoint: Some(vec!["/bin/sh".into()]),
        env: pair("A", "1"),
        labels: pair("team", "x"),
        mounts: vec![Mount {
            volume: "code".into(),
            target: "/data".into(),
            read_only: true,
        }],
        workdir: Some("/tmp".into()),
        resources: Resources {
            gpu: Some(gpus),
            ..Resources::default()
        },
        stop_grace: Some(Duration::from_secs(3)),
    };
    SessionOrder {
        session: session(),
        spec: SessionSpec {
            name: Some("train".into()),
            kernel,
            place: Some("gpu.vram >= 40GB".into()),
            remove: true,
        },
        issued_at: NOW,
        valid_for: Duration::from_millis(90_500),
    }
}

pub(super) fn exec_order() -> ExecOrder {
    ExecOrder {
        kernel: kernel(),
        command: vec!["ls".into()],
        env: BTreeMap::from([("A".to_owned(), "1".to_owned())]),
        workdir: Some("/".into()),
        issued_at: NOW,
        nonce: [4; 16],
    }
}

pub(super) fn warrant(order: &impl Serialize) -> Warrant {
    let user = identity(3);
    let token = Mesh::new().token(user.node_id(), Scope::Call, Duration::from_hours(1));
    Warrant::seal(&user, token, order).unwrap()
}

pub(super) fn orders() -> Vec<Sample> {
    let policies = vec![PullPolicy::Digest, PullPolicy::Tag, PullPolicy::None];
    vec![
        sample("orders", "SessionOrder", &session_order()),
        sample("orders", "SessionSpec empty", &SessionSpec::default()),
        sample("orders", "ExecOrder", &exec_order()),
        sample(
            "orders",
            "Warrant of SessionOrder",
            &warrant(&session_order()),
        ),
        sample("orders", "Warrant of ExecOrder", &warrant(&exec_order())),
        sample("orders", "PullPolicy", &policies),
    ]
}
