//! Takes what peers tell: each fact is verified, put into the ledger, and passed to the membership
//! machine, which knows who is to hear it next.

use std::sync::Arc;

use meshwork_identity::{NodeId, Revocation};
use meshwork_proto::facts::{Change, Fact};
use meshwork_proto::membership::{Input, Key, Outcome};
use meshwork_proto::mesh::GossipBatch;
use meshwork_proto::psk::SignedPskRotation;
use meshwork_proto::rpc::RpcError;
use meshwork_proto::service::CallContext;
use meshwork_proto::store::RefusedBy;
use tracing::{debug, warn};

use super::intake::Intake;
use crate::error::MeshError;
use crate::node::Node;

/// Facts that are checked before other tasks get their turn: some milliseconds.
const CHECKED_AT_ONCE: usize = 16;
/// The same of revocations, which have one signature or few. They are heeded together.
const HEEDED_AT_ONCE: usize = 64;

impl Node {
    /// Takes a peer's news. Only nodes may tell any: who holds scope `announce`.
    pub(crate) async fn hear(
        self: &Arc<Self>,
        cx: &CallContext,
        batch: GossipBatch,
    ) -> Result<(), RpcError> {
        let from = cx.peer;
        let may = |grant: &meshwork_identity::Grant| {
            grant.scopes.allows(meshwork_identity::Scope::Announce)
        };
        if !cx.grants.iter().any(may) {
            return Err(RpcError::denied("only nodes tell news").reason("scope_exceeded"));
        }
        let (mut revocations, others): (Vec<Fact>, Vec<Fact>) = batch
            .facts
            .into_iter()
            .partition(|fact| matches!(fact, Fact::Revocation(_)));
        while !revocations.is_empty() {
            let rest = revocations.split_off(revocations.len().min(HEEDED_AT_ONCE));
            self.hear_revocations(from, std::mem::replace(&mut revocations, rest))
                .await;
        }
        for (index, fact) in others.into_iter().enumerate() {
            if index % CHECKED_AT_ONCE == CHECKED_AT_ONCE - 1 {
                tokio::task::yield_now().await;
            }
            self.hear_fact(from, fact);
        }
        self.take_messages(from, batch.messages);
        Ok(())
    }

    /// Takes revocations, and heeds those that are new together. That is a task of its own: what is
    /// in the ledger must not stay without effect because the peer gave up its call.
    async fn hear_revocations(self: &Arc<Self>, from: NodeId, facts: Vec<Fact>) {
        let heard = facts
            .into_iter()
            .filter_map(|fact| self.hear_fact(from, fact));
        let new: Vec<Revocation> = heard.collect();
        if new.is_empty() {
            return;
        }
        let heeding = self.tasks.spawn(self.clone().heed_heard(from, new));
        if let Err(error) = heeding.await {
            warn!(%error, "revocations are not heeded");
        }
    }

    async fn heed_heard(self: Arc<Self>, from: NodeId, new: Vec<Revocation>) {
        let (_, refused) = self.credentials.revoke(new).await;
        for why in refused {
            debug!(?from, %why, "revocation refused");
        }
        self.cut_revoked();
        if let Err(error) = self.credentials.save().await {
            warn!(%error, "revocations are in force, and not stored yet");
        }
    }

    /// Takes one fact; the revocation, if it is a new one, which is still to be heeded.
    fn hear_fact(self: &Arc<Self>, from: NodeId, fact: Fact) -> Option<Revocation> {
        if !self.gossip.intake(from, Intake::may_tell) {
            self.gossip.counters.refused();
            return None;
        }
        let (key, version, outcome, changes) = self
            .credentials
            .with_context(|trust| self.gossip.facts().accept(fact, trust));
        let is_blamed =
            |change: &Change| matches!(change, Change::Refused(why) if why.blames_teller());
        if changes.iter().any(is_blamed) {
            self.gossip.intake(from, |intake, _| intake.was_wrong());
        }
        let overtaken = changes
            .iter()
            .any(|change| matches!(change, Change::OwnAhead { .. }));
        // What the peer holds of us is not what we hold, as of the next line.
        let outcome = if overtaken { Outcome::Old } else { outcome };
        let mut revoked = None;
        for change in changes {
            match change {
                Change::Revoked(statement) => revoked = Some((*statement).clone()),
                Change::OwnAhead { version } => self.overtake(version),
                Change::Refused(why) => debug!(?from, %why, "a fact is refused"),
                Change::Psk(_) => {
                    if let Err(error) = self.follow_rotation() {
                        warn!(%error, "the new pre-shared key is not stored, and not used yet");
                    }
                }
                Change::Node(_) | Change::Renewed(_) | Change::Accused { .. } => {}
            }
        }
        self.membership(Input::Heard {
            from,
            key,
            version,
            outcome,
        });
        revoked
    }

    /// Uses the pre-shared keys of the rotation that the ledger holds.
    pub(crate) fn follow_rotation(&self) -> Result<(), MeshError> {
        let held = self.gossip.facts().fact(&Key::Psk);
        let Some(Fact::Psk(statement)) = held else {
            return Ok(());
        };
        let now = self.credentials.now();
        let changed = self.psks.follow(&statement, &*self.state, now)?;
        if changed {
            self.endpoint.set_psks(self.psks.set());
        }
        Ok(())
    }

    /// Follows a rotation that the user of this node ordered, or an admin, and spreads it.
    pub(crate) fn rotate_psk(
        self: &Arc<Self>,
        rotation: SignedPskRotation,
    ) -> Result<(), MeshError> {
        let key = self
            .take_own(Fact::Psk(rotation))
            .map_err(|why| MeshError::Rotation(why.to_string()))?;
        let kept = self.follow_rotation();
        self.membership(Input::Published { key });
        kept
    }

    /// Puts a fact of our own into the ledger.
    pub(super) fn take_own(&self, fact: Fact) -> Result<Key<NodeId>, RefusedBy> {
        let taken = self
            .credentials
            .with_context(|trust| self.gossip.facts().publish(fact, trust));
        taken.map(|(key, _)| key)
    }
}
