//! Who may call what: the check before each call, a look-up in what the peer's tokens granted when
//! it presented them.

use std::sync::Arc;

use meshwork_identity::{Grant, NodeId, Revocations, Scope, Timestamp, TokenError};
use meshwork_proto::rpc::{RpcError, Status};
use meshwork_proto::service::{Access, MethodInfo};

/// A token that a peer presented and that does not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// Stable name: `expired`, `revoked`, ….
    pub(crate) kind: &'static str,
    /// A sentence.
    pub(crate) message: String,
}

impl From<&TokenError> for Refusal {
    fn from(error: &TokenError) -> Self {
        Self {
            kind: error.kind(),
            message: error.to_string(),
        }
    }
}

/// How a peer stands with this node: what its tokens grant, and why others of them do not.
#[derive(Debug, Clone, Default)]
pub(crate) struct Standing {
    /// Whether the peer has presented its tokens at all. Until then nothing is known of it.
    pub(crate) presented: bool,
    /// What holds, for this peer as the subject.
    pub(crate) grants: Arc<[Grant]>,
    /// What does not, so that a refused call can say why.
    pub(crate) refused: Arc<[Refusal]>,
}

impl Standing {
    /// Whether `caller`, who stands so, may call `method` of `local` now.
    pub(crate) fn check(
        &self,
        method: &MethodInfo,
        caller: &NodeId,
        local: &NodeId,
        now: Timestamp,
    ) -> Result<(), RpcError> {
        match method.access {
            Access::Open => return Ok(()),
            Access::Member if self.is_member(now) => return Ok(()),
            Access::Member | Access::Call | Access::Admin => {}
        }
        let path = method.path();
        let checked = match method.access {
            Access::Open => Ok(()),
            Access::Member => self.any(|g| g.check(caller, Scope::Announce, &path, local, now)),
            Access::Call => self.any(|g| g.check(caller, Scope::Call, &path, local, now)),
            Access::Admin => self.any(|g| g.check(caller, Scope::Admin, &path, local, now)),
        };
        checked.map_err(|error| self.refusal(&path, error.as_ref()))
    }

    /// Whether some token of this mesh lets its subject announce or call anything at all:
    /// membership is of the mesh, not of a resource.
    pub(crate) fn is_member(&self, now: Timestamp) -> bool {
        self.grants.iter().any(|grant| {
            let scopes = grant.scopes;
            grant.check_time(now).is_ok()
                && (scopes.allows(Scope::Announce) || scopes.allows(Scope::Call))
        })
    }

    /// Whether one of the grants passes. Else the most telling of their errors, if there are any.
    fn any(
        &self,
        check: impl Fn(&Grant) -> Result<(), TokenError>,
    ) -> Result<(), Option<TokenError>> {
        let mut telling: Option<TokenError> = None;
        for grant in &*self.grants {
            match check(grant) {
                Ok(()) => return Ok(()),
                Err(error) if rank(&error) > telling.as_ref().map_or(0, rank) => {
                    telling = Some(error);
                }
                Err(_) => {}
            }
        }
        Err(telling)
    }

    /// The answer to a call that no grant allows.
    fn refusal(&self, path: &str, error: Option<&TokenError>) -> RpcError {
        let status = if self.grants.is_empty() {
            Status::Unauthenticated
        } else {
            Status::Denied
        };
        if let Some(refused) = self.refused.first() {
            return RpcError::new(status, format!("`{path}` is refused: {}", refused.message))
                .reason(refused.kind)
                .fix("ask an admin of the mesh for a token that holds");
        }
        match error {
            Some(error) => RpcError::new(status, format!("`{path}` is refused: {error}"))
                .reason(error.kind())
                .fix("ask an admin of the mesh for a token that allows this"),
            None => RpcError::new(
                status,
                format!("`{path}` needs a token, and none was presented"),
            )
            .reason("no_token")
            .fix("join the mesh with a ticket"),
        }
    }

    /// The standing without what no longer holds, or `None` when all of it does.
    pub(crate) fn without_lapsed(&self, now: Timestamp, revocations: &Revocations) -> Option<Self> {
        let lapse = |grant: &Grant| match grant.revoked_by(revocations) {
            Some(what) => Err(TokenError::Revoked { what }),
            None => grant.check_time(now),
        };
        let lapsed: Vec<Refusal> = self
            .grants
            .iter()
            .filter_map(|grant| lapse(grant).err())
            .map(|error| Refusal::from(&error))
            .collect();
        if lapsed.is_empty() {
            return None;
        }
        let grants = self
            .grants
            .iter()
            .filter(|grant| lapse(grant).is_ok())
            .cloned()
            .collect();
        // What has just lapsed explains better than what never held.
        let refused = lapsed.into_iter().chain(self.refused.iter().cloned());
        Some(Self {
            presented: self.presented,
            grants,
            refused: refused
                .take(meshwork_proto::limits::MAX_TOKENS_PER_PEER)
                .collect(),
        })
    }
}

/// How much an error tells: the nearer the grant came to allow the call, the more.
fn rank(error: &TokenError) -> u8 {
    match error {
        TokenError::WrongResource { .. } => 3,
        TokenError::Expired { .. } => 2,
        _ => 1,
    }
}
