//! Who may do what: every refusal by its own name, and every method by role.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use meshwork_identity::{
    Identity, Resource, Revocation, RevocationNotice, Revoked, Scope, Timestamp, Token,
    TokenRequest, Warrant,
};
use meshwork_mesh::{FileState, Mesh, MeshError, StateStore, TurnedAway};
use meshwork_proto::ports::Trust;
use meshwork_proto::rpc::{Codec, Kind, RpcError, Status};
use meshwork_proto::service::{
    CallOptions, Caller, ItemStream, Method, MethodInfo, RawCall, Router, call, stream,
};
use meshwork_proto::{agent, manager, mesh};

use crate::cluster::*;
use crate::common::*;
use crate::probe::{self, *};

const HOUR: Duration = Duration::from_hours(1);

/// What node 1 gets with these tokens when it calls `probe/echo` of node 2.
async fn refused(cluster: &Cluster, tokens: Vec<Token>) -> RpcError {
    let server = cluster.node(2, probe::router());
    let client = cluster.start(1, tokens, Router::new());
    connect(&client, &server).await;
    let result = call::<Echo>(&client, server.node_id(), &Bytes::new(), patiently()).await;
    stop(&[&client, &server]).await;
    result.unwrap_err()
}

fn with(change: impl FnOnce(&mut TokenRequest)) -> TokenRequest {
    let mut request = Cluster::request(1, &[Scope::Call]);
    change(&mut request);
    request
}

#[tokio::test]
async fn each_refusal_has_its_own_reason() {
    use Status::{Denied, Unauthenticated};
    let cluster = Cluster::new();
    let other_root = Identity::from_seed(&[201; 32]);
    let expired = cluster.issue(with(|request| request.ttl = HOUR));
    let revoked = cluster.issue(with(|_| ()));
    cluster.clock.advance(2 * HOUR);
    let announce = cluster.token(1, &[Scope::Announce]);
    let cases = [
        (vec![], Unauthenticated, "no_token"),
        (vec![announce.clone()], Denied, "scope_exceeded"),
        (
            vec![cluster.token(3, &[Scope::Call])],
            Unauthenticated,
            "wrong_subject",
        ),
        (
            vec![cluster.issue(with(|request| {
                request.resource = Resource::any().on(node_id(3));
            }))],
            Denied,
            "wrong_resource",
        ),
        (
            vec![cluster.issue(with(|request| {
                request.resource = "probe/count".parse().unwrap();
            }))],
            Denied,
            "wrong_resource",
        ),
        (vec![expired.clone()], Unauthenticated, "expired"),
        (vec![announce, expired], Denied, "expired"),
        (
            vec![cluster.issue(with(|request| {
                request.not_before = Some(cluster.now().saturating_add(HOUR));
            }))],
            Unauthenticated,
            "not_yet_valid",
        ),
        (
            vec![cluster.issue_by(&other_root, with(|_| ()))],
            Unauthenticated,
            "untrusted_root",
        ),
    ];
    for (tokens, status, reason) in cases {
        let error = refused(&cluster, tokens).await;
        assert_eq!((error.status, &*error.reason), (status, reason), "{error}");
        assert!(error.fix.is_some(), "{error}");
    }
    let server = cluster.node(2, probe::router());
    server
        .revoke(cluster.revocation(Revoked::Token(revoked.id())))
        .await
        .unwrap();
    let client = cluster.start(1, vec![revoked], Router::new());
    connect(&client, &server).await;
    let result = call::<Echo>(&client, server.node_id(), &Bytes::new(), patiently()).await;
    assert_eq!(result.unwrap_err().reason, "revoked");
    stop(&[&client, &server]).await;
}

