//! Paths under real connections, in a simulated network: peers that move, NATs that forget, relays
//! that carry, strangers that forge.

use std::collections::BTreeSet;
use std::io::{self, IoSliceMut};
use std::pin::Pin;
use std::sync::atomic::AtomicU16;
use std::task::{Context, Poll};

use meshwork_identity::{Identity, MeshId, Psk};
use meshwork_netsim::{Delivery, LinkModel, Net, Sim};
use quinn::udp::{RecvMeta, Transmit};
use quinn::{Connection, UdpPoller};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::transport::{Endpoint, PskSet, TransportConfig, peer_id};

mod bounds;
mod dialling;
mod moving;

/// Longest wait for anything, in virtual time.
const PATIENCE: Duration = Duration::from_secs(20);
/// One way.
const LATENCY: Duration = Duration::from_millis(15);
/// Bytes of the streams that must survive a change of the path.
const LONG: usize = 3_000_000;

/// A socket whose address can change under its owner, as behind a NAT that forgets.
#[derive(Debug)]
struct Roaming(Mutex<Arc<dyn AsyncUdpSocket>>);

impl Roaming {
    fn now(&self) -> Arc<dyn AsyncUdpSocket> {
        self.0.lock().unwrap().clone()
    }

    fn move_to(&self, socket: Arc<dyn AsyncUdpSocket>) {
        *self.0.lock().unwrap() = socket;
    }
}

impl AsyncUdpSocket for Roaming {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.now().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.now().try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.now().poll_recv(cx, bufs, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.now().local_addr()
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

/// A node without all that lies above its paths.
struct Peer {
    node: NodeId,
    endpoint: Endpoint,
    paths: Arc<Paths>,
    socket: Arc<Roaming>,
    stop: CancellationToken,
    net: Net,
}

fn node_id(n: u8) -> NodeId {
    Identity::from_seed(&[n; 32]).node_id()
}

fn v4(n: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, n], 7000))
}

fn v6(n: u8) -> SocketAddr {
    SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(n)], 7000))
}

impl Peer {
    /// Node `n`, which echoes streams.
    fn start(net: &Net, n: u8, addr: SocketAddr) -> Self {
        let psks = PskSet {
            current: Psk::from_bytes([1; 32]),
            previous: None,
        };
        let identity = Identity::from_seed(&[n; 32]);
        let node = identity.node_id();
        let mut config = TransportConfig::new(identity, MeshId::from_bytes([1; 16]), psks);
        config.entropy = net.entropy();
        config.idle_timeout = PATIENCE;
        config.keep_alive = Some(PATIENCE / 3);
        let socket = Arc::new(Roaming(Mutex::new(net.socket(addr).unwrap())));
        let ports = AtomicU16::new(addr.port());
        let bind: BindSocket = Arc::new({
            let net = net.clone();
            move |addr| {
                let port = ports.fetch_add(1, Ordering::Relaxed) + 1;
                net.socket(SocketAddr::new(addr.ip(), port))
            }
        });
        let addresses: FindAddresses = Arc::new(|bound| vec![bound]);
        let how = PathConfig::default();
        let paths = Paths::new(node, socket.clone(), bind, addresses, how).unwrap();
        let endpoint = Endpoint::bind(&config, net.runtime(), paths.socket()).unwrap();
        let stop = CancellationToken::new();
        tokio::spawn(paths.clone().run(stop.clone()));
        tokio::spawn(accept(endpoint.clone(), paths.clone()));
        Self {
            node,
            endpoint,
            paths,
            socket,
            stop,
            net: net.clone(),
        }
    }

    async fn dial(&self, to: &Peer, addrs: &[SocketAddr]) -> Result<Conn, String> {
        let _dial = self.paths.dial(to.node, addrs);
        let conn = self.endpoint.connect(virtual_addr(&to.node), Some(to.node));
        let conn = conn.await.map_err(|error| error.to_string())?;
        let bound = self.paths.bind(to.node, &conn).unwrap();
        Ok(Conn { conn, bound })
    }

