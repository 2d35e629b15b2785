//! The command line as a peer of the mesh: finds a node to call, connects as the user, calls.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use meshwork_identity::{Contact, Identity, NodeId, Psk, Token};
use meshwork_mesh::{MemoryState, Mesh, MeshConfig, StateStore};
use meshwork_proto::announcement::Role;
use meshwork_proto::mesh::{Find, FindNodes};
use meshwork_proto::rpc::{RpcError, Status};
use meshwork_proto::service::{self, CallOptions, ItemStream, Method, Router};

use super::Context;
use super::error::{CliError, Code};
use super::out::Out;
use crate::ambient::random;
use crate::home::{Home, HomeError, RunFile, Who};

/// Time to find and greet a node.
const DIAL: Duration = Duration::from_secs(10);
/// Time for one call.
const CALL: Duration = Duration::from_secs(30);
/// Time to say goodbye: for the packet to leave. A full drain (three probe time-outs, RFC 9000
/// §10.2) would hold every command up for 80 ms; a node that misses the packet finds out by itself.
const GOODBYE: Duration = Duration::from_millis(10);
/// Tries of one call, and the pause before the second; it doubles.
const TRIES: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(200);

/// A connection to one node, as the user.
pub(super) struct Client {
    /// Where results go.
    pub(super) out: Out,
    /// The user.
    pub(super) user: Identity,
    /// The node called.
    pub(super) server: NodeId,
    token: Option<Token>,
    mesh: Mesh,
    home: Home,
    /// The mesh's pre-shared key as it was when this began.
    psk: Psk,
}

/// Connects to the node that `--server` names, else to this machine's, else to a known one, and
/// does `work` with it.
pub(super) fn with<T>(
    cx: &Context,
    work: impl AsyncFnOnce(&Client) -> Result<T, CliError>,
) -> Result<T, CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let client = Client::connect(cx).await?;
        let result = work(&client).await;
        client.close().await;
        result
    })
}

impl Client {
    /// Connects; see [`with`].
    pub(super) async fn connect(cx: &Context) -> Result<Self, CliError> {
        let targets = targets(&cx.home, cx.server.as_deref())?;
        let user = cx.home.identity(Who::User)?;
        let token = cx.home.token(Who::User)?;
        let mesh = dialer(&cx.home, user.clone(), token.clone())?;
        match reach(&mesh, &targets).await {
            Ok(server) => Ok(Self {
                out: cx.out,
                user,
                server,
                token,
                psk: mesh.psk().borrow().current.clone(),
                mesh,
                home: cx.home.clone(),
            }),
            Err(error) => {
                mesh.shutdown(GOODBYE).await;
                Err(error)
            }
        }
    }

    /// Says goodbye. When the mesh has changed its pre-shared key, that is written down: without a
    /// node here, nobody else does.
    pub(super) async fn close(self) {
        let current = self.mesh.psk().borrow().current.clone();
        if current != self.psk
            && let Err(error) = self.home.write_psk(&current)
        {
            tracing::warn!(%error, "the mesh's new pre-shared key is not written down");
        }
        self.mesh.shutdown(GOODBYE).await;
    }

    /// What the connection runs over.
    pub(super) fn mesh(&self) -> &Mesh {
        &self.mesh
    }

    /// The user's token, which orders need.
    pub(super) fn token(&self) -> Result<Token, CliError> {
        self.token.clone().ok_or_else(|| {
            CliError::new(
                Code::NO_TOKEN,
                "you have no token, so you can order nothing",
            )
            .fix("ask an admin of the mesh: meshwork invite --role user")
        })
    }

    /// Calls a unary method. An idempotent one is repeated while the failure may pass.
    pub(super) async fn call<M: Method>(
        &self,
        request: &M::Request,
    ) -> Result<M::Response, CliError> {
        let mut options = CallOptions::within(CALL);
        if M::INFO.idempotent {
            options.idempotency_key = Some(random());
        }
        let mut pause = FIRST_PAUSE;
        for _ in 1..TRIES {
            match service::call::<M>(&self.mesh, self.server, request, options).await {
                Err(error) if M::INFO.idempotent && may_pass(&error) => {
                    tracing::debug!(method = %M::INFO.path(), %error, "repeating the call");
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                }
                result => return Ok(result?),
            }
        }
        Ok(service::call::<M>(&self.mesh, self.server, request, options).await?)
    }

    /// Calls a streaming method, once.
    pub(super) async fn stream<M: Method>(
        &self,
        request: &M::Request,
    ) -> Result<ItemStream<M::Response>, RpcError> {
        service::stream::<M>(&self.mesh, self.server, request, CallOptions::within(CALL)).await
    }
}

