//! The data folder (`~/.meshwork`): which file holds what, and reading and writing them.
//!
//! ```text
//! authority.key  signs for the mesh; only where `init` ran, may be taken offline
//! node.key user.key  identities of this machine's node and of its user
//! mesh.toml psk  which mesh this is and what this node is in it; the mesh's pre-shared key
//! tokens/  contacts.toml  what node and user may do; nodes to call first
//! config.toml  the operator's settings
//! state/ agent/ manager/ run/  of the running node
//! ```

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use meshwork_identity::{
    Contact, Identity, KeyStoreError, MAX_TOKEN_BYTES, NodeId, Psk, SecretFile, Token, TokenError,
    load_identity, load_or_create_identity,
};
use meshwork_proto::announcement::Role;
use meshwork_proto::mesh::MeshStatus;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Most bytes of a printed token with its line end: base32 takes 8 characters for 5 bytes.
const MAX_TOKEN_TEXT: usize = MAX_TOKEN_BYTES * 8 / 5 + 64;
/// Hexadecimal digits of a PSK and a line end.
const MAX_PSK_TEXT: usize = 65;

/// Why a file of the data folder could not be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HomeError {
    /// There is no mesh in the folder.
    #[error("there is no mesh in {}", .0.display())]
    NoMesh(PathBuf),
    /// There is one already.
    #[error("there is a mesh in {} already", .0.display())]
    Exists(PathBuf),
    /// There is no node: only a user joined here.
    #[error("nothing to run here: only a user joined the mesh in {}", .0.display())]
    NoNode(PathBuf),
    /// There is this node or user already.
    #[error("{} has a {} of this mesh already", .0.display(), .1.name())]
    Joined(PathBuf, Who),
    /// There is no user.
    #[error("there is no user of a mesh in {}", .0.display())]
    NoUser(PathBuf),
    /// A node of this folder runs.
    #[error("a node runs from {} already", .0.display())]
    Running(PathBuf),
    /// A key, the PSK or a token.
    #[error("{}", with_source(.0))]
    Secret(#[from] KeyStoreError),
    /// The PSK is no PSK.
    #[error("{} does not hold a pre-shared key: 64 hexadecimal digits", .0.display())]
    Psk(PathBuf),
    /// A token file holds something else.
    #[error("{}: {source}", path.display())]
    Token {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: TokenError,
    },
    /// A TOML file is wrong.
    #[error("{}: {}", path.display(), source.to_string().trim_end())]
    Toml {
        /// The file.
        path: PathBuf,
        /// Where and what.
        source: Box<toml::de::Error>,
    },
    /// Reading or writing failed.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

fn with_source(error: &KeyStoreError) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// `mesh.toml`: which mesh, and what this node is in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MeshFile {
    /// The mesh's authority.
    pub authority: NodeId,
    /// Name of this node.
    pub name: String,
    /// What this node is in the mesh; empty: it finds out at each start.
    #[serde(default)]
    pub roles: BTreeSet<Role>,
}

/// `run/node.addr`: the node that runs from this folder now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RunFile {
    /// Its process.
    pub pid: u32,
    /// Its id.
    pub node: NodeId,
    /// Where it listens, as reachable from this machine.
    pub addrs: Vec<SocketAddr>,
    /// What it does.
    pub roles: BTreeSet<Role>,
    /// Whether all its parts were tried and it has told the mesh what it is.
    pub ready: bool,
    /// Where numbers for Prometheus are served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<SocketAddr>,
}

/// `contacts.toml`: nodes to call first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Contacts {
    /// The best first.
    #[serde(default)]
    pub contact: Vec<Contact>,
}

/// Whose identity and token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Who {
    /// The node's.
    Node,
    /// The user's.
    User,
}

impl Who {
    fn name(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::User => "user",
        }
    }
}

/// A data folder.
#[derive(Debug, Clone)]
pub(crate) struct Home {
    root: PathBuf,
}

impl Home {
    /// The folder at `root`; nothing is touched yet.
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// A file or folder in it.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The folder itself.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Whether a mesh is here.
    pub(crate) fn has_mesh(&self) -> bool {
        self.path("mesh.toml").exists()
    }

    /// Which mesh this is.
    pub(crate) fn mesh(&self) -> Result<MeshFile, HomeError> {
        self.read_toml("mesh.toml")?
            .ok_or_else(|| HomeError::NoMesh(self.root.clone()))
    }

    /// Writes `mesh.toml`, the file that says that a mesh is here: last when one is made.
    pub(crate) fn write_mesh(&self, mesh: &MeshFile) -> Result<(), HomeError> {
        self.write_toml("mesh.toml", mesh)
    }

