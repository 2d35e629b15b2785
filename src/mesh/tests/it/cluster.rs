//! Whole nodes for tests: a mesh with an authority, a clock that tests move, and nodes on the
//! loopback or in a simulated network.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::time::Duration;

use meshwork_identity::{
    Contact, Identity, Limits, NodeId, Resource, Revocation, RevocationNotice, Revoked, Scope,
    Scopes, Timestamp, Token, TokenRequest,
};
use meshwork_mesh::{Env, MemoryState, Mesh, MeshConfig, StateStore, SystemEntropy};
use meshwork_netsim::Net;
use meshwork_proto::announcement::Announcement;
use meshwork_proto::ports::WallClock;
use meshwork_proto::service::Router;
use tokio::time::Instant;

use crate::common::{LOOPBACK, identity, node_id, psk, sim_addr};

/// Longest wait of any test for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// When the clock of tests starts: some day in 2026.
const EPOCH: Timestamp = Timestamp::from_secs(1_780_000_000);
/// How long the tokens of tests last, unless they say otherwise.
pub(crate) const TOKEN_LIFE: Duration = Duration::from_hours(24);

/// A wall clock that goes with tokio's, and that tests can set forward.
pub(crate) struct TestClock {
    start: Instant,
    ahead: AtomicU64,
}

impl TestClock {
    pub(crate) fn advance(&self, by: Duration) {
        self.ahead
            .fetch_add(u64::try_from(by.as_millis()).unwrap(), Ordering::Relaxed);
    }
}

impl WallClock for TestClock {
    fn now(&self) -> Timestamp {
        let ahead = Duration::from_millis(self.ahead.load(Ordering::Relaxed));
        EPOCH.saturating_add(self.start.elapsed() + ahead)
    }
}

/// A mesh under test.
pub(crate) struct Cluster {
    pub(crate) authority: Identity,
    pub(crate) clock: Arc<TestClock>,
    net: Option<Net>,
    nonce: AtomicU64,
}

impl Cluster {
    /// Nodes on real sockets of the loopback.
    pub(crate) fn new() -> Self {
        Self::in_place(None)
    }

    /// Nodes in a simulated network.
    pub(crate) fn simulated(net: &Net) -> Self {
        Self::in_place(Some(net.clone()))
    }

