//! `config.toml`: what an operator may set. Every field has a default, so the file may be absent.
//! `configs/` holds examples for each kind of node.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;

use meshwork_mesh::RelayConfig;
use meshwork_proto::ByteSize;
use meshwork_proto::announcement::{Role, Subnet};
use meshwork_proto::kernel::is_name;
use meshwork_proto::limits::MAX_NAME;
use meshwork_proto::subnet::{SubnetPolicy, SubnetRule};
use serde::{Deserialize, Deserializer, de};

/// Most tags of a node, and most characters of one: more would hardly fit into an announcement.
const MAX_TAGS: usize = 64;
const MAX_TAG: usize = 64;

/// The file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    /// Name of the node. Default: what `init` or `join` was given, else the host's name.
    #[serde(deserialize_with = "name")]
    pub name: Option<String>,
    /// What the node does. Default: what it joined as; where `init` ran: manager, and agent when a
    /// container backend answers.
    #[serde(deserialize_with = "roles")]
    pub roles: Option<BTreeSet<Role>>,
    /// The UDP socket. Default `[::]:4460`: every address of the machine, both families. Outsiders
    /// without the pre-shared key get no answer from it.
    pub listen: SocketAddr,
    /// Addresses under which others reach the node, where it cannot know them itself (behind a port
    /// forwarding). Default: none.
    pub advertise: Vec<SocketAddr>,
    /// Labels that queries and tokens can ask for (`tags has "lab-a"`). Default: none.
    #[serde(deserialize_with = "tags")]
    pub tags: BTreeSet<String>,
    /// Region name for queries. Default: none.
    pub region: Option<String>,
    /// Tenants whose nodes (tag `scope:tenant:<id>`) this node's lookups find, as a manager's do.
    /// Default: none.
    #[serde(deserialize_with = "tags")]
    pub tenants: BTreeSet<String>,
    /// Place in the subnet tree: 1 to 4 levels of 0–255, like `3.7.2`. Default: none.
    #[serde(deserialize_with = "from_text")]
    pub subnet: Option<Subnet>,
    /// Whether the router is asked to forward a port to the node (PCP, NAT-PMP, `UPnP`). Default true;
    /// a router that does not know how is no harm.
    pub port_mapping: bool,
    /// Where others see the node, instead of what they tell. For a fixed address that a firewall
    /// forwards and that peers cannot see. Default: none.
    pub reflex_override: Option<SocketAddr>,
    /// Which subnet follows from which tags, where `subnet` is not set. Default: none.
    pub subnet_rules: Vec<SubnetRule>,
    /// Where numbers for Prometheus are served: anybody who can connect reads them. Default: nowhere.
    pub metrics: Option<SocketAddr>,
    /// Help for others who cannot reach each other directly.
    pub relay: RelaySection,
    /// Settings of role `agent`.
    pub agent: AgentSection,
}

/// Help for others who cannot reach each other directly.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RelaySection {
    /// Whether this node relays for members of the mesh. Default: when it finds that others reach it
    /// without help; role `relay` means always.
    pub serve: Serve,
    /// Bytes a second that one peer may send through it. Default 8MiB. What is above is dropped.
    #[serde(deserialize_with = "size")]
    pub rate: ByteSize,
    /// Bytes that one peer may send at once after a pause. Default 2MiB.
    #[serde(deserialize_with = "size")]
    pub burst: ByteSize,
    /// Bytes a second that all peers together may send through it; when they want more, each gets an
    /// equal share. Default 32MiB.
    #[serde(deserialize_with = "size")]
    pub total_rate: ByteSize,
}

/// Whether a node relays.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Serve {
    /// When it finds that others reach it without help.
    #[default]
    Auto,
    /// From its start.
    Always,
    /// Not at all.
    Never,
}

impl Default for RelaySection {
    fn default() -> Self {
        let relay = RelayConfig::default();
        Self {
            serve: Serve::Auto,
            rate: ByteSize(relay.rate),
            burst: ByteSize(relay.burst),
            total_rate: ByteSize(relay.total_rate),
        }
    }
}

impl Config {
    /// How the node relays, if it ever does.
    pub(crate) fn relaying(&self, roles: &BTreeSet<Role>) -> Option<RelayConfig> {
        let always = self.relay.serve == Serve::Always || roles.contains(&Role::Relay);
        let never = self.relay.serve == Serve::Never && !always;
        (!never).then_some(RelayConfig {
            always,
            rate: self.relay.rate.0,
            burst: self.relay.burst.0,
            total_rate: self.relay.total_rate.0,
        })
    }

