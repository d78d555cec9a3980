//! Segments of cached keys as kernels see them.

use crate::driver::{Address, Arg, Block, CudaError, Driver};
use crate::paged::Cached;
use crate::rope::{DeviceRope, RopeEntry, Ropes};
use bytemuck::{Pod, Zeroable};
use reattention_kernels::{Band, KeySet, Position, Segment};
use std::ops::Range;
use std::sync::Arc;

/// The text of both families that work on segments starts with it.
macro_rules! with_segments {
    ($file:literal) => {
        concat!(include_str!("../kernels/segments.cuh"), include_str!(concat!("../kernels/", $file)))
    };
}
pub(crate) use with_segments;

/// Which cached keys a segment holds, ascending.
#[derive(Clone, Debug)]
pub enum DeviceKeys {
    /// Consecutive tokens.
    Range {
        /// The first.
        first: usize,
        /// How many.
        len: usize,
    },
    /// Any tokens, ascending and distinct.
    List {
        /// `[len]` u32.
        tokens: Arc<Block>,
        /// How many.
        len: usize,
        /// All are below this one.
        end: usize,
    },
    /// Any tokens, ascending and distinct; only the device knows how many.
    Counted {
        /// `[capacity]` u32, of which the first `count` matter.
        tokens: Arc<Block>,
        /// One u32.
        count: Arc<Block>,
        /// The most there can be.
        capacity: usize,
        /// All are below this one.
        end: usize,
    },
}

impl DeviceKeys {
    /// Keys at most.
    pub fn capacity(&self) -> usize {
        match *self {
            Self::Range { len, .. } | Self::List { len, .. } => len,
            Self::Counted { capacity, .. } => capacity,
        }
    }

    /// All are below this token.
    pub fn end(&self) -> usize {
        match *self {
            Self::Range { len: 0, .. } => 0,
            Self::Range { first, len } => first.saturating_add(len),
            Self::List { end, .. } | Self::Counted { end, .. } => end,
        }
    }
}

/// A [`Segment`] on the device, with what only the device may know: how many keys there are, and how far others shift it.
#[derive(Clone, Debug)]
pub struct DeviceSegment {
    /// The keys.
    pub keys: DeviceKeys,
    /// Which of them a query sees.
    pub band: Band,
    /// Where the keys stand.
    pub key_position: Position,
    /// Where the queries stand towards this segment.
    pub query_position: Position,
    /// Frequencies the keys are rotated with.
    pub key_rope: Arc<DeviceRope>,
    /// Frequencies the queries are rotated with.
    pub query_rope: Arc<DeviceRope>,
    /// A u32 that is added to the position of every key.
    pub key_shift: Option<Arc<Block>>,
    /// A u32 that is added to the position of every query.
    pub query_shift: Option<Arc<Block>>,
}

impl DeviceSegment {
    /// A copy of `segment`.
    ///
    /// # Errors
    /// When the device has not enough memory.
    pub fn new(driver: &Arc<dyn Driver>, ropes: &Ropes, segment: &Segment) -> Result<Self, CudaError> {
        let keys = match &segment.keys {
            KeySet::Range(Range { start, end }) => {
                DeviceKeys::Range { first: *start, len: end.saturating_sub(*start) }
            }
            KeySet::Gathered(tokens) => DeviceKeys::List {
                tokens: Arc::new(Block::of(driver, tokens)?),
                len: tokens.len(),
                end: tokens.iter().max().map_or(0, |&last| last as usize + 1),
            },
        };
        Ok(Self {
            keys,
            band: segment.band,
            key_position: segment.key_position,
            query_position: segment.query_position,
            key_rope: ropes.get(&segment.key_rope)?,
            query_rope: ropes.get(&segment.query_rope)?,
            key_shift: None,
            query_shift: None,
        })
    }

    /// What kernels of `driver` see of it; refused if any of its memory is another's.
    fn entry(&self, driver: &Arc<dyn Driver>) -> Result<SegmentEntry, CudaError> {
        if !self.key_rope.is_of(driver) || !self.query_rope.is_of(driver) {
            return Err(CudaError::Foreign { what: "frequencies", device: driver.facts().name.clone() });
        }
        let numbers = |block: &Block, count| match block.span().arg(driver, count, size_of::<u32>())? {
            Arg::Pointer(at) => Ok(at),
            _ => Ok(0),
        };
        let number = |block: &Option<Arc<Block>>| block.as_ref().map_or(Ok(0), |block| numbers(block, 1));
        let (tokens, count, first) = match &self.keys {
            DeviceKeys::Range { first, .. } => (0, 0, *first),
            DeviceKeys::List { tokens, len, .. } => (numbers(tokens, *len)?, 0, 0),
            DeviceKeys::Counted { tokens, count, capacity, .. } => {
                (numbers(tokens, *capacity)?, numbers(count, 1)?, 0)
            }
        };
        Ok(SegmentEntry {
            tokens,
            count,
            key_shift: number(&self.key_shift)?,
            query_shift: number(&self.query_shift)?,
            first: first as i64,
            // A list of no tokens has no address, and a range of none is the same.
            len: if tokens == 0 && !matches!(self.keys, DeviceKeys::Range { .. }) {
                0
            } else {
                clamped(self.keys.capacity())
            },
            band_min: clamped(self.band.min),
            band_max: clamped(self.band.max),
            band_unit: clamped(self.band.unit.max(1)),
            key_position: MapEntry::of(self.key_position),
            query_position: MapEntry::of(self.query_position),
            key_rope: self.key_rope.entry(),
            query_rope: self.query_rope.entry(),
        })
    }
}

