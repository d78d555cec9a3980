//! The KV store: raw keys and values of every token, per layer and KV head, in pages that never move.

mod cold;

use crate::ModelShape;
use reattention_kernels::{
    Arena, Buffer, CacheShape, ColdFile, Device, DeviceCache, DeviceError, DeviceType, Element, KvView, PAGE,
    Pages, bf16,
};
use std::ops::Range;

/// Pages of one layer up to which each has memory of its own, so that short contexts take no more than they need.
const SINGLE: usize = 64;

/// The type keys and values are stored in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvDtype {
    /// bfloat16: half the memory, and the type most models were trained in.
    #[default]
    Bf16,
    /// Single precision.
    F32,
}

impl KvDtype {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            Self::Bf16 => 2,
            Self::F32 => 4,
        }
    }
}

impl KvDtype {
    /// The same type on a device.
    fn on_device(self) -> DeviceType {
        match self {
            Self::Bf16 => DeviceType::Bf16,
            Self::F32 => DeviceType::F32,
        }
    }
}

impl std::str::FromStr for KvDtype {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "bf16" => Ok(Self::Bf16),
            "f32" => Ok(Self::F32),
            _ => Err(format!("unknown KV type `{s}`; known are bf16 and f32")),
        }
    }
}

impl std::fmt::Display for KvDtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Bf16 => "bf16",
            Self::F32 => "f32",
        })
    }
}

/// A roll-back to a point from which the method could no longer go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TruncateError {
    /// Tokens are gone.
    #[error(
        "cannot roll back to token {to}: the method has released tokens that it would need below token {floor}; pin the point before going on from it"
    )]
    Released {
        /// Where the roll-back was to end.
        to: usize,
        /// The earliest token it may end at.
        floor: usize,
    },
    /// What the method has learned since cannot be taken back.
    #[error(
        "cannot roll back to token {to}: method `{method}` keeps its state of a point only while that is pinned; pin it before going on from it"
    )]
    Forgotten {
        /// Where the roll-back was to end.
        to: usize,
        /// The method.
        method: &'static str,
    },
}

/// Raw keys and values of all layers. Until the store is compacted, a slot's index is its token's.
#[derive(Debug)]
pub struct Store {
    layers: Vec<Layer>,
    n_kv_heads: usize,
    head_dim: usize,
    dtype: KvDtype,
    /// Tokens that all layers hold.
    len: usize,
    /// Roll-backs may not go below this token (see [`Store::release`]).
    floor: usize,
    /// Pages that are not in memory (see [`Store::freeze`]).
    cold: ColdFile,
    /// Memory of the pages of long contexts.
    arena: Arena,
    /// Where keys and values are, if not here.
    device: Option<Box<dyn DeviceCache>>,
}

#[derive(Debug)]
enum Layer {
    F32(Sides<f32>),
    Bf16(Sides<bf16>),
}

#[derive(Debug)]
struct Sides<T: Element> {
    /// Pages `[n_kv_heads, PAGE, head_dim]`.
    keys: Vec<Option<Buffer<T>>>,
    values: Vec<Option<Buffer<T>>>,
    len: usize,
    /// Pages of memory that became free when their content went to disk, for the next ones: given back and taken anew, they
    /// would leave gaps that nothing fits.
    spare: Vec<Buffer<T>>,
}

impl<T: Element> Default for Sides<T> {
    fn default() -> Self {
        Self { keys: Vec::new(), values: Vec::new(), len: 0, spare: Vec::new() }
    }
}

impl Store {
    /// An empty store for a model.
    pub fn new(shape: &ModelShape, dtype: KvDtype) -> Self {
        let layer = || match dtype {
            KvDtype::F32 => Layer::F32(Sides::default()),
            KvDtype::Bf16 => Layer::Bf16(Sides::default()),
        };
        Self {
            layers: (0..shape.n_layers).map(|_| layer()).collect(),
            n_kv_heads: shape.n_kv_heads,
            head_dim: shape.head_dim,
            dtype,
            len: 0,
            floor: 0,
            cold: ColdFile::default(),
            arena: Arena::default(),
            device: None,
        }
    }

