//! Tickets: made by an admin, redeemed by newcomers, by nobody else and not too often.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use meshwork_identity::{Contact, Limits, Scope, Ticket, Token};
use meshwork_mesh::{FileState, Mesh, MeshError, StateStore};
use meshwork_proto::mesh::{Invite, Invited, Join, JoinMesh, MakeTicket};
use meshwork_proto::rpc::{RpcError, Status};
use meshwork_proto::service::{Router, call};

use crate::cluster::*;
use crate::common::*;
use crate::probe::{self, *};

const HOUR: Duration = Duration::from_hours(1);

fn invitation(role: &str, uses: u32) -> Invite {
    Invite {
        role: role.into(),
        ttl: HOUR,
        uses,
        token_ttl: HOUR,
        scopes: None,
        limits: Limits::none(),
        addresses: vec![],
    }
}

fn admin_token(cluster: &Cluster) -> Token {
    cluster.token(1, &[Scope::Admin])
}

/// Node 1, which may issue tickets.
fn issuer(cluster: &Cluster) -> Mesh {
    cluster.start(1, vec![admin_token(cluster)], probe::router())
}

async fn invite(issuer: &Mesh, invite: Invite) -> Result<Invited, RpcError> {
    call::<MakeTicket>(issuer, issuer.node_id(), &invite, patiently()).await
}

async fn ticket(issuer: &Mesh, role: &str, uses: u32) -> Ticket {
    let invited = invite(issuer, invitation(role, uses)).await.unwrap();
    let ticket: Ticket = invited.ticket.parse().unwrap();
    assert_eq!(
        (ticket.expires, ticket.fingerprint()),
        (invited.expires, invited.fingerprint)
    );
    ticket
}

/// A node that has the ticket and nothing else.
fn newcomer(cluster: &Cluster, n: u8, ticket: &Ticket) -> Mesh {
    let mut config = cluster.config(n, vec![]);
    (config.authority, config.psk) = (ticket.mesh, ticket.psk.clone());
    cluster.start_with(n, config, probe::router())
}

