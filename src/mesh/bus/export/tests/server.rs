//! Private servers from the system's packages, and a proxy that loses answers.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Longest wait for anything; only a failing test waits so long.
pub(super) const PATIENCE: Duration = Duration::from_mins(1);

/// Whether tests with servers are left out.
pub(super) fn skipped() -> bool {
    std::env::var("MESHWORK_SKIP_DOCKER").is_ok_and(|v| v == "1")
}

/// A server on this machine, for one test. Killed when dropped.
pub(super) struct Server {
    child: Child,
    pub(super) addr: SocketAddr,
}

impl Server {
    pub(super) async fn redis(folder: &Path) -> Self {
        Self::redis_at(folder, free_addr().await).await
    }

    pub(super) async fn redis_at(folder: &Path, addr: SocketAddr) -> Self {
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--port", &addr.port().to_string()]);
        command.args(["--save", "", "--appendonly", "no", "--dir"]);
        Self::start(command.arg(folder), addr, "redis-server").await
    }

    pub(super) async fn nats(folder: &Path) -> Self {
        let addr = free_addr().await;
        let mut command = Command::new("nats-server");
        command.args(["--addr", "127.0.0.1", "--port", &addr.port().to_string()]);
        command.args(["--jetstream", "--store_dir"]);
        Self::start(command.arg(folder), addr, "nats-server").await
    }

    async fn start(command: &mut Command, addr: SocketAddr, package: &str) -> Self {
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let child = child.unwrap_or_else(|error| {
            panic!(
                "cannot run {package}: {error}; `apt-get install {package}`, or set \
                 MESHWORK_SKIP_DOCKER=1 to leave such tests out"
            )
        });
        let server = Self { child, addr };
        let answers = async {
            while TcpStream::connect(addr).await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let started = tokio::time::timeout(PATIENCE, answers).await;
        started.unwrap_or_else(|_| panic!("{package} does not listen on {addr}"));
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Passes connections on to a server, and breaks them so that answers get lost: connection number
/// `n` (from 0) ends when the server has answered with more bytes than `allowance(n)`, which the
/// client never sees.
pub(super) struct Lossy {
    pub(super) addr: SocketAddr,
    broken: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<()>,
}

impl Lossy {
    pub(super) async fn start(server: SocketAddr, allowance: fn(u64) -> usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let broken = Arc::new(AtomicU64::new(0));
        let count = broken.clone();
        let task = tokio::spawn(async move {
            let mut links = tokio::task::JoinSet::new();
            for number in 0.. {
                let (client, _) = listener.accept().await.unwrap();
                let server = TcpStream::connect(server).await.unwrap();
                let count = count.clone();
                links.spawn(async move {
                    if link(client, server, allowance(number)).await {
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });
        Self { addr, broken, task }
    }

    /// Connections of which an answer was lost.
    pub(super) fn broken(&self) -> u64 {
        self.broken.load(Ordering::Relaxed)
    }
}

impl Drop for Lossy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Passes bytes until an end closes, or the server has said too much: then `true`.
async fn link(mut client: TcpStream, mut server: TcpStream, allowance: usize) -> bool {
    let (mut asks, mut answers) = (vec![0; 16 << 10], vec![0; 16 << 10]);
    let mut answered = 0;
    loop {
        tokio::select! {
            asked = client.read(&mut asks) => match asked {
                Ok(len) if len > 0 => {
                    if server.write_all(&asks[..len]).await.is_err() {
                        return false;
                    }
                }
                _ => return false,
            },
            said = server.read(&mut answers) => match said {
                Ok(len) if len > 0 => {
                    answered += len;
                    if answered > allowance {
                        return true;
                    }
                    if client.write_all(&answers[..len]).await.is_err() {
                        return false;
                    }
                }
                _ => return false,
            },
        }
    }
}

async fn free_addr() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap()
}