    /// An empty store for a model whose keys and values a device keeps. It can neither be frozen, nor copied, nor compacted,
    /// and its views have no elements.
    pub fn on(device: &dyn Device, shape: &ModelShape, dtype: KvDtype) -> Self {
        let cache = device.cache(Self::on_device_shape(shape, dtype));
        Self { device: Some(cache), ..Self::new(shape, dtype) }
    }

    /// What a device is to hold for a model.
    pub fn on_device_shape(shape: &ModelShape, dtype: KvDtype) -> CacheShape {
        let ModelShape { n_layers: layers, n_kv_heads, head_dim, .. } = *shape;
        CacheShape { layers, n_kv_heads, head_dim, dtype: dtype.on_device() }
    }

    /// The keys and values, if a device keeps them.
    pub fn device(&mut self) -> Option<&mut (dyn DeviceCache + 'static)> {
        self.device.as_deref_mut()
    }

    /// The most tokens that any search on the device has found, 0 without one.
    ///
    /// # Errors
    /// When the device fails.
    pub fn chosen_most(&self) -> Result<usize, DeviceError> {
        self.device.as_ref().map_or(Ok(0), |device| device.chosen_most())
    }

    /// Whether a device keeps the keys and values.
    pub fn is_on_device(&self) -> bool {
        self.device.is_some()
    }

    /// Memory that `tokens` tokens take, in bytes, unused ends of pages included: `kept` of them in layers that see
    /// everything, those of the window and of a step of `step` tokens in layers that slide.
    pub fn planned_bytes(
        shape: &ModelShape,
        dtype: KvDtype,
        tokens: usize,
        kept: usize,
        step: usize,
    ) -> usize {
        let of_layer = 2 * shape.n_kv_heads * shape.head_dim * dtype.bytes();
        let in_layer = |window: Option<usize>| match window {
            // Pages go when they have left the window whole, so up to a page at either end of it stays.
            Some(window) => tokens.min(window.saturating_add(step).saturating_add(2 * PAGE)),
            None => kept,
        };
        let rounded = |tokens: usize| tokens.div_ceil(PAGE).saturating_mul(PAGE);
        let layers = shape.layers.iter().map(|layer| rounded(in_layer(layer.window)));
        layers.fold(0, |sum: usize, tokens| sum.saturating_add(tokens.saturating_mul(of_layer)))
    }

    /// Memory of one token's keys and values in all layers, in bytes.
    pub fn bytes_per_token(shape: &ModelShape, dtype: KvDtype) -> usize {
        2 * shape.n_layers * shape.n_kv_heads * shape.head_dim * dtype.bytes()
    }

    /// Slots held by all layers, released ones included.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Tokens whose keys and values are still there, in memory or on disk.
    pub fn held(&self) -> usize {
        if let Some(device) = &self.device {
            return device.held(self.len);
        }
        let has = |layer: &Layer, page: usize| match layer {
            Layer::F32(s) => s.keys.get(page).is_some_and(Option::is_some),
            Layer::Bf16(s) => s.keys.get(page).is_some_and(Option::is_some),
        };
        let tokens = |page: usize| PAGE.min(self.len.saturating_sub(page * PAGE));
        // Layers may have given back different ones; a token counts while any layer has it.
        let pages = 0..self.len.div_ceil(PAGE);
        pages.filter(|page| self.layers.iter().any(|layer| has(layer, *page))).map(tokens).sum()
    }

    /// Whether no token is held.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Memory held now, a device's included, in bytes, without what was read back from disk.
    pub fn bytes(&self) -> usize {
        if let Some(device) = &self.device {
            let (there, here) = device.bytes();
            return there + here;
        }
        let pages: usize = self.layers.iter().map(|l| l.pages()).sum();
        pages * self.n_kv_heads * PAGE * self.head_dim * self.dtype.bytes()
    }

    /// Appends to one layer the keys and values `[n, n_kv_heads, head_dim]` of the tokens after those it holds.
    pub fn append(&mut self, layer: usize, keys: &[f32], values: &[f32]) {
        let (heads, dim) = (self.n_kv_heads, self.head_dim);
        match &mut self.layers[layer] {
            Layer::F32(sides) => sides.append(keys, values, heads, dim, &mut self.arena),
            Layer::Bf16(sides) => sides.append(keys, values, heads, dim, &mut self.arena),
        }
    }

