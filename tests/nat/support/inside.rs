//! A node that runs in this process, on a machine of a lab: for what the command line has no word
//! for, such as a stream of numbers in which nothing may be missing.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream;
use meshwork_identity::{Contact, NodeId, Psk, load_identity};
use meshwork_mesh::{Env, FileState, Mesh, MeshConfig};
use meshwork_proto::Announcement;
use meshwork_proto::service::{self, CallOptions, ItemStream, Router};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde::Deserialize;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::echo::at;
use super::lab::NETNS;
use super::node::{Member, PORT};
use super::{eventually, so};

/// Time between two numbers of the stream.
const BEAT: Duration = Duration::from_millis(20);
/// Time to shut down.
const GOODBYE: Duration = Duration::from_secs(5);

meshwork_proto::service! {
    "nat-test";
    /// Counts from 0, a number every 20 ms.
    stream Count("count", Member, false): () => u64;
}

#[derive(Deserialize)]
struct MeshFile {
    authority: NodeId,
}

#[derive(Deserialize)]
struct Contacts {
    contact: Vec<Contact>,
}

/// The running node. Dropping it ends it.
pub(crate) struct Inside {
    pub(crate) mesh: Mesh,
    runtime: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// The numbers that have arrived.
#[derive(Default)]
pub(crate) struct Arrived {
    /// The last one, if every one before it arrived, in order and once.
    pub(crate) last: Option<u64>,
    /// What was wrong with the first one that was not as it should be.
    pub(crate) broken: Option<String>,
    /// The longest time between two, of those since the last look.
    pub(crate) stall: Duration,
}

impl Inside {
    /// Joins the hub's mesh as `member` does, and runs its node here.
    pub(crate) fn joins(hub: &Member, member: &Member) -> Self {
        tell_story();
        member.ok(&[
            "join",
            &hub.ticket("agent"),
            "--no-up",
            "--name",
            &member.name,
        ]);
        let (home, name) = (member.home(), member.name.clone());
        let address = at(&member.host, PORT);
        let namespace = Path::new(NETNS).join(member.host.namespace());
        let (started, starting) = mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().name(name.clone());
        let run = move || {
            let namespace = File::open(namespace).expect("the lab has it");
            // One thread, so that all its sockets are of the machine, later ones as well.
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                .expect("root may enter a namespace of its own");
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async {
                let mesh = start(&home, &name, address).await;
                let told = started.send((mesh.clone(), Handle::current()));
                told.expect("somebody waits for it");
                // An error means that nobody holds it any more: the same.
                let _ = stopped.await;
                mesh.shutdown(GOODBYE).await;
            });
        };
        let thread = thread.spawn(run).expect("a thread");
        let (mesh, runtime) = starting.recv().expect("the node starts");
        Self {
            mesh,
            runtime,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// Reads numbers from `from`, as long as this node runs.
    #[track_caller]
    pub(crate) fn count(&self, from: &Inside) -> Arc<Mutex<Arrived>> {
        let arrived = Arc::new(Mutex::new(Arrived::default()));
        let (mesh, server, into) = (self.mesh.clone(), from.mesh.node_id(), arrived.clone());
        self.runtime.spawn(async move {
            let options = CallOptions::within(Duration::from_secs(20));
            let items = service::stream::<Count>(&mesh, server, &(), options).await;
            match items {
                Ok(items) => read(items, &into).await,
                Err(error) => into.lock().unwrap().broken = Some(error.to_string()),
            }
        });
        arrived
    }

    /// The way of the connection with `other`: `direct`, `relay via …`.
    pub(crate) fn path(&self, other: &Inside) -> Option<String> {
        let node = other.mesh.node_id();
        let mut peers = self.mesh.peers().into_iter();
        peers.find(|peer| peer.node == node).map(|peer| peer.path)
    }

    /// Waits until the connection with `other` takes such a way; tells which.
    #[track_caller]
    pub(crate) fn reaches(&self, other: &Inside, way: &str) -> String {
        eventually(way, || {
            let path = self.path(other).ok_or("not connected")?;
            so(path.starts_with(way), &path).map(|()| path)
        })
    }

    /// Waits until the two are connected, as all nodes of a small mesh are in the end.
    #[track_caller]
    pub(crate) fn meets(&self, other: &Inside) {
        eventually("the other node", || {
            self.path(other)
                .ok_or_else(|| format!("{:?}", self.mesh.status()))
        });
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // Its panic is the test's own.
            let _ = thread.join();
        }
    }
}

impl Arrived {
    fn take(&mut self, number: u64) {
        let expected = self.last.map_or(0, |last| last + 1);
        if number == expected {
            self.last = Some(number);
        } else if self.broken.is_none() {
            self.broken = Some(format!("{number} came for {expected}"));
        }
    }
}

/// Waits until this many more numbers have arrived; tells the longest pause among them.
#[track_caller]
pub(crate) fn goes_on(arrived: &Mutex<Arrived>, more: u64) -> Duration {
    let first = {
        let mut arrived = arrived.lock().unwrap();
        arrived.stall = Duration::ZERO;
        arrived.last.unwrap_or(0)
    };
    eventually("more numbers", || {
        let arrived = arrived.lock().unwrap();
        assert_eq!(arrived.broken, None);
        let enough = arrived.last.is_some_and(|last| last >= first + more);
        so(enough, arrived.last).map(|()| arrived.stall)
    })
}

/// What the nodes of this process log is part of a failed test's output.
fn tell_story() {
    let done = tracing_subscriber::fmt()
        .with_env_filter("info,meshwork_mesh=debug")
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_thread_names(true)
        .try_init();
    // The second node of a process finds it done.
    drop(done);
}

async fn read(mut items: ItemStream<u64>, into: &Mutex<Arrived>) {
    let mut before = Instant::now();
    while let Some(item) = items.next().await {
        let mut arrived = into.lock().unwrap();
        match item {
            Ok(number) => arrived.take(number),
            Err(error) => arrived.broken = Some(error.to_string()),
        }
        arrived.stall = arrived.stall.max(before.elapsed());
        before = Instant::now();
    }
    into.lock()
        .unwrap()
        .broken
        .get_or_insert("the stream ended".to_owned());
}

/// Starts a node from what `join` wrote down.
async fn start(home: &Path, name: &str, address: SocketAddr) -> Mesh {
    let text = |file: &str| fs::read_to_string(home.join(file)).expect("`join` wrote it");
    let identity = load_identity(&home.join("node.key")).expect("`join` wrote it");
    let mesh: MeshFile = toml::from_str(&text("mesh.toml")).expect("TOML");
    let contacts: Contacts = toml::from_str(&text("contacts.toml")).expect("TOML");
    let mut config = MeshConfig::new(identity, mesh.authority, psk(text("psk").trim()));
    let token = text("tokens/node.token");
    config.tokens = vec![token.trim().parse().expect("a token")];
    name.clone_into(&mut config.name);
    config.advertise = vec![address];
    let state = Arc::new(FileState::open(home.join("state")).expect("a folder of our own"));
    let any = format!("[::]:{PORT}").parse().expect("an address");
    let env = Env::production(any, state).expect("the port is free");
    let numbers = Router::new().stream::<Count, _, _>(|_, ()| async {
        let numbers = stream::iter(0u64..).then(|number| async move {
            tokio::time::sleep(BEAT).await;
            Ok(number)
        });
        let numbers: ItemStream<u64> = Box::pin(numbers);
        Ok(numbers)
    });
    let mesh = Mesh::start(config, env, numbers).expect("the node starts");
    for contact in contacts.contact {
        mesh.pin(contact);
    }
    let draft = Announcement {
        name: name.to_owned(),
        ..Announcement::default()
    };
    mesh.announce(draft).await.expect("it is small");
    mesh
}

fn psk(hex: &str) -> Psk {
    let byte = |n: usize| u8::from_str_radix(&hex[2 * n..2 * n + 2], 16).expect("hexadecimal");
    Psk::from_bytes(std::array::from_fn(byte))
}
