//! What the parts take from outside and only the binary takes from the system: the wall clock and
//! chance.

use std::time::SystemTime;

use meshwork_identity::Timestamp;

/// The time now, by this machine's clock; before 1970 it is 1970.
pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    Timestamp::from_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// `N` random bytes of the system, good for keys.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the system's random source works once it is up");
    bytes
}