    /// What a kernel sees of one layer, tokens of the running step included.
    pub fn view(&self, layer: usize) -> KvView<'_> {
        let (pages, len) = match &self.layers[layer] {
            // Pages that are elsewhere: reading one is the fault that it would be for a released one.
            _ if self.is_on_device() => (Pages::Bf16 { keys: &[], values: &[] }, self.len_of(layer)),
            Layer::F32(s) => (Pages::F32 { keys: &s.keys, values: &s.values }, s.len),
            Layer::Bf16(s) => (Pages::Bf16 { keys: &s.keys, values: &s.values }, s.len),
        };
        KvView { pages, len, n_kv_heads: self.n_kv_heads, head_dim: self.head_dim }
    }

    /// Makes the tokens appended to every layer since the last call part of the store.
    ///
    /// # Panics
    /// If the layers do not hold the same tokens: a layer was left out of a step.
    pub fn commit(&mut self) {
        let len = self.len_of(0);
        assert!((0..self.layers.len()).all(|l| self.len_of(l) == len), "a layer was left out of the step");
        self.len = len;
    }

    /// Tokens of a layer, those of the running step included.
    fn len_of(&self, layer: usize) -> usize {
        self.device.as_ref().map_or_else(|| self.layers[layer].len(), |device| device.len(layer))
    }

    /// Forgets what a step that was not committed has appended.
    pub fn abort(&mut self) {
        self.cut(self.len);
    }

    /// Forgets every token from `n` on, and what a step that was not committed has appended.
    ///
    /// # Errors
    /// When tokens needed to go on from `n` have been released.
    pub fn truncate(&mut self, n: usize) -> Result<(), TruncateError> {
        if n < self.floor {
            return Err(TruncateError::Released { to: n, floor: self.floor });
        }
        self.cut(n);
        self.len = self.len.min(n);
        Ok(())
    }

    fn cut(&mut self, n: usize) {
        self.layers.iter_mut().for_each(|l| l.truncate(n));
        if let Some(device) = &mut self.device {
            device.truncate(n);
        }
    }

    /// Whether one layer can keep the slots listed for each KV head ([`Store::compact`]), or why not.
    ///
    /// # Errors
    /// Names the first thing wrong with the lists.
    pub fn check_kept(&self, layer: usize, kept: &[Vec<u32>]) -> Result<(), String> {
        let n = kept.first().map_or(0, Vec::len);
        if kept.len() != self.n_kv_heads {
            return Err(format!("{} lists of slots to keep for {} KV heads", kept.len(), self.n_kv_heads));
        }
        for (head, list) in kept.iter().enumerate() {
            let why = if list.len() != n {
                "as many slots as the other heads keep"
            } else if !list.windows(2).all(|pair| pair[0] < pair[1]) {
                "slots that ascend"
            } else if list.iter().any(|&slot| !self.holds(layer, slot as usize)) {
                "slots that are held"
            } else {
                continue;
            };
            return Err(format!("KV head {head} of layer {layer} is to keep other than {why}"));
        }
        Ok(())
    }

    /// Whether a slot of a layer is there, in memory or on disk.
    fn holds(&self, layer: usize, slot: usize) -> bool {
        let page = slot / PAGE;
        slot < self.len
            && match &self.layers[layer] {
                Layer::F32(s) => s.keys.get(page).is_some_and(Option::is_some),
                Layer::Bf16(s) => s.keys.get(page).is_some_and(Option::is_some),
            }
    }

    /// Keeps the slots listed and moves them to the front, page by page as far as they reach: slot `s` of a layer and KV
    /// head then holds what slot `kept[layer][head][s]` of it held. Pages that lay on disk are in memory again. Roll-backs
    /// below their number are refused from then on.
    ///
    /// # Panics
    /// Unless there is a list for every layer and KV head, all of the same length and as [`Store::check_kept`] wants them.
    pub fn compact(&mut self, kept: &[Vec<Vec<u32>>]) {
        let n = kept[0][0].len();
        assert!(
            kept.len() == self.layers.len() && kept.iter().all(|l| l.len() == self.n_kv_heads),
            "a list for each layer and KV head"
        );
        for (layer, lists) in kept.iter().enumerate() {
            assert_eq!(self.check_kept(layer, lists), Ok(()));
            assert_eq!(lists[0].len(), n, "all layers keep as many slots");
        }
        for (layer, kept) in self.layers.iter_mut().zip(kept) {
            layer.compact(kept, self.head_dim);
        }
        self.len = n;
        self.floor = n;
    }

    /// A copy of the first `n` slots (of all, if there are fewer).
    pub fn copy(&self, n: usize) -> Self {
        let n = n.min(self.len);
        let layers = self.layers.iter().map(|l| l.copy(n)).collect();
        Self {
            layers,
            len: n,
            floor: self.floor.min(n),
            cold: ColdFile::default(),
            arena: Arena::default(),
            device: None,
            ..*self
        }
    }

    /// [`Store::release`] in one layer.
    ///
    /// # Panics
    /// If a device keeps the keys and values: it gives back pages of all layers at once.
    pub fn release_in(&mut self, layer: usize, tokens: Range<usize>, floor: usize) {
        assert!(!self.is_on_device(), "a device gives back pages of all layers");
        if self.layers[layer].release(tokens.start.div_ceil(PAGE)..tokens.end / PAGE) {
            self.floor = self.floor.max(floor);
        }
    }

    /// Gives back the pages that lie wholly within `tokens`. Roll-backs below `floor` are refused from then on if any
    /// page was given back.
    pub fn release(&mut self, tokens: Range<usize>, floor: usize) {
        let pages = tokens.start.div_ceil(PAGE)..tokens.end / PAGE;
        let mut any = false;
        for layer in &mut self.layers {
            any |= layer.release(pages.clone());
        }
        if let Some(device) = &mut self.device {
            let before = device.held(self.len);
            device.release(pages);
            any = device.held(self.len) < before;
        }
        if any {
            self.floor = self.floor.max(floor);
        }
    }
}

