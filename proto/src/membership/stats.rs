//! What the machine counts.

/// Counters of one membership machine since its start; they only grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MembershipStats {
    /// Checks of a node that were begun, by ping or by dialling.
    pub probes: u64,
    /// Pings sent, repeated ones and those on behalf of others included.
    pub pings: u64,
    /// Checks that no answer came to, direct or indirect.
    pub probes_failed: u64,
    /// Checks that only succeeded through others.
    pub probes_indirect: u64,
    /// Failed checks not acted on, because this node heard from nobody else either.
    pub doubted: u64,
    /// Nodes that became suspect here, by whoever's word.
    pub suspicions: u64,
    /// Accusations this node made itself.
    pub accusations: u64,
    /// Suspects and dead that showed themselves alive.
    pub refuted: u64,
    /// Nodes declared dead here.
    pub deaths: u64,
    /// Times this node objected to its own death, accused or, after a stall, unasked.
    pub own_refutations: u64,
    /// Facts sent to a neighbour as part of a flood.
    pub floods: u64,
    /// Facts heard that were held already.
    pub duplicates: u64,
    /// Facts heard that the ledger refused.
    pub refused: u64,
    /// Repairs begun with a neighbour.
    pub repairs: u64,
    /// Repairs that found a difference.
    pub repairs_differed: u64,
    /// Nodes dialled, for whatever reason.
    pub dials: u64,
    /// Dials that failed or were never answered.
    pub dials_failed: u64,
    /// Nodes that are no neighbours and were looked at.
    pub surveys: u64,
    /// Messages not read or not answered because their sender exceeded its share or a limit.
    pub throttled: u64,
    /// Times this node found itself late, as after a stall.
    pub stalls: u64,
    /// Neighbours gained.
    pub neighbours_gained: u64,
    /// Neighbours lost.
    pub neighbours_lost: u64,
}
