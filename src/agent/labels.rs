//! Names that containers carry, so that they can be found again after any crash.

use std::collections::{BTreeMap, HashMap};

use meshwork_identity::NodeId;
use meshwork_proto::KernelId;

use crate::kernel::record::Record;

/// Whose agent made it.
pub(crate) const NODE: &str = "ai.meshwork.node";
const KERNEL: &str = "ai.meshwork.kernel";
const ATTEMPT: &str = "ai.meshwork.attempt";
const GENERATION: &str = "ai.meshwork.generation";

/// The labels of a kernel's container: the user's, and over them ours and those that tools made
/// for Backend.AI look for.
pub(crate) fn write(record: &Record, node: &NodeId) -> BTreeMap<String, String> {
    let mut labels = record.spec.labels.clone();
    let (kernel, session) = (record.kernel.to_string(), record.session.to_string());
    let (node, owner) = (node.to_string(), record.owner.to_string());
    for (name, value) in [
        (NODE, &node),
        (KERNEL, &kernel),
        ("ai.meshwork.session", &session),
        ("ai.meshwork.owner", &owner),
        (ATTEMPT, &record.attempt.to_string()),
        (GENERATION, &record.generation.to_string()),
        ("ai.backend.agent-id", &node),
        ("ai.backend.kernel-id", &kernel),
        ("ai.backend.session-id", &session),
        ("ai.backend.owner-user-id", &owner),
        ("ai.backend.owner", &node),
    ] {
        labels.insert(name.into(), value.clone());
    }
    labels
}

/// Kernel, attempt and generation of a container.
pub(crate) fn read(labels: &HashMap<String, String>) -> Option<(KernelId, u32, u64)> {
    Some((
        labels.get(KERNEL)?.parse().ok()?,
        labels.get(ATTEMPT)?.parse().ok()?,
        labels.get(GENERATION)?.parse().ok()?,
    ))
}
