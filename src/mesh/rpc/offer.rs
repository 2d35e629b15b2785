//! Serving for a while: what is offered is announced, and withdrawn when its handle is dropped.

use std::fmt;
use std::sync::{Arc, Weak};

use meshwork_proto::service::Router;
use tracing::warn;

use crate::node::Node;

/// Serves methods as long as it lives. Dropping it unregisters them: calls under way go on, new ones are
/// told that there is no such method, and the node's announcement no longer names the service.
#[must_use = "dropping it unregisters the methods"]
pub struct ServeHandle {
    node: Weak<Node>,
    router: Router,
}

impl ServeHandle {
    pub(crate) fn new(node: &Arc<Node>, router: Router) -> Self {
        node.desk.serve(router.clone());
        node.desk.offer(&router);
        say(node);
        Self {
            node: Arc::downgrade(node),
            router,
        }
    }
}

impl fmt::Debug for ServeHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ServeHandle").field(&self.router).finish()
    }
}

impl Drop for ServeHandle {
    fn drop(&mut self) {
        if let Some(node) = self.node.upgrade() {
            node.desk.withdraw(&self.router);
            say(&node);
        }
    }
}

/// Announces what is offered now, if the node announces anything.
fn say(node: &Arc<Node>) {
    if let Err(error) = node.reannounce() {
        warn!(%error, "a change of the services is not announced");
    }
}
