//! The life of a connection: adopted, greeted with an exchange of tokens, settled against others to
//! the same peer, retired.

use std::sync::{Arc, Weak};
use std::time::Duration;

use meshwork_proto::limits::MAX_TOKENS_PER_PEER;
use meshwork_proto::mesh::{JoinMesh, MAX_ADDRESSES, Ping, Present, PresentTokens, Presented};
use meshwork_proto::rpc::{RpcError, Status};
use meshwork_proto::service::Router;
use quinn::{Connection, ConnectionError};
use tokio::time::sleep;
use tracing::debug;

use super::Link;
use super::table::Offer;
use crate::error::{MeshError, TurnedAway};
use crate::node::{Node, VERSION, alive};
use crate::path::Bound;
use crate::rpc::{CallError, Server, Serving, Share, close_code};
use crate::transport::closed_as_unauthorized;

/// How long the exchange of tokens may take.
const GREETING: Duration = Duration::from_secs(10);
/// How long a connection may take to prove that it is alive when a newer one contests it.
const PROOF_OF_LIFE: Duration = Duration::from_secs(2);

impl Node {
    /// Starts to serve a new connection, unless its peer has too many.
    pub(crate) fn adopt(
        self: &Arc<Self>,
        conn: Connection,
        path: Bound,
        dialled: bool,
    ) -> Option<Arc<Link>> {
        let frame = self.desk.limits.frame;
        let link = Arc::new(Link::new(conn, path, dialled, frame, &self.tasks));
        let Some(share) = self.peers.enter(&link, &self.desk.limits) else {
            link.close(close_code::BUSY, "too many connections");
            return None;
        };
        self.tasks.spawn(self.clone().run(link.clone(), share));
        Some(link)
    }

    /// Serves a connection until it ends.
    async fn run(self: Arc<Self>, link: Arc<Link>, share: Arc<Share>) {
        let server = Server::new(
            self.desk.clone(),
            Serving {
                conn: link.conn.clone(),
                peer: link.peer,
                share,
                lanes: link.lanes.clone(),
                standing: link.standing.subscribe(),
                expects_tokens: link.dialled,
                calls: link.calls.clone(),
                last_use: link.last_use.clone(),
                own: Arc::new(own_methods(Arc::downgrade(&self), Arc::downgrade(&link))),
            },
        );
        let ended = tokio::select! {
            biased;
            ended = server.run() => ended,
            ended = self.read_datagrams(&link) => ended,
            () = self.await_greeting(&link) => link.conn.closed().await,
            ended = self.post(&link) => ended,
        };
        debug!(peer = ?link.peer, %ended, "connection ended");
        self.peers.remove(&link);
        self.link_down(&link);
    }

    /// Closes the connection if the peer does not present its tokens in time. Does not return
    /// otherwise.
    async fn await_greeting(&self, link: &Link) {
        sleep(GREETING).await;
        if link.standing.borrow().presented {
            std::future::pending::<()>().await;
        }
        link.close(close_code::NO_GREETING, "no tokens were presented");
    }

    fn presentation(&self) -> Present {
        let mut addresses = self.addresses();
        addresses.truncate(MAX_ADDRESSES);
        Present {
            tokens: self.credentials.tokens(),
            version: VERSION.to_owned(),
            addresses,
            accepts: self.config.accept,
        }
    }

    /// Presents our tokens on a connection, takes the peer's, and settles it if it is new.
    pub(crate) async fn greet(self: &Arc<Self>, link: &Arc<Link>) -> Result<(), MeshError> {
        let answer = link
            .ask::<PresentTokens>(&self.presentation(), GREETING)
            .await;
        let presented = answer.map_err(|error| greeting_error(link, error))?;
        for (kind, message) in presented.refused.iter().flatten() {
            debug!(peer = ?link.peer, kind, message, "the peer refuses a token of ours");
        }
        let (standing, _) = self.credentials.judge(&link.peer, &presented.tokens);
        link.stands(standing);
        self.settle(link);
        Ok(())
    }