    fn in_place(net: Option<Net>) -> Self {
        Self {
            authority: Identity::from_seed(&[200; 32]),
            clock: Arc::new(TestClock {
                start: Instant::now(),
                ahead: AtomicU64::new(0),
            }),
            net,
            nonce: AtomicU64::new(0),
        }
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// What a token for node `n` is to say: these scopes on everything, from now on.
    pub(crate) fn request(n: u8, scopes: &[Scope]) -> TokenRequest {
        TokenRequest {
            subject: node_id(n),
            scopes: scopes.iter().copied().collect(),
            resource: Resource::any(),
            not_before: None,
            ttl: TOKEN_LIFE,
            depth: 3,
            limits: Limits::none(),
        }
    }

    /// A token of the authority.
    pub(crate) fn issue(&self, request: TokenRequest) -> Token {
        self.issue_by(&self.authority, request)
    }

    pub(crate) fn issue_by(&self, root: &Identity, request: TokenRequest) -> Token {
        let mut nonce = [0; 16];
        nonce[..8].copy_from_slice(&self.nonce.fetch_add(1, Ordering::Relaxed).to_be_bytes());
        Token::issue_root(root, request, self.now(), nonce).unwrap()
    }

    pub(crate) fn token(&self, n: u8, scopes: &[Scope]) -> Token {
        self.issue(Self::request(n, scopes))
    }

    /// What makes node `n` a full node: it may announce and call everything.
    pub(crate) fn node_token(&self, n: u8) -> Token {
        self.token(n, &[Scope::Announce, Scope::Call])
    }

    /// The authority's revocation, for ever.
    pub(crate) fn revocation(&self, what: Revoked) -> Revocation {
        let notice = RevocationNotice {
            what,
            issued_at: self.now(),
            keep_until: Timestamp::MAX,
        };
        Revocation::by_authority(&self.authority, &notice).unwrap()
    }

    /// The settings of node `n`. Clocks agree, so no tolerance is needed.
    pub(crate) fn config(&self, n: u8, tokens: Vec<Token>) -> MeshConfig {
        let mut config = MeshConfig::new(identity(n), self.authority.node_id(), psk(1));
        config.tokens = tokens;
        config.clock_tolerance = Duration::ZERO;
        config
    }

    pub(crate) fn env(&self, n: u8, state: Arc<dyn StateStore>) -> Env {
        match &self.net {
            Some(net) => Env {
                clock: self.clock.clone(),
                entropy: net.entropy(),
                state,
                runtime: net.runtime(),
                socket: net.socket(sim_addr(n)).unwrap(),
                bind: {
                    // Ports count up, as nobody else has sockets there.
                    let (net, port) = (net.clone(), AtomicU16::new(sim_addr(n).port()));
                    Arc::new(move |addr| {
                        let port = port.fetch_add(1, Ordering::Relaxed) + 1;
                        net.socket(SocketAddr::new(addr.ip(), port))
                    })
                },
                addresses: Arc::new(|bound| vec![bound]),
            },
            None => Env {
                clock: self.clock.clone(),
                entropy: Arc::new(SystemEntropy),
                ..Env::production(LOOPBACK, state).unwrap()
            },
        }
    }

    /// Waits until the address of node `n`, which has been shut down and dropped, is free again.
    pub(crate) async fn released(&self, n: u8) {
        let net = self
            .net
            .as_ref()
            .expect("addresses are fixed in simulated networks only");
        until("the socket is closed", || net.socket(sim_addr(n)).is_ok()).await;
    }

    /// Starts node `n` with these tokens, serving `router`.
    pub(crate) fn start(&self, n: u8, tokens: Vec<Token>, router: Router) -> Mesh {
        self.start_with(n, self.config(n, tokens), router)
    }

    pub(crate) fn start_with(&self, n: u8, config: MeshConfig, router: Router) -> Mesh {
        Mesh::start(
            config,
            self.env(n, Arc::new(MemoryState::default())),
            router,
        )
        .unwrap()
    }

    /// Starts node `n` as a full node.
    pub(crate) fn node(&self, n: u8, router: Router) -> Mesh {
        self.start(n, vec![self.node_token(n)], router)
    }

    /// Two full nodes, connected: the client and the server of `router`.
    pub(crate) async fn pair(&self, router: Router) -> (Mesh, Mesh) {
        let (client, server) = (self.node(1, Router::new()), self.node(2, router));
        connect(&client, &server).await;
        (client, server)
    }
}

/// Where `mesh` can be dialled.
pub(crate) fn contact(mesh: &Mesh) -> Contact {
    Contact {
        node: mesh.node_id(),
        addrs: mesh.local_addrs(),
    }
}

/// Connects two nodes.
pub(crate) async fn connect(from: &Mesh, to: &Mesh) {
    assert_eq!(
        from.dial(&contact(to), PATIENCE).await.unwrap(),
        to.node_id()
    );
}

/// Waits until `done` says so; what was waited for is in the panic otherwise.
pub(crate) async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < end, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Whether `mesh` has a connection in use with `peer`.
pub(crate) fn linked(mesh: &Mesh, peer: NodeId) -> bool {
    mesh.peers().iter().any(|view| view.node == peer)
}

/// Shuts nodes down, patiently.
pub(crate) async fn stop(nodes: &[&Mesh]) {
    for node in nodes {
        node.shutdown(Duration::from_secs(5)).await;
    }
}

/// The draft of an announcement by a node of this name.
pub(crate) fn draft(name: &str, addresses: Vec<SocketAddr>) -> Announcement {
    Announcement {
        name: name.to_owned(),
        addresses,
        ..Announcement::default()
    }
}

/// All scopes but those that imply others.
pub(crate) fn scopes(list: &[Scope]) -> Scopes {
    list.iter().copied().collect()
}
