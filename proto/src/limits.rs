//! Every bound on what a peer may send, in one place. Each is checked before memory is allocated.

/// Largest RPC frame (request or one response item) in bytes: 16 MiB.
/// A peer can make us hold at most this much per stream it may open.
pub const MAX_FRAME: usize = 16 * 1024 * 1024;

/// Largest RPC request header in bytes. Real headers stay below 200.
pub const MAX_HEADER: usize = 4 * 1024;

/// Largest encoded announcement body in bytes (without its token).
pub const MAX_ANNOUNCEMENT: usize = 4 * 1024;

/// Largest encoded beat body in bytes: its head and what is free. Real ones stay below 150.
pub const MAX_BEAT: usize = 512;

/// Slots of which a beat tells what is free.
pub const MAX_FREE_SLOTS: usize = 16;

/// Longest name of a slot in bytes.
pub const MAX_SLOT_NAME: usize = 32;

/// GPUs of one node of which a beat tells the memory in use.
pub const MAX_GPUS: usize = 64;

/// Largest encoded suspicion body in bytes: an id, a version and a time.
pub const MAX_SUSPICION: usize = 64;

/// Largest encoded body of a change of the mesh's key in bytes: the key, an epoch and two times.
pub const MAX_PSK_ROTATION: usize = 80;

/// How many times an announcement is forwarded before it stops.
pub const MAX_HOPS: u8 = 16;

/// Revocations carried by one `mesh/revoke` call.
pub const MAX_ANNOUNCEMENTS_PER_CALL: usize = 256;

/// Tokens that a peer may present on one connection.
pub const MAX_TOKENS_PER_PEER: usize = 16;

/// Longest query text in bytes.
pub const MAX_QUERY: usize = 4 * 1024;

/// Longest name of a node, a session or a volume in bytes.
pub const MAX_NAME: usize = 64;

/// Longest image reference in bytes (the OCI distribution specification allows 255 for a name,
/// 128 for a tag).
pub const MAX_IMAGE: usize = 512;

/// Environment variables, labels, mounts or arguments in one kernel specification.
pub const MAX_LIST: usize = 1024;

/// Bytes of all strings in one kernel specification together.
pub const MAX_SPEC: usize = 256 * 1024;

/// First application status code.
pub const APP_STATUS_BASE: u16 = 0x8000;
