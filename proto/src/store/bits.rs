//! Sets of slots: as bits where they are dense, as a sorted list where they are sparse.

/// A set of slots as bits. Words that are not there are zero.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Bits(Vec<u64>);

const WORD: u32 = u64::BITS;

impl Bits {
    pub(super) fn contains(&self, slot: u32) -> bool {
        self.0
            .get((slot / WORD) as usize)
            .is_some_and(|word| word >> (slot % WORD) & 1 == 1)
    }

    pub(super) fn insert(&mut self, slot: u32) {
        let word = (slot / WORD) as usize;
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
        self.0[word] |= 1 << (slot % WORD);
    }

    pub(super) fn remove(&mut self, slot: u32) {
        if let Some(word) = self.0.get_mut((slot / WORD) as usize) {
            *word &= !(1 << (slot % WORD));
        }
    }

    pub(super) fn count(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// The slots, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.iter().zip(0u32..).flat_map(|(word, i)| {
            let mut rest = *word;
            std::iter::from_fn(move || {
                let bit = (rest != 0).then(|| rest.trailing_zeros())?;
                rest &= rest - 1;
                Some(i * WORD + bit)
            })
        })
    }

    pub(super) fn and(mut self, other: &Self) -> Self {
        self.0.truncate(other.0.len());
        for (mine, theirs) in self.0.iter_mut().zip(&other.0) {
            *mine &= theirs;
        }
        self
    }

    pub(super) fn or(mut self, other: &Self) -> Self {
        self.merge(other);
        self
    }

    /// Those that are not in `other`.
    pub(super) fn minus(mut self, other: &Self) -> Self {
        for (mine, theirs) in self.0.iter_mut().zip(&other.0) {
            *mine &= !theirs;
        }
        self
    }

    fn merge(&mut self, other: &Self) {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        for (mine, theirs) in self.0.iter_mut().zip(&other.0) {
            *mine |= theirs;
        }
    }
}

/// The slots of one value in one column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Posting {
    /// In order.
    Sparse(Vec<u32>),
    /// With their number.
    Dense(Bits, usize),
}

/// Above this many slots a list is longer than the bits of a store of common size, and slow to
/// keep sorted.
const SPARSE: usize = 256;

impl Default for Posting {
    fn default() -> Self {
        Self::Sparse(Vec::new())
    }
}

impl Posting {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Sparse(slots) => slots.len(),
            Self::Dense(_, len) => *len,
        }
    }

    pub(super) fn insert(&mut self, slot: u32) {
        match self {
            Self::Sparse(slots) => {
                if let Err(at) = slots.binary_search(&slot) {
                    slots.insert(at, slot);
                }
                if slots.len() > SPARSE {
                    let mut bits = Bits::default();
                    for slot in slots.iter() {
                        bits.insert(*slot);
                    }
                    *self = Self::Dense(bits, slots.len());
                }
            }
            Self::Dense(bits, len) => {
                *len += usize::from(!bits.contains(slot));
                bits.insert(slot);
            }
        }
    }

    pub(super) fn remove(&mut self, slot: u32) {
        match self {
            Self::Sparse(slots) => {
                if let Ok(at) = slots.binary_search(&slot) {
                    slots.remove(at);
                }
            }
            Self::Dense(bits, len) => {
                *len -= usize::from(bits.contains(slot));
                bits.remove(slot);
                if *len <= SPARSE / 2 {
                    *self = Self::Sparse(bits.iter().collect());
                }
            }
        }
    }

    pub(super) fn add_to(&self, bits: &mut Bits) {
        match self {
            Self::Sparse(slots) => {
                for slot in slots {
                    bits.insert(*slot);
                }
            }
            Self::Dense(dense, _) => bits.merge(dense),
        }
    }

    pub(super) fn append_to(&self, list: &mut Vec<u32>) {
        match self {
            Self::Sparse(slots) => list.extend(slots),
            Self::Dense(bits, _) => list.extend(bits.iter()),
        }
    }
}
