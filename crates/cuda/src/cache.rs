//! Keys and values of a session on the device, in pages that never move but to host memory.

use crate::boxes::Boxes;
use crate::driver::{Block, CudaError, Driver, Dtype, Pinned};
use crate::elementwise::{self, NewRows};
use crate::paged::{Cached, CachedShape, PageEntry, Rows};
use crate::segments::{DeviceKeys, DeviceSegment, Views};
use crate::select::{self, Choice, Selected, Tallies};
use crate::shared::{Offload, Shared};
use crate::top_k::{Voters, top_k_of};
use crate::{attend, key_mass};
use reattention_kernels::{
    CacheShape, Chosen, ChosenSegment, DeviceCache, DeviceError, DeviceQueries, DeviceType, DeviceView, PAGE,
    Search, Segment, Tensor, TopKRequest, bf16, f16,
};
use std::ops::Range;
use std::sync::Arc;

/// Page tables have room for so many pages at least.
const FIRST_TABLE: usize = 16;

/// Host memory that is taken at once, in bytes, for at most so many sides of pages.
const HOST_SLAB: usize = 64 << 20;
const MOST_SIDES: usize = 16;

/// Device memory that stays free of keys and values, for what steps work in.
const RESERVE: usize = 512 << 20;

/// Keys and values of all layers.
#[derive(Debug)]
pub(crate) struct Cache {
    shared: Arc<Shared>,
    shape: CacheShape,
    layers: Vec<Layer>,
    /// Made by the first search.
    tallies: Option<Tallies>,
    /// Attention recorded by token, if any was.
    mass: Option<Block>,
    /// The same of steps of several tokens, or with a list of segments a KV head.
    known_mass: Vec<f32>,
    /// The first page of each layer whose keys may still be on the device, under [`Offload::Old`].
    oldest: usize,
    /// The last host memory taken, and the sides of pages that it still has room for.
    slab: Option<(Arc<HostSlab>, usize)>,
}

#[derive(Debug, Default)]
struct Layer {
    pages: Vec<Option<Page>>,
    table: Option<Block>,
    len: usize,
    /// Boxes around the keys, once a search looks into some.
    boxes: Option<Boxes>,
}

#[derive(Debug)]
struct Page {
    keys: Place,
    values: Place,
}

/// `[n_kv_heads, PAGE, head_dim]` somewhere.
#[derive(Debug)]
enum Place {
    Device(Block),
    Host(HostBlock),
}

/// A place in pinned host memory.
#[derive(Debug)]
struct HostBlock {
    #[allow(dead_code, reason = "held")]
    slab: Arc<HostSlab>,
    /// Where the device sees it.
    at: u64,
}

/// Pinned host memory for several sides of pages, which gives itself back: taking it takes long, however little it is.
#[derive(Debug)]
struct HostSlab {
    driver: Arc<dyn Driver>,
    at: Pinned,
}

// SAFETY: the slab owns the memory at its address, which no thread is bound to.
unsafe impl Send for HostSlab {}
// SAFETY: as above; nothing reads or writes through a shared reference but the device.
unsafe impl Sync for HostSlab {}

impl Drop for HostSlab {
    fn drop(&mut self) {
        // SAFETY: the slab took the memory, and its blocks are gone.
        unsafe { self.driver.free_pinned(self.at) };
    }
}

impl Place {
    fn at(&self) -> u64 {
        match self {
            Self::Device(block) => block.at(),
            Self::Host(block) => block.at,
        }
    }
}

impl Cache {
    pub(crate) fn new(shared: Arc<Shared>, shape: CacheShape) -> Self {
        let layers = (0..shape.layers).map(|_| Layer::default()).collect();
        Self {
            shared,
            shape,
            layers,
            tallies: None,
            mass: None,
            known_mass: Vec::new(),
            oldest: 0,
            slab: None,
        }
    }

    fn check<T>(&self, result: Result<T, CudaError>) -> Result<T, DeviceError> {
        result.map_err(|error| self.shared.error(error))
    }

    fn side_bytes(&self) -> usize {
        self.shape.n_kv_heads * PAGE * self.shape.head_dim * Dtype::from(self.shape.dtype).bytes()
    }

