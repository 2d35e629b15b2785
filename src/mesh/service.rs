//! The methods of the `mesh` service, save those of a single connection (see `peer::greet`).

use std::sync::{Arc, Weak};

use meshwork_identity::Scope;
use meshwork_proto::announcement::{SignedAnnouncement, Subnet};
use meshwork_proto::limits::{MAX_ANNOUNCEMENTS_PER_CALL, MAX_QUERY};
use meshwork_proto::mesh::{
    Find, FindNodes, FindScopedNodes, Found, Gossip, Inspect, ListMethods, MakeTicket, Ping, Pong,
    RevokeTokens, RotatePsk,
};
use meshwork_proto::query::{Asker, Query, ScopeFilter, View};
use meshwork_proto::rpc::RpcError;
use meshwork_proto::service::{CallContext, Method, Router};

use crate::node::{Node, VERSION, alive};

/// Most hits that one `mesh/find` returns.
const MAX_FOUND: u32 = 1024;

/// What every node serves.
pub(crate) fn router(node: &Arc<Node>) -> Router {
    let node = Arc::downgrade(node);
    let router = Router::new();
    let router = on::<Ping, _>(router, &node, |node, _, ()| async move {
        Ok(Pong {
            now: node.credentials.now(),
            version: VERSION.to_owned(),
        })
    });
    let router = on::<Gossip, _>(router, &node, |node, cx, batch| async move {
        node.hear(&cx, batch).await
    });
    let router = on::<RotatePsk, _>(router, &node, |node, _, rotation| async move {
        Ok(node.rotate_psk(rotation)?)
    });
    let router = on::<RevokeTokens, _>(router, &node, |node, cx, revoke| async move {
        if revoke.items.len() > MAX_ANNOUNCEMENTS_PER_CALL {
            return Err(RpcError::invalid("too many revocations in one call"));
        }
        Ok(node.heed(Some(cx.peer), revoke.items).await?)
    });
    let router = on::<FindNodes, _>(router, &node, |node, cx, find| async move {
        node.find(&cx, &find, None)
    });
    let router = on::<FindScopedNodes, _>(router, &node, |node, cx, scoped| async move {
        node.find(&cx, &scoped.find, Some(scoped.scope))
    });
    let router = on::<ListMethods, _>(router, &node, |node, _, ()| async move {
        let router = node.desk.router();
        Ok(router.methods().map(|method| method.view()).collect())
    });
    let router = on::<Inspect, _>(
        router,
        &node,
        |node, _, ()| async move { Ok(node.status()) },
    );
    on::<MakeTicket, _>(router, &node, |node, _, invite| async move {
        node.invite(invite)
    })
}

/// Serves `M` with a handler that gets the node, as long as it lives.
pub(crate) fn on<M: Method, Fut>(
    router: Router,
    node: &Weak<Node>,
    handler: impl Fn(Arc<Node>, CallContext, M::Request) -> Fut + Clone + Send + Sync + 'static,
) -> Router
where
    Fut: Future<Output = Result<M::Response, RpcError>> + Send + 'static,
{
    let node = node.clone();
    router.unary::<M, _, _>(move |cx, request| {
        let (node, handler) = (node.clone(), handler.clone());
        async move { handler(alive(&node)?, cx, request).await }
    })
}

impl Node {
    /// Who this node is to what it looks for itself.
    pub(crate) fn asker(&self) -> Asker {
        let announced = self.gossip.announced().unwrap_or_default();
        Asker {
            subnet: announced.subnet,
            tenants: self.config.tenants.clone(),
            region: announced.region,
        }
    }

    /// What this node sees of what it looks for itself.
    pub(crate) fn view(&self, filter: ScopeFilter) -> View {
        View {
            asker: self.asker(),
            filter,
        }
    }

    /// What a caller is meant to find: what its scope shows. Who asks for no scope is shown what is
    /// narrowed to them; an admin who asks so as nobody in particular sees every node.
    fn view_of(
        &self,
        cx: &CallContext,
        find: &Find,
        scope: Option<ScopeFilter>,
    ) -> Result<View, RpcError> {
        let is_admin = cx
            .grants
            .iter()
            .any(|grant| grant.scopes.allows(Scope::Admin));
        if scope == Some(ScopeFilter::Everything) && !is_admin {
            return Err(RpcError::denied(
                "seeing every node, whatever it is narrowed to, needs a token with scope `admin`",
            )
            .reason("scope_exceeded")
            .fix("ask for such a token, or use the scope `any`"));
        }
        if is_admin && scope.is_none() && find.tenants.is_empty() && find.region.is_none() {
            return Ok(View::everything());
        }
        let asker = Asker {
            subnet: self.subnet_of(cx),
            tenants: find.tenants.clone(),
            region: find.region.clone(),
        };
        let filter = scope.unwrap_or_default();
        Ok(View { asker, filter })
    }

    /// A node is in the subnet that it announces. A client announces none: it is where the node is
    /// that it asks.
    fn subnet_of(&self, cx: &CallContext) -> Option<Subnet> {
        let caller = self.gossip.facts().store().get(&cx.peer);
        match caller {
            Some(body) => body.subnet.clone(),
            None => self.asker().subnet,
        }
    }

    fn find(
        &self,
        cx: &CallContext,
        find: &Find,
        scope: Option<ScopeFilter>,
    ) -> Result<Found, RpcError> {
        if find.query.len() > MAX_QUERY {
            return Err(RpcError::invalid(format!(
                "a query has at most {MAX_QUERY} bytes"
            )));
        }
        let query = Query::parse(&find.query)
            .map_err(|error| RpcError::invalid(error.to_string()).reason("query"))?;
        let view = self.view_of(cx, find, scope)?;
        let limit = find.limit.min(MAX_FOUND) as usize;
        let (nodes, total): (Vec<Arc<SignedAnnouncement>>, usize) = {
            let facts = self.gossip.facts();
            let store = facts.store();
            let (hits, total) = store.find(&query, &view, limit);
            let nodes = hits.iter().filter_map(|(node, _)| store.signed(node));
            (nodes.collect(), total)
        };
        Ok(Found {
            // Copied after the store is free for others again.
            nodes: nodes.iter().map(|signed| (**signed).clone()).collect(),
            total: total as u64,
        })
    }
}
