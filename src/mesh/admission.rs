//! Letting newcomers in: tickets given out, and redeemed for tokens.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use meshwork_identity::{
    AdmissionBook, AdmissionError, AdmissionSecret, AdmissionTerms, Contact, MAX_CONTACT_ADDRS,
    MAX_CONTACTS, NodeId, Resource, Role, Scope, Scopes, Ticket, Timestamp,
};
use meshwork_proto::announcement::Role as NodeRole;
use meshwork_proto::codec;
use meshwork_proto::limits::MAX_NAME;
use meshwork_proto::mesh::{Invite, Invited, Join, Joined};
use meshwork_proto::rpc::{RpcError, Status};
use tokio::time::Instant;

use crate::error::MeshError;
use crate::node::Node;
use crate::peer::Link;
use crate::state::{StateStore, durably};

/// Where the book is kept.
const STATE_KEY: &str = "admissions";
/// Most bytes of the book: as many tickets as it takes, each with all its joiners.
const MAX_STATE: usize = 64 << 20;
/// Failed tries that a source has in a [`WINDOW`], and as many more as are looked at in one moment.
const TRIES: u32 = 5;
/// See [`TRIES`].
const WINDOW: Duration = Duration::from_mins(1);
/// Sources whose tries are counted at a time. When there are more, all of them wait.
const MAX_SOURCES: usize = 4096;
/// Revocations that a newcomer is told with its token, which must fit one frame; its neighbours tell
/// the others.
const MAX_REVOCATIONS_TOLD: usize = 1024;
/// How long an expired ticket is remembered, to say that it has expired.
const REMEMBERED: Duration = Duration::from_hours(24);

/// The tickets given out, and who tries to redeem any.
pub(crate) struct Admission {
    book: Mutex<AdmissionBook>,
    tries: Mutex<BTreeMap<Source, Tries>>,
}

/// Where a try comes from. A try counts for its node, and for its address, as ids cost nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    Node(NodeId),
    Ip(IpAddr),
}

#[derive(Debug, Clone, Copy)]
struct Tries {
    since: Instant,
    count: u32,
}

impl Admission {
    pub(crate) fn load(state: &dyn StateStore) -> Result<Self, MeshError> {
        let stored = state.get(STATE_KEY).map_err(MeshError::state(STATE_KEY))?;
        let book = match stored {
            None => AdmissionBook::default(),
            Some(bytes) => codec::decode(&bytes, MAX_STATE).map_err(|error| {
                MeshError::state(STATE_KEY)(std::io::Error::other(error.to_string()))
            })?,
        };
        Ok(Self {
            book: Mutex::new(book),
            tries: Mutex::default(),
        })
    }

    fn book(&self) -> MutexGuard<'_, AdmissionBook> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the book durably, or not at all.
    fn change<T>(
        &self,
        state: &dyn StateStore,
        change: impl FnOnce(&mut AdmissionBook) -> Result<T, RpcError>,
    ) -> Result<T, RpcError> {
        let mut book = self.book();
        let mut changed = book.clone();
        let result = change(&mut changed)?;
        if changed == *book {
            return Ok(result);
        }
        durably(|| state.put(STATE_KEY, &codec::encode(&changed)))
            .map_err(|error| RpcError::from(MeshError::state(STATE_KEY)(error)))?;
        *book = changed;
        Ok(result)
    }

    /// Forgets tickets that expired long ago, and old tries.
    pub(crate) fn purge(&self, now: Timestamp) {
        self.book().purge(now.saturating_sub(REMEMBERED));
        self.tries()
            .retain(|_, tries| tries.since.elapsed() < WINDOW);
    }

    fn tries(&self) -> MutexGuard<'_, BTreeMap<Source, Tries>> {
        self.tries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses a try when too many have failed.
    fn check_tries(&self, sources: [Source; 2]) -> Result<(), RpcError> {
        let mut tries = self.tries();
        if tries.len() >= MAX_SOURCES {
            tries.retain(|_, tries| tries.since.elapsed() < WINDOW);
        }
        let used_up = |source| {
            let tries = tries.get(&source);
            tries.is_some_and(|tries| tries.count >= TRIES && tries.since.elapsed() < WINDOW)
        };
        if tries.len() < MAX_SOURCES && !sources.into_iter().any(used_up) {
            return Ok(());
        }
        Err(RpcError::new(
            Status::Backpressure,
            format!("more than {TRIES} failed tries to join within {WINDOW:?}"),
        )
        .reason("join_rate")
        .fix("wait a minute"))
    }

    /// Counts a try that failed.
    fn count_failure(&self, sources: [Source; 2]) {
        let mut all = self.tries();
        for source in sources {
            let now = Instant::now();
            let begun = Tries {
                since: now,
                count: 0,
            };
            let tries = all.entry(source).or_insert(begun);
            if tries.since.elapsed() >= WINDOW {
                *tries = begun;
            }
            tries.count = tries.count.saturating_add(1);
        }
    }
}

/// The address that tries are counted for: of IPv6, the network that one customer gets.
fn network(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => ip.into(),
        IpAddr::V6(ip) => match ip.to_ipv4_mapped() {
            Some(ip) => Ipv4Addr::into(ip),
            None => Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX)).into(),
        },
    }
}

/// What a role needs, if an invitation names nothing else.
fn scopes_of(role: &str) -> Option<Scopes> {
    let member = [Scope::Join, Scope::Announce];
    match role {
        "user" => Some(Scopes::from([Scope::Call, Scope::Delegate])),
        "manager" => Some(Scopes::all()),
        other => other.parse::<NodeRole>().ok().map(|_| Scopes::from(member)),
    }
}

