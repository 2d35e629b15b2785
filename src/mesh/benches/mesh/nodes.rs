//! Two nodes of a mesh that call each other through everything: router, permissions, deadlines,
//! bounds, cancellation.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use meshwork_identity::{
    Contact, Identity, Limits, NodeId, Psk, Resource, Scope, Timestamp, Token, TokenRequest,
};
use meshwork_mesh::{Env, MemoryState, Mesh, MeshConfig, SystemClock};
use meshwork_proto::ports::WallClock;
use meshwork_proto::service::{self, CallOptions, Router};

use crate::lane::Lanes;
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
        let router = Router::new()
            .unary::<wire::Echo, _, _>(|_, body| async { Ok(body) })
            .unary::<wire::Swallow, _, _>(|_, body: Bytes| async move { Ok(body.len() as u64) });
        let callee = lanes.server.run(async { start(SERVER, router) });
        let contact = Contact {
            node: callee.node_id(),
            addrs: callee.local_addrs(),
        };
        let mesh = lanes.client.run(async move {
            let mesh = start(CLIENT, Router::new());
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

    /// Sends `body`.
    pub(crate) async fn swallow(&self, body: &Bytes) {
        let options = CallOptions::default();
        let answer = service::call::<wire::Swallow>(&self.mesh, self.to, body, options).await;
        assert_eq!(answer.unwrap(), body.len() as u64);
    }
}

fn start(seed: [u8; 32], router: Router) -> Mesh {
    let authority = Identity::from_seed(&[9; 32]);
    let identity = Identity::from_seed(&seed);
    let now = SystemClock.now();
    let mut config = MeshConfig::new(identity.clone(), authority.node_id(), Psk::from_bytes(PSK));
    config.tokens = vec![token(&authority, identity.node_id(), now)];
    config.limits.concurrent_calls = CONCURRENT_CALLS;
    config.roles = BTreeSet::new();
    let env = Env::production(LOOPBACK, Arc::new(MemoryState::default())).unwrap();
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
