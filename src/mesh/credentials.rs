//! Whom this node believes and what it may do itself: the check of tokens that peers present, its
//! own tokens, and the revocations that it heeds.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use meshwork_identity::{
    Grant, Identity, NodeId, Revocation, RevocationError, Revocations, Revoked, Scope, Timestamp,
    Token, TokenError, TokenRequest, VerifyContext, Warrant, WarrantError,
};
use meshwork_proto::codec;
use meshwork_proto::limits::MAX_TOKENS_PER_PEER;
use meshwork_proto::ports::WallClock;
use meshwork_proto::rpc::{RpcError, Status};

use crate::error::MeshError;
use crate::rpc::{Refusal, Standing};
use crate::state::{StateStore, durably};

/// Where the revocations are kept.
const STATE_KEY: &str = "revocations";
/// Most bytes of all revocations that a node holds.
const MAX_STATE: usize =
    meshwork_identity::MAX_REVOCATIONS * meshwork_identity::MAX_REVOCATION_BYTES;

/// Why a presented token was refused, as it is told to the presenter.
pub(crate) type Verdict = Option<(String, String)>;

pub(crate) struct Credentials {
    pub(crate) identity: Identity,
    pub(crate) authority: NodeId,
    tolerance: Duration,
    clock: Arc<dyn WallClock>,
    state: Arc<dyn StateStore>,
    tokens: RwLock<Vec<Token>>,
    /// How this node stands with itself, by its tokens.
    own: RwLock<Standing>,
    revocations: RwLock<Revocations>,
}

impl Credentials {
    /// With the revocations that were kept.
    pub(crate) fn load(
        identity: Identity,
        authority: NodeId,
        tolerance: Duration,
        tokens: Vec<Token>,
        clock: Arc<dyn WallClock>,
        state: Arc<dyn StateStore>,
    ) -> Result<Self, MeshError> {
        let stored = state.get(STATE_KEY).map_err(MeshError::state(STATE_KEY))?;
        let stored: Vec<Revocation> = match stored {
            Some(bytes) => codec::decode(&bytes, MAX_STATE).map_err(|error| {
                MeshError::state(STATE_KEY)(std::io::Error::other(error.to_string()))
            })?,
            None => Vec::new(),
        };
        let mut revocations = Revocations::new();
        for statement in stored {
            // Refused are those that have become obsolete since.
            let _ = revocations.insert(statement, &authority, clock.now(), tolerance);
        }
        let credentials = Self {
            identity,
            authority,
            tolerance,
            clock,
            state,
            tokens: RwLock::new(tokens),
            own: RwLock::default(),
            revocations: RwLock::new(revocations),
        };
        credentials.judge_own();
        Ok(credentials)
    }