#[tokio::test]
async fn expiry_ends_what_it_allowed() {
    let cluster = Cluster::new();
    let server = cluster.node(2, probe::router());
    let client = cluster.start(
        1,
        vec![cluster.issue(with(|r| r.ttl = HOUR))],
        Router::new(),
    );
    connect(&client, &server).await;
    let to = server.node_id();
    let mut quiet = stream::<Quiet>(&client, to, &(), patiently())
        .await
        .unwrap();
    let hanging = tokio::spawn({
        let client = client.clone();
        async move { call::<Hang>(&client, to, &(), patiently()).await }
    });
    cluster.clock.advance(HOUR / 2);
    call::<Echo>(&client, to, &Bytes::new(), patiently())
        .await
        .unwrap();
    cluster.clock.advance(HOUR / 2);
    assert_eq!(quiet.next().await.unwrap().unwrap_err().reason, "expired");
    assert_eq!(hanging.await.unwrap().unwrap_err().reason, "expired");
    let error = call::<Echo>(&client, to, &Bytes::new(), patiently())
        .await
        .unwrap_err();
    assert_eq!(error.reason, "expired");
    // A new token works at once, on the same connection.
    client.add_token(cluster.issue(with(|_| ()))).await;
    call::<Echo>(&client, to, &Bytes::new(), patiently())
        .await
        .unwrap();
    stop(&[&client, &server]).await;
}

#[tokio::test]
async fn a_revoked_token_ends_what_it_allowed() {
    let cluster = Cluster::new();
    let server = cluster.node(2, probe::router());
    let token = cluster.issue(with(|_| ()));
    let client = cluster.start(1, vec![token.clone()], Router::new());
    connect(&client, &server).await;
    let mut quiet = stream::<Quiet>(&client, server.node_id(), &(), patiently())
        .await
        .unwrap();
    server
        .revoke(cluster.revocation(Revoked::Token(token.id())))
        .await
        .unwrap();
    assert_eq!(quiet.next().await.unwrap().unwrap_err().reason, "revoked");
    stop(&[&client, &server]).await;
}

#[tokio::test]
async fn a_revoked_node_is_cut_off_and_stays_out_over_restarts() {
    let cluster = Cluster::new();
    let dir = tempfile::tempdir().unwrap();
    let start = || {
        let state = Arc::new(FileState::open(dir.path()).unwrap());
        let config = cluster.config(2, vec![cluster.node_token(2)]);
        Mesh::start(config, cluster.env(2, state), probe::router()).unwrap()
    };
    let server = start();
    let client = cluster.node(1, Router::new());
    connect(&client, &server).await;
    let mut quiet = stream::<Quiet>(&client, server.node_id(), &(), patiently())
        .await
        .unwrap();
    server
        .revoke(cluster.revocation(Revoked::Node(client.node_id())))
        .await
        .unwrap();
    quiet.next().await.unwrap().unwrap_err();
    until("the connection is cut", || client.peers().is_empty()).await;
    stop(&[&server]).await;
    let server = start();
    let error = client.dial(&contact(&server), PATIENCE).await.unwrap_err();
    assert!(
        matches!(
            error,
            MeshError::Refused {
                why: TurnedAway::Revoked,
                ..
            }
        ),
        "{error}"
    );
    stop(&[&client, &server]).await;
}

#[tokio::test]
async fn revocations_spread_and_reach_who_comes_later() {
    let cluster = Cluster::new();
    let (one, two, three) = (
        cluster.node(1, probe::router()),
        cluster.node(2, probe::router()),
        cluster.node(3, probe::router()),
    );
    connect(&one, &two).await;
    connect(&two, &three).await;
    let token = cluster.token(4, &[Scope::Call]);
    one.revoke(cluster.revocation(Revoked::Token(token.id())))
        .await
        .unwrap();
    let late = cluster.node(5, probe::router());
    connect(&late, &three).await;
    let client = cluster.start(4, vec![token], Router::new());
    for server in [&three, &late] {
        connect(&client, server).await;
        let mut reason = String::new();
        // It may be served until the news arrives.
        let end = tokio::time::Instant::now() + PATIENCE;
        while reason != "revoked" {
            assert!(
                tokio::time::Instant::now() < end,
                "the revocation does not arrive"
            );
            let to = server.node_id();
            let answer = call::<Echo>(&client, to, &Bytes::new(), patiently()).await;
            reason = answer.err().map(|error| error.reason).unwrap_or_default();
        }
    }
    stop(&[&one, &two, &three, &late, &client]).await;
}

