//! The keys of small groups, with their signs, each group in one run of memory that grows with it.

use reattention_kernels::{Arena, Buffer, SignGroup};
use std::sync::{Arc, Mutex, PoisonError};

/// Most keys of a leaf.
pub(super) const LEAF: usize = 128;

/// Words that runs are measured in, and runs of the longest kind that a page has room for.
const UNIT: usize = 4;
const PER_PAGE: usize = 64;

/// The tokens of all leaves, ascending and [`LEAF`] at most in each, and the signs and sizes of their keys' differences to
/// the leaf's centre. Runs of 16, 32, ... slots lie in pages that never move; one that grew too small goes to the
/// next leaf that needs its length.
#[derive(Debug)]
pub(super) struct Leaves {
    head_dim: usize,
    /// Units of a page.
    page: usize,
    places: Vec<Place>,
    /// A run is `[slots]` tokens, and their codes.
    pages: Vec<Buffer<u32>>,
    /// Units in use of the last page.
    used: usize,
    /// Runs of each length that no leaf has.
    free: [Vec<u32>; LEAF / SignGroup::SLOTS],
    /// Where pages come from. Leaves are looked up all over them, which takes long in small pages of the system.
    arena: Arc<Mutex<Arena>>,
}

/// Where a leaf's keys are.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    /// The first unit of its run, counted through all pages.
    run: u32,
    /// Slots of its run; there is none yet if zero.
    slots: u8,
    /// Keys.
    length: u8,
}

impl Leaves {
    pub(super) fn new(head_dim: usize, arena: Arc<Mutex<Arena>>) -> Self {
        let (places, pages, free) = Default::default();
        let page = PER_PAGE * length(head_dim, LEAF) / UNIT;
        Self { head_dim, page, places, pages, used: page, free, arena }
    }

    /// Bytes a key takes where leaves are two thirds full, as they are when a leaf is cut at `LEAF + 1` keys.
    pub(super) fn bytes_per_key(head_dim: usize) -> f64 {
        let slot = (length(head_dim, LEAF) * size_of::<u32>()) as f64 / LEAF as f64;
        // Half of the last 16 slots are empty.
        let (keys, leaf) = (LEAF as f64 * 2.0 / 3.0, size_of::<Place>() as f64);
        (slot * (keys + SignGroup::SLOTS as f64 / 2.0) + leaf) / keys
    }

    pub(super) fn count(&self) -> usize {
        self.places.len()
    }

    pub(super) fn tokens(&self, leaf: u32) -> &[u32] {
        self.group(leaf).keys
    }

