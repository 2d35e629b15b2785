//! What a running node does beside its calls, each a task of its own that ends when the node stops:
//! writing down how it stands and which key is in use, and telling how it reached the mesh.

use std::time::Duration;

use meshwork_mesh::Mesh;
use meshwork_proto::mesh::PeerView;
use meshwork_proto::path::NatClass;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::{OnStep, Step};
use crate::home::Home;

/// Time between two writings of how the node stands: `doctor` shows nothing older.
const STATUS: Duration = Duration::from_secs(5);
/// Time between two looks at whether the mesh is reached.
const LOOK: Duration = Duration::from_millis(50);
/// A path that turns up later is no news of the start.
const FIRST_PATH: Duration = Duration::from_secs(30);
/// Time for hole punching and for the NAT to be found out, once a first peer is there.
const SETTLE: Duration = Duration::from_secs(5);

/// Whether the node stops before `until`.
pub(super) async fn stops_before(until: Instant, stopped: &mut watch::Receiver<bool>) -> bool {
    timeout_at(until, stopped.wait_for(|stop| *stop))
        .await
        .is_ok()
}

/// Writes down how the node stands, every few seconds.
pub(super) async fn keep_status(mesh: Mesh, home: Home, mut stopped: watch::Receiver<bool>) {
    let mut complained = false;
    loop {
        if let Err(error) = home.write_status(&mesh.status()) {
            // Once: a full disk is told by others, too.
            if !std::mem::replace(&mut complained, true) {
                tracing::warn!(%error, "doctor does not learn how the node stands");
            }
        }
        if stops_before(Instant::now() + STATUS, &mut stopped).await {
            return;
        }
    }
}

/// Writes the pre-shared key that is dialled with into the folder, whenever the mesh changes it: the
/// commands of this machine use it, and so does the node's next life.
pub(super) async fn keep_psk(mesh: Mesh, home: Home, mut stopped: watch::Receiver<bool>) {
    let mut keys = mesh.psk();
    let Ok(mut written) = home.psk() else {
        return;
    };
    loop {
        let current = keys.borrow_and_update().current.clone();
        // The file may be ahead: who orders a change writes the new key at once.
        if written != current {
            written.clone_from(&current);
            match home.write_psk(&current) {
                Ok(()) => tracing::info!("the mesh has a new pre-shared key"),
                Err(error) => tracing::warn!(%error, "the new pre-shared key is not written down"),
            }
        }
        tokio::select! {
            biased;
            _ = stopped.wait_for(|stop| *stop) => return,
            changed = keys.changed() => if changed.is_err() { return },
        }
    }
}

/// Tells how the first peer was reached, and what lies between this node and the network.
pub(super) async fn tell_path(mesh: Mesh, on_step: OnStep, mut stopped: watch::Receiver<bool>) {
    let until = Instant::now() + FIRST_PATH;
    let settled = |peer: &PeerView| !peer.path.starts_with("relay");
    let mut settle_until = None;
    loop {
        let first = mesh.peers().into_iter().min_by_key(|peer| !settled(peer));
        if let Some(peer) = first {
            let patience = *settle_until.get_or_insert_with(|| Instant::now() + SETTLE);
            let late = Instant::now() >= patience;
            if settled(&peer) || late {
                on_step(Step::Path(Box::new(peer)));
                break;
            }
        }
        let now = Instant::now();
        if now >= until || stops_before(now + LOOK, &mut stopped).await {
            return;
        }
    }
    loop {
        let status = mesh.status();
        if status.nat != NatClass::Unknown {
            on_step(Step::Nat(status.nat, status.reflex));
            return;
        }
        let now = Instant::now();
        if now >= until || stops_before(now + LOOK, &mut stopped).await {
            return;
        }
    }
}