    /// The node's place: as it is set, else as it follows from the tags.
    pub(crate) fn place(&self) -> Option<Subnet> {
        let rules = self.subnet_rules.clone();
        self.subnet
            .clone()
            .or_else(|| SubnetPolicy { rules }.derive(&self.tags))
    }
}

/// Settings of role `agent`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct AgentSection {
    /// Docker's socket. Default: `DOCKER_HOST`, else `/var/run/docker.sock`. Who can use it is root
    /// on the machine; only the agent talks to it.
    pub docker_socket: Option<PathBuf>,
    /// Hardware threads that kernels are not given. Default 0.
    pub reserved_cpus: u32,
    /// Memory that kernels are not given. Default 1GiB.
    #[serde(deserialize_with = "size")]
    pub reserved_memory: ByteSize,
    /// Whether NVIDIA GPUs are looked for. Default true; without a driver none are found.
    pub nvml: bool,
    /// A TOML file that describes GPUs that are not there, for trials. Default: none.
    pub mock_accelerators: Option<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: None,
            roles: None,
            listen: SocketAddr::from(([0u16; 8], 4460)),
            advertise: Vec::new(),
            tags: BTreeSet::new(),
            region: None,
            tenants: BTreeSet::new(),
            subnet: None,
            port_mapping: true,
            reflex_override: None,
            subnet_rules: Vec::new(),
            metrics: None,
            relay: RelaySection::default(),
            agent: AgentSection::default(),
        }
    }
}

impl Default for AgentSection {
    fn default() -> Self {
        Self {
            docker_socket: None,
            reserved_cpus: 0,
            reserved_memory: ByteSize(1 << 30),
            nvml: true,
            mock_accelerators: None,
        }
    }
}

/// A node's name from the command line or from this file: a rule of ours for what people type, as
/// names stand in tables and queries.
pub(crate) fn node_name(text: &str) -> Result<String, String> {
    if is_name(text) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "`{}` is no name: 1 to {MAX_NAME} of a-z, 0-9, `.`, `_`, `-`, starting with a letter or digit",
        text.escape_debug()
    ))
}

fn name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    node_name(&String::deserialize(deserializer)?)
        .map(Some)
        .map_err(de::Error::custom)
}

/// Roles that a node can have; a [`Role`] may be one of a later version.
pub(crate) fn role(text: &str) -> Result<Role, String> {
    match text.parse() {
        Ok(role @ (Role::Agent | Role::Manager | Role::Relay)) => Ok(role),
        Ok(role) => Err(format!(
            "this version cannot be a {role} yet: use agent, manager and relay"
        )),
        Err(_) => Err(format!("`{text}` is no role: use agent, manager and relay")),
    }
}

fn roles<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<BTreeSet<Role>>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    let roles: Result<_, String> = texts.iter().map(|text| role(text)).collect();
    roles.map(Some).map_err(de::Error::custom)
}

/// Tags that both queries and tokens can name.
fn tags<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeSet<String>, D::Error> {
    let tags = BTreeSet::<String>::deserialize(deserializer)?;
    let fits = |tag: &String| {
        (1..=MAX_TAG).contains(&tag.len()) && tag.bytes().all(|b| b.is_ascii_graphic() && b != b',')
    };
    if let Some(tag) = tags.iter().find(|tag| !fits(tag)) {
        return Err(de::Error::custom(format!(
            "`{}` is no tag: 1 to {MAX_TAG} visible ASCII characters without commas",
            tag.escape_debug()
        )));
    }
    if tags.len() > MAX_TAGS {
        return Err(de::Error::custom(format!("at most {MAX_TAGS} tags")));
    }
    Ok(tags)
}

fn from_text<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: std::str::FromStr<Err = String>,
{
    String::deserialize(deserializer)?
        .parse()
        .map(Some)
        .map_err(de::Error::custom)
}

fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ByteSize, D::Error> {
    String::deserialize(deserializer)?
        .parse()
        .map_err(de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_files_parse() {
        let shipped = [
            include_str!("../configs/single-node.toml"),
            include_str!("../configs/agent.toml"),
            include_str!("../configs/manager.toml"),
            include_str!("../configs/relay.toml"),
        ];
        let [single, agent, manager, relay] =
            shipped.map(|text| toml::from_str::<Config>(text).unwrap());
        assert_eq!(single.roles, Some([Role::Agent, Role::Manager].into()));
        assert_eq!(agent.roles, Some([Role::Agent].into()));
        assert_eq!(agent.agent.reserved_memory, ByteSize(2 << 30));
        assert_eq!(manager.roles, Some([Role::Manager].into()));
        assert_eq!(relay.roles, Some([Role::Relay].into()));
        assert_eq!(relay.relay, RelaySection::default());
    }

    #[test]
    fn tags_are_few_and_short() {
        let parse = |tags: Vec<String>| toml::from_str::<Config>(&format!("tags = {tags:?}"));
        let many = |n: usize| (0..n).map(|i| format!("t{i}")).collect();
        assert_eq!(parse(many(MAX_TAGS)).unwrap().tags.len(), MAX_TAGS);
        assert!(parse(many(MAX_TAGS + 1)).is_err());
        assert!(parse(vec!["x".repeat(MAX_TAG)]).is_ok());
        assert!(parse(vec!["x".repeat(MAX_TAG + 1)]).is_err());
    }

    #[test]
    fn the_place_follows_from_tags_unless_it_is_set() {
        let rules = "tags = [\"zone:b\", \"rack:7\"]\n\
                     [[subnet_rules]]\ntag_prefix = \"zone:\"\nlevel = 0\nvalues = { a = 1, b = 2 }\n\
                     [[subnet_rules]]\ntag_prefix = \"rack:\"\nlevel = 1\nvalues = { 7 = 70 }\n";
        let place = |text: &str| toml::from_str::<Config>(text).unwrap().place();
        assert_eq!(place(rules), Some("2.70".parse().unwrap()));
        let set = format!("subnet = \"9\"\n{rules}");
        assert_eq!(place(&set), Some("9".parse().unwrap()));
        assert_eq!(place(""), None);
    }

    #[test]
    fn who_relays() {
        let agent = BTreeSet::from([Role::Agent]);
        let relay = BTreeSet::from([Role::Relay]);
        let parse = |text: &str| toml::from_str::<Config>(text).unwrap();
        let always = |config: &Config, roles| config.relaying(roles).map(|relay| relay.always);
        let default = parse("");
        assert_eq!(default.relaying(&agent), Some(RelayConfig::default()));
        assert_eq!(always(&default, &relay), Some(true));
        assert_eq!(
            always(&parse("[relay]\nserve = \"always\""), &agent),
            Some(true)
        );
        assert_eq!(always(&parse("[relay]\nserve = \"never\""), &agent), None);
        let rate = parse("[relay]\nrate = \"1MiB\"")
            .relaying(&agent)
            .unwrap()
            .rate;
        assert_eq!(rate, 1 << 20);
        let total = parse("[relay]\ntotal_rate = \"100MiB\"").relaying(&agent);
        assert_eq!(total.unwrap().total_rate, 100 << 20);
    }

    #[tokio::test]
    async fn the_pretended_gpus_are_found() {
        let mut agent = meshwork_agent::AgentConfig::new("unused");
        agent.mock_accelerators = Some("configs/mock-gpus.toml".into());
        let gpus = meshwork_agent::probe_gpus(&agent).await.unwrap();
        assert_eq!(gpus.len(), 8);
        assert!(
            gpus.iter()
                .all(|gpu| gpu.vram == 80_000_000_000 && gpu.vendor == "nvidia")
        );
    }

    #[test]
    fn the_unit_starts_the_binary_and_gives_it_time_to_drain() {
        let unit = include_str!("../configs/meshwork.service");
        for line in [
            "ExecStart=/usr/local/bin/meshwork up",
            "Restart=on-failure",
            "KillMode=process",
        ] {
            assert!(unit.lines().any(|l| l.starts_with(line)), "{line}");
        }
    }

    #[test]
    fn an_empty_file_is_the_default_and_a_typo_is_found() {
        assert_eq!(toml::from_str::<Config>("").unwrap(), Config::default());
        for wrong in [
            "lisen = \"[::]:1\"",
            "name = \"Attic\"",
            "subnet = \"1.2.3.4.5\"",
            "roles = [\"storage\"]",
            "[relay]\nserve = \"sometimes\"",
            "[relay]\nrate = \"fast\"",
            "reflex_override = \"1.2.3.4\"",
            "metrics = \"9460\"",
            "[[subnet_rules]]\ntag_prefix = \"rack:\"\nlevel = 4",
            "tags = [\"\"]",
            "tags = [\"a b\"]",
            "tags = [\"a,b\"]",
            "tags = [\"a\\u0007\"]",
            "[agent]\nreserved_memory = \"2 apples\"",
        ] {
            assert!(toml::from_str::<Config>(wrong).is_err(), "{wrong}");
        }
    }
}
