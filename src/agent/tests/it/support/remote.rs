//! An agent in a process of its own, which a test can kill: this test program started again, with
//! the agent's methods behind a unix socket.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use meshwork_identity::NodeId;
use meshwork_proto::codec;
use meshwork_proto::rpc::{Codec, RpcError};
use meshwork_proto::service::{BoxFuture, Caller, ItemStream, RawCall, RawReply, Router};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use super::{Client, PATIENCE, Place};

/// Names the folder of the agent that a child is to be.
const DIR: &str = "MESHWORK_TEST_DIR";
const MAX: usize = 16 << 20;

/// The child's part. Other tests start it; by itself it has no folder and does nothing.
#[tokio::test]
#[ignore = "started by other tests as their agent"]
async fn child() {
    let Some(dir) = std::env::var_os(DIR).map(PathBuf::from) else {
        return;
    };
    let node = super::node_of(&dir);
    let local = super::start(super::config(&dir), node).await;
    let path = socket(&dir);
    drop(std::fs::remove_file(&path));
    let listener = UnixListener::bind(&path).unwrap();
    loop {
        let (connection, _) = listener.accept().await.unwrap();
        let (router, cx) = (local.router.clone(), local.manager_context());
        tokio::spawn(async move { drop(serve(connection, router, cx).await) });
    }
}

async fn serve(
    mut connection: UnixStream,
    router: Router,
    cx: meshwork_proto::service::CallContext,
) -> std::io::Result<()> {
    let (method, body): (String, Vec<u8>) =
        codec::decode(&read(&mut connection).await?, MAX).unwrap();
    let reply = router.dispatch("agent", &method, cx, Codec::Postcard, body.into());
    let mut items: ItemStream<Bytes> = match reply.unwrap() {
        RawReply::Unary(answer) => Box::pin(stream::once(answer)),
        RawReply::Stream(items) => match items.await {
            Ok(items) => items,
            Err(error) => Box::pin(stream::iter([Err(error)])),
        },
    };
    while let Some(item) = items.next().await {
        let bytes = codec::encode(&item.map(|b| b.to_vec()));
        connection
            .write_u32(u32::try_from(bytes.len()).unwrap())
            .await?;
        connection.write_all(&bytes).await?;
    }
    Ok(())
}

async fn read(connection: &mut UnixStream) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; connection.read_u32().await? as usize];
    connection.read_exact(&mut bytes).await?;
    Ok(bytes)
}

fn socket(dir: &Path) -> PathBuf {
    dir.join("agent.sock")
}

/// A child process that is an agent.
pub(crate) struct Remote {
    child: Child,
    dir: PathBuf,
    node: NodeId,
}

impl Remote {
    /// Starts the agent of `place`, to die at `failpoint`.
    pub(crate) fn start(place: &Place, failpoint: Option<&str>) -> Self {
        let dir = place.dir.path().to_owned();
        drop(std::fs::remove_file(socket(&dir)));
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args([
                "--exact",
                "support::remote::child",
                "--ignored",
                "--nocapture",
            ])
            .env(DIR, &dir)
            .stdout(Stdio::null());
        match failpoint {
            Some(name) => command.env("MESHWORK_FAILPOINT", name),
            None => command.env_remove("MESHWORK_FAILPOINT"),
        };
        Self {
            child: command.spawn().unwrap(),
            dir,
            node: place.node,
        }
    }

    /// Its manager, once it listens.
    pub(crate) async fn manager(&mut self) -> Client {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while UnixStream::connect(socket(&self.dir)).await.is_err() {
            assert!(
                tokio::time::Instant::now() < deadline,
                "the agent does not come up"
            );
            assert_eq!(
                self.child.try_wait().unwrap(),
                None,
                "the agent died at its start"
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Client {
            caller: Arc::new(Socket(socket(&self.dir))),
            node: self.node,
        }
    }

    /// Waits until it is dead of its failpoint.
    pub(crate) async fn died(&mut self) {
        let wait = async {
            while self.child.try_wait().unwrap().is_none() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, wait)
            .await
            .expect("the failpoint is reached");
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

struct Socket(PathBuf);

async fn call(path: PathBuf, call: RawCall) -> Result<UnixStream, RpcError> {
    let gone = |e: std::io::Error| RpcError::unavailable(e.to_string());
    let mut connection = UnixStream::connect(path).await.map_err(gone)?;
    let bytes = codec::encode(&(call.method.name, call.body.to_vec()));
    connection
        .write_u32(u32::try_from(bytes.len()).unwrap())
        .await
        .map_err(gone)?;
    connection.write_all(&bytes).await.map_err(gone)?;
    Ok(connection)
}

/// The next item; none when the connection ended.
async fn item(connection: &mut UnixStream) -> Option<Result<Bytes, RpcError>> {
    let bytes = read(connection).await.ok()?;
    let item: Result<Vec<u8>, RpcError> = codec::decode(&bytes, MAX).unwrap();
    Some(item.map(Bytes::from))
}

impl Caller for Socket {
    fn call_raw(&self, _: NodeId, request: RawCall) -> BoxFuture<Result<Bytes, RpcError>> {
        let path = self.0.clone();
        Box::pin(async move {
            let mut connection = call(path, request).await?;
            let answer = item(&mut connection).await;
            answer.unwrap_or_else(|| Err(RpcError::unavailable("the agent died")))
        })
    }

    fn stream_raw(
        &self,
        _: NodeId,
        request: RawCall,
    ) -> BoxFuture<Result<ItemStream<Bytes>, RpcError>> {
        let path = self.0.clone();
        Box::pin(async move {
            let connection = call(path, request).await?;
            let items = stream::unfold(connection, |mut connection| async {
                Some((item(&mut connection).await?, connection))
            });
            let items: ItemStream<Bytes> = Box::pin(items);
            Ok(items)
        })
    }
}