    /// Tokens, signs and sizes of a leaf.
    #[inline]
    pub(super) fn group(&self, leaf: u32) -> SignGroup<'_> {
        let Place { run, slots, length } = self.places[leaf as usize];
        let slots = usize::from(slots);
        if slots == 0 {
            return SignGroup { keys: &[], slots, codes: &[] };
        }
        let (keys, codes) = self.run(run, slots).split_at(slots);
        SignGroup { keys: &keys[..usize::from(length)], slots, codes }
    }

    /// Adds an empty leaf.
    pub(super) fn push(&mut self) {
        self.places.push(Place::default());
    }

    /// Empties a leaf and makes room for `n` keys, [`LEAF`] at most; room for many more goes to other leaves.
    pub(super) fn clear(&mut self, leaf: u32, n: usize) {
        let Place { run, slots, .. } = std::mem::take(&mut self.places[leaf as usize]);
        if usize::from(slots) > n.next_multiple_of(SignGroup::SLOTS) {
            self.free[kind(usize::from(slots))].push(run);
        } else {
            self.places[leaf as usize] = Place { run, slots, length: 0 };
        }
        self.reserve(leaf, n);
    }

    /// Makes room for `n` keys in all, [`LEAF`] at most.
    pub(super) fn reserve(&mut self, leaf: u32, n: usize) {
        let Place { run: old, slots: before, length } = self.places[leaf as usize];
        let (slots, before) = (n.next_multiple_of(SignGroup::SLOTS), usize::from(before));
        if slots <= before {
            return;
        }
        let run = self.take(slots);
        if before > 0 {
            let held = self.run(old, before).to_vec();
            let (keys, codes) = held.split_at(before);
            let new = self.run_mut(run, slots);
            new[..before].copy_from_slice(keys);
            SignGroup::widen(before, codes, slots, &mut new[slots..]);
            self.free[kind(before)].push(old);
        }
        self.places[leaf as usize] = Place { run, slots: slots as u8, length };
    }

    /// Adds a token, for which there is room, whose key differs so from the leaf's centre.
    pub(super) fn add(&mut self, leaf: u32, token: u32, difference: &[f32]) {
        let Place { run, slots, length } = self.places[leaf as usize];
        let (slots, slot) = (usize::from(slots), usize::from(length));
        let run = self.run_mut(run, slots);
        run[slot] = token;
        SignGroup::encode(difference, slot, slots, &mut run[slots..]);
        self.places[leaf as usize].length += 1;
    }

    /// A run that no leaf has.
    fn take(&mut self, slots: usize) -> u32 {
        if let Some(run) = self.free[kind(slots)].pop() {
            return run;
        }
        let units = length(self.head_dim, slots) / UNIT;
        if self.used + units > self.page {
            let mut arena = self.arena.lock().unwrap_or_else(PoisonError::into_inner);
            self.pages.push(arena.zeroed(self.page * UNIT));
            self.used = 0;
        }
        self.used += units;
        ((self.pages.len() - 1) * self.page + self.used - units) as u32
    }

    #[inline]
    fn run(&self, run: u32, slots: usize) -> &[u32] {
        let (page, unit) = (run as usize / self.page, run as usize % self.page);
        &self.pages[page][unit * UNIT..][..length(self.head_dim, slots)]
    }

    fn run_mut(&mut self, run: u32, slots: usize) -> &mut [u32] {
        let (page, unit) = (run as usize / self.page, run as usize % self.page);
        &mut self.pages[page][unit * UNIT..][..length(self.head_dim, slots)]
    }
}

/// Which of the kinds of runs has so many slots.
fn kind(slots: usize) -> usize {
    slots / SignGroup::SLOTS - 1
}

/// Words of a run.
fn length(head_dim: usize, slots: usize) -> usize {
    slots + SignGroup::codes_len(head_dim, slots)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_grow_and_give_back_their_runs() {
        let (dim, mut leaves) = (40, Leaves::new(40, Arc::default()));
        let difference = |token: u32| -> Vec<f32> {
            (0..dim).map(|i| if (token >> (i % 7)) & 1 == 1 { 1.0 } else { -1.0 }).collect()
        };
        for leaf in 0..300 {
            leaves.push();
            for i in 0..(leaf % LEAF as u32) + 1 {
                leaves.reserve(leaf, i as usize + 1);
                leaves.add(leaf, leaf * 1000 + i, &difference(i));
            }
        }
        let check = |leaves: &Leaves, leaf: u32, n: u32| {
            let group = leaves.group(leaf);
            assert_eq!(group.keys, (0..n).map(|i| leaf * 1000 + i).collect::<Vec<_>>());
            let mut codes = group.codes.to_vec();
            (0..n).for_each(|i| SignGroup::encode(&difference(i), i as usize, group.slots, &mut codes));
            assert_eq!(group.codes, codes, "codes that are written again do not change");
        };
        (0..300).for_each(|leaf| check(&leaves, leaf, leaf % LEAF as u32 + 1));

        let pages = leaves.pages.len();
        for i in 300..400 {
            leaves.push();
            leaves.reserve(i, 16);
        }
        assert_eq!(leaves.pages.len(), pages, "runs that leaves outgrew are used again");
        leaves.clear(5, 2);
        assert_eq!((leaves.tokens(5), leaves.count()), (&[][..], 400));
    }
}