impl Layer {
    fn len(&self) -> usize {
        match self {
            Self::F32(s) => s.len,
            Self::Bf16(s) => s.len,
        }
    }

    fn pages(&self) -> usize {
        match self {
            Self::F32(s) => s.pages(),
            Self::Bf16(s) => s.pages(),
        }
    }

    fn truncate(&mut self, n: usize) {
        match self {
            Self::F32(s) => s.truncate(n),
            Self::Bf16(s) => s.truncate(n),
        }
    }

    fn compact(&mut self, kept: &[Vec<u32>], dim: usize) {
        match self {
            Self::F32(s) => s.compact(kept, dim),
            Self::Bf16(s) => s.compact(kept, dim),
        }
    }

    fn copy(&self, n: usize) -> Self {
        match self {
            Self::F32(s) => Self::F32(s.copy(n)),
            Self::Bf16(s) => Self::Bf16(s.copy(n)),
        }
    }

    fn release(&mut self, pages: Range<usize>) -> bool {
        match self {
            Self::F32(s) => s.release(pages),
            Self::Bf16(s) => s.release(pages),
        }
    }
}

impl<T: Element> Sides<T> {
    fn append(&mut self, keys: &[f32], values: &[f32], heads: usize, dim: usize, arena: &mut Arena) {
        let row = heads * dim;
        assert!(
            keys.len() == values.len() && keys.len().is_multiple_of(row),
            "keys and values of [n, {heads}, {dim}]"
        );
        let n = keys.len() / row;
        let pages = (self.len + n).div_ceil(PAGE);
        if pages > self.keys.len() {
            let is_long = self.pages() >= SINGLE;
            let mut new = || if is_long { arena.zeroed(row * PAGE) } else { Buffer::zeroed(row * PAGE) };
            for side in [&mut self.keys, &mut self.values] {
                side.resize_with(pages, || Some(self.spare.pop().unwrap_or_else(&mut new)));
            }
        }
        for (side, data) in [(&mut self.keys, keys), (&mut self.values, values)] {
            for (i, token) in data.chunks_exact(row).enumerate() {
                let (page, slot) = ((self.len + i) / PAGE, (self.len + i) % PAGE);
                let page = side[page].get_or_insert_with(|| Buffer::zeroed(row * PAGE));
                if page.is_cold() {
                    *page = Buffer::from_slice(page);
                }
                for (head, vector) in token.chunks_exact(dim).enumerate() {
                    let to = &mut page[(head * PAGE + slot) * dim..][..dim];
                    to.iter_mut().zip(vector).for_each(|(t, &x)| *t = T::from_f32(x));
                }
            }
        }
        self.len += n;
    }