/// Whether a call that failed like this may work later. A node that stops cancels its calls, and one
/// that starts serves its parts one after the other.
pub(super) fn may_pass(error: &RpcError) -> bool {
    error.status.is_transient() || error.status == Status::Cancelled || error.reason == "no_service"
}

/// A mesh of our own that only dials.
fn dialer(home: &Home, identity: Identity, token: Option<Token>) -> Result<Mesh, CliError> {
    let authority = home.mesh()?.authority;
    let psk = home.psk()?;
    start_dialer(
        identity,
        authority,
        psk,
        token,
        Arc::new(MemoryState::default()),
    )
}

/// See [`dialer`]; for a joiner, whose folder is still empty, with the place to remember what it is
/// told.
pub(super) fn start_dialer(
    identity: Identity,
    authority: NodeId,
    psk: Psk,
    token: Option<Token>,
    state: Arc<dyn StateStore>,
) -> Result<Mesh, CliError> {
    let any = SocketAddr::from(([0u16; 8], 0));
    let env = crate::node::listen(any, state)?;
    let mut config = MeshConfig::new(identity, authority, psk);
    config.tokens = token.into_iter().collect();
    config.accept = false;
    Ok(Mesh::start(config, env, Router::new())?)
}

/// Whom to connect with.
#[derive(Debug, PartialEq, Eq)]
struct Targets {
    /// Any one of these, the best first.
    contacts: Vec<Contact>,
    /// Ask the one that answers where the node with this id is, and go on to that.
    beyond: Option<NodeId>,
}

/// Connects with the first target that answers.
async fn reach(mesh: &Mesh, targets: &Targets) -> Result<NodeId, CliError> {
    let mut last = no_server();
    for contact in &targets.contacts {
        match mesh.dial(contact, DIAL).await {
            Ok(server) => {
                // A long command outlives a restart of the node.
                mesh.pin(contact.clone());
                return match targets.beyond {
                    Some(node) => go_on(mesh, server, node).await,
                    None => Ok(server),
                };
            }
            Err(error) => last = error.into(),
        }
    }
    Err(last)
}

/// Connects with a node that `server` knows: directly, or through a relay that it is linked with.
async fn go_on(mesh: &Mesh, server: NodeId, node: NodeId) -> Result<NodeId, CliError> {
    let find = Find {
        query: format!("id = {node}"),
        limit: 1,
        tenants: BTreeSet::new(),
        region: None,
    };
    let options = CallOptions::within(CALL);
    let found = service::call::<FindNodes>(mesh, server, &find, options).await?;
    let said = found.nodes.first().and_then(|found| found.open().ok());
    let said = said.ok_or_else(|| {
        let text = format!("no node {} is known to {}", node.short(), server.short());
        CliError::new(Code::NOT_FOUND, text).fix("meshwork node ls")
    })?;
    mesh.learn(found.nodes);
    let contact = Contact {
        node,
        addrs: said.addresses,
    };
    Ok(mesh.dial(&contact, DIAL).await?)
}

/// Nodes to try, the best first.
fn targets(home: &Home, server: Option<&str>) -> Result<Targets, CliError> {
    if !home.has_mesh() {
        return Err(HomeError::NoMesh(home.root().to_owned()).into());
    }
    let local = home.running()?;
    let known = home.contacts()?.contact;
    let exactly = |contact| Targets {
        contacts: vec![contact],
        beyond: None,
    };
    let beyond = match server {
        None => None,
        // Whoever answers may know where it is.
        Some(server) => match (named(server, local.as_ref(), &known), server.parse()) {
            (Ok(contact), _) => return Ok(exactly(contact)),
            (Err(_), Ok(node)) => Some(node),
            (Err(error), Err(_)) => return Err(error),
        },
    };
    let (managers, others): (Vec<RunFile>, Vec<RunFile>) = local
        .into_iter()
        .partition(|run| run.roles.contains(&Role::Manager));
    let contact = |run: RunFile| Contact {
        node: run.node,
        addrs: run.addrs,
    };
    let contacts: Vec<Contact> = managers
        .into_iter()
        .map(contact)
        .chain(known)
        .chain(others.into_iter().map(contact))
        .collect();
    if contacts.is_empty() {
        return Err(no_server());
    }
    Ok(Targets { contacts, beyond })
}

fn no_server() -> CliError {
    CliError::new(
        Code::NO_SERVER,
        "no node of the mesh runs here and none elsewhere is known",
    )
    .fix("meshwork up, or --server NODE-ID@HOST:PORT")
}

