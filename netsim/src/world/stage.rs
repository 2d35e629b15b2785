//! The stage: the networks, hosts and nodes of a scenario.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    time::Duration,
};

use meshwork_identity::{Identity, Limits, Psk, Resource, Scope, Timestamp, Token, TokenRequest};
use meshwork_mesh::{Env, Mesh, MeshConfig, RelayConfig};
use meshwork_proto::{
    announcement::{Announcement, Hardware, Role, Software},
    path::NatClass,
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use sha2::{Digest, Sha256};

use super::{
    actor::{Actor, PORT},
    attack::Tape,
    spec::{Group, NamedNat, NatSpec, PairOfModels, Site, World},
    traffic,
};
use crate::{
    GatewayId, Lan, Net,
    nat::{Firewall, NatModel},
    scenario::Outcome,
};

/// How long the tokens of nodes last.
const TOKEN_LIFE: Duration = Duration::from_hours(24 * 30);

/// Everything that a running scenario has.
pub(super) struct Stage {
    pub(super) net: Net,
    pub(super) world: World,
    pub(super) authority: Identity,
    pub(super) actors: Vec<Arc<Actor>>,
    /// What was seen on the wire, if somebody will attack with it.
    pub(super) tape: Option<Tape>,
    sites: BTreeMap<String, Place>,
    seed: u64,
    psk: Psk,
    book: Mutex<Outcome>,
    /// Hosts on the internet, so that each gets an address of its own.
    hosts: Mutex<u16>,
}

/// A network that hosts can be in.
#[derive(Debug, Clone)]
struct Place {
    lan: Lan,
    gateways: Vec<GatewayId>,
    chain: Vec<NatModel>,
    /// Distinguishes the addresses of its hosts where those are of the internet.
    number: u16,
    /// Its hosts have addresses of the internet.
    public: bool,
    v6: bool,
}

impl Stage {
    /// The networks and the hosts; no node runs yet.
    pub(super) fn build(net: &Net, world: World, seed: u64) -> Self {
        let mut stage = Self {
            net: net.clone(),
            authority: Identity::from_seed(&derived(seed, "authority", 0)),
            actors: Vec::new(),
            tape: world.attacks().then(|| Tape::record(net)),
            sites: BTreeMap::new(),
            seed,
            psk: Psk::from_bytes(derived(seed, "psk", 0)),
            book: Mutex::default(),
            hosts: Mutex::new(0),
            world,
        };
        stage.build_sites();
        stage.build_actors();
        stage
    }

    /// Starts the nodes that are there from the beginning.
    pub(super) fn start_all(&self) -> Result<(), String> {
        for actor in &self.actors {
            if !self.group(actor).later {
                self.start(actor, true)?;
            }
        }
        Ok(())
    }

    /// Starts a node that does not run. `told`: of those that it shall know.
    pub(super) fn start(&self, actor: &Actor, told: bool) -> Result<(), String> {
        if actor.mesh().is_some() {
            return Ok(());
        }
        let group = self.group(actor);
        let cannot =
            |error: &dyn std::fmt::Display| format!("{} cannot start: {error}", actor.name);
        let socket = actor.host.bind(PORT).map_err(|error| cannot(&error))?;
        let (host, place) = (actor.host.clone(), actor.host.clone());
        let is_dead = actor.born();
        let env = Env {
            clock: actor.clock.clone(),
            entropy: self.net.entropy(),
            state: actor.disk(),
            runtime: self.net.runtime(),
            socket,
            bind: Arc::new(move |_| {
                if is_dead.load(Ordering::Relaxed) {
                    return Err(io::ErrorKind::NetworkDown.into());
                }
                host.bind(0)
            }),
            addresses: Arc::new(move |bound| place.addrs(bound.port())),
        };
        let mesh = Mesh::start(self.config(actor, group), env, traffic::router())
            .map_err(|error| cannot(&error))?;
        let told = if told { group.knows.as_slice() } else { &[] };
        for name in told {
            for other in self.cast(name) {
                if other.id() != actor.id() {
                    mesh.pin(other.contact());
                }
            }
        }
        actor.runs(mesh.clone());
        let draft = draft(&actor.name);
        let name = actor.name.clone();
        // Reserving a version cannot fail on this disk; a node that cannot announce is found out
        // by the checks.
        tokio::spawn(async move {
            if let Err(error) = mesh.announce(draft).await {
                tracing::debug!(%error, name, "not announced");
            }
        });
        self.happened(&format!("{} starts", actor.name));
        Ok(())
    }

    pub(super) async fn stop_all(&self) {
        for actor in &self.actors {
            actor.stop().await;
        }
    }

    /// The actors of a name that was checked when the file was read.
    pub(super) fn cast(&self, name: &str) -> Vec<Arc<Actor>> {
        let numbers = self.world.expand(name).unwrap_or_default();
        numbers
            .iter()
            .map(|index| self.actors[*index].clone())
            .collect()
    }

    pub(super) fn cast_all(&self, names: &[String]) -> Vec<Arc<Actor>> {
        names.iter().flat_map(|name| self.cast(name)).collect()
    }

    pub(super) fn group(&self, actor: &Actor) -> &Group {
        &self.world.node[actor.group]
    }

    /// Chance for one purpose, from the seed.
    pub(super) fn chance(&self, purpose: &str) -> StdRng {
        StdRng::from_seed(derived(self.seed, purpose, 1))
    }

    pub(super) fn seed_bytes(&self, purpose: &str, index: u64) -> [u8; 32] {
        derived(self.seed, purpose, index)
    }

    /// What was measured so far.
    pub(super) fn book(&self) -> MutexGuard<'_, Outcome> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts something that happens into the trace.
    pub(super) fn happened(&self, what: &str) {
        self.net.note(what);
    }

    /// The true time, as clocks that are right show it.
    pub(super) fn now(&self) -> Timestamp {
        self.actors
            .first()
            .map_or(Timestamp::default(), |actor| actor.clock.true_now())
    }

    pub(super) fn gateways(&self, site: &str) -> Vec<GatewayId> {
        self.sites
            .get(site)
            .map(|place| place.gateways.clone())
            .unwrap_or_default()
    }

    /// Moves a host to another place.
    pub(super) fn relocate(&self, actor: &Actor, to: Option<&str>) {
        let place = to.and_then(|name| self.sites.get(name)).cloned();
        let place = place.unwrap_or_else(Place::internet);
        actor
            .host
            .move_to(&self.addresses(&place, self.group(actor).v6));
        actor.set_chain(place.chain);
    }

    fn build_sites(&mut self) {
        let PairOfModels(pair) = PairOfModels::of(self.seed);
        let mut sides = pair.into_iter();
        for (number, site) in (1..).zip(self.world.site.clone()) {
            let place = self.build_site(&site, number, &mut sides);
            self.sites.insert(site.name, place);
        }
    }

    fn build_site(
        &self,
        site: &Site,
        number: u16,
        sides: &mut dyn Iterator<Item = Option<NatModel>>,
    ) -> Place {
        let outer = site.inside.as_ref().and_then(|name| self.sites.get(name));
        let outer = outer.cloned().unwrap_or_else(Place::internet);
        let [high, low] = number.to_be_bytes();
        let external = if outer.lan == Lan::INTERNET {
            IpAddr::from([12, high, low, 1])
        } else {
            // Shared address space (RFC 6598).
            IpAddr::from([100, 64 + high, low, 1])
        };
        let model = match &site.nat {
            NatSpec::Named(NamedNat::Home) => Some(NatModel::home()),
            NatSpec::Named(NamedNat::Symmetric) => Some(NatModel::symmetric()),
            NatSpec::Named(NamedNat::Carrier) => Some(NatModel::carrier()),
            NatSpec::Named(NamedNat::Firewall) => None,
            NatSpec::Named(NamedNat::OneOfPair) => match sides.next().flatten() {
                Some(model) => Some(model),
                // This side of the pair has no translator.
                None => return outer,
            },
            NatSpec::Table(table) => Some(table.model()),
        };
        let lan = self.net.lan();
        let (gateway, public) = match model {
            Some(model) => (self.net.nat(lan, outer.lan, external, model), false),
            None => (
                self.net
                    .firewall(lan, outer.lan, false, Firewall::default()),
                true,
            ),
        };
        let mut gateways = vec![gateway];
        if site.v6 {
            gateways.push(self.net.firewall(lan, outer.lan, true, Firewall::default()));
        }
        // As far as reaching each other goes, a firewall is a translator that keeps the address.
        let mut chain = vec![model.unwrap_or(NatModel::home())];
        chain.extend(&outer.chain);
        Place {
            lan,
            gateways,
            chain,
            number,
            public,
            v6: site.v6,
        }
    }

    fn build_actors(&mut self) {
        let mut sides = std::iter::empty();
        let mut skews = self.chance("skew");
        let groups = self.world.node.clone();
        for (index, group) in groups.iter().enumerate() {
            let mut place = group
                .at
                .as_ref()
                .and_then(|name| self.sites.get(name))
                .cloned();
            for member in 0..group.count {
                let own = group.at.as_ref().filter(|_| group.apart && member > 0);
                let spec = own.and_then(|name| self.world.site.iter().find(|s| s.name == *name));
                if let Some(spec) = spec {
                    let number = 1000 + u16::try_from(self.actors.len()).unwrap_or(u16::MAX);
                    place = Some(self.build_site(&spec.clone(), number, &mut sides));
                }
                let place = place.clone().unwrap_or_else(Place::internet);
                let seed = derived(self.seed, "node", self.actors.len() as u64);
                let host = self.net.host(&self.addresses(&place, group.v6));
                let name = group.member(member);
                let actor = Actor::new(name, index, Identity::from_seed(&seed), host);
                actor.set_chain(place.chain);
                if let Some(skew) = group.skew {
                    let off = skew.as_secs_f64();
                    actor.clock.jump(skews.random_range(-off..=off));
                }
                self.actors.push(Arc::new(actor));
            }
        }
    }

    /// Addresses of a new host at this place.
    fn addresses(&self, place: &Place, v6: bool) -> Vec<(Lan, IpAddr)> {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        *hosts += 1;
        let [high, low] = hosts.to_be_bytes();
        let v4 = if place.lan == Lan::INTERNET {
            Ipv4Addr::new(11, 0, high, low)
        } else if place.public {
            let [site, _] = place.number.to_be_bytes();
            Ipv4Addr::new(13, site, high, low)
        } else {
            Ipv4Addr::new(192, 168, 1 + high, low)
        };
        let mut all = vec![(place.lan, IpAddr::V4(v4))];
        if v6 && (place.lan == Lan::INTERNET || place.v6) {
            let ip = Ipv6Addr::new(0x2001, 0xdb8, place.number, 0, 0, 0, 0, *hosts);
            all.push((place.lan, IpAddr::V6(ip)));
        }
        all
    }

    fn config(&self, actor: &Actor, group: &Group) -> MeshConfig {
        let mut config = MeshConfig::new(
            actor.identity.clone(),
            self.authority.node_id(),
            self.psk.clone(),
        );
        config.name.clone_from(&actor.name);
        config.tokens = vec![self.token(actor)];
        if group.relay {
            config.roles.insert(Role::Relay);
            config.relay = Some(RelayConfig {
                always: true,
                ..RelayConfig::default()
            });
        }
        // A socket for several addresses does not know them.
        if actor.addrs().len() > 1 {
            config.advertise = actor.addrs();
        }
        config
    }

    fn token(&self, actor: &Actor) -> Token {
        let request = TokenRequest {
            subject: actor.id(),
            scopes: [Scope::Announce, Scope::Call].into_iter().collect(),
            resource: Resource::any(),
            not_before: None,
            ttl: TOKEN_LIFE,
            depth: 1,
            limits: Limits::none(),
        };
        let hash = derived(self.seed, &actor.name, 2);
        let nonce = std::array::from_fn(|index| hash[index]);
        Token::issue_root(&self.authority, request, self.now(), nonce)
            .expect("the authority issues what it likes")
    }
}

impl Place {
    fn internet() -> Self {
        Self {
            lan: Lan::INTERNET,
            gateways: Vec::new(),
            chain: Vec::new(),
            number: 0,
            public: true,
            v6: true,
        }
    }
}

/// What a node says of itself.
fn draft(name: &str) -> Announcement {
    Announcement {
        version: 0,
        issued_at: Timestamp::default(),
        ttl: Duration::ZERO,
        name: name.to_owned(),
        roles: [].into(),
        addresses: Vec::new(),
        relays: Vec::new(),
        nat: NatClass::default(),
        services: [].into(),
        hardware: Hardware::default(),
        software: Software::default(),
        images: Vec::new(),
        models: [].into(),
        tools: [].into(),
        tags: [].into(),
        subnet: None,
        region: None,
    }
}

fn derived(seed: u64, purpose: &str, index: u64) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(seed.to_be_bytes());
    hash.update(purpose.as_bytes());
    hash.update(index.to_be_bytes());
    hash.finalize().into()
}