    /// From now on the network shows this node at another port; nothing arrives at the old one.
    fn roam(&self, port: u16) {
        let mut addr = self.socket.local_addr().unwrap();
        addr.set_port(port);
        self.socket.move_to(self.net.socket(addr).unwrap());
        // The reader of the old socket is told of the new one, as a NAT's inside does not change.
        self.paths.inbound.wake();
    }

    /// Takes the place of a node that has died.
    fn roam_to(&self, dead: &Peer) {
        let place = dead.addr();
        let aside = SocketAddr::new(place.ip(), 1);
        dead.socket.move_to(self.net.socket(aside).unwrap());
        self.net.partition(aside, v4(1));
        self.socket.move_to(self.net.socket(place).unwrap());
        self.paths.inbound.wake();
    }

    fn addr(&self) -> SocketAddr {
        self.socket.local_addr().unwrap()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

struct Conn {
    conn: Connection,
    bound: Bound,
}

async fn accept(endpoint: Endpoint, paths: Arc<Paths>) {
    while let Some(incoming) = endpoint.accept().await {
        let paths = paths.clone();
        tokio::spawn(async move {
            let Ok(conn) = incoming.complete().await else {
                return;
            };
            let _bound = paths.bind(peer_id(&conn), &conn);
            while let Ok((mut send, mut recv)) = conn.accept_bi().await {
                tokio::spawn(async move {
                    let mut buffer = vec![0; 4096];
                    while let Ok(Some(len)) = recv.read(&mut buffer).await {
                        if send.write_all(&buffer[..len]).await.is_err() {
                            return;
                        }
                    }
                    let _ = send.finish();
                });
            }
        });
    }
}

/// Sends a numbered stream there and back, whole and in order, with a pause now and then so that it
/// lasts for some seconds.
fn long_echo(conn: &Connection) -> JoinHandle<Duration> {
    let conn = conn.clone();
    tokio::spawn(async move {
        let (mut send, mut recv) = conn.open_bi().await.unwrap();
        let bytes: Vec<u8> = (0..=250u8).cycle().take(LONG).collect();
        let expected = bytes.clone();
        tokio::spawn(async move {
            for chunk in bytes.chunks(LONG / 100) {
                send.write_all(chunk).await.unwrap();
                sleep(Duration::from_millis(40)).await;
            }
            send.finish().unwrap();
            // The stream's end is the other half's.
            let _ = send.stopped().await;
        });
        let (mut got, mut longest, mut last) = (Vec::new(), Duration::ZERO, Instant::now());
        let mut buffer = vec![0; 65536];
        while let Some(len) = recv.read(&mut buffer).await.unwrap() {
            got.extend_from_slice(&buffer[..len]);
            longest = longest.max(last.elapsed());
            last = Instant::now();
        }
        assert!(got == expected, "{} of {LONG} bytes", got.len());
        longest
    })
}

async fn echo(conn: &Connection) {
    let (mut send, mut recv) = conn.open_bi().await.unwrap();
    send.write_all(b"hello").await.unwrap();
    send.finish().unwrap();
    assert_eq!(recv.read_to_end(100).await.unwrap(), b"hello");
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < end, "waited in vain until {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

fn in_sim<F: Future<Output = ()>>(seed: u64, test: impl FnOnce(Net) -> F) {
    // Without reordering, which QUIC takes for loss and slows down.
    let link = LinkModel {
        latency: LATENCY..LATENCY,
        loss: 0.0,
    };
    let sim = Sim::new(seed, link);
    let net = sim.net();
    sim.block_on(async { timeout(Duration::from_mins(2), test(net)).await.unwrap() });
}

/// Carries what both have for relays, as from `relay`.
fn relay_between(relay: NodeId, one: &Peer, other: &Peer) -> [JoinHandle<()>; 2] {
    let half = |from: &Peer, to: &Peer| {
        let (from, src, to) = (from.paths.clone(), from.node, to.paths.clone());
        tokio::spawn(async move {
            while let Some((via, _, packet)) = from.relay_queue().next().await {
                sleep(Duration::from_millis(5)).await;
                if via == relay {
                    to.inject(src, via, &packet);
                }
            }
        })
    };
    [half(one, other), half(other, one)]
}

fn is_probe(payload: &[u8]) -> bool {
    Probe::looks_like_one(payload)
}