    fn pages(&self) -> usize {
        let pages = self.keys.iter().chain(&self.values).flatten();
        pages.filter(|page| !page.is_cold()).count() + self.spare.len()
    }

    fn truncate(&mut self, n: usize) {
        if n < self.len {
            self.keys.truncate(n.div_ceil(PAGE));
            self.values.truncate(n.div_ceil(PAGE));
            self.len = n;
        }
    }

    fn compact(&mut self, kept: &[Vec<u32>], dim: usize) {
        let mut row = vec![T::from_f32(0.0); dim];
        for side in [&mut self.keys, &mut self.values] {
            for page in side.iter_mut().take(kept[0].len().div_ceil(PAGE)) {
                let page = page.get_or_insert_with(|| Buffer::zeroed(kept.len() * PAGE * dim));
                if page.is_cold() {
                    *page = Buffer::from_slice(page);
                }
            }
            for (head, slots) in kept.iter().enumerate() {
                let place = |slot: usize| {
                    let first = (head * PAGE + slot % PAGE) * dim;
                    (slot / PAGE, first..first + dim)
                };
                // Slots ascend, so none is written before it was read.
                for (to, &from) in slots.iter().enumerate() {
                    let (page, range) = place(from as usize);
                    let held = side[page].as_ref().unwrap_or_else(|| panic!("slot {from} was released"));
                    row.copy_from_slice(&held[range]);
                    let (page, range) = place(to);
                    let held = side[page].as_mut().unwrap_or_else(|| panic!("slot {to} was released"));
                    held[range].copy_from_slice(&row);
                }
            }
        }
        self.truncate(kept[0].len());
    }

    fn copy(&self, n: usize) -> Self {
        let side = |pages: &[Option<Buffer<T>>]| {
            pages[..n.div_ceil(PAGE)]
                .iter()
                .map(|p| p.as_ref().map(|page| Buffer::from_slice(page)))
                .collect()
        };
        Self { keys: side(&self.keys), values: side(&self.values), len: n, spare: Vec::new() }
    }

