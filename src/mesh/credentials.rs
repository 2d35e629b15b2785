//! Whom this node believes and what it may do itself: the check of tokens that peers present, its
//! own tokens, and the revocations that it heeds.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use meshwork_identity::{
    Grant, Identity, NodeId, Revocation, RevocationError, RevocationNotice, Revocations, Revoked,
    Scope, Timestamp, Token, TokenError, TokenRequest, VerifyContext, Warrant, WarrantError,
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

/// Statements that are checked before other tasks get their turn: some milliseconds.
const CHECKED_AT_ONCE: usize = 16;

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
    /// Replaced as a whole, so that nobody waits for who checks new ones or writes to the disk:
    /// whether a peer is revoked is asked within packet processing.
    revocations: RwLock<Arc<Revocations>>,
    /// Whoever changes or stores the revocations has its turn.
    changing: tokio::sync::Mutex<()>,
    /// The disk lacks some of the revocations.
    unsaved: AtomicBool,
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
        let revocations =
            Revocations::restore(stored, clock.now(), tolerance).map_err(|error| {
                MeshError::state(STATE_KEY)(std::io::Error::other(error.to_string()))
            })?;
        let credentials = Self {
            identity,
            authority,
            tolerance,
            clock,
            state,
            tokens: RwLock::new(tokens),
            own: RwLock::default(),
            revocations: RwLock::new(Arc::new(revocations)),
            changing: tokio::sync::Mutex::default(),
            unsaved: AtomicBool::new(false),
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
        look(&self.context(&self.held()))
    }

    fn context<'a>(&'a self, revocations: &'a Revocations) -> VerifyContext<'a> {
        VerifyContext {
            root: &self.authority,
            now: self.now(),
            tolerance: self.tolerance,
            revocations,
        }
    }

    /// The revocations as they are now.
    fn held(&self) -> Arc<Revocations> {
        self.revocations
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
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

    /// Heeds these revocations from now on, though not durably before [`Credentials::save`]: those
    /// that are new, to be passed on. Refused ones are returned with their reason.
    pub(crate) async fn revoke(
        &self,
        items: Vec<Revocation>,
    ) -> (Vec<Revoked>, Vec<RevocationError>) {
        let _turn = self.changing.lock().await;
        let mut held = self.held();
        let (mut new, mut refused) = (Vec::new(), Vec::new());
        for (index, item) in items.into_iter().enumerate() {
            if index % CHECKED_AT_ONCE == CHECKED_AT_ONCE - 1 {
                tokio::task::yield_now().await;
            }
            if held.holds(&item) {
                continue;
            }
            match item.verify(&self.context(&held)) {
                Ok(notice) => {
                    let changed = Arc::make_mut(&mut held);
                    match changed.insert(item, &self.authority, self.now(), self.tolerance) {
                        Ok(true) => new.push(notice.what),
                        Ok(false) => {}
                        Err(error) => refused.push(error),
                    }
                }
                Err(error) => refused.push(error),
            }
        }
        if !new.is_empty() {
            self.unsaved.store(true, Ordering::Relaxed);
            self.replace(held);
            self.judge_own();
        }
        (new, refused)
    }

    fn replace(&self, revocations: Arc<Revocations>) {
        *self
            .revocations
            .write()
            .unwrap_or_else(PoisonError::into_inner) = revocations;
    }

    /// Stores the revocations, if the disk lacks any.
    pub(crate) async fn save(&self) -> Result<(), MeshError> {
        let _turn = self.changing.lock().await;
        if !self.unsaved.load(Ordering::Relaxed) {
            return Ok(());
        }
        let bytes = codec::encode(&in_order(self.held().iter()));
        durably(|| self.state.put(STATE_KEY, &bytes)).map_err(MeshError::state(STATE_KEY))?;
        self.unsaved.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// The first `most` revocations, in an order in which others will accept them.
    pub(crate) fn revocations(&self, most: usize) -> Vec<Revocation> {
        let mut all = in_order(self.held().iter());
        all.truncate(most);
        all
    }

    /// What is revoked.
    pub(crate) fn revoked(&self) -> Vec<Revoked> {
        self.held().iter().map(|(notice, _)| notice.what).collect()
    }

    /// The statements that revoke any of `what`, in an order in which others will accept them.
    pub(crate) fn statements(&self, what: &[Revoked]) -> Vec<Revocation> {
        let held = self.held();
        in_order(what.iter().filter_map(|what| held.get(what)))
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
    pub(crate) async fn purge(&self) {
        let _turn = self.changing.lock().await;
        let mut left = self.held();
        let now = self.now();
        if !left.iter().any(|(notice, _)| notice.keep_until <= now) {
            return;
        }
        Arc::make_mut(&mut left).purge(now, self.tolerance);
        self.replace(left);
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
fn in_order<'a>(
    held: impl Iterator<Item = (&'a RevocationNotice, &'a Revocation)>,
) -> Vec<Revocation> {
    let mut held: Vec<_> = held.collect();
    held.sort_by_key(|(notice, _)| notice.issued_at);
    held.into_iter()
        .map(|(_, statement)| statement.clone())
        .collect()
}
