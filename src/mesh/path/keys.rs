//! Keys of probes: from each connection's own secrets, one for each direction.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use aws_lc_rs::{constant_time, digest, hmac};
use meshwork_identity::NodeId;
use meshwork_proto::path::{KEY_ID_LEN, PROBE_LEN, Probe, ReplayWindow, SIGNED_LEN, TAG_LEN};
use quinn::{Connection, Side};

/// Names the purpose of the exported secret.
const LABEL: &[u8] = b"meshwork path probe";
/// Bytes of one direction's key.
const KEY_LEN: usize = 32;
/// Bytes of one direction: key and key id.
const HALF: usize = KEY_LEN + KEY_ID_LEN;

/// Names a key.
pub(super) type KeyId = [u8; KEY_ID_LEN];

/// The probe keys of one connection.
pub(super) struct ProbeKeys {
    send: hmac::Key,
    send_id: KeyId,
    receive: hmac::Key,
    pub(super) receive_id: KeyId,
    /// Pings that came under our key of receiving.
    window: Mutex<ReplayWindow>,
    /// Number of the remote that the connection leads to. Changes when two are found to be one.
    pub(super) remote: AtomicU64,
}

impl ProbeKeys {
    /// Both ends of a connection derive the same keys, with the directions swapped.
    pub(super) fn of(conn: &Connection, local: &NodeId, peer: &NodeId, remote: u64) -> Self {
        let (client, server) = match conn.side() {
            Side::Client => (local, peer),
            Side::Server => (peer, local),
        };
        let mut secret = [0; 2 * HALF];
        if conn
            .export_keying_material(&mut secret, LABEL, b"")
            .is_err()
        {
            // The null provider has no secrets at all.
            secret = without_secret(client, server);
        }
        let (to_server, to_client) = secret.split_at(HALF);
        let (send, receive) = match conn.side() {
            Side::Client => (to_server, to_client),
            Side::Server => (to_client, to_server),
        };
        let ((send, send_id), (receive, receive_id)) = (half(send), half(receive));
        Self {
            send,
            send_id,
            receive,
            receive_id,
            window: Mutex::default(),
            remote: AtomicU64::new(remote),
        }
    }

    pub(super) fn remote(&self) -> u64 {
        self.remote.load(Ordering::Relaxed)
    }

    /// The datagram of a probe; its key id is filled in.
    pub(super) fn seal(&self, probe: Probe) -> [u8; PROBE_LEN] {
        let probe = Probe {
            key: self.send_id,
            ..probe
        };
        let mut datagram = [0; PROBE_LEN];
        datagram[..SIGNED_LEN].copy_from_slice(&probe.encode());
        let tag = hmac::sign(&self.send, &datagram[..SIGNED_LEN]);
        datagram[SIGNED_LEN..].copy_from_slice(&tag.as_ref()[..TAG_LEN]);
        datagram
    }

    /// The probe in a datagram, if the peer made it.
    pub(super) fn open(&self, datagram: &[u8; PROBE_LEN]) -> Option<Probe> {
        let (probe, tag) = Probe::decode(datagram)?;
        let expected = hmac::sign(&self.receive, &datagram[..SIGNED_LEN]);
        let genuine =
            constant_time::verify_slices_are_equal(&expected.as_ref()[..TAG_LEN], &tag).is_ok();
        genuine.then_some(probe)
    }

    /// Whether a ping is no repeat of an earlier one.
    pub(super) fn admit(&self, transaction: u64) -> bool {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        window.admit(transaction)
    }
}

/// Key and key id of one direction.
fn half(bytes: &[u8]) -> (hmac::Key, KeyId) {
    let (key, id) = bytes.split_at(KEY_LEN);
    let id = id.try_into().expect("a half ends with a key id");
    (hmac::Key::new(hmac::HMAC_SHA256, key), id)
}

/// What stands for the secret where there is none.
fn without_secret(client: &NodeId, server: &NodeId) -> [u8; 2 * HALF] {
    let mut secret = [0; 2 * HALF];
    for (index, chunk) in (0u8..).zip(secret.chunks_mut(digest::SHA256_OUTPUT_LEN)) {
        let input = [LABEL, client.as_bytes(), server.as_bytes(), &[index]].concat();
        chunk.copy_from_slice(&digest::digest(&digest::SHA256, &input).as_ref()[..chunk.len()]);
    }
    secret
}
