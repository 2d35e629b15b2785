//! Revocations: heeded, kept, passed on, and what they cut.

use std::sync::Arc;

use meshwork_identity::{Grant, NodeId, Revocation};
use meshwork_proto::facts::Fact;
use meshwork_proto::membership::Input;
use tracing::debug;

use crate::error::MeshError;
use crate::node::Node;
use crate::rpc::close_code;

impl Node {
    /// Heeds revocations from now on, durably, and passes them on. A disk that fails is an error, and
    /// is tried again; they are in force all the same. The first that is refused is an error too,
    /// with the others in force.
    pub(crate) async fn heed(
        self: &Arc<Self>,
        from: Option<NodeId>,
        items: Vec<Revocation>,
    ) -> Result<(), MeshError> {
        let (new, refused) = self.credentials.revoke(items).await;
        for why in &refused {
            debug!(?from, %why, "revocation refused");
        }
        if !new.is_empty() {
            for statement in self.credentials.statements(&new) {
                if let Ok(key) = self.take_own(Fact::Revocation(statement)) {
                    self.membership(Input::Published { key });
                }
            }
            self.cut_revoked();
        }
        self.credentials.save().await?;
        match refused.into_iter().next() {
            Some(why) => Err(MeshError::Revocation(Arc::new(why))),
            None => Ok(()),
        }
    }

    /// Ends what is revoked by now: connections, standings, and what was said by virtue of it.
    pub(super) fn cut_revoked(self: &Arc<Self>) {
        let forgotten = self.credentials.with_context(|context| {
            let cut = |grant: &Grant| grant.revoked_by(context.revocations).is_some();
            self.gossip.facts().drop_where(cut)
        });
        for peer in forgotten {
            self.gossip.cache().forget(&peer);
            self.membership(Input::Forgotten { peer });
        }
        self.lapse();
    }

    /// Takes away what has expired or was revoked: from every peer's standing, which ends the calls
    /// that it allowed, and the connection of who is revoked.
    pub(crate) fn lapse(self: &Arc<Self>) {
        let mut lapsed = false;
        for link in self.peers.living() {
            if self.credentials.is_revoked(&link.peer) {
                link.close(close_code::REVOKED, "revoked");
                self.gossip.cache().forget(&link.peer);
                continue;
            }
            let standing = link.standing.borrow().clone();
            if let Some(left) = self.credentials.without_lapsed(&standing) {
                link.stands(left);
                lapsed = true;
            }
        }
        if lapsed {
            self.sync_links();
        }
    }
}