fn reason(error: MeshError) -> String {
    match error {
        MeshError::Rpc(error) => error.reason,
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn a_ticket_makes_a_member() {
    let cluster = Cluster::new();
    let issuer = issuer(&cluster);
    let ticket = ticket(&issuer, "user", 1).await;
    let user = newcomer(&cluster, 2, &ticket);
    let joined = user.join(&ticket, "laptop").await.unwrap();
    assert_eq!(joined.role, "user");
    assert_eq!(joined.contacts[0], contact(&issuer));
    assert_eq!(
        joined.token.claims().scopes,
        scopes(&[Scope::Call, Scope::Delegate])
    );
    // The token is presented on the connection that there is.
    call::<Echo>(&user, issuer.node_id(), &Bytes::new(), patiently())
        .await
        .unwrap();
    let error = call::<Rule>(&user, issuer.node_id(), &(), patiently())
        .await
        .unwrap_err();
    assert_eq!(error.reason, "scope_exceeded");
    stop(&[&issuer, &user]).await;
}

#[tokio::test]
async fn who_joins_as_a_manager_can_invite() {
    let cluster = Cluster::new();
    let issuer = issuer(&cluster);
    let first = ticket(&issuer, "manager", 1).await;
    let manager = newcomer(&cluster, 2, &first);
    manager.join(&first, "m").await.unwrap();
    let second = ticket(&manager, "agent", 1).await;
    assert_eq!(second.issuer, manager.node_id());
    let agent = newcomer(&cluster, 3, &second);
    let joined = agent.join(&second, "a").await.unwrap();
    assert_eq!(joined.token.links().len(), 3, "authority, issuer, manager");
    agent.announce(draft("agent", vec![])).await.unwrap();
    stop(&[&issuer, &manager, &agent]).await;
}

#[tokio::test]
async fn a_ticket_is_good_for_its_uses_and_the_same_joiner_may_repeat() {
    let cluster = Cluster::new();
    let issuer = issuer(&cluster);
    let ticket = ticket(&issuer, "agent", 2).await;
    let nodes: Vec<Mesh> = (2..=4).map(|n| newcomer(&cluster, n, &ticket)).collect();
    nodes[0].join(&ticket, "a").await.unwrap();
    nodes[0].join(&ticket, "a").await.unwrap();
    nodes[1].join(&ticket, "b").await.unwrap();
    assert_eq!(
        reason(nodes[2].join(&ticket, "c").await.unwrap_err()),
        "ticket_used"
    );
    nodes[1].join(&ticket, "b").await.unwrap();
    stop(&[&issuer, &nodes[0], &nodes[1], &nodes[2]]).await;
}

#[tokio::test]
async fn uses_survive_a_restart_of_the_issuer() {
    let cluster = Cluster::new();
    let dir = tempfile::tempdir().unwrap();
    let start = || {
        let state = Arc::new(FileState::open(dir.path()).unwrap());
        let config = cluster.config(1, vec![admin_token(&cluster)]);
        Mesh::start(config, cluster.env(1, state), Router::new()).unwrap()
    };
    let before = start();
    let ticket = ticket(&before, "agent", 1).await;
    let first = newcomer(&cluster, 2, &ticket);
    first.join(&ticket, "a").await.unwrap();
    stop(&[&before]).await;
    let after = start();
    // Its port is another; the ticket is the same.
    let moved = Ticket {
        contacts: vec![contact(&after)],
        ..ticket
    };
    let second = newcomer(&cluster, 3, &moved);
    assert_eq!(
        reason(second.join(&moved, "b").await.unwrap_err()),
        "ticket_used"
    );
    stop(&[&after, &first, &second]).await;
}

#[tokio::test]
async fn a_use_that_cannot_be_kept_is_not_granted() {
    /// A disk that is full.
    struct Full;
    impl StateStore for Full {
        fn get(&self, _: &str) -> std::io::Result<Option<Vec<u8>>> {
            Ok(None)
        }
        fn put(&self, _: &str, _: &[u8]) -> std::io::Result<()> {
            Err(std::io::ErrorKind::StorageFull.into())
        }
    }
    let cluster = Cluster::new();
    let config = cluster.config(1, vec![admin_token(&cluster)]);
    let issuer = Mesh::start(config, cluster.env(1, Arc::new(Full)), Router::new()).unwrap();
    let error = invite(&issuer, invitation("agent", 1)).await.unwrap_err();
    assert_eq!(error.status, Status::Internal);
    let error = issuer.announce(draft("x", vec![])).await.unwrap_err();
    assert!(matches!(error, MeshError::State { .. }), "{error}");
    stop(&[&issuer]).await;
}

#[tokio::test]
async fn an_expired_ticket_is_refused_on_both_sides() {
    let cluster = Cluster::new();
    let issuer = issuer(&cluster);
    let ticket = ticket(&issuer, "agent", 1).await;
    cluster.clock.advance(HOUR);
    let late = newcomer(&cluster, 2, &ticket);
    let error = late.join(&ticket, "a").await.unwrap_err();
    assert!(matches!(error, MeshError::Ticket(_)), "{error}");
    connect(&late, &issuer).await;
    let join = Join {
        id: ticket.admission.id,
        secret: ticket.admission.secret,
        name: "a".into(),
    };
    let error = call::<JoinMesh>(&late, issuer.node_id(), &join, patiently())
        .await
        .unwrap_err();
    assert_eq!(error.reason, "ticket_expired");
    stop(&[&issuer, &late]).await;
}

#[tokio::test]
async fn secrets_cannot_be_tried_out() {
    let cluster = Cluster::new();
    let issuer = issuer(&cluster);
    let ticket = ticket(&issuer, "agent", 1).await;
    let thief = newcomer(&cluster, 2, &ticket);
    connect(&thief, &issuer).await;
    let guess = |id: [u8; 16], n: u8| {
        let (thief, to) = (thief.clone(), issuer.node_id());
        let join = Join {
            id,
            secret: [n; 16],
            name: "a".into(),
        };
        async move {
            call::<JoinMesh>(&thief, to, &join, patiently())
                .await
                .unwrap_err()
        }
    };
    // A wrong secret and an unknown ticket look alike.
    let wrong = guess(ticket.admission.id, 0).await;
    assert_eq!(wrong, guess([9; 16], 1).await);
    assert_eq!(
        (wrong.status, &*wrong.reason),
        (Status::Denied, "ticket_unknown")
    );
    for n in 2..5 {
        guess(ticket.admission.id, n).await;
    }
    assert_eq!(guess(ticket.admission.id, 6).await.reason, "join_rate");
    // Another id from the same address does not help, and the right secret comes too late as well.
    let again = newcomer(&cluster, 3, &ticket);
    assert_eq!(
        reason(again.join(&ticket, "b").await.unwrap_err()),
        "join_rate"
    );
    stop(&[&issuer, &thief, &again]).await;
}

#[tokio::test]
async fn many_may_join_from_one_address() {
    let cluster = Cluster::new();
    let issuer = issuer(&cluster);
    let ticket = ticket(&issuer, "agent", 8).await;
    for n in 2..10 {
        let node = newcomer(&cluster, n, &ticket);
        node.join(&ticket, "a").await.unwrap();
        stop(&[&node]).await;
    }
    stop(&[&issuer]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_whole_rack_may_join_at_once() {
    let cluster = Cluster::new();
    let issuer = issuer(&cluster);
    let ticket = ticket(&issuer, "agent", 16).await;
    let nodes: Vec<Mesh> = (2..18).map(|n| newcomer(&cluster, n, &ticket)).collect();
    let joins = nodes.iter().map(|node| node.join(&ticket, "a"));
    for joined in futures_util::future::join_all(joins).await {
        joined.unwrap();
    }
    stop(&nodes.iter().collect::<Vec<_>>()).await;
    stop(&[&issuer]).await;
}

#[tokio::test]
async fn only_what_the_issuer_has_can_be_given() {
    let cluster = Cluster::new();
    let mut request = Cluster::request(1, &[Scope::Admin]);
    request.ttl = 2 * HOUR;
    request.limits.gpus = Some(2);
    let issuer = cluster.start(1, vec![cluster.issue(request)], Router::new());
    let own_end = cluster.now().saturating_add(2 * HOUR);
    let too_long = Invite {
        token_ttl: 3 * HOUR,
        ..invitation("user", 1)
    };
    let ticket: Ticket = invite(&issuer, too_long)
        .await
        .unwrap()
        .ticket
        .parse()
        .unwrap();
    let node = newcomer(&cluster, 2, &ticket);
    let joined = node.join(&ticket, "a").await.unwrap();
    assert!(
        joined.token.claims().expires <= own_end,
        "it ends with the issuer's"
    );
    stop(&[&node]).await;
    let more = Invite {
        limits: Limits {
            gpus: Some(3),
            ..Limits::none()
        },
        ..invitation("user", 1)
    };
    assert_eq!(
        invite(&issuer, more).await.unwrap_err().reason,
        "scope_exceeded"
    );
    let unknown = invite(&issuer, invitation("king", 1)).await.unwrap_err();
    assert_eq!(
        (unknown.status, &*unknown.reason),
        (Status::Invalid, "role")
    );
    let never = Invite {
        ttl: Duration::ZERO,
        ..invitation("agent", 1)
    };
    assert_eq!(invite(&issuer, never).await.unwrap_err().reason, "ttl");
    assert_eq!(
        invite(&issuer, invitation("agent", 0))
            .await
            .unwrap_err()
            .reason,
        "uses"
    );
    invite(&issuer, invitation("agent,manager", 1))
        .await
        .unwrap();
    stop(&[&issuer]).await;
}

#[tokio::test]
async fn a_ticket_without_its_issuer_is_no_use() {
    let cluster = Cluster::new();
    let issuer = issuer(&cluster);
    let ticket = ticket(&issuer, "agent", 1).await;
    let lost = Ticket {
        contacts: vec![Contact {
            node: node_id(9),
            addrs: vec![],
        }],
        ..ticket
    };
    let node = newcomer(&cluster, 2, &lost);
    let error = node.join(&lost, "a").await.unwrap_err();
    assert!(matches!(error, MeshError::NoAddress { .. }), "{error}");
    stop(&[&issuer, &node]).await;
}