/// What `--server` names: `ID@HOST:PORT`, or the id or address of a node that is known here.
fn named(server: &str, local: Option<&RunFile>, known: &[Contact]) -> Result<Contact, CliError> {
    let wrong = |why: &str| CliError::new(Code::VALUE, format!("--server {server}: {why}"));
    if let Some((id, address)) = server.split_once('@') {
        let node = id
            .parse()
            .map_err(|e: meshwork_identity::NodeIdError| wrong(&e.to_string()))?;
        return Ok(Contact {
            node,
            addrs: addresses(address)?,
        });
    }
    let local = local.map(|run| Contact {
        node: run.node,
        addrs: run.addrs.clone(),
    });
    let all: Vec<&Contact> = local.iter().chain(known).collect();
    let by_id = all.iter().find(|c| c.node.matches_prefix(server));
    if let Some(contact) = by_id {
        return Ok((*contact).clone());
    }
    let addrs = addresses(server)
        .map_err(|_| wrong("no known node has this id").fix("write NODE-ID@HOST:PORT"))?;
    let by_address = all
        .iter()
        .find(|c| c.addrs.iter().any(|a| addrs.contains(a)));
    by_address
        .map(|contact| (*contact).clone())
        .ok_or_else(|| wrong("no known node has this address").fix("write NODE-ID@HOST:PORT"))
}

/// Every address of `HOST:PORT`.
pub(super) fn addresses(text: &str) -> Result<Vec<SocketAddr>, CliError> {
    use std::net::ToSocketAddrs;
    let wrong = |why: &str| {
        CliError::new(Code::VALUE, format!("`{text}` is no address: {why}")).fix("write HOST:PORT")
    };
    match text.to_socket_addrs() {
        Ok(found) => {
            let found: Vec<SocketAddr> = found.collect();
            if found.is_empty() {
                Err(wrong("the name has none"))
            } else {
                Ok(found)
            }
        }
        Err(error) => Err(wrong(&error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contact(n: u8, port: u16) -> Contact {
        let node = Identity::from_seed(&[n; 32]).node_id();
        Contact {
            node,
            addrs: vec![SocketAddr::from(([127, 0, 0, 1], port))],
        }
    }

    #[test]
    fn a_server_is_named_by_id_prefix_address_or_both() {
        let known = [contact(1, 7001), contact(2, 7002)];
        let (a, b) = (&known[0], &known[1]);
        assert_eq!(&named(&a.node.short(), None, &known).unwrap(), a);
        assert_eq!(&named("127.0.0.1:7002", None, &known).unwrap(), b);
        let both = named(&format!("{}@127.0.0.1:9", b.node), None, &known).unwrap();
        assert_eq!((both.node, both.addrs[0].port()), (b.node, 9));
        for unknown in ["127.0.0.1:7003", "zzzz", "x@127.0.0.1:1"] {
            assert!(named(unknown, None, &known).is_err(), "{unknown}");
        }
    }

    #[test]
    fn the_local_manager_comes_first_and_a_local_agent_last() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::new(folder.path().to_owned());
        let authority = contact(9, 1).node;
        let mesh = crate::home::MeshFile {
            authority,
            name: "x".into(),
            roles: [].into(),
        };
        home.write_mesh(&mesh).unwrap();
        assert!(targets(&home, None).is_err());
        let (local, far) = (contact(1, 7001), contact(2, 7002));
        let contacts = crate::home::Contacts {
            contact: vec![far.clone()],
        };
        home.write_contacts(&contacts).unwrap();
        let _held = home.lock().unwrap();
        for (role, order) in [
            (Role::Manager, [&local, &far]),
            (Role::Agent, [&far, &local]),
        ] {
            let run = RunFile {
                pid: 1,
                node: local.node,
                addrs: local.addrs.clone(),
                roles: [role].into(),
                ready: true,
                metrics: None,
            };
            home.write_running(&run).unwrap();
            let found = targets(&home, None).unwrap();
            assert_eq!(found.contacts.iter().collect::<Vec<_>>(), order);
            // A whole id that nobody here knows is asked for; a part of one is not.
            let stranger = contact(3, 1).node.to_string();
            let beyond = targets(&home, Some(&stranger)).unwrap();
            assert_eq!(beyond.beyond, Some(contact(3, 1).node));
            assert_eq!(beyond.contacts, found.contacts);
            assert!(targets(&home, Some(&stranger[..8])).is_err());
        }
    }
}
