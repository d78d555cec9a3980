//! The search among keys known by signs: integer products of a query with single bits, sixteen keys at once.
//!
//! A few queries look into many groups that are scattered over memory: a group is one run of words, asked for well ahead,
//! and belongs to one row of work, since rows hardly meet.

use super::Path;
use super::best::Best;
use super::pool::{Pool, Shared};
use super::simd::{Kernel, Simd};
use crate::signs::from_code;
use crate::{ListedRequest, Queries, SignGroup, SignRequest, TopK};

/// Groups asked for ahead of their use.
const AHEAD: usize = 6;

/// Keys below which waking another thread costs more than it saves, if every group held 32.
const SMALL: usize = 1 << 14;

/// See [`crate::Backend::top_k_signs`].
pub(crate) fn top_k_signs(pool: &Pool, path: Path, q: &Queries, request: &SignRequest) -> TopK {
    request.check(q);
    let k = request.k;
    let mut found = TopK::unfilled(q.q_len, q.n_heads, k);
    if k == 0 || request.lists.is_empty() {
        return found;
    }
    let (indices, scores) = (Shared::new(&mut found.indices), Shared::new(&mut found.scores));
    let is_small = request.lists.len() * 32 < SMALL;
    pool.each(
        q.q_len * q.n_heads,
        is_small,
        || (),
        |(), row| {
            let of = row * request.per_row..(row + 1) * request.per_row;
            let mut best = Best::new(1, k, f32::NEG_INFINITY);
            let scan = Scan {
                query: &q.data[row * q.head_dim..(row + 1) * q.head_dim],
                lists: &request.lists[of.clone()],
                centres: &request.centres[of.clone()],
                group: request.group,
                best: &mut best,
            };
            // SAFETY: the backend only holds available paths; each row has slots of its own.
            let (indices, scores) = unsafe {
                path.call(scan);
                (indices.part(row * k, k), scores.part(row * k, k))
            };
            best.finish_unordered(0, indices, scores);
            for index in indices.iter_mut().filter(|i| **i != ListedRequest::NONE) {
                let list = request.lists[of.start + (*index >> 16) as usize];
                *index = (request.group)(list).keys[(*index & 0xffff) as usize];
            }
        },
    );
    found
}

/// One row.
struct Scan<'a, 'g> {
    query: &'a [f32],
    lists: &'a [u32],
    centres: &'a [f32],
    group: &'a (dyn Fn(u32) -> SignGroup<'g> + Sync),
    /// Of numbers of groups in the row, and slots.
    best: &'a mut Best,
}

impl Kernel for Scan<'_, '_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (query, factor) = SignRequest::query(self.query);
        let words = query.words.len() / 8;
        // Finding a group is a chain of reads: all are under way together.
        let named =
            self.lists.iter().zip(self.centres).enumerate().filter(|(_, of)| *of.0 != ListedRequest::NONE);
        let groups: Vec<_> = named.map(|(i, (&list, &centre))| (i, (self.group)(list), centre)).collect();
        for (at, &(i, group, centre)) in groups.iter().enumerate() {
            if let Some((_, ahead, _)) = groups.get(at + AHEAD) {
                // SAFETY: prefetches need not be readable.
                lines(ahead.codes).for_each(|line| unsafe { S::prefetch_far(line) });
            }
            group.check(words);
            let slots = group.slots;
            let (signs, all_sizes) = group.codes.split_at(words * slots);
            for first in (0..group.keys.len()).step_by(SignGroup::SLOTS) {
                let mut sizes = [0.0f32; SignGroup::SLOTS];
                for (sizes, word) in sizes.chunks_exact_mut(4).zip(&all_sizes[first / 4..]) {
                    for (size, code) in sizes.iter_mut().zip(word.to_le_bytes()) {
                        *size = from_code(code) * factor;
                    }
                }
                let mut scores = [0.0f32; SignGroup::SLOTS];
                let mut better = 0u64;
                // SAFETY: `SLOTS` slots from `first` on have signs in each of `words` rows of `slots`, as was checked; the
                // lanes divide `SLOTS`.
                unsafe {
                    let worst = S::splat(self.best.worst(0));
                    for lane in (0..SignGroup::SLOTS).step_by(S::LANES) {
                        let mut acc = S::splat(f32::from_bits(-query.excess as u32));
                        for w in 0..words {
                            let packed = S::load(signs.as_ptr().add(w * slots + first + lane).cast());
                            for field in 0..8 {
                                let x = *query.words.get_unchecked(w * 8 + field);
                                let bits = S::field::<1>(packed, field);
                                acc = S::dot_quads(acc, bits, S::splat(f32::from_bits(x)));
                            }
                        }
                        let size = S::load(sizes.as_ptr().add(lane));
                        let score = S::mul_add(S::ints_to_floats(acc), size, S::splat(centre));
                        S::store(scores.as_mut_ptr().add(lane), score);
                        better |= u64::from(S::gt(score, worst)) << lane;
                    }
                }
                better &= u64::MAX >> (64 - (group.keys.len() - first).min(SignGroup::SLOTS));
                while better != 0 {
                    let slot = better.trailing_zeros() as usize;
                    // Those that stay are named in the end.
                    // SAFETY: prefetches need not be readable.
                    unsafe { S::prefetch_far(group.keys.as_ptr().wrapping_add(first + slot)) }
                    self.best.insert(0, scores[slot], (i << 16 | (first + slot)) as u32);
                    better &= better - 1;
                }
            }
        }
    }
}

/// One address in each cache line of `data`.
#[inline(always)]
fn lines<T>(data: &[T]) -> impl Iterator<Item = *const u8> {
    let (start, bytes) = (data.as_ptr().cast::<u8>(), size_of_val(data));
    (0..bytes.div_ceil(64)).map(move |line| start.wrapping_add(64 * line))
}