    /// Nodes to call first.
    pub(crate) fn contacts(&self) -> Result<Contacts, HomeError> {
        Ok(self.read_toml("contacts.toml")?.unwrap_or_default())
    }

    /// Replaces them.
    pub(crate) fn write_contacts(&self, contacts: &Contacts) -> Result<(), HomeError> {
        self.write_toml("contacts.toml", contacts)
    }

    /// The node that runs from here, unless it has ended. Looking makes no folder.
    pub(crate) fn running(&self) -> Result<Option<RunFile>, HomeError> {
        if !self.path("run/lock").exists() {
            return Ok(None);
        }
        match self.lock() {
            Ok(_free) => Ok(None),
            // Without the right to lock, another user's node is what the file says.
            Err(_) => self.read_toml("run/node.addr"),
        }
    }

    /// Says where the node listens. Appears whole, but need not outlive the machine's next start,
    /// so no disk is waited for.
    pub(crate) fn write_running(&self, run: &RunFile) -> Result<(), HomeError> {
        let path = self.path("run/node.addr");
        let temporary = self.path("run/node.addr.tmp");
        let text = toml::to_string(run).expect("our own plain structs have a TOML form");
        self.make_run_folder()?;
        fs::write(&temporary, text)
            .and_then(|()| fs::rename(&temporary, &path))
            .map_err(|source| HomeError::Io { path, source })
    }

    /// Forgets where a node listens, and how it stood.
    pub(crate) fn forget_running(&self) {
        // A file that stays is harmless: without the lock it names no running node.
        let _ = fs::remove_file(self.path("run/node.addr"));
        let _ = fs::remove_file(self.path("run/status.json"));
    }

    /// Says how the node stands, for commands of this machine that have no user to ask it as.
    pub(crate) fn write_status(&self, status: &MeshStatus) -> Result<(), HomeError> {
        let path = self.path("run/status.json");
        let temporary = self.path("run/status.json.tmp");
        let text = serde_json::to_vec(status).expect("our own plain structs have a JSON form");
        self.make_run_folder()?;
        fs::write(&temporary, text)
            .and_then(|()| fs::rename(&temporary, &path))
            .map_err(|source| HomeError::Io { path, source })
    }

    /// How the node that runs from here stood a moment ago, if one does and has said so.
    pub(crate) fn status(&self) -> Option<MeshStatus> {
        self.running().ok().flatten()?;
        let text = fs::read(self.path("run/status.json")).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Makes the folder of the running node, closed to others.
    pub(crate) fn make_run_folder(&self) -> Result<(), HomeError> {
        let path = self.path("run");
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path)
            .map_err(|source| HomeError::Io { path, source })
    }

