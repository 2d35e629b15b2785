//! One value of every wire type, with every variant of every enum, the same in each run.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use meshwork_identity::{
    Contact, Limits, Psk, Revocation, RevocationNotice, Revoked, Scope, Scopes, Timestamp, Warrant,
};
use meshwork_proto::agent::{self, *};
use meshwork_proto::announcement::{Disk, Role};
use meshwork_proto::codec::{DecodeError, decode, encode};
use meshwork_proto::facts::Fact;
use meshwork_proto::kernel::{
    Exit, ExitReason, KernelSpec, KernelState, KernelView, Mount, PullPolicy,
};
use meshwork_proto::manager::{self, *};
use meshwork_proto::membership::Message;
use meshwork_proto::mesh::{self, *};
use meshwork_proto::path::NatClass;
use meshwork_proto::rpc::{Codec, Kind, RequestHeader, RpcError, Status, TraceContext};
use meshwork_proto::service::Method;
use meshwork_proto::session::{
    SessionOrder, SessionSpec, SessionState, SessionUpdate, SessionView,
};
use meshwork_proto::slots::{
    Allocation, Capacity, GpuGrant, GpuRequest, GpuStatus, Health, Resources,
};
use meshwork_proto::{
    Announcement, Availability, Beat, KernelId, PskRotation, SessionId, SignedAnnouncement,
    SignedBeat, SignedPskRotation, SignedSuspicion, Suspicion,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::fixture::{Mesh, NOW, TTL, body, gpu, identity};

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
        facts(),
        orders(),
        mesh_service(),
        agent_service(),
        manager_service(),
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

fn beat() -> SignedBeat {
    let body = Beat {
        version: 8,
        issued_at: NOW,
        ttl: TTL,
        base: 7,
        availability: Some(Availability {
            free: vec![("cpu".into(), 64_000), ("cuda.device".into(), 1)],
            vram_used: vec![0, 40 << 30],
            healthy: true,
        }),
    };
    let signed = SignedBeat::sign(&identity(1), &body).unwrap();
    SignedBeat { hops: 3, ..signed }
}

fn rotation() -> PskRotation {
    PskRotation {
        epoch: NOW.as_secs(),
        psk: Psk::from_bytes([7; 32]),
        from: NOW,
        until: NOW.saturating_add(Duration::from_hours(1)),
    }
}

/// Every kind of fact, and what is signed in each.
fn facts() -> Vec<Sample> {
    let suspicion = Suspicion {
        accused: identity(1).node_id(),
        version: 8,
        at: NOW,
    };
    let accusation = SignedSuspicion::sign(&identity(2), &suspicion).unwrap();
    let notice = RevocationNotice {
        what: Revoked::Node(identity(3).node_id()),
        issued_at: NOW,
        keep_until: Timestamp::MAX,
    };
    let mesh = Mesh::new();
    let revocation = Revocation::by_authority(&mesh.authority, &notice).unwrap();
    let rotated = SignedPskRotation::by_authority(&mesh.authority, &rotation()).unwrap();
    let token = mesh.token(identity(1).node_id(), Scope::Admin, Duration::from_hours(1));
    let by_admin = SignedPskRotation::by_admin(&identity(1), token, &rotation()).unwrap();
    vec![
        sample("facts", "Beat", &beat().open().unwrap()),
        sample("facts", "Beat empty", &Beat::default()),
        sample("facts", "Suspicion", &suspicion),
        sample("facts", "PskRotation", &rotation()),
        sample("facts", "Fact::Announcement", &Fact::Announcement(signed())),
        sample("facts", "Fact::Beat", &Fact::Beat(beat())),
        sample("facts", "Fact::Renewed", &Fact::Renewed(signed(), beat())),
        sample("facts", "Fact::Suspicion", &Fact::Suspicion(accusation)),
        sample("facts", "Fact::Revocation", &Fact::Revocation(revocation)),
        sample("facts", "Fact::Psk", &Fact::Psk(rotated)),
        sample("facts", "Fact::Psk by admin", &Fact::Psk(by_admin)),
    ]
}

fn session() -> SessionId {
    SessionId::from_bytes([5; 16])
}

fn kernel() -> KernelId {
    session().kernel(0)
}

fn session_order() -> SessionOrder {
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

fn exec_order() -> ExecOrder {
    ExecOrder {
        kernel: kernel(),
        command: vec!["ls".into()],
        env: BTreeMap::from([("A".to_owned(), "1".to_owned())]),
        workdir: Some("/".into()),
        issued_at: NOW,
        nonce: [4; 16],
    }
}

fn warrant(order: &impl Serialize) -> Warrant {
    let user = identity(3);
    let token = Mesh::new().token(user.node_id(), Scope::Call, Duration::from_hours(1));
    Warrant::seal(&user, token, order).unwrap()
}

fn orders() -> Vec<Sample> {
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

fn mesh_service() -> Vec<Sample> {
    let mesh = Mesh::new();
    let token = mesh.token(
        identity(1).node_id(),
        Scope::Announce,
        Duration::from_hours(1),
    );
    let what = Revoked::Node(identity(2).node_id());
    let notice = RevocationNotice {
        what,
        issued_at: NOW,
        keep_until: Timestamp::MAX,
    };
    let revocation = Revocation::by_authority(&mesh.authority, &notice).unwrap();
    let contact = Contact {
        node: identity(1).node_id(),
        addrs: addresses(),
    };
    let peer = PeerView {
        node: identity(1).node_id(),
        path: "direct".into(),
        address: addresses()[0],
        rtt: Duration::from_micros(250),
        lost: 1,
        sent: 1000,
        bytes_sent: 1_000_000,
        bytes_received: 2_000_000,
        age: Duration::from_mins(1),
        neighbour: true,
    };
    let drops = RelayDrops {
        not_serving: 1,
        not_member: 2,
        unknown_peer: 3,
        over_rate: 4,
        congested: 5,
        malformed: 6,
    };
    let traversal = TraversalStats {
        punches_attempted: 4,
        punches_succeeded: 3,
        relay_fallbacks: 1,
        rotations: 2,
        relayed_bytes: 1 << 30,
        relay_dropped: drops.total(),
        relay_drops: drops,
    };
    let membership = MembershipCounters {
        probes: 100,
        failed: 10,
        raised: 9,
        refuted: 8,
        deaths: 1,
        floods: 1000,
        duplicates: 2000,
        repairs: 3,
    };
    let offer = PathOffer {
        candidates: addresses(),
        nat: NatClass::Cone,
        id: 1 << 40,
    };
    let seen = NeighbourView {
        node: identity(1).node_id(),
        neighbours: vec![peer.clone()],
        known: 2,
        suspects: vec![identity(3).node_id()],
    };
    let status = MeshStatus {
        node: identity(1).node_id(),
        authority: mesh.root,
        version: "0.1.0".into(),
        roles: Role::ALL.into(),
        listening: addresses(),
        uptime: Duration::from_secs(5),
        peers: vec![peer],
        known: 2,
        strangers: 3,
        failed_handshakes: 4,
        refused_announcements: 5,
        nat: NatClass::Cone,
        reflex: Some(addresses()[0]),
        mapped: Some(addresses()[0]),
        mapping: "upnp".into(),
        relays: vec![identity(2).node_id()],
        traversal,
        health: 1,
        suspects: vec![identity(3).node_id()],
        dead: 1,
        membership,
    };
    let present = Present {
        tokens: vec![token.clone()],
        version: "0.1.0".into(),
        addresses: addresses(),
        accepts: true,
    };
    let presented = Presented {
        refused: vec![None, Some(("expired".into(), "the token expired".into()))],
        tokens: vec![token.clone()],
    };
    let joined = Joined {
        token,
        role: "agent".into(),
        contacts: vec![contact],
        revocations: vec![revocation.clone()],
    };
    let invite = Invite {
        role: "agent".into(),
        ttl: Duration::from_hours(1),
        uses: 2,
        token_ttl: Duration::from_hours(24),
        scopes: Some(Scopes::from([Scope::Join, Scope::Announce])),
        limits: Limits {
            gpus: Some(2),
            ..Limits::none()
        },
        addresses: addresses(),
    };
    let find = Find {
        query: "gpu.vram >= 40GB".into(),
        limit: 100,
        tenants: texts(&["acme"]),
        region: Some("eu".into()),
    };
    let join = Join {
        id: [1; 16],
        secret: [2; 16],
        name: "lab-1".into(),
    };
    let invited = Invited {
        ticket: "mw1abc".into(),
        expires: NOW,
        fingerprint: "a-b-c".into(),
    };
    [
        method::<mesh::Ping>(
            &(),
            &[Pong {
                now: NOW,
                version: "0.1.0".into(),
            }],
        ),
        method::<mesh::PresentTokens>(&present, &[presented]),
        method::<mesh::JoinMesh>(&join, &[joined]),
        method::<mesh::Gossip>(
            &GossipBatch {
                messages: vec![Message::Neighbor { urgent: true }],
                facts: vec![Fact::Announcement(signed())],
            },
            &[()],
        ),
        method::<mesh::RotatePsk>(
            &SignedPskRotation::by_authority(&mesh.authority, &rotation()).unwrap(),
            &[()],
        ),
        method::<mesh::RevokeTokens>(
            &Revoke {
                items: vec![revocation],
            },
            &[()],
        ),
        method::<mesh::Reflex>(
            &(),
            &[Reflexed {
                address: addresses()[0],
            }],
        ),
        method::<mesh::OfferPaths>(&offer, std::slice::from_ref(&offer)),
        method::<mesh::Survey>(&(), &[seen]),
        method::<mesh::FindNodes>(
            &find,
            &[Found {
                nodes: vec![signed()],
                total: 7,
            }],
        ),
        method::<mesh::Inspect>(&(), &[status]),
        method::<mesh::MakeTicket>(&invite, &[invited]),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn exits() -> Vec<Exit> {
    [
        ExitReason::SelfTerminated,
        ExitReason::UserRequested,
        ExitReason::OutOfMemory,
        ExitReason::FailedToStart,
        ExitReason::ContainerLost,
        ExitReason::Superseded,
        ExitReason::DeadlineExceeded,
    ]
    .into_iter()
    .map(|reason| Exit {
        reason,
        code: (reason == ExitReason::OutOfMemory).then_some(137),
        oom: reason == ExitReason::OutOfMemory,
        message: (reason == ExitReason::FailedToStart).then(|| "no such image".to_owned()),
    })
    .collect()
}

fn kernel_states() -> Vec<KernelState> {
    let mut states = vec![
        KernelState::Preparing,
        KernelState::Pulling,
        KernelState::Creating,
        KernelState::Running,
        KernelState::Restarting,
        KernelState::Terminating,
    ];
    states.extend(exits().into_iter().map(KernelState::Terminated));
    states
}

fn grant() -> GpuGrant {
    GpuGrant {
        index: 1,
        uuid: "GPU-1".into(),
        model: "A100".into(),
        vram: 80 << 30,
    }
}

fn kernel_view(state: KernelState) -> KernelView {
    KernelView {
        kernel: kernel(),
        session: session(),
        attempt: 2,
        generation: 3,
        owner: identity(3).node_id(),
        image: "busybox:1".into(),
        state,
        allocation: Allocation {
            cpus: vec![0, 200],
            cpu_millis: 1500,
            mem: 1 << 30,
            gpus: vec![grant()],
        },
        created_at: NOW,
        started_at: Some(NOW),
        ended_at: None,
    }
}

fn capacity() -> Capacity {
    let device = |health, kernel| GpuStatus {
        device: grant(),
        vendor: "nvidia".into(),
        vram_used: 5,
        kernel,
        health,
    };
    Capacity {
        cpu_millis: 128_000,
        cpu_free: 64_000,
        mem: 512 << 30,
        mem_free: 1,
        gpus: vec![
            device(Health::Ok, Some(kernel())),
            device(Health::Unknown, None),
        ],
    }
}

fn heartbeat() -> Heartbeat {
    Heartbeat {
        at: NOW,
        last_seq: 9,
        capacity: capacity(),
        load_millis: 1500,
        kernels: vec![(kernel(), 3, KernelState::Running)],
    }
}

fn log_chunks() -> [LogChunk; 2] {
    [
        LogChunk {
            output: Output::Stdout,
            data: Bytes::from_static(b"hi\n"),
            at: Some(NOW),
        },
        LogChunk {
            output: Output::Stderr,
            data: Bytes::new(),
            at: None,
        },
    ]
}

fn exec_items() -> [ExecItem; 2] {
    [
        ExecItem::Output(log_chunks()[0].clone()),
        ExecItem::Exit(-1),
    ]
}

fn pull_progress() -> [PullProgress; 3] {
    [
        PullProgress::Present,
        PullProgress::Fetching {
            current: 1,
            total: 300,
        },
        PullProgress::Done,
    ]
}

fn agent_service() -> Vec<Sample> {
    let create = CreateKernel {
        kernel: kernel(),
        index: 0,
        attempt: 2,
        generation: 3,
        warrant: warrant(&session_order()),
    };
    let stop = StopKernel {
        kernel: kernel(),
        grace: Some(Duration::from_secs(1)),
    };
    let one = KernelRef { kernel: kernel() };
    let logs = KernelLogs {
        kernel: kernel(),
        tail: Some(10),
        follow: true,
        since: Some(NOW),
    };
    let pull = PullImage {
        image: "busybox".into(),
        policy: PullPolicy::None,
    };
    let event = |(seq, state)| {
        EventItem::Event(KernelEvent {
            seq,
            at: NOW,
            kernel: kernel(),
            session: session(),
            attempt: 2,
            generation: 3,
            state,
        })
    };
    let mut items: Vec<EventItem> = (1..).zip(kernel_states()).map(event).collect();
    items.push(EventItem::Progress {
        kernel: kernel(),
        progress: PullProgress::Done,
    });
    items.push(EventItem::Heartbeat(heartbeat()));
    let status = AgentStatus {
        backend: "docker 27.3.1".into(),
        heartbeat: heartbeat(),
    };
    let running = kernel_view(KernelState::Running);
    let every = kernel_states().into_iter().map(kernel_view).collect();
    [
        method::<agent::Create>(&create, std::slice::from_ref(&running)),
        method::<agent::Stop>(&stop, std::slice::from_ref(&running)),
        method::<agent::Remove>(&one, &[()]),
        method::<agent::Get>(&one, &[running]),
        method::<agent::List>(&(), &[every]),
        method::<agent::Logs>(&logs, &log_chunks()),
        method::<agent::Exec>(
            &ExecKernel {
                warrant: warrant(&exec_order()),
            },
            &exec_items(),
        ),
        method::<agent::Pull>(&pull, &pull_progress()),
        method::<agent::Watch>(&Events { after: 8 }, &items),
        method::<agent::Ack>(&AckEvents { up_to: 9 }, &[()]),
        method::<agent::Inspect>(&(), &[status]),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn session_view(state: SessionState) -> SessionView {
    SessionView {
        session: session(),
        name: Some("train".into()),
        owner: identity(3).node_id(),
        image: "busybox:1".into(),
        command: vec!["echo".into()],
        state,
        node: identity(1).node_id(),
        node_name: "lab-1".into(),
        gpus: vec!["GPU 1 (A100 80GB)".into()],
        node_reachable: true,
        created_at: NOW,
        started_at: Some(NOW),
        ended_at: None,
    }
}

fn session_states() -> Vec<SessionState> {
    let mut states = vec![
        SessionState::Scheduled,
        SessionState::Preparing,
        SessionState::Pulling,
        SessionState::Creating,
        SessionState::Running,
        SessionState::Terminating,
    ];
    states.extend(exits().into_iter().map(SessionState::Terminated));
    states
}

fn manager_service() -> Vec<Sample> {
    let create = CreateSession {
        warrant: warrant(&session_order()),
        dry_run: true,
    };
    let running = session_view(SessionState::Running);
    let created = CreatedSession {
        view: running.clone(),
        plan: "lab-1 GPU 1".into(),
    };
    let one = SessionRef {
        session: "train".into(),
    };
    let list = ListSessions {
        ended: true,
        everyone: false,
    };
    let stop = StopSession {
        session: "train".into(),
        grace: None,
    };
    let logs = SessionLogs {
        session: "train".into(),
        tail: None,
        follow: false,
        since: Some(NOW),
    };
    let exec = SessionExec {
        session: session(),
        warrant: warrant(&exec_order()),
    };
    let updates = [
        SessionUpdate::View(running.clone()),
        SessionUpdate::Pull(PullProgress::Fetching {
            current: 1,
            total: 2,
        }),
    ];
    let node = |state| NodeView {
        node: identity(1).node_id(),
        state,
        path: "direct".into(),
        rtt: Some(Duration::from_millis(3)),
        announcement: announcement(),
        capacity: Some(capacity()),
        kernels: 1,
        seen: Duration::from_secs(2),
    };
    let states = [
        NodeState::Ready,
        NodeState::Suspect,
        NodeState::Lost,
        NodeState::Online,
    ];
    let nodes = ListNodes {
        query: Some("gpus > 0".into()),
    };
    let every = session_states().into_iter().map(session_view).collect();
    [
        method::<manager::Create>(&create, &[created]),
        method::<manager::Get>(&one, std::slice::from_ref(&running)),
        method::<manager::List>(&list, &[every]),
        method::<manager::Stop>(&stop, &[running]),
        method::<manager::Remove>(&one, &[()]),
        method::<manager::Watch>(&one, &updates),
        method::<manager::Logs>(&logs, &log_chunks()),
        method::<manager::Exec>(&exec, &exec_items()),
        method::<manager::Nodes>(&nodes, &[states.map(node).into()]),
    ]
    .into_iter()
    .flatten()
    .collect()
}
