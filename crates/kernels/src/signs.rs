//! Keys that are known by the signs of their difference to the centre of the group they stand in.
//!
//! One bit an element and a size are enough to tell which keys of a group are worth a look, in a sixteenth of the memory.
//! The idea is RaBitQ's (arXiv 2405.12497), without its random rotation.

use crate::Queries;
use crate::low_bit::{LowBitQuery, words};

/// The keys of one group. Slot `i` is that of key `i`; slots beyond the keys hold anything.
#[derive(Clone, Copy, Debug)]
pub struct SignGroup<'a> {
    /// Token indices, at most `slots` of them.
    pub keys: &'a [u32],
    /// Slots, a multiple of [`SignGroup::SLOTS`].
    pub slots: usize,
    /// First `[words, slots]`: a word holds the signs of 32 elements of one key, those of four neighbours in the lowest bits
    /// of its four bytes, the next four above them, and so on. Then `[slots / 4]`: a byte, the lowest first, holds the size
    /// of one difference in steps of an eighth of a power of two: its squared length by the sum of its elements' sizes, with
    /// which the signs have the product with the difference that the difference has with itself.
    pub codes: &'a [u32],
}

impl SignGroup<'_> {
    /// Slots come in so many.
    pub const SLOTS: usize = 16;

    /// Length of the codes of a group with `slots` slots.
    pub fn codes_len(head_dim: usize, slots: usize) -> usize {
        words(1, head_dim) * slots + slots / 4
    }

    /// Writes the difference of a key to its group's centre to `slot` of the codes of a group with `slots` slots.
    pub fn encode(difference: &[f32], slot: usize, slots: usize, codes: &mut [u32]) {
        let (signs, sizes) = codes.split_at_mut(words(1, difference.len()) * slots);
        for (elements, words) in difference.chunks(32).zip(signs.chunks_exact_mut(slots)) {
            words[slot] = 0;
            for (i, x) in elements.iter().enumerate() {
                words[slot] |= u32::from(*x >= 0.0) << (8 * (i % 4) + i / 4);
            }
        }
        let (square, sum) = difference.iter().fold((0.0, 0.0), |(s, a), x| (s + x * x, a + x.abs()));
        let size = if sum > 0.0 { square / sum } else { 0.0f32 };
        let shift = slot % 4 * 8;
        sizes[slot / 4] = sizes[slot / 4] & !(0xff << shift) | u32::from(to_code(size)) << shift;
    }

    /// Copies the codes `old` of a group with `from` slots to the codes `new` of one with more, `to`.
    pub fn widen(from: usize, old: &[u32], to: usize, new: &mut [u32]) {
        for (old, new) in old.chunks(from).zip(new.chunks_mut(to)) {
            new[..old.len()].copy_from_slice(old);
        }
    }

    /// Panics unless the group is what it should be.
    #[inline(always)]
    pub(crate) fn check(&self, words: usize) {
        let (keys, slots, codes) = (self.keys.len(), self.slots, self.codes.len());
        assert!(
            slots.is_multiple_of(Self::SLOTS) && keys <= slots && codes == words * slots + slots / 4,
            "a group of {keys} keys in {slots} slots with {codes} words of codes, {words} for the signs of a key"
        );
    }
}

/// A search for the keys that promise most among those of a few groups: every query and head looks into some.
///
/// A key promises the score of its group's centre, which is given, and what its signs and size add to it.
#[derive(Clone, Copy)]
pub struct SignRequest<'a> {
    /// Keys wanted for each query and head.
    pub k: usize,
    /// Groups of each query and head, `[q_len, n_heads, per_row]`: numbers that `group` knows, distinct within a row, or
    /// [`crate::ListedRequest::NONE`].
    pub lists: &'a [u32],
    /// The scores of their centres, same shape.
    pub centres: &'a [f32],
    /// Groups of one query and head, below 65,536.
    pub per_row: usize,
    /// The keys of a group, below 65,536.
    pub group: &'a (dyn Fn(u32) -> SignGroup<'a> + Sync),
}

impl SignRequest<'_> {
    /// Panics if the groups do not fit the queries.
    pub(crate) fn check(&self, q: &Queries) {
        let rows = q.q_len * q.n_heads;
        assert_eq!(
            (q.data.len(), self.lists.len(), self.centres.len()),
            (rows * q.head_dim, rows * self.per_row, rows * self.per_row),
            "top_k_signs: elements of queries, groups and centres for {} tokens, {} heads",
            q.q_len,
            q.n_heads
        );
        assert!(self.per_row < 1 << 16, "top_k_signs: {} groups a row", self.per_row);
    }

    /// A query in 8 bits, and what the sum of its products with signs, as far as they are ones, is to be multiplied with.
    pub(crate) fn query(query: &[f32]) -> (LowBitQuery, f32) {
        let query = LowBitQuery::of(1, query);
        let factor = 2.0 * query.scale;
        (query, factor)
    }
}

impl std::fmt::Debug for SignRequest<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SignRequest")
            .field("k", &self.k)
            .field("per_row", &self.per_row)
            .field("lists", &self.lists.len())
            .finish_non_exhaustive()
    }
}

/// The code of one is this many eighths of a power of two.
const CODE_OF_ONE: u32 = 20 * 8;

fn to_code(size: f32) -> u8 {
    // What is no number gets no size.
    let size = if size.is_finite() { size } else { 0.0 };
    let eighths = (size.to_bits() + (1 << 19)) >> 20;
    (eighths + CODE_OF_ONE).saturating_sub(127 * 8).min(255) as u8
}

/// The size that a code stands for.
#[inline(always)]
pub(crate) fn from_code(code: u8) -> f32 {
    f32::from_bits((u32::from(code) + 127 * 8 - CODE_OF_ONE) << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_kept_to_a_sixteenth() {
        for size in [1e-5, 0.01, 0.99, 1.0, 1.06, 17.3, 4000.0] {
            let back = from_code(to_code(size));
            assert!((back / size - 1.0f32).abs() <= 1.0 / 16.0, "{size} becomes {back}");
        }
        assert_eq!((to_code(0.0), to_code(f32::NAN), to_code(1e30)), (0, 0, 255));
    }
}