#[tokio::test]
async fn a_revocation_that_cannot_be_stored_is_in_force() {
    /// A disk that has become read-only.
    struct ReadOnly;
    impl StateStore for ReadOnly {
        fn get(&self, _: &str) -> std::io::Result<Option<Vec<u8>>> {
            Ok(None)
        }
        fn put(&self, _: &str, _: &[u8]) -> std::io::Result<()> {
            Err(std::io::ErrorKind::ReadOnlyFilesystem.into())
        }
    }
    let cluster = Cluster::new();
    let config = cluster.config(2, vec![cluster.node_token(2)]);
    let env = cluster.env(2, Arc::new(ReadOnly));
    let server = Mesh::start(config, env, probe::router()).unwrap();
    let token = cluster.issue(with(|_| ()));
    let client = cluster.start(1, vec![token.clone()], Router::new());
    connect(&client, &server).await;
    let revocation = cluster.revocation(Revoked::Token(token.id()));
    for _ in 0..2 {
        let error = server.revoke(revocation.clone()).await.unwrap_err();
        assert!(matches!(error, MeshError::State { .. }), "{error}");
    }
    let result = call::<Echo>(&client, server.node_id(), &Bytes::new(), patiently()).await;
    assert_eq!(result.unwrap_err().reason, "revoked");
    stop(&[&client, &server]).await;
}

#[tokio::test]
async fn only_authority_and_admins_revoke() {
    let cluster = Cluster::new();
    let node = cluster.node(1, Router::new());
    let by = |proof: Token| {
        let notice = RevocationNotice {
            what: Revoked::Node(node_id(7)),
            issued_at: cluster.now(),
            keep_until: Timestamp::MAX,
        };
        Revocation::by_admin(&identity(3), proof, &notice).unwrap()
    };
    let error = node.revoke(by(cluster.node_token(3))).await.unwrap_err();
    assert!(matches!(error, MeshError::Revocation(_)), "{error}");

    let client = cluster.node(3, Router::new());
    connect(&client, &node).await;
    let items = vec![by(cluster.node_token(3))];
    let revoke = mesh::Revoke { items };
    let told = call::<mesh::RevokeTokens>(&client, node.node_id(), &revoke, patiently()).await;
    let error = told.unwrap_err();
    assert_eq!(
        (error.status, &*error.reason),
        (Status::Denied, "revocation")
    );

    node.revoke(by(cluster.token(3, &[Scope::Admin])))
        .await
        .unwrap();
    stop(&[&client, &node]).await;
}

#[tokio::test]
async fn warrants_are_checked_against_this_mesh() {
    let cluster = Cluster::new();
    let node = cluster.node(1, Router::new());
    let token = cluster.token(4, &[Scope::Call]);
    let warrant = Warrant::seal(&identity(4), token.clone(), &"run").unwrap();
    let grant = Trust::verify(&node, &warrant).unwrap();
    assert_eq!(grant.subject, node_id(4));
    node.revoke(cluster.revocation(Revoked::Token(token.id())))
        .await
        .unwrap();
    let error = Trust::verify(&node, &warrant).unwrap_err();
    assert_eq!((error.status, &*error.reason), (Status::Denied, "revoked"));
    let stolen = Warrant::seal(&identity(5), cluster.token(4, &[Scope::Call]), &"run").unwrap();
    assert_eq!(
        Trust::verify(&node, &stolen).unwrap_err().reason,
        "wrong_subject"
    );
    stop(&[&node]).await;
}