    /// Takes the folder for one running node, as long as the returned file lives.
    pub(crate) fn lock(&self) -> Result<File, HomeError> {
        let path = self.path("run/lock");
        let io = |source| HomeError::Io {
            path: path.clone(),
            source,
        };
        self.make_run_folder()?;
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(io)?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => Err(HomeError::Running(self.root.clone())),
            Err(TryLockError::Error(error)) => Err(io(error)),
        }
    }

    /// Path of an identity's key.
    pub(crate) fn key_path(&self, who: Who) -> PathBuf {
        self.path(&format!("{}.key", who.name()))
    }

    /// Path of an identity's token.
    pub(crate) fn token_path(&self, who: Who) -> PathBuf {
        self.path(&format!("tokens/{}.token", who.name()))
    }

    /// The identity, made from `seed` when there is none.
    pub(crate) fn identity_or_new(&self, who: Who, seed: &[u8; 32]) -> Result<Identity, HomeError> {
        Ok(load_or_create_identity(&self.key_path(who), seed)?)
    }

    /// The identity.
    pub(crate) fn identity(&self, who: Who) -> Result<Identity, HomeError> {
        let path = self.key_path(who);
        if !SecretFile::new(&path).exists()? {
            return Err(match who {
                Who::Node if self.has_mesh() => HomeError::NoNode(self.root.clone()),
                Who::Node => HomeError::NoMesh(self.root.clone()),
                Who::User => HomeError::NoUser(self.root.clone()),
            });
        }
        Ok(load_identity(&path)?)
    }

    /// The mesh authority's key, if it is here.
    pub(crate) fn authority(&self) -> Result<Option<Identity>, HomeError> {
        let path = self.path("authority.key");
        let file = SecretFile::new(&path);
        Ok(if file.exists()? {
            Some(load_identity(&path)?)
        } else {
            None
        })
    }

    /// The token of an identity, if there is one.
    pub(crate) fn token(&self, who: Who) -> Result<Option<Token>, HomeError> {
        let path = self.token_path(who);
        if !SecretFile::new(&path).exists()? {
            return Ok(None);
        }
        let bytes = SecretFile::new(&path).read(MAX_TOKEN_TEXT)?;
        let text = String::from_utf8_lossy(&bytes);
        let token = text
            .trim()
            .parse()
            .map_err(|source| HomeError::Token { path, source })?;
        Ok(Some(token))
    }

    /// Replaces it.
    pub(crate) fn write_token(&self, who: Who, token: &Token) -> Result<(), HomeError> {
        let path = self.token_path(who);
        Ok(SecretFile::new(&path).replace(format!("{token}\n").as_bytes())?)
    }

    /// The mesh's pre-shared key.
    pub(crate) fn psk(&self) -> Result<Psk, HomeError> {
        let path = self.path("psk");
        let text = SecretFile::new(&path).read(MAX_PSK_TEXT)?;
        unhex(text.trim_ascii_end())
            .map(Psk::from_bytes)
            .ok_or(HomeError::Psk(path))
    }

    /// Writes it.
    pub(crate) fn write_psk(&self, psk: &Psk) -> Result<(), HomeError> {
        let mut hex = String::new();
        for byte in psk.as_bytes() {
            write!(hex, "{byte:02x}").expect("a string takes all that is written");
        }
        Ok(SecretFile::new(&self.path("psk")).replace(format!("{hex}\n").as_bytes())?)
    }

    /// Reads a TOML file of the folder, if it is there.
    pub(crate) fn read_toml<T: DeserializeOwned>(
        &self,
        name: &str,
    ) -> Result<Option<T>, HomeError> {
        let path = self.path(name);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(HomeError::Io { path, source }),
        };
        toml::from_str(&text)
            .map(Some)
            .map_err(|source| HomeError::Toml {
                path,
                source: Box::new(source),
            })
    }

    /// These files are no secrets, but they appear whole or not at all, as secrets do.
    fn write_toml(&self, name: &str, value: &impl Serialize) -> Result<(), HomeError> {
        let text = toml::to_string(value).expect("our own plain structs have a TOML form");
        Ok(SecretFile::new(&self.path(name)).replace(text.as_bytes())?)
    }
}

fn unhex(text: &[u8]) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 2 * bytes.len() {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.chunks(2)) {
        let digit = |c: u8| char::from(c).to_digit(16);
        *byte = u8::try_from(digit(pair[0])? * 16 + digit(pair[1])?).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::new(folder.path().join("home"));
        assert!(matches!(home.mesh(), Err(HomeError::NoMesh(_))));
        assert!(matches!(
            home.identity(Who::User),
            Err(HomeError::NoUser(_))
        ));

        let psk = Psk::from_bytes([0xa7; 32]);
        home.write_psk(&psk).unwrap();
        assert!(home.psk().unwrap() == psk);

        let node = home.identity_or_new(Who::Node, &[3; 32]).unwrap().node_id();
        assert_eq!(home.identity(Who::Node).unwrap().node_id(), node);
        let mesh = MeshFile {
            authority: node,
            name: "a".into(),
            roles: [Role::Agent].into(),
        };
        home.write_mesh(&mesh).unwrap();
        assert_eq!(home.mesh().unwrap(), mesh);

        let contact = Contact {
            node,
            addrs: vec!["127.0.0.1:9".parse().unwrap()],
        };
        let contacts = Contacts {
            contact: vec![contact],
        };
        home.write_contacts(&contacts).unwrap();
        assert_eq!(home.contacts().unwrap(), contacts);
    }

    #[test]
    fn one_node_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::new(folder.path().to_owned());
        let run = RunFile {
            pid: 1,
            node: Identity::from_seed(&[1; 32]).node_id(),
            addrs: vec![],
            roles: BTreeSet::new(),
            ready: false,
            metrics: None,
        };
        assert_eq!(home.running().unwrap(), None);
        assert!(!home.path("run").exists(), "looking makes nothing");
        home.write_running(&run).unwrap();
        assert_eq!(
            home.running().unwrap(),
            None,
            "a stale file names no running node"
        );
        let held = home.lock().unwrap();
        assert!(matches!(home.lock(), Err(HomeError::Running(_))));
        assert_eq!(home.running().unwrap(), Some(run));
        drop(held);
        assert!(home.lock().is_ok());
    }

    #[test]
    fn a_damaged_psk_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::new(folder.path().to_owned());
        SecretFile::new(&home.path("psk")).create(b"zz").unwrap();
        assert!(matches!(home.psk(), Err(HomeError::Psk(_))));
    }
}