    pub(crate) fn node_id(&self) -> NodeId {
        self.identity.node_id()
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Runs `look` with what tokens are checked against.
    pub(crate) fn with_context<T>(&self, look: impl FnOnce(&VerifyContext<'_>) -> T) -> T {
        let revocations = self
            .revocations
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        look(&VerifyContext {
            root: &self.authority,
            now: self.now(),
            tolerance: self.tolerance,
            revocations: &revocations,
        })
    }

    /// Checks the tokens that `peer` presented: how it stands now, and a verdict for each.
    pub(crate) fn judge(&self, peer: &NodeId, tokens: &[Token]) -> (Standing, Vec<Verdict>) {
        let results: Vec<Result<Grant, TokenError>> = self.with_context(|context| {
            let tokens = tokens.iter().take(MAX_TOKENS_PER_PEER);
            tokens
                .map(|token| verify_for(token, peer, context))
                .collect()
        });
        let verdicts = results
            .iter()
            .map(|result| {
                result
                    .as_ref()
                    .err()
                    .map(|e| (e.kind().to_owned(), e.to_string()))
            })
            .collect();
        let refused = results
            .iter()
            .filter_map(|result| result.as_ref().err().map(Refusal::from));
        let standing = Standing {
            presented: true,
            refused: refused.collect(),
            grants: results.into_iter().filter_map(Result::ok).collect(),
        };
        (standing, verdicts)
    }

    /// The tokens to present.
    pub(crate) fn tokens(&self) -> Vec<Token> {
        self.tokens
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// How this node stands with itself.
    pub(crate) fn own_standing(&self) -> Standing {
        self.own
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Judges our own tokens anew: after a change of tokens or revocations, and as time passes.
    pub(crate) fn judge_own(&self) {
        let (standing, _) = self.judge(&self.node_id(), &self.tokens());
        *self.own.write().unwrap_or_else(PoisonError::into_inner) = standing;
    }

    /// Whether we hold anything that makes us a member in the eyes of others.
    pub(crate) fn is_member(&self) -> bool {
        self.own_standing().is_member(self.now())
    }

    /// Adds a token of our own. When there are too many, the one that ends first leaves.
    pub(crate) fn add_token(&self, token: Token) {
        let mut tokens = self.tokens.write().unwrap_or_else(PoisonError::into_inner);
        tokens.retain(|known| known.id() != token.id());
        if tokens.len() >= MAX_TOKENS_PER_PEER {
            let first = (0..tokens.len()).min_by_key(|i| tokens[*i].claims().expires);
            first.map(|index| tokens.remove(index));
        }
        tokens.push(token);
        drop(tokens);
        self.judge_own();
    }

    /// The token that holds now, has `scope`, and lasts longest.
    pub(crate) fn token_with(&self, scope: Scope) -> Result<Token, TokenError> {
        let own = self.node_id();
        let tokens = self.tokens();
        let mut refusal = None;
        let holding = self.with_context(|context| {
            let holds = |token: &&Token| {
                let grant = verify_for(token, &own, context);
                match grant {
                    Ok(grant) if grant.scopes.allows(scope) => true,
                    Ok(_) => false,
                    Err(error) => {
                        refusal.get_or_insert(error);
                        false
                    }
                }
            };
            tokens
                .iter()
                .filter(holds)
                .max_by_key(|token| token.claims().expires)
                .cloned()
        });
        let lacking = TokenError::ScopeExceeded {
            what: meshwork_identity::Exceeded::Scope(scope),
        };
        holding.ok_or(refusal.unwrap_or(lacking))
    }

    /// Passes on what is asked for, from whichever of our tokens covers it; it ends when that one
    /// ends at the latest.
    pub(crate) fn delegate(
        &self,
        request: &TokenRequest,
        nonce: [u8; 16],
    ) -> Result<Token, TokenError> {
        let own = self.node_id();
        let mut refusal = TokenError::DelegationExhausted;
        for token in self.tokens() {
            let child = self.with_context(|context| {
                verify_for(&token, &own, context)?;
                // Who may pass something on gets as many steps as we have left.
                let passes_on = request.scopes.allows(Scope::Delegate);
                let left = token.claims().depth.saturating_sub(1);
                let depth = if passes_on { left } else { 0 };
                let ttl = request
                    .ttl
                    .min(token.claims().expires.duration_since(context.now));
                let request = TokenRequest {
                    depth,
                    ttl,
                    ..request.clone()
                };
                token.delegate(&self.identity, request, context.now, nonce)
            });
            match child {
                Ok(child) => return Ok(child),
                Err(error) => refusal = error,
            }
        }
        Err(refusal)
    }

    /// Heeds these revocations from now on; those that are new, kept durably, to be passed on.
    /// Refused ones are returned with their reason.
    pub(crate) fn revoke(
        &self,
        items: Vec<Revocation>,
    ) -> Result<(Vec<Revoked>, Vec<RevocationError>), MeshError> {
        let mut revocations = self
            .revocations
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let mut heeded = revocations.clone();
        let (mut new, mut refused) = (Vec::new(), Vec::new());
        for item in items {
            let what = self.revoked_by(&item, &heeded);
            match heeded.insert(item, &self.authority, self.now(), self.tolerance) {
                Ok(true) => new.extend(what),
                Ok(false) => {}
                Err(error) => refused.push(error),
            }
        }
        if !new.is_empty() {
            self.store(&heeded)?;
            *revocations = heeded;
        }
        drop(revocations);
        if !new.is_empty() {
            self.judge_own();
        }
        Ok((new, refused))
    }

    fn revoked_by(&self, item: &Revocation, heeded: &Revocations) -> Option<Revoked> {
        let context = VerifyContext {
            root: &self.authority,
            now: self.now(),
            tolerance: self.tolerance,
            revocations: heeded,
        };
        item.verify(&context).ok().map(|notice| notice.what)
    }

    fn store(&self, revocations: &Revocations) -> Result<(), MeshError> {
        let bytes = codec::encode(&in_order(revocations, |_| true));
        durably(|| self.state.put(STATE_KEY, &bytes)).map_err(MeshError::state(STATE_KEY))
    }

    /// Every revocation, in an order in which others will accept them.
    pub(crate) fn revocations(&self) -> Vec<Revocation> {
        let held = self
            .revocations
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        in_order(&held, |_| true)
    }

    /// What is revoked.
    pub(crate) fn revoked(&self) -> Vec<Revoked> {
        let held = self
            .revocations
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        held.iter().map(|(notice, _)| notice.what).collect()
    }

    /// The statements that revoke any of `what`, in an order in which others will accept them.
    pub(crate) fn statements(&self, what: &[Revoked]) -> Vec<Revocation> {
        if what.is_empty() {
            return Vec::new();
        }
        let held = self
            .revocations
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        in_order(&held, |revoked| what.contains(revoked))
    }

    pub(crate) fn is_revoked(&self, node: &NodeId) -> bool {
        self.revocations
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .contains_node(node)
    }

    /// The standing without what has expired or was revoked; `None` when nothing has.
    pub(crate) fn without_lapsed(&self, standing: &Standing) -> Option<Standing> {
        self.with_context(|context| standing.without_lapsed(context.now, context.revocations))
    }

    /// Forgets revocations of what has expired by itself.
    pub(crate) fn purge(&self) {
        let mut revocations = self
            .revocations
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        revocations.purge(self.now(), self.tolerance);
    }

    pub(crate) fn verify_warrant(&self, warrant: &Warrant) -> Result<Grant, RpcError> {
        match self.with_context(|context| warrant.verify(context)) {
            Ok((grant, _)) => Ok(grant),
            Err(WarrantError::Token(error)) => {
                Err(RpcError::denied(format!("the order is refused: {error}")).reason(error.kind()))
            }
            Err(error) => Err(RpcError::new(Status::Unauthenticated, error.to_string())
                .reason("invalid_signature")),
        }
    }
}

fn verify_for(
    token: &Token,
    subject: &NodeId,
    context: &VerifyContext<'_>,
) -> Result<Grant, TokenError> {
    let expected = token.claims().subject;
    if expected != *subject {
        return Err(TokenError::WrongSubject {
            expected,
            actual: *subject,
        });
    }
    token.verify(context)
}

/// The oldest first: an admin may have revoked others before it was revoked itself.
fn in_order(revocations: &Revocations, wanted: impl Fn(&Revoked) -> bool) -> Vec<Revocation> {
    let mut held: Vec<_> = revocations
        .iter()
        .filter(|(notice, _)| wanted(&notice.what))
        .collect();
    held.sort_by_key(|(notice, _)| notice.issued_at);
    held.into_iter()
        .map(|(_, statement)| statement.clone())
        .collect()
}