/// Lists of segments in device memory: one for all KV heads, or one a KV head. What is the same for several layers is copied once.
#[derive(Debug)]
pub struct Views {
    lists: Vec<Vec<DeviceSegment>>,
    /// [`SegmentEntry`] after [`SegmentEntry`], then where each list starts and the last one ends.
    table: Block,
}

impl Views {
    /// Copies what the device needs to know of the segments.
    ///
    /// # Errors
    /// When the device has not enough memory, or some of theirs is another's.
    pub fn new(driver: &Arc<dyn Driver>, lists: Vec<Vec<DeviceSegment>>) -> Result<Self, CudaError> {
        let entries = lists.iter().flatten().map(|segment| segment.entry(driver));
        let entries: Vec<SegmentEntry> = entries.collect::<Result<_, _>>()?;
        let mut starts = vec![0i32];
        for list in &lists {
            starts.push(starts[starts.len() - 1] + list.len() as i32);
        }
        // One copy to the device takes less than two.
        let mut bytes: Vec<u8> = bytemuck::cast_slice(&entries).to_vec();
        bytes.extend_from_slice(bytemuck::cast_slice(&starts));
        Ok(Self { table: Block::of(driver, &bytes)?, lists })
    }

    /// Copies of segments of the host.
    ///
    /// # Errors
    /// When the device has not enough memory.
    pub fn of(driver: &Arc<dyn Driver>, ropes: &Ropes, views: &[Vec<Segment>]) -> Result<Self, CudaError> {
        let list = |list: &Vec<Segment>| list.iter().map(|s| DeviceSegment::new(driver, ropes, s)).collect();
        Self::new(driver, views.iter().map(list).collect::<Result<_, _>>()?)
    }

    /// The lists.
    pub fn lists(&self) -> &[Vec<DeviceSegment>] {
        &self.lists
    }

    /// The list of KV head `kv_head`.
    pub fn list(&self, kv_head: usize) -> &[DeviceSegment] {
        &self.lists[if self.lists.len() == 1 { 0 } else { kv_head }]
    }

    /// # Panics
    /// Unless there is one list, or one a KV head, every key is held, and every table is for rows of the right length.
    pub(crate) fn check(&self, kv: &Cached) {
        let (lists, heads) = (self.lists.len(), kv.n_kv_heads);
        assert!(lists == 1 || lists == heads, "{lists} lists of segments for {heads} KV heads");
        for rope in self.lists.iter().flatten().flat_map(|s| [&s.key_rope, &s.query_rope]) {
            assert_eq!(2 * rope.pairs(), kv.head_dim, "frequencies and head_dim");
        }
        let end = self.end();
        assert!(end <= kv.len, "keys up to {end} of {}", kv.len);
    }

    /// All keys are below this token.
    pub(crate) fn end(&self) -> usize {
        self.lists.iter().flatten().map(|s| s.keys.end()).max().unwrap_or(0)
    }

    /// `const Segment *` of the kernels, and `[lists + 1]` int: which segments belong to a list.
    ///
    /// # Errors
    /// When they lie on another device than `driver`.
    pub(crate) fn args(&self, driver: &Arc<dyn Driver>) -> Result<[Arg; 2], CudaError> {
        let segments: usize = self.lists.iter().map(Vec::len).sum();
        let starts = self.table.span().skip(segments * size_of::<SegmentEntry>());
        Ok([
            self.table.span().arg(driver, segments, size_of::<SegmentEntry>())?,
            starts.arg(driver, self.lists.len() + 1, size_of::<i32>())?,
        ])
    }
}

/// `Segment` of kernels/segments.cuh.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct SegmentEntry {
    /// The list, or null for consecutive tokens.
    tokens: Address,
    /// Where the device keeps the number of keys, or null where `len` is it.
    count: Address,
    key_shift: Address,
    query_shift: Address,
    /// The first token, unless there is a list.
    first: i64,
    /// Keys, or the most there can be.
    len: i64,
    band_min: i64,
    band_max: i64,
    band_unit: i64,
    key_position: MapEntry,
    query_position: MapEntry,
    key_rope: RopeEntry,
    query_rope: RopeEntry,
}

/// `Map` of kernels/segments.cuh: a [`Position`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
struct MapEntry {
    a: i64,
    b: i64,
    c: i64,
    /// `MAP_*`.
    kind: i32,
    unused: i32,
}

impl MapEntry {
    fn of(position: Position) -> Self {
        let (kind, a, b, c) = match position {
            Position::Index { offset } => (0, offset, 0, 0),
            Position::Capped { max } => (1, max, 0, 0),
            Position::Rank { offset } => (2, offset, 0, 0),
            Position::Constant(p) => (3, p, 0, 0),
            Position::Grouped { width, offset } => (4, clamped(width), offset, 0),
            Position::Modulo { modulus, offset, max } => (5, clamped(modulus), offset, max),
            Position::Stair { border, width } => (6, border as i64, width as i64, 0),
        };
        Self { a, b, c, kind, unused: 0 }
    }
}

/// Tokens are counted in 31 bits: what is larger means the same as this.
fn clamped(n: usize) -> i64 {
    n.min(i32::MAX as usize) as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As a compiler of C lays them out: every field on a boundary of its size, and no gap between them.
    #[test]
    fn entries_have_the_layout_of_the_kernels() {
        assert_eq!(size_of::<RopeEntry>(), 40);
        assert_eq!(size_of::<MapEntry>(), 32);
        assert_eq!(size_of::<SegmentEntry>(), 9 * 8 + 2 * 32 + 2 * 40);
    }

    #[test]
    fn what_is_beyond_every_token_is_clamped() {
        assert_eq!(MapEntry::of(Position::Grouped { width: usize::MAX, offset: 3 }).a, i64::from(i32::MAX));
        assert_eq!(clamped(Band::CAUSAL.max), i64::from(i32::MAX));
        assert_eq!(clamped(7), 7);
    }
}
