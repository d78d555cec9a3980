//! The cold tier: pages that are rarely looked at lie on disk.
//!
//! A page goes there whole, for all layers at once, and stays readable at its place: the system brings back what is looked at.
//! Appending to it again, after a roll-back, takes it back into memory.

use super::{KvDtype, Layer, Sides, Store};
use crate::ModelShape;
use reattention_kernels::{Buffer, ColdError, ColdFile, Element, Extent, PAGE};
use std::ops::Range;
use std::sync::Arc;

/// The same for both element types.
macro_rules! sides {
    ($layer:expr, $sides:ident => $body:expr) => {
        match $layer {
            Layer::F32($sides) => $body,
            Layer::Bf16($sides) => $body,
        }
    };
}

impl Store {
    /// Moves the pages that lie wholly within `tokens` to disk, where they are not yet.
    ///
    /// # Errors
    /// When the disk does not take them; the store stands as before, but for the pages that went already.
    pub fn freeze(&mut self, tokens: Range<usize>) -> Result<(), ColdError> {
        for page in tokens.start.div_ceil(PAGE)..tokens.end.min(self.len) / PAGE {
            if self.layers.iter().all(|layer| sides!(layer, s => s.is_away(page))) {
                continue;
            }
            let parts = self.layers.iter().flat_map(|layer| sides!(layer, s => s.bytes_of(page)));
            let parts: Vec<&[u8]> = parts.flatten().collect();
            let extent = self.cold.write(&parts)?;
            let mut start = 0;
            for layer in &mut self.layers {
                sides!(layer, s => s.put_away(page, &extent, &mut start));
            }
        }
        Ok(())
    }

    /// Lets what one layer has read back of `tokens` leave memory.
    pub fn cool(&self, layer: usize, tokens: Range<usize>) {
        let tokens = tokens.start..tokens.end.min(self.len);
        sides!(&self.layers[layer], s => s.cool(tokens, self.n_kv_heads, self.head_dim));
    }

    /// Disk space taken, in bytes.
    pub fn disk_bytes(&self) -> u64 {
        self.cold.bytes()
    }

    /// Disk space that `tokens` tokens take, in bytes.
    pub fn planned_disk_bytes(shape: &ModelShape, dtype: KvDtype, tokens: usize) -> usize {
        let extent = ColdFile::extent_bytes(PAGE * Self::bytes_per_token(shape, dtype));
        tokens.div_ceil(PAGE).saturating_mul(extent)
    }
}

impl<T: Element> Sides<T> {
    /// Whether a page is not in memory: released, or on disk.
    fn is_away(&self, page: usize) -> bool {
        self.keys[page].as_ref().is_none_or(Buffer::is_cold)
    }

    /// Keys and values of a page.
    fn bytes_of(&self, page: usize) -> [Option<&[u8]>; 2] {
        [&self.keys, &self.values].map(|side| side[page].as_deref().map(bytemuck::cast_slice))
    }

    /// Puts the copies in `extent` from byte `start` on in the place of a page, and `start` behind them.
    fn put_away(&mut self, page: usize, extent: &Arc<Extent>, start: &mut usize) {
        for page in [&mut self.keys, &mut self.values].into_iter().filter_map(|side| side[page].as_mut()) {
            let cold = Buffer::cold(extent, *start, page.len());
            *start += size_of_val(&cold[..]);
            let freed = std::mem::replace(page, cold);
            if !freed.is_cold() && self.spare.len() < 2 {
                self.spare.push(freed);
            }
        }
    }

    fn cool(&self, tokens: Range<usize>, heads: usize, dim: usize) {
        let mut from = tokens.start;
        while from < tokens.end {
            let (page, first) = (from / PAGE, from % PAGE);
            let n = (tokens.end - from).min(PAGE - first);
            for side in [&self.keys, &self.values] {
                let Some(held) = side.get(page).and_then(Option::as_ref) else { continue };
                for head in 0..heads {
                    let row = (head * PAGE + first) * dim;
                    held.forget(row..row + n * dim);
                }
            }
            from += n;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::fill;
    use super::*;
    use crate::tests::tiny_shape;

    fn first_of_each_row(store: &Store, tokens: Range<usize>) -> Vec<f32> {
        let (mut row, mut all) = (vec![0.0; store.head_dim], Vec::new());
        for token in tokens {
            for layer in 0..store.layers.len() {
                store.view(layer).copy_key(1, token, &mut row);
                all.push(row[0]);
                store.view(layer).copy_value(0, token, &mut row);
                all.push(row[1]);
            }
        }
        all
    }

    #[test]
    fn frozen_pages_hold_what_they_held_and_leave_memory() {
        let shape = tiny_shape();
        for dtype in [KvDtype::F32, KvDtype::Bf16] {
            let mut store = Store::new(&shape, dtype);
            fill(&mut store, 0, 5000);
            let before = first_of_each_row(&store, 0..5000);
            store.freeze(10..4500).unwrap();
            // Tokens 1024 to 4095: three pages. One stays ready for what comes next.
            assert_eq!(store.bytes(), Store::planned_bytes(&shape, dtype, 3 * PAGE, 3 * PAGE, 0));
            assert_eq!(store.disk_bytes(), Store::planned_disk_bytes(&shape, dtype, 3 * PAGE) as u64);
            for tokens in [0..0, 1000..1100, 2000..4500, 4900..9000] {
                (0..2).for_each(|layer| store.cool(layer, tokens.clone()));
                assert_eq!(first_of_each_row(&store, 0..5000), before, "after cooling {tokens:?}");
            }
            store.freeze(10..4500).unwrap();
            assert_eq!(store.disk_bytes(), Store::planned_disk_bytes(&shape, dtype, 3 * PAGE) as u64);
            assert_eq!((store.len(), store.held()), (5000, 5000));
        }
    }

    #[test]
    fn a_roll_back_into_a_frozen_page_writes_to_memory_again() {
        let shape = tiny_shape();
        let mut store = Store::new(&shape, KvDtype::Bf16);
        fill(&mut store, 0, 5000);
        let before = first_of_each_row(&store, 0..3000);
        store.freeze(0..4096).unwrap();
        store.truncate(2500).unwrap();
        fill(&mut store, 2500, 600);
        assert_eq!(first_of_each_row(&store, 0..3000), before);
        // Two pages stay on disk, the third was taken back, the fourth has just begun in the page that was ready.
        assert_eq!(store.bytes(), Store::planned_bytes(&shape, KvDtype::Bf16, 2 * PAGE, 2 * PAGE, 0));
        let disk = store.disk_bytes();
        fill(&mut store, 3100, 2000);
        store.freeze(0..4096).unwrap();
        assert_eq!(store.disk_bytes(), disk, "places of dropped pages are used again");
        store.release(0..2048, 2048);
        store.freeze(0..4096).unwrap();
        assert_eq!(store.held(), 5100 - 2048);
    }
}
