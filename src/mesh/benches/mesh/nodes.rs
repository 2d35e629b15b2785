//! Two nodes of a mesh that call each other through everything: router, permissions, deadlines,
//! bounds, cancellation.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use meshwork_identity::{
    Contact, Identity, Limits, NodeId, Psk, Resource, Scope, Timestamp, Token, TokenRequest,
};
use meshwork_mesh::{Env, MemoryState, Mesh, MeshConfig, SystemClock};
use meshwork_proto::mesh::Ping;
use meshwork_proto::ports::WallClock;
use meshwork_proto::service::{self, CallOptions, ItemStream, Router};

use crate::lane::Lanes;
use crate::lossy::Lossy;
use crate::stack::{CLIENT, LOOPBACK, PSK, SERVER};

/// Calls that the listener serves at a time: more than the benchmark makes.
const CONCURRENT_CALLS: usize = 2048;

#[allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    reason = "the macro makes all that a service has"
)]
mod wire {
    use bytes::Bytes;

    meshwork_proto::service! {
        "bench";
        /// Answers with what it was sent.
        unary Echo("echo", Call, true): Bytes => Bytes;
        /// Answers with the number of bytes.
        unary Swallow("swallow", Call, true): Bytes => u64;
        /// Counts up to the request.
        stream Count("count", Call, true): u64 => u64;
        /// Counts what it is sent.
        upload Tally("tally", Call, false): u64 => u64;
    }
}

/// A node that is connected to another one.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    mesh: Mesh,
    to: NodeId,
}

/// Both nodes.
pub(crate) struct Nodes {
    pub(crate) caller: Caller,
    callee: Mesh,
}

impl Nodes {
    /// Starts and connects them.
    pub(crate) fn start(lanes: &Lanes) -> Self {
        Self::start_lossy(lanes, 0)
    }

    /// The same over a link that loses so many of 1,000 datagrams each way.
    pub(crate) fn start_lossy(lanes: &Lanes, per_mille: u64) -> Self {
        let router = Router::new()
            .unary::<wire::Echo, _, _>(|_, body| async { Ok(body) })
            .unary::<wire::Swallow, _, _>(|_, body: Bytes| async move { Ok(body.len() as u64) })
            .stream::<wire::Count, _, _>(|_, to| async move {
                let items: ItemStream<u64> = Box::pin(stream::iter((0..to).map(Ok)));
                Ok(items)
            })
            .upload::<wire::Tally, _, _>(|_, items| async move { Ok(items.count().await as u64) });
        let callee = lanes
            .server
            .run(async move { start(SERVER, router, per_mille) });
        let contact = Contact {
            node: callee.node_id(),
            addrs: callee.local_addrs(),
        };
        let mesh = lanes.client.run(async move {
            let mesh = start(CLIENT, Router::new(), per_mille);
            mesh.dial(&contact, Duration::from_secs(10)).await.unwrap();
            mesh
        });
        Self {
            caller: Caller {
                mesh,
                to: callee.node_id(),
            },
            callee,
        }
    }

    /// Ends them.
    pub(crate) fn stop(self, lanes: &Lanes) {
        let Self { caller, callee } = self;
        lanes
            .client
            .run(async move { caller.mesh.shutdown(Duration::from_secs(1)).await });
        lanes
            .server
            .run(async move { callee.shutdown(Duration::from_secs(1)).await });
    }
}

impl Caller {
    /// Sends `body` and gets it back.
    pub(crate) async fn echo(&self, body: &Bytes) {
        let options = CallOptions::default();
        let answer = service::call::<wire::Echo>(&self.mesh, self.to, body, options).await;
        assert_eq!(answer.unwrap().len(), body.len());
    }

    /// A call without a body on a stream of its own.
    pub(crate) async fn ping(&self) {
        let options = CallOptions::default();
        let answer = service::call::<Ping>(&self.mesh, self.to, &(), options).await;
        assert!(answer.is_ok());
    }

    /// Gets `count` items.
    pub(crate) async fn download(&self, count: u64) {
        let options = CallOptions::default();
        let items = service::stream::<wire::Count>(&self.mesh, self.to, &count, options).await;
        assert_eq!(items.unwrap().count().await as u64, count);
    }

    /// Sends `count` items.
    pub(crate) async fn upload(&self, count: u64) {
        let options = CallOptions::within(Duration::from_mins(1));
        let items = stream::iter(0..count);
        let answer = service::upload::<wire::Tally>(&self.mesh, self.to, items, options).await;
        assert_eq!(answer, Ok(count));
    }

    /// Sends `body`.
    pub(crate) async fn swallow(&self, body: &Bytes) {
        let options = CallOptions::default();
        let answer = service::call::<wire::Swallow>(&self.mesh, self.to, body, options).await;
        assert_eq!(answer.unwrap(), body.len() as u64);
    }
}

fn start(seed: [u8; 32], router: Router, per_mille: u64) -> Mesh {
    let authority = Identity::from_seed(&[9; 32]);
    let identity = Identity::from_seed(&seed);
    let now = SystemClock.now();
    let mut config = MeshConfig::new(identity.clone(), authority.node_id(), Psk::from_bytes(PSK));
    config.tokens = vec![token(&authority, identity.node_id(), now)];
    config.limits.concurrent_calls = CONCURRENT_CALLS;
    config.roles = BTreeSet::new();
    let mut env = Env::production(LOOPBACK, Arc::new(MemoryState::default())).unwrap();
    if per_mille > 0 {
        env.socket = Lossy::new(env.socket, per_mille);
    }
    Mesh::start(config, env, router).unwrap()
}

/// Lets `subject` join, announce itself and call everything, for an hour.
pub(crate) fn token(authority: &Identity, subject: NodeId, now: Timestamp) -> Token {
    let request = TokenRequest {
        subject,
        scopes: [Scope::Join, Scope::Announce, Scope::Call]
            .into_iter()
            .collect(),
        resource: Resource::any(),
        not_before: None,
        ttl: Duration::from_hours(1),
        depth: 0,
        limits: Limits::none(),
    };
    Token::issue_root(authority, request, now, [3; 16]).unwrap()
}
