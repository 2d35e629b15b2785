//! `config.toml`: what an operator may set. Every field has a default, so the file may be absent.
//! `configs/` holds examples for each kind of node.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;

use meshwork_proto::ByteSize;
use meshwork_proto::announcement::{Role, Subnet};
use meshwork_proto::kernel::is_name;
use meshwork_proto::limits::MAX_NAME;
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
    /// Place in the subnet tree: 1 to 4 levels of 0–255, like `3.7.2`. Default: none.
    #[serde(deserialize_with = "from_text")]
    pub subnet: Option<Subnet>,
    /// Settings of role `agent`.
    pub agent: AgentSection,
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
            subnet: None,
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
        Ok(role @ (Role::Agent | Role::Manager)) => Ok(role),
        Ok(role) => Err(format!(
            "this version cannot be a {role} yet: use agent and manager"
        )),
        Err(_) => Err(format!("`{text}` is no role: use agent and manager")),
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
        ];
        let [single, agent, manager] = shipped.map(|text| toml::from_str::<Config>(text).unwrap());
        assert_eq!(single.roles, Some([Role::Agent, Role::Manager].into()));
        assert_eq!(agent.roles, Some([Role::Agent].into()));
        assert_eq!(agent.agent.reserved_memory, ByteSize(2 << 30));
        assert_eq!(manager.roles, Some([Role::Manager].into()));
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
            "roles = [\"relay\"]",
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