    /// What kernels see of a layer, for one call: `driver` is the cache's.
    fn cached<'a>(&self, layer: usize, driver: &'a Arc<dyn Driver>) -> Cached<'a> {
        let of = &self.layers[layer];
        let CacheShape { n_kv_heads, head_dim, dtype, .. } = self.shape;
        let shape = CachedShape { len: of.len, n_kv_heads, head_dim, dtype: dtype.into() };
        // SAFETY: the layer has entries for all its tokens and keeps their pages, and a call that changes them makes this anew.
        unsafe { Cached::new(driver, of.table.as_ref().map_or(0, Block::at), shape) }
    }

    fn rows(&self, q: &DeviceQueries) -> Result<Rows, CudaError> {
        let DeviceQueries { n_heads, q_len, first, .. } = *q;
        let head_dim = self.shape.head_dim;
        assert!(q_len * n_heads * head_dim <= q.data.len(), "queries of [{q_len}, {n_heads}, {head_dim}]");
        Ok(Rows { data: Arc::clone(self.shared.floats(q.data)?), n_heads, q_len, head_dim, first })
    }

    /// What was selected, if this device did it. Views check that the cache holds the tokens.
    fn selected<'c>(&self, chosen: &'c Chosen) -> Result<&'c Selected, CudaError> {
        let selected: &Selected = self.shared.own(chosen.memory(), "a selection")?;
        self.shared.is_own(&selected.count, "a selection")?;
        Ok(selected)
    }

    /// Makes room for `n` more tokens in a layer.
    fn grow(&mut self, layer: usize, n: usize) -> Result<(), CudaError> {
        let of = &self.layers[layer];
        let (from, to) = (of.len / PAGE, (of.len + n).div_ceil(PAGE));
        for page in from..to {
            if self.layers[layer].pages.get(page).is_some_and(Option::is_some) {
                continue;
            }
            let keys = self.place(false)?;
            let values = self.place(self.shared.offload != Offload::Off)?;
            let entry = PageEntry { keys: keys.at(), values: values.at() };
            self.enter(layer, page, entry)?;
            let of = &mut self.layers[layer];
            if of.pages.len() <= page {
                of.pages.resize_with(page + 1, || None);
            }
            // Only now: a page that is held has its entry.
            of.pages[page] = Some(Page { keys, values });
        }
        Ok(())
    }

    /// Writes an entry of a layer's page table, which grows by doubling.
    fn enter(&mut self, layer: usize, page: usize, entry: PageEntry) -> Result<(), CudaError> {
        let of = &mut self.layers[layer];
        match &of.table {
            Some(table) if (page + 1) * size_of::<PageEntry>() <= table.bytes() => {
                table.write(page * size_of::<PageEntry>(), &[entry])
            }
            _ => {
                let mut entries: Vec<PageEntry> = of.pages.iter().map(Page::entry).collect();
                entries.resize((2 * (page + 1)).max(FIRST_TABLE), PageEntry::default());
                entries[page] = entry;
                of.table = Some(Block::of(&self.shared.driver, &entries)?);
                Ok(())
            }
        }
    }

    /// Memory for one side of a page.
    fn place(&mut self, on_host: bool) -> Result<Place, CudaError> {
        let bytes = self.side_bytes();
        if on_host {
            return self.host_block().map(Place::Host);
        }
        if self.shared.offload == Offload::Old {
            while self.shared.driver.free_memory()?
                < bytes + RESERVE.min(self.shared.driver.facts().memory / 8)
            {
                if !self.move_oldest()? {
                    break;
                }
            }
        }
        Block::new(&self.shared.driver, bytes).map(Place::Device)
    }

    /// Host memory for one side of a page.
    fn host_block(&mut self) -> Result<HostBlock, CudaError> {
        let (side, driver) = (self.side_bytes(), &self.shared.driver);
        let (slab, left) = match &self.slab {
            Some((slab, left)) if *left > 0 => (Arc::clone(slab), *left),
            _ => {
                let sides = (HOST_SLAB / side).clamp(1, MOST_SIDES);
                let at = driver.alloc_pinned(sides * side)?;
                (Arc::new(HostSlab { driver: Arc::clone(driver), at }), sides)
            }
        };
        self.slab = Some((Arc::clone(&slab), left - 1));
        let at = slab.at.device + ((left - 1) * side) as u64;
        Ok(HostBlock { slab, at })
    }

    /// Moves the oldest keys that are still on the device to the host, in all layers; false if there are none but the page
    /// that is being written.
    fn move_oldest(&mut self) -> Result<bool, CudaError> {
        let bytes = self.side_bytes();
        while self.layers.iter().any(|l| self.oldest + 1 < l.pages.len()) {
            let page = self.oldest;
            let mut any = false;
            for layer in 0..self.layers.len() {
                let is_last = page + 1 >= self.layers[layer].pages.len();
                let held = self.layers[layer].pages.get(page).and_then(Option::as_ref);
                let Some(Place::Device(keys)) = held.map(|p| &p.keys).filter(|_| !is_last) else { continue };
                let keys = keys.at();
                let moved = self.host_block()?;
                // SAFETY: both blocks are that long; the copy runs before the device's block is given back.
                unsafe { self.shared.driver.copy(keys, moved.at, bytes)? };
                let entry = Page::entry(&self.layers[layer].pages[page]);
                self.enter(layer, page, PageEntry { keys: moved.at, ..entry })?;
                // Only now, since it gives the device's block back: the table never names memory that is not taken.
                let slot = self.layers[layer].pages[page].as_mut().expect("held above");
                slot.keys = Place::Host(moved);
                any = true;
            }
            if self.layers.iter().all(|l| page + 1 < l.pages.len()) {
                self.oldest += 1;
            } else if !any {
                return Ok(false);
            }
            if any {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl Layer {
    /// Boxes around the keys of `request`.
    fn boxed(
        &mut self,
        driver: &Arc<dyn Driver>,
        cached: &Cached,
        request: &TopKRequest,
    ) -> Result<&Boxes, CudaError> {
        let keys = &request.keys;
        if self.boxes.as_ref().is_none_or(|boxes| boxes.first() != keys.start) {
            self.boxes = Some(Boxes::new(keys.start));
        }
        let boxes = self.boxes.as_mut().expect("made above");
        boxes.extend(driver, cached, keys.end)?;
        Ok(boxes)
    }
}

impl Page {
    fn entry(page: &Option<Self>) -> PageEntry {
        page.as_ref().map_or(PageEntry::default(), |p| PageEntry { keys: p.keys.at(), values: p.values.at() })
    }
}

impl DeviceCache for Cache {
    fn len(&self, layer: usize) -> usize {
        self.layers[layer].len
    }

    fn append(&mut self, layer: usize, n: usize, keys: &Tensor, values: &Tensor) -> Result<(), DeviceError> {
        let row = self.shape.n_kv_heads * self.shape.head_dim;
        assert!(n * row <= keys.len() && n * row <= values.len(), "keys and values of [{n}, {row}]");
        let mut run = || {
            let shared = Arc::clone(&self.shared);
            let (keys, values) = (shared.floats(keys)?.span(), shared.floats(values)?.span());
            self.grow(layer, n)?;
            let cached = self.cached(layer, &shared.driver);
            let rows = NewRows { keys, values, stride: row, tokens: n };
            // SAFETY: the cache has just grown by the pages of these tokens.
            unsafe { elementwise::append(&shared.driver, &rows, &cached, cached.len)? };
            self.layers[layer].len += n;
            Ok(())
        };
        let result = run();
        self.check(result)
    }

    fn truncate(&mut self, n: usize) {
        for layer in &mut self.layers {
            if n < layer.len {
                layer.pages.truncate(n.div_ceil(PAGE));
                layer.len = n;
                if let Some(boxes) = &mut layer.boxes {
                    boxes.truncate(n);
                }
            }
        }
        self.oldest = self.oldest.min(n / PAGE);
    }

    fn release(&mut self, pages: Range<usize>) {
        for layer in &mut self.layers {
            let end = pages.end.min(layer.pages.len());
            layer.pages[pages.start.min(end)..end].iter_mut().for_each(|page| *page = None);
        }
    }

    fn held(&self, len: usize) -> usize {
        let tokens = |page: usize| PAGE.min(len.saturating_sub(page * PAGE));
        let pages = self.layers.first().map_or(&[][..], |l| &l.pages);
        pages.iter().enumerate().filter(|(_, p)| p.is_some()).map(|(page, _)| tokens(page)).sum()
    }

    fn bytes(&self) -> (usize, usize) {
        let places = || {
            let pages = self.layers.iter().flat_map(|l| l.pages.iter().flatten());
            pages.flat_map(|page| [&page.keys, &page.values])
        };
        let there = places().filter(|p| matches!(p, Place::Device(_))).count();
        let boxes: usize = self.layers.iter().flat_map(|l| &l.boxes).map(Boxes::bytes).sum();
        (there * self.side_bytes() + boxes, (places().count() - there) * self.side_bytes())
    }

    fn read(&self, layer: usize, tokens: Range<usize>) -> Result<[Vec<f32>; 2], DeviceError> {
        let of = &self.layers[layer];
        assert!(tokens.end <= of.len, "tokens {tokens:?} of {}", of.len);
        let (heads, dim) = (self.shape.n_kv_heads, self.shape.head_dim);
        let mut sides = [0, 1].map(|_| vec![0.0; tokens.len() * heads * dim]);
        for page in tokens.start / PAGE..tokens.end.div_ceil(PAGE) {
            let held = of.pages[page].as_ref().unwrap_or_else(|| panic!("page {page} was released"));
            for (place, side) in [&held.keys, &held.values].into_iter().zip(&mut sides) {
                let mut bytes = vec![0; self.side_bytes()];
                // SAFETY: a side of a page is that long.
                self.check(unsafe { self.shared.driver.download(place.at(), &mut bytes) })?;
                let elements = decode(&bytes, self.shape.dtype);
                for token in tokens.start.max(page * PAGE)..tokens.end.min((page + 1) * PAGE) {
                    for head in 0..heads {
                        let from = (head * PAGE + token % PAGE) * dim;
                        let to = ((token - tokens.start) * heads + head) * dim;
                        side[to..to + dim].copy_from_slice(&elements[from..from + dim]);
                    }
                }
            }
        }
        Ok(sides)
    }

    fn search(&mut self, layer: usize, q: &DeviceQueries, search: &Search) -> Result<Chosen, DeviceError> {
        let shared = Arc::clone(&self.shared);
        let (rows, cached) = (self.check(self.rows(q))?, self.cached(layer, &shared.driver));
        let voters = Voters { first: search.first_voter, stride: search.voter_stride };
        let choice = Choice {
            vote: search.vote,
            scale: search.scale,
            clip: search.clip,
            before: search.offsets.start,
            after: search.offsets.end,
            middle: search.request.keys.clone(),
        };
        let driver = &shared.driver;
        let request = &search.request;
        let found = match search.boxes {
            None => top_k_of(driver, &rows, voters, &cached, request),
            Some(probes) => self.layers[layer]
                .boxed(driver, &cached, request)
                .and_then(|boxes| boxes.search(driver, &rows, &cached, request, voters, probes)),
        };
        let found = self.check(found)?;
        let tallies = match &mut self.tallies {
            Some(tallies) => tallies,
            none => none.insert(Tallies::new(driver).map_err(|error| shared.error(error))?),
        };
        let selected = select::select(driver, &found, &choice, tallies);
        let selected = self.check(selected)?;
        Ok(Chosen::new(selected.capacity, Box::new(selected)))
    }

    fn chosen(&self, chosen: &Chosen) -> Result<Vec<u32>, DeviceError> {
        self.check(self.selected(chosen).and_then(Selected::read))
    }

    fn chosen_most(&self) -> Result<usize, DeviceError> {
        self.check(self.tallies.as_ref().map_or(Ok(0), Tallies::most))
    }

    fn attend(
        &mut self,
        layer: usize,
        q: &DeviceQueries,
        view: &DeviceView,
        scale: f32,
        out: &mut Tensor,
        records: bool,
    ) -> Result<(), DeviceError> {
        let shared = Arc::clone(&self.shared);
        let (rows, cached) = (self.check(self.rows(q))?, self.cached(layer, &shared.driver));
        assert!(
            rows.q_len * rows.n_heads * rows.head_dim <= out.len(),
            "attention of [{}, {}]",
            rows.q_len,
            rows.n_heads
        );
        let driver = &shared.driver;
        let mut run = || {
            let out = shared.floats(out)?.span();
            let segment = |s: &Segment| DeviceSegment::new(driver, &shared.ropes, s);
            let list = |list: &Vec<Segment>| list.iter().map(segment).collect::<Result<Vec<_>, _>>();
            let mut lists = view.segments.iter().map(list).collect::<Result<Vec<_>, _>>()?;
            if let Some(chosen) = &view.chosen {
                insert(chosen, self.selected(chosen.tokens)?, &mut lists[0]);
            }
            let views = Views::new(driver, lists)?;
            if !records {
                return attend::attend(driver, &rows, &cached, &views, scale, out, None);
            }
            let lse = Block::new(driver, rows.q_len * rows.n_heads * size_of::<f32>())?;
            attend::attend(driver, &rows, &cached, &views, scale, out, Some(lse.span()))?;
            if rows.q_len > 1 || views.lists().len() > 1 {
                let by_head =
                    key_mass::key_mass(driver, &rows, &cached, &views, scale, lse.span())?.read()?;
                add_known(&mut self.known_mass, view.segments, &by_head);
                return Ok(());
            }
            let bytes = cached.len * size_of::<f32>();
            if self.mass.as_ref().is_none_or(|mass| mass.bytes() < bytes) {
                let grown = Block::zeroed(driver, bytes.next_power_of_two())?;
                if let Some(mass) = &self.mass {
                    // SAFETY: the new block is longer.
                    unsafe { driver.copy(mass.at(), grown.at(), mass.bytes())? };
                }
                self.mass = Some(grown);
            }
            let mass = self.mass.as_ref().expect("made above");
            key_mass::add_mass_of_tokens(driver, &rows, &cached, &views, scale, lse.span(), mass.span())
        };
        let result = run();
        self.check(result)
    }

    fn take_mass(&mut self) -> Result<Vec<f32>, DeviceError> {
        let mut total = std::mem::take(&mut self.known_mass);
        let Some(mass) = self.mass.take() else { return Ok(total) };
        let tokens = self.layers.first().map_or(0, |l| l.len);
        let recorded = self.check(mass.read::<f32>(0, tokens.min(mass.bytes() / size_of::<f32>())))?;
        total.resize(total.len().max(recorded.len()), 0.0);
        total.iter_mut().zip(&recorded).for_each(|(t, m)| *t += m);
        Ok(total)
    }
}

/// The elements that bytes of a page hold.
fn decode(bytes: &[u8], dtype: DeviceType) -> Vec<f32> {
    let short = |pair: &[u8]| u16::from_le_bytes([pair[0], pair[1]]);
    match dtype {
        DeviceType::F32 => {
            bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
        }
        DeviceType::F16 => bytes.chunks_exact(2).map(|b| f16::from_bits(short(b)).to_f32()).collect(),
        DeviceType::Bf16 => bytes.chunks_exact(2).map(|b| bf16::from_bits(short(b)).to_f32()).collect(),
    }
}

/// Adds the attention that keys get from each query head to that of their tokens.
fn add_known(mass: &mut Vec<f32>, views: &[Vec<Segment>], by_head: &[Vec<f32>]) {
    for (head, of_keys) in by_head.iter().enumerate() {
        let list = &views[head * views.len() / by_head.len()];
        let tokens = list.iter().flat_map(|s| (0..s.keys.len()).map(|rank| s.keys.token(rank)));
        for (token, m) in tokens.zip(of_keys) {
            mass.resize(mass.len().max(token + 1), 0.0);
            mass[token] += m;
        }
    }
}

/// Gives the segment of the tokens chosen its keys, and moves what stands behind them.
fn insert(chosen: &ChosenSegment, found: &Selected, segments: &mut [DeviceSegment]) {
    let Selected { tokens, count, capacity, end } = found;
    segments[chosen.index].keys = DeviceKeys::Counted {
        tokens: Arc::clone(tokens),
        count: Arc::clone(count),
        capacity: *capacity,
        end: *end,
    };
    if chosen.moves {
        segments.iter_mut().for_each(|s| s.query_shift = Some(Arc::clone(count)));
        segments[chosen.index + 1..].iter_mut().for_each(|s| s.key_shift = Some(Arc::clone(count)));
    }
}