    fn release(&mut self, pages: Range<usize>) -> bool {
        let mut any = false;
        for page in pages.start..pages.end.min(self.keys.len()) {
            any |= self.keys[page].take().is_some();
            self.values[page] = None;
        }
        any
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::tiny_shape;

    pub(super) fn fill(store: &mut Store, from: usize, n: usize) {
        let row = store.n_kv_heads * store.head_dim;
        let data: Vec<f32> = (from * row..(from + n) * row).map(|x| (x % 251) as f32).collect();
        let negated: Vec<f32> = data.iter().map(|x| -x).collect();
        for layer in 0..store.layers.len() {
            store.append(layer, &data, &negated);
        }
        store.commit();
    }

    #[test]
    fn grows_in_place_and_gives_back_what_was_written() {
        let shape = tiny_shape();
        for dtype in [KvDtype::F32, KvDtype::Bf16] {
            let mut store = Store::new(&shape, dtype);
            let mut n = 0;
            let mut first_page = None;
            for step in [5, 1018, 1, 1, 2000, 77] {
                fill(&mut store, n, step);
                n += step;
                let view = store.view(0);
                let address = match view.pages {
                    Pages::F32 { keys, .. } => keys[0].as_ref().unwrap().as_ptr() as usize,
                    Pages::Bf16 { keys, .. } => keys[0].as_ref().unwrap().as_ptr() as usize,
                };
                assert_eq!(*first_page.get_or_insert(address), address, "a page moved");
            }
            assert_eq!(store.len(), n);
            assert_eq!(store.bytes(), Store::planned_bytes(&shape, dtype, n, n, 0));
            let mut row = vec![0.0; shape.head_dim];
            for token in [0, 4, 5, 1022, 1023, 1024, 3101] {
                for head in 0..shape.n_kv_heads {
                    let at = (token * shape.n_kv_heads + head) * shape.head_dim;
                    store.view(1).copy_key(head, token, &mut row);
                    assert!(
                        row.iter().enumerate().all(|(i, &x)| x == ((at + i) % 251) as f32),
                        "key of token {token}"
                    );
                    store.view(1).copy_value(head, token, &mut row);
                    assert_eq!(row[1], -(((at + 1) % 251) as f32), "value of token {token}");
                }
            }
        }
    }

    #[test]
    fn truncates_and_releases() {
        let shape = tiny_shape();
        let mut store = Store::new(&shape, KvDtype::F32);
        fill(&mut store, 0, 5000);
        store.release(10..4100, 4990);
        assert_eq!(store.bytes(), 2 * Store::planned_bytes(&shape, KvDtype::F32, 1, 1, 0));
        assert_eq!((store.len(), store.held()), (5000, 1024 + 5000 - 4096));
        assert_eq!(store.truncate(4000), Err(TruncateError::Released { to: 4000, floor: 4990 }));
        store.truncate(4995).unwrap();
        assert_eq!(store.len(), 4995);
        fill(&mut store, 4995, 10);
        let mut row = vec![0.0; shape.head_dim];
        store.view(0).copy_key(0, 5, &mut row);
        assert_eq!(row[0], ((5 * shape.n_kv_heads * shape.head_dim) % 251) as f32);
    }

    #[test]
    fn compacting_moves_each_heads_choice_to_the_front_and_frees_pages() {
        let shape = tiny_shape();
        for dtype in [KvDtype::F32, KvDtype::Bf16] {
            let mut store = Store::new(&shape, dtype);
            fill(&mut store, 0, 3000);
            // Every layer and head keeps other slots, across pages.
            let slot = |layer: usize, head: usize, s: usize| 2 * s + 7 * layer + 400 * head;
            let lists = |layer| {
                let of = |head| (0..1100).map(|s| slot(layer, head, s) as u32).collect::<Vec<u32>>();
                (0..shape.n_kv_heads).map(of).collect::<Vec<_>>()
            };
            let row = |store: &Store, layer: usize, head: usize, slot: usize| {
                let mut row = vec![0.0; 2 * shape.head_dim];
                let (key, value) = row.split_at_mut(shape.head_dim);
                store.view(layer).copy_key(head, slot, key);
                store.view(layer).copy_value(head, slot, value);
                row
            };
            let before = store.copy(5000);
            store.compact(&(0..shape.n_layers).map(lists).collect::<Vec<_>>());
            assert_eq!((store.len(), store.held()), (1100, 1100));
            assert_eq!(store.bytes(), Store::planned_bytes(&shape, dtype, 1100, 1100, 0));
            assert_eq!(
                (before.len(), before.bytes()),
                (3000, Store::planned_bytes(&shape, dtype, 3000, 3000, 0))
            );
            for (layer, head) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                for s in [0, 1, 511, 1023, 1024, 1099] {
                    let want = row(&before, layer, head, slot(layer, head, s));
                    assert_eq!(row(&store, layer, head, s), want, "layer {layer}, head {head}, slot {s}");
                }
            }
            assert_eq!(store.truncate(1099), Err(TruncateError::Released { to: 1099, floor: 1100 }));
            fill(&mut store, 3000, 50);
            let at = (3000 * shape.n_kv_heads + 1) * shape.head_dim;
            assert_eq!(row(&store, 1, 1, 1100)[0], (at % 251) as f32, "what follows stands behind the kept");
            assert_eq!(store.copy(900).truncate(800), Err(TruncateError::Released { to: 800, floor: 900 }));
        }
    }

    #[test]
    fn a_step_that_failed_leaves_nothing_behind() {
        let shape = tiny_shape();
        let mut store = Store::new(&shape, KvDtype::Bf16);
        fill(&mut store, 0, 100);
        store.append(
            0,
            &vec![1.0; 30 * shape.n_kv_heads * shape.head_dim],
            &vec![1.0; 30 * shape.n_kv_heads * shape.head_dim],
        );
        store.truncate(100).unwrap();
        fill(&mut store, 100, 7);
        assert_eq!(store.len(), 107);
    }
}
