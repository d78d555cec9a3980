//! The one thing attention kernels know: a set of keys, who may see them, and where both stand.

use crate::RopeTable;
use std::ops::Range;
use std::sync::Arc;

/// Which cached keys a segment holds, in ascending token order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySet {
    /// Consecutive tokens.
    Range(Range<usize>),
    /// Any tokens, ascending and distinct.
    Gathered(Arc<[u32]>),
}

impl KeySet {
    /// Number of keys.
    pub fn len(&self) -> usize {
        match self {
            Self::Range(r) => r.len(),
            Self::Gathered(g) => g.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Token index of the key of rank `rank`.
    pub fn token(&self, rank: usize) -> usize {
        match self {
            Self::Range(r) => r.start + rank,
            Self::Gathered(g) => g[rank] as usize,
        }
    }

    /// Whether the key of token index `token` is one of them.
    pub fn contains(&self, token: usize) -> bool {
        match self {
            Self::Range(r) => r.contains(&token),
            Self::Gathered(g) => u32::try_from(token).is_ok_and(|t| g.binary_search(&t).is_ok()),
        }
    }
}

/// Where a key or a query stands for RoPE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position {
    /// Its token index plus `offset`.
    Index {
        /// Added to the token index.
        offset: i64,
    },
    /// Its token index, but never beyond `max`.
    Capped {
        /// The largest position.
        max: i64,
    },
    /// Its rank (a key's in its segment, a query's in its step) plus `offset`.
    Rank {
        /// Added to the rank.
        offset: i64,
    },
    /// The same position for all.
    Constant(i64),
    /// `⌊index / width⌋ + offset`: neighbours share a position in groups of `width` (SelfExtend).
    Grouped {
        /// Tokens of one position.
        width: usize,
        /// Added to the number of the group.
        offset: i64,
    },
    /// `min(index mod modulus + offset, max)`: positions start anew every `modulus` tokens (dual chunk attention).
    Modulo {
        /// Tokens after which positions start anew.
        modulus: usize,
        /// Added to the rest.
        offset: i64,
        /// The largest position.
        max: i64,
    },
    /// The token index from `border` on; below it, stairs of `width` tokens lead down from `border - 1`
    /// (Mesa-Extrapolation).
    Stair {
        /// The first token that stands at its own index.
        border: usize,
        /// Tokens of one step.
        width: usize,
    },
}

impl Position {
    /// The position of the key or query with this token index and rank.
    #[inline]
    pub fn at(self, index: usize, rank: usize) -> i64 {
        match self {
            Self::Index { offset } => index as i64 + offset,
            Self::Capped { max } => (index as i64).min(max),
            Self::Rank { offset } => rank as i64 + offset,
            Self::Constant(p) => p,
            Self::Grouped { width, offset } => (index / width) as i64 + offset,
            Self::Modulo { modulus, offset, max } => ((index % modulus) as i64 + offset).min(max),
            Self::Stair { border, .. } if index >= border => index as i64,
            Self::Stair { border, width } => border as i64 - 1 - ((border - 1 - index) / width) as i64,
        }
    }
}

/// Distances at which a key is visible: `min <= distance < max`.
///
/// The distance is the query's token index minus the key's; with a `unit` above 1 both are divided by it first (rounded
/// down), so that whole blocks of tokens count. Causality holds besides: a key after the query is never visible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Band {
    /// Smallest visible distance.
    pub min: usize,
    /// First distance no longer visible.
    pub max: usize,
    /// Tokens that count as one place, at least 1.
    pub unit: usize,
}

impl Band {
    /// Every key up to the query itself.
    pub const CAUSAL: Self = Self { min: 0, max: usize::MAX, unit: 1 };

    /// Keys at token distances `min <= distance < max`.
    pub const fn between(min: usize, max: usize) -> Self {
        Self { min, max, unit: 1 }
    }

    /// The token indices that the query of token index `query` may see. Both ends move forward with the query.
    pub fn tokens(self, query: usize) -> Range<usize> {
        let places = query / self.unit + 1;
        let first = places.saturating_sub(self.max) * self.unit;
        let end = (places.saturating_sub(self.min) * self.unit).min(query + 1);
        first..end.max(first)
    }

    /// Whether the query of token index `query` sees the key of token index `key`.
    pub fn sees(self, query: usize, key: usize) -> bool {
        self.tokens(query).contains(&key)
    }
}

/// A set of keys with its visibility and its positions.
#[derive(Clone, Debug)]
pub struct Segment {
    /// The keys.
    pub keys: KeySet,
    /// Which of them a query sees.
    pub band: Band,
    /// Where the keys stand.
    pub key_position: Position,
    /// Where the queries stand towards this segment.
    pub query_position: Position,
    /// Frequencies the keys are rotated with.
    pub key_rope: Arc<RopeTable>,
    /// Frequencies the queries are rotated with; the same table in all but Hugging Face's cached dynamic NTK.
    pub query_rope: Arc<RopeTable>,
}