/// What all of the roles need, of a list with commas between.
fn scopes_of_all(roles: &str) -> Result<Scopes, RpcError> {
    let mut scopes = Scopes::NONE;
    for role in roles.split(',') {
        let needs = scopes_of(role).ok_or_else(|| {
            RpcError::invalid(format!("`{role}` is no role to invite"))
                .reason("role")
                .fix("use agent, manager or user")
        })?;
        needs.iter().for_each(|scope| scopes.insert(scope));
    }
    Ok(scopes)
}

impl Node {
    /// Makes a ticket.
    pub(crate) fn invite(&self, invite: Invite) -> Result<Invited, RpcError> {
        let now = self.credentials.now();
        let role: Role = invite
            .role
            .parse()
            .map_err(|e| RpcError::invalid(format!("{e}")).reason("role"))?;
        let needed = scopes_of_all(role.as_str())?;
        let terms = AdmissionTerms {
            role: role.clone(),
            scopes: invite.scopes.unwrap_or(needed),
            resource: Resource::any(),
            limits: invite.limits,
            token_ttl: invite.token_ttl,
            uses: invite.uses,
            expires: now.saturating_add(invite.ttl),
        };
        if invite.ttl.is_zero() {
            return Err(RpcError::invalid("a ticket must be valid for some time").reason("ttl"));
        }
        let admission = AdmissionSecret {
            id: self.entropy.array(),
            secret: self.entropy.array(),
        };
        let addrs = if invite.addresses.is_empty() {
            self.addresses()
        } else {
            invite.addresses
        };
        if addrs.is_empty() {
            return Err(
                RpcError::invalid("this node knows no address at which it can be dialled")
                    .reason("address")
                    .fix("name one"),
            );
        }
        self.admission.change(&*self.state, |book| {
            book.issue(&admission, terms).map_err(|e| refused(&e))?;
            // Better refused now than when someone stands at the door.
            let (_, record) = book
                .iter()
                .find(|(id, _)| **id == admission.id)
                .expect("just issued");
            self.issue(&record.token_request(self.credentials.node_id()))
                .map(drop)
        })?;
        let ticket = Ticket {
            mesh: self.credentials.authority,
            psk: self.psks.set().current,
            contacts: vec![Contact {
                node: self.credentials.node_id(),
                addrs,
            }],
            admission,
            issuer: self.credentials.node_id(),
            expires: now.saturating_add(invite.ttl),
            role,
        };
        Ok(Invited {
            ticket: ticket.to_string(),
            expires: ticket.expires,
            fingerprint: ticket.fingerprint(),
        })
    }

    /// Redeems a ticket for a newcomer, whose use of it is durable before the answer.
    pub(crate) fn redeem(&self, link: &Link, join: &Join) -> Result<Joined, RpcError> {
        if join.name.len() > MAX_NAME {
            return Err(RpcError::invalid(format!(
                "a name has at most {MAX_NAME} bytes"
            )));
        }
        let ip = network(link.conn.remote_address().ip());
        let sources = [Source::Node(link.peer), Source::Ip(ip)];
        self.admission.check_tries(sources)?;
        let secret = AdmissionSecret {
            id: join.id,
            secret: join.secret,
        };
        let now = self.credentials.now();
        let redeemed = self.admission.change(&*self.state, |book| {
            let record = book
                .redeem(&secret, link.peer, now)
                .map_err(|e| refused(&e))?;
            Ok((
                record.token_request(link.peer),
                record.terms().role.to_string(),
            ))
        });
        let (request, role) = redeemed.inspect_err(|_| self.admission.count_failure(sources))?;
        Ok(Joined {
            token: self.issue(&request)?,
            role,
            contacts: self.contacts(),
            revocations: self.credentials.revocations(MAX_REVOCATIONS_TOLD),
        })
    }

    fn issue(
        &self,
        request: &meshwork_identity::TokenRequest,
    ) -> Result<meshwork_identity::Token, RpcError> {
        self.credentials
            .delegate(request, self.entropy.array())
            .map_err(|error| {
                RpcError::denied(format!("this node cannot issue such a token: {error}"))
                    .reason(error.kind())
            })
    }

    /// Nodes that a newcomer may call: this one, and managers.
    fn contacts(&self) -> Vec<Contact> {
        let own = Contact {
            node: self.credentials.node_id(),
            addrs: self.addresses(),
        };
        let facts = self.gossip.facts();
        let store = facts.store();
        let managers = store
            .iter()
            .filter(|(node, body)| *node != own.node && body.roles.contains(&NodeRole::Manager))
            .map(|(node, body)| Contact {
                node,
                addrs: body.addresses.clone(),
            });
        let mut contacts: Vec<Contact> = std::iter::once(own.clone())
            .chain(managers)
            .take(MAX_CONTACTS)
            .collect();
        for contact in &mut contacts {
            contact.addrs.truncate(MAX_CONTACT_ADDRS);
        }
        contacts
    }
}

/// What a refused ticket is told. A wrong secret looks like an unknown ticket.
fn refused(error: &AdmissionError) -> RpcError {
    match error {
        AdmissionError::Unknown | AdmissionError::WrongSecret => {
            RpcError::denied("this ticket is not known here").reason("ticket_unknown")
        }
        AdmissionError::Expired(_) => RpcError::denied(error.to_string())
            .reason("ticket_expired")
            .fix("ask for a new ticket"),
        AdmissionError::UsedUp => RpcError::denied(error.to_string())
            .reason("ticket_used")
            .fix("ask for a new ticket"),
        AdmissionError::Full => RpcError::new(Status::ResourceExhausted, error.to_string()),
        AdmissionError::Duplicate => RpcError::new(Status::Conflict, error.to_string()),
        AdmissionError::Uses => RpcError::invalid(error.to_string()).reason("uses"),
    }
}