    /// Takes the tokens that the peer presents, and answers with ours.
    fn take_greeting(self: &Arc<Self>, link: &Arc<Link>, present: &Present) -> Presented {
        let (standing, refused) = self.credentials.judge(&link.peer, &present.tokens);
        link.note_client(!present.accepts);
        link.stands(standing);
        self.settle(link);
        Presented {
            refused,
            tokens: self.credentials.tokens(),
        }
    }

    /// Decides what a greeted connection is used for.
    fn settle(self: &Arc<Self>, link: &Arc<Link>) {
        match self.peers.offer(link) {
            Offer::Installed => {}
            Offer::Ended => return,
            Offer::Replaced(old) => self.retire(old),
            Offer::Superseded(old) => old.close(close_code::STALE, "dialled anew"),
            Offer::Contested(old) => {
                self.tasks.spawn(self.clone().contest(old, link.clone()));
                return;
            }
        }
        self.link_up(link);
        self.introduce(link);
    }

    /// Keeps the older of two connections if it is alive, else the newer.
    async fn contest(self: Arc<Self>, old: Arc<Link>, new: Arc<Link>) {
        if old.ask::<Ping>(&(), PROOF_OF_LIFE).await.is_ok() {
            return self.retire(new);
        }
        old.close(close_code::STALE, "no answer");
        self.peers.forget(&old);
        self.settle(&new);
    }

    /// Closes a connection that another one has replaced, once its calls have ended.
    fn retire(self: &Arc<Self>, link: Arc<Link>) {
        link.retired.cancel();
        let draining = self.desk.draining.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                biased;
                // The end of the node ends the connection, too.
                () = draining.cancelled() => {}
                _ = link.conn.closed() => {}
                () = link.calls.close_when_idle() => {
                    link.close(close_code::DUPLICATE, "there is another connection");
                }
            }
        });
    }

    /// Presents our tokens again on every connection, as they have changed.
    pub(crate) async fn present_again(self: &Arc<Self>) {
        let links = self.peers.all();
        let greetings = links.iter().map(|link| self.greet(link));
        for (link, result) in links
            .iter()
            .zip(futures_util::future::join_all(greetings).await)
        {
            if let Err(error) = result {
                debug!(peer = ?link.peer, %error, "cannot present our tokens again");
            }
        }
    }
}

/// The methods that a connection serves by itself: those that are about it.
fn own_methods(node: Weak<Node>, link: Weak<Link>) -> Router {
    let ends = (node, link);
    let both = move || {
        let link = ends
            .1
            .upgrade()
            .ok_or_else(|| RpcError::unavailable("the connection ended"))?;
        Ok::<_, RpcError>((alive(&ends.0)?, link))
    };
    let joined = both.clone();
    let router = Router::new().unary::<PresentTokens, _, _>(move |_, present| {
        let both = both.clone();
        async move {
            if present.tokens.len() > MAX_TOKENS_PER_PEER {
                return Err(RpcError::invalid(format!(
                    "at most {MAX_TOKENS_PER_PEER} tokens may be presented"
                )));
            }
            let (node, link) = both()?;
            if !link.may_present() {
                return Err(RpcError::new(
                    Status::Backpressure,
                    "tokens are presented too often",
                ));
            }
            Ok(node.take_greeting(&link, &present))
        }
    });
    router.unary::<JoinMesh, _, _>(move |_, join| {
        let both = joined.clone();
        async move {
            let (node, link) = both()?;
            node.redeem(&link, &join)
        }
    })
}

/// Why a greeting failed: mostly, because the peer has closed the connection.
fn greeting_error(link: &Link, error: CallError) -> MeshError {
    let node = link.peer;
    let refused = |why| MeshError::Refused { node, why };
    match link.conn.close_reason() {
        Some(ConnectionError::ApplicationClosed(close)) => match close.error_code {
            code if code == close_code::BUSY => refused(TurnedAway::Busy),
            code if code == close_code::REVOKED => refused(TurnedAway::Revoked),
            code if code == close_code::SHUTDOWN => refused(TurnedAway::ShuttingDown),
            _ => MeshError::Greeting {
                node,
                why: error.into(),
            },
        },
        Some(reason) if closed_as_unauthorized(&reason) => refused(TurnedAway::Revoked),
        _ => MeshError::Greeting {
            node,
            why: error.into(),
        },
    }
}