/// Serves `M` with a handler that does nothing.
fn idle<M: Method>(router: Router) -> Router {
    let answer = || RpcError::new(Status::App(0x8123), "reached");
    match M::INFO.kind {
        Kind::Unary => router.unary::<M, _, _>(move |_, _| async move { Err(answer()) }),
        Kind::ServerStream => router.stream::<M, _, _>(move |_, _| async move {
            Err::<ItemStream<M::Response>, _>(answer())
        }),
        Kind::ClientStream => router.upload::<M, _, _>(move |_, _| async move { Err(answer()) }),
        Kind::Bidi => router.duplex::<M, _, _>(move |_, _| async move {
            Err::<ItemStream<M::Response>, _>(answer())
        }),
    }
}

macro_rules! idle {
    ($router:expr, $service:ident: $($method:ident)*) => {
        [$(idle::<$service::$method> as fn(Router) -> Router),*]
            .into_iter()
            .fold($router, |router, serve| serve(router))
    };
}

fn every_method() -> Vec<MethodInfo> {
    [mesh::METHODS, agent::METHODS, manager::METHODS].concat()
}

fn serves_every_method() -> Router {
    let router =
        idle!(Router::new(), agent: Create Stop Remove Get List Logs Exec Pull Watch Ack Inspect);
    idle!(router, manager: Create Get List Stop Remove Watch Logs Exec Nodes ScopedNodes)
}

/// Whether the call gets past the check of access. Its body decodes as nothing.
async fn gets_in(client: &Mesh, to: &Mesh, method: MethodInfo) -> bool {
    let call = RawCall {
        method,
        codec: Codec::Json,
        body: "?".into(),
        options: CallOptions::default(),
    };
    let error = match method.kind {
        Kind::Unary => client.call_raw(to.node_id(), call).await.unwrap_err(),
        Kind::ServerStream => client.stream_raw(to.node_id(), call).await.err().unwrap(),
        Kind::ClientStream | Kind::Bidi => panic!("its table needs a look at uploads"),
    };
    match (error.status, &*error.reason) {
        (Status::Invalid, "decode") => true,
        (Status::Denied | Status::Unauthenticated, _) => false,
        _ => panic!("{}: {error}", method.path()),
    }
}

/// The table of `policy.txt`: whoever adds a method decides here who may call it. Write it anew with
/// `BLESS=1`, and read the difference.
#[tokio::test]
async fn the_policy_is_the_written_one() {
    let cluster = Cluster::new();
    let server = cluster.node(1, serves_every_method());
    let clients = [
        ("none", cluster.start(2, vec![], Router::new())),
        (
            "member",
            cluster.start(3, vec![cluster.token(3, &[Scope::Announce])], Router::new()),
        ),
        (
            "user",
            cluster.start(4, vec![cluster.token(4, &[Scope::Call])], Router::new()),
        ),
        (
            "admin",
            cluster.start(5, vec![cluster.token(5, &[Scope::Admin])], Router::new()),
        ),
    ];
    for (_, client) in &clients {
        connect(client, &server).await;
    }
    let mut table = format!(
        "{:28}{:8}{:8}{:8}{}\n",
        "method", "none", "member", "user", "admin"
    );
    for method in every_method() {
        let mut row = format!("{:28}", method.path());
        for (role, client) in &clients {
            let answer = if gets_in(client, &server, method).await {
                "yes"
            } else {
                "-"
            };
            let _ = match *role {
                "admin" => writeln!(row, "{answer}"),
                _ => write!(row, "{answer:8}"),
            };
        }
        table += &row;
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/policy.txt");
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(path, &table).unwrap();
    }
    assert_eq!(table, std::fs::read_to_string(path).unwrap());
    let mut nodes: Vec<&Mesh> = clients.iter().map(|(_, client)| client).collect();
    nodes.push(&server);
    stop(&nodes).await;
}
