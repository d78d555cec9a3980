//! The search that looks at few keys: boxes around neighbouring keys stand in for them, on the device.
//!
//! The rule is that of the selector `boxes`: a large box of [`LARGE`] keys holds small ones of [`SMALL`]; a query scores all
//! large boxes, then the small ones in the best large ones, then the keys in the best small ones, and besides all keys younger
//! than the last large box. Boxes have the type of the keys, so they are exact, also where keys are f32.

use crate::driver::{Address, Arg, Block, CudaError, Driver, Dtype, Launch, Module};
use crate::paged::{Cached, CachedShape, PageEntry, Rows};
use crate::top_k::{Found, MOST_KEYS, Voters, top_k, top_k_of};
use reattention_kernels::{HeadPairing, PAGE, TopKRequest, TopKRule};
use std::ops::Range;
use std::sync::Arc;

/// The kernels.
pub const MODULE: Module = Module { name: "boxes", text: include_str!("../kernels/boxes.cu") };

/// Keys in a small box; twin of the macro in `boxes.cu`.
pub const SMALL: usize = 8;

/// Keys in a large box; twin of the macro in `boxes.cu`.
pub const LARGE: usize = 128;

/// Small boxes in a large one.
const WITHIN: usize = LARGE / SMALL;

/// The longest vector whose best [`top_k`] finds.
const MOST_ELEMENTS: usize = 256;

/// The part of the device's memory that scores may take; more queries are searched in turns.
const SCORES_IN_MEMORY: usize = 1024;

/// Threads of blocks; twins of the macros in `boxes.cu`.
const BUILD_THREADS: u32 = 256;
const QUERY_THREADS: u32 = 64;
const SCORE_WARPS: u32 = 4;
const SORT_WARPS: u32 = 4;

/// Boxes around the keys of one layer.
#[derive(Debug)]
pub struct Boxes {
    first: usize,
    shape: Option<Shape>,
    /// Large boxes.
    len: usize,
    small: Table,
    large: Table,
}

/// What all keys of a layer have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    n_kv_heads: usize,
    head_dim: usize,
    dtype: Dtype,
}

impl Boxes {
    /// No boxes yet; the first will begin at token `first`.
    pub fn new(first: usize) -> Self {
        Self { first, shape: None, len: 0, small: Table::default(), large: Table::default() }
    }

    /// The token at which the first box begins.
    pub fn first(&self) -> usize {
        self.first
    }

    /// Puts the keys before token `end` into boxes, but for a rest too short for a large box.
    ///
    /// # Errors
    /// When the device has not enough memory (the boxes stay as they were) or fails, or the kernels do not serve the shape.
    ///
    /// # Panics
    /// If `end` lies beyond the keys, or their shape is another than before.
    pub fn extend(&mut self, driver: &Arc<dyn Driver>, kv: &Cached, end: usize) -> Result<(), CudaError> {
        assert!(end <= kv.len, "boxes of keys up to {end} of {}", kv.len);
        let len = end.saturating_sub(self.first) / LARGE;
        if len <= self.len {
            return Ok(());
        }
        let shape = Shape::of(kv)?;
        assert!(
            self.shape.is_none_or(|known| known == shape),
            "boxes of {:?}, keys of {shape:?}",
            self.shape
        );
        self.shape = Some(shape);
        self.small.reserve(driver, len * WITHIN, shape)?;
        self.large.reserve(driver, len, shape)?;
        let args = [
            kv.arg(driver)?,
            self.small.arg(driver)?,
            self.large.arg(driver)?,
            int(self.first),
            int(self.len),
        ];
        let grid = [len - self.len, shape.n_kv_heads, 1];
        // SAFETY: arguments as the kernel declares them; it reads keys that are there by the check above, and writes boxes
        // that have just been given room.
        unsafe { launch(driver, "boxes_build", &shape.defines(NARROW), grid, BUILD_THREADS, &args)? };
        self.len = len;
        Ok(())
    }

    /// Forgets the boxes of tokens from `n` on.
    pub fn truncate(&mut self, n: usize) {
        self.len = self.len.min(n.saturating_sub(self.first) / LARGE);
        self.small.truncate(self.len * WITHIN);
        self.large.truncate(self.len);
    }

    /// Device memory taken, in bytes.
    pub fn bytes(&self) -> usize {
        self.small.bytes() + self.large.bytes()
    }

    /// The best keys of `request.keys` that the voters among the queries find by looking into the best `probes` small boxes.
    ///
    /// `request.keys` begins at [`Boxes::first`] and may end anywhere: only boxes that lie before its end are looked into,
    /// and all keys after the last of them are scored. For each query and head the large boxes with the largest bounds are
    /// looked into, `probes / 2` of them (rounded up), and of the small ones within the best `probes`; ties go to the lower
    /// number at every level. Queries are rounded to the type of the keys; sums are in f32. Slots that found no key have
    /// the index [`reattention_kernels::ListedRequest::NONE`] and a score of minus infinity.
    ///
    /// # Errors
    /// When more than [`MOST_KEYS`] keys are asked for, the request is not of [`HeadPairing::Grouped`] and
    /// [`TopKRule::Exact`], the kernels do not serve the shape, or the device fails.
    ///
    /// # Panics
    /// If `probes` is 0, or shapes or ranges do not fit together.
    pub fn search(
        &self,
        driver: &Arc<dyn Driver>,
        q: &Rows,
        kv: &Cached,
        request: &TopKRequest,
        voters: Voters,
        probes: usize,
    ) -> Result<Found, CudaError> {
        let keys = &request.keys;
        assert!(probes > 0, "a search that looks into no box");
        assert_eq!(keys.start, self.first, "boxes begin elsewhere than the keys {keys:?}");
        assert!(keys.start <= keys.end && keys.end <= kv.len, "keys {keys:?} of {}", kv.len);
        if request.pairing != HeadPairing::Grouped || request.rule != TopKRule::Exact {
            let what = format!("boxes with {:?} and {:?}", request.pairing, request.rule);
            return Err(CudaError::Unsupported { what });
        }
        let boxes = self.len.min(keys.len() / LARGE);
        let Some(shape) = self.shape.filter(|_| boxes > 0) else {
            return top_k_of(driver, q, voters, kv, request);
        };
        assert_eq!(shape, Shape::of(kv)?, "boxes of other keys");
        let Rows { n_heads, head_dim, .. } = *q;
        let [_, _] = [self.small.arg(driver)?, self.large.arg(driver)?];
        assert_eq!(head_dim, shape.head_dim, "queries of {head_dim} elements, keys of {}", shape.head_dim);
        assert!(
            n_heads.is_multiple_of(shape.n_kv_heads),
            "{n_heads} query heads for {} KV heads",
            shape.n_kv_heads
        );
        let k = request.k.min(keys.len());
        if k > MOST_KEYS {
            let what = format!("the best {k} keys of a query, only {MOST_KEYS}");
            return Err(CudaError::Unsupported { what });
        }

        let q_len = voters.count(q.q_len);
        let slots = q_len * n_heads * k;
        let indices = Block::new(driver, slots * size_of::<u32>())?;
        let scores = Block::new(driver, slots * size_of::<f32>())?;
        let found = Found { indices, scores, q_len, n_heads, k };
        if slots == 0 {
            return Ok(found);
        }
        let rest = TopKRequest { keys: self.first + boxes * LARGE..keys.end, ..request.clone() };
        let rest = top_k_of(driver, q, voters, kv, &rest)?;
        let large = probes.div_ceil(2).min(boxes);
        let small = probes.min(large * WITHIN);
        let search = Search { driver, boxes: self, shape, q, kv, voters, len: boxes, large, small };
        search.run(&rest, &found)?;
        Ok(found)
    }
}

/// Sets of macros that stand for all.
pub fn variants(head_dims: &[usize]) -> Vec<Vec<(&'static str, i64)>> {
    let of = |dtype, head_dim, picker| Shape { n_kv_heads: 1, head_dim, dtype }.defines(picker).to_vec();
    let ends = head_dims.iter().min().into_iter().chain(head_dims.iter().max());
    let wide = ends.flat_map(|&dim| [of(Dtype::F32, dim, NARROW), of(Dtype::F16, dim, WIDE)]);
    head_dims.iter().flat_map(|&dim| [NARROW, WIDE].map(|p| of(Dtype::Bf16, dim, p))).chain(wide).collect()
}

impl Shape {
    fn of(kv: &Cached) -> Result<Self, CudaError> {
        let CachedShape { n_kv_heads, head_dim, dtype, .. } = kv.shape;
        if !head_dim.is_multiple_of(16) || !(16..=256).contains(&head_dim) {
            let what = format!("heads of {head_dim} elements, only multiples of 16 from 16 to 256");
            return Err(CudaError::Unsupported { what });
        }
        Ok(Self { n_kv_heads, head_dim, dtype })
    }

    fn defines(self, picker: Picker) -> [(&'static str, i64); 4] {
        [
            ("ELEMENT", self.dtype.element()),
            ("HEAD_DIM", self.head_dim as i64),
            ("THREADS", i64::from(picker.threads)),
            ("DIGIT_BITS", picker.digit_bits),
        ]
    }

    /// Bytes of a page of boxes.
    fn page_bytes(self) -> usize {
        self.n_kv_heads * PAGE * 2 * self.head_dim * self.dtype.bytes()
    }
}

/// Boxes of one size, in pages like those of keys.
#[derive(Debug, Default)]
struct Table {
    pages: Vec<Block>,
    /// Where each page is, [`PageEntry`] after [`PageEntry`], with room for more.
    table: Option<Block>,
}

impl Table {
    /// Makes room for `len` boxes.
    fn reserve(&mut self, driver: &Arc<dyn Driver>, len: usize, shape: Shape) -> Result<(), CudaError> {
        let (known, wanted) = (self.pages.len(), len.div_ceil(PAGE));
        if wanted <= known {
            return Ok(());
        }
        let mut pages = Vec::new();
        for _ in known..wanted {
            pages.push(Block::new(driver, shape.page_bytes())?);
        }
        let entry = |page: &Block| PageEntry { keys: page.at(), values: 0 };
        let entry_bytes = size_of::<PageEntry>();
        match &self.table {
            Some(table) if wanted * entry_bytes <= table.bytes() => {
                table.write(known * entry_bytes, &pages.iter().map(entry).collect::<Vec<_>>())?;
            }
            _ => {
                let table = Block::new(driver, wanted.next_power_of_two().max(16) * entry_bytes)?;
                table.write(0, &self.pages.iter().chain(&pages).map(entry).collect::<Vec<_>>())?;
                self.table = Some(table);
            }
        }
        self.pages.append(&mut pages);
        Ok(())
    }

    fn truncate(&mut self, len: usize) {
        self.pages.truncate(len.div_ceil(PAGE));
    }

    fn at(&self) -> Address {
        self.table.as_ref().map_or(0, Block::at)
    }

    /// The table as an argument of a kernel on `driver`.
    fn arg(&self, driver: &Arc<dyn Driver>) -> Result<Arg, CudaError> {
        let pages = self.pages.len();
        let table = self.table.as_ref().map(|table| table.span().arg(driver, pages, size_of::<PageEntry>()));
        table.unwrap_or(Ok(Arg::Pointer(0)))
    }

    fn bytes(&self) -> usize {
        self.pages.iter().chain(&self.table).map(Block::bytes).sum()
    }
}

/// How a block picks the best of a row.
#[derive(Clone, Copy, Debug)]
struct Picker {
    threads: u32,
    digit_bits: i64,
}

/// For few scores, where small tables are soon cleared, and for many.
const NARROW: Picker = Picker { threads: 128, digit_bits: 8 };
const WIDE: Picker = Picker { threads: 512, digit_bits: 11 };

impl Picker {
    fn of(scores: usize) -> Self {
        if scores <= 1024 { NARROW } else { WIDE }
    }
}

/// A search through boxes.
struct Search<'a> {
    driver: &'a Arc<dyn Driver>,
    boxes: &'a Boxes,
    shape: Shape,
    q: &'a Rows,
    kv: &'a Cached<'a>,
    voters: Voters,
    /// Large boxes searched.
    len: usize,
    /// Large boxes that a query and head looks into.
    large: usize,
    /// Small boxes that it looks into.
    small: usize,
}

impl Search<'_> {
    /// Fills `found`, given what `rest` has found among the keys in no box.
    fn run(&self, rest: &Found, found: &Found) -> Result<(), CudaError> {
        let scored = if self.is_fused() { 0 } else { self.len };
        let scored = scored.max(self.large * WITHIN).max(self.small * SMALL);
        let per_voter = self.q.n_heads * scored * size_of::<f32>();
        let most = self.driver.facts().memory / SCORES_IN_MEMORY;
        let at_once = (most / per_voter).clamp(1, found.q_len);
        let scores = Block::new(self.driver, at_once * per_voter)?;
        for from in (0..found.q_len).step_by(at_once) {
            self.turn(from..found.q_len.min(from + at_once), &scores, rest, found)?;
        }
        Ok(())
    }

    /// Whether the large boxes are searched by [`top_k`], as if they were keys.
    fn is_fused(&self) -> bool {
        self.large <= MOST_KEYS && 2 * self.shape.head_dim <= MOST_ELEMENTS
    }

    /// As [`Search::run`], for some of the voters.
    fn turn(
        &self,
        voters: Range<usize>,
        scores: &Block,
        rest: &Found,
        found: &Found,
    ) -> Result<(), CudaError> {
        let Self { driver, boxes, shape, q, kv, large, small, .. } = *self;
        let group = q.n_heads / shape.n_kv_heads;
        let rows = voters.len() * q.n_heads;
        let queries = [
            q.arg(driver)?,
            int(q.n_heads),
            int(group),
            int(self.voters.first + voters.start * self.voters.stride),
            int(self.voters.stride),
        ];
        let best_large = self.best_large(&queries, rows, scores)?;

        // The small boxes within.
        let n = large * WITHIN;
        let [data, n_heads, group, first_voter, voter_stride] = queries;
        let split = Split::new(driver, rows, n, 128);
        let table = Arg::Pointer(boxes.small.at());
        let lists = best_large.arg();
        let args = [
            data,
            table,
            n_heads,
            group,
            first_voter,
            voter_stride,
            lists,
            int(large),
            split.each(),
            scores.arg(),
        ];
        let grid = [rows, split.parts, 1];
        // SAFETY: arguments as the kernel declares them; rows are those of the queries, lists name boxes that are there, and
        // the scores have room for `n` a row.
        unsafe {
            launch(driver, "boxes_score_small", &shape.defines(NARROW), grid, SCORE_WARPS * 32, &args)?;
        };
        let best_small = self.best(scores, &best_large, WITHIN, rows, n, small)?;

        // The keys within, and the best of them and of the rest.
        let n = small * SMALL;
        let split = Split::new(driver, rows, n, 256);
        let (pages, lists) = (kv.arg(driver)?, best_small.arg());
        let args = [
            data,
            pages,
            n_heads,
            group,
            first_voter,
            voter_stride,
            lists,
            int(small),
            split.each(),
            int(boxes.first),
            scores.arg(),
        ];
        let grid = [rows, split.parts, 1];
        // SAFETY: as above; keys in boxes are there.
        unsafe {
            launch(driver, "boxes_score_keys", &shape.defines(NARROW), grid, SCORE_WARPS * 32, &args)?;
        };
        let picker = Picker::of(n);
        let from = voters.start * q.n_heads;
        let slot = |block: &Block, k: usize| Arg::Pointer(block.at() + (from * k * size_of::<u32>()) as u64);
        let args = [
            scores.arg(),
            lists,
            int(n),
            int(boxes.first),
            slot(&rest.scores, rest.k),
            slot(&rest.indices, rest.k),
            int(rest.k),
            int(found.k),
            slot(&found.scores, found.k),
            slot(&found.indices, found.k),
        ];
        // SAFETY: as above; both results have as many slots for each of these rows.
        unsafe { launch(driver, "boxes_found", &shape.defines(picker), [rows, 1, 1], picker.threads, &args) }
    }

    /// The large boxes that each row looks into, u32 `[rows, large]`.
    fn best_large(&self, queries: &[Arg; 5], rows: usize, scores: &Block) -> Result<Block, CudaError> {
        let Self { driver, boxes, shape, q, len, large, .. } = *self;
        let [data, n_heads, group, first_voter, voter_stride] = *queries;
        let table = boxes.large.at();
        if !self.is_fused() {
            let rows_of_head = rows / shape.n_kv_heads;
            let (x, y) = (rows_of_head.div_ceil(16), shape.n_kv_heads);
            let split = Split::new(driver, x * y, len, 8 * SCORE_WARPS as usize);
            let args = [
                data,
                Arg::Pointer(table),
                n_heads,
                group,
                first_voter,
                voter_stride,
                int(rows_of_head),
                int(len),
                split.each(),
                scores.arg(),
            ];
            let grid = [x, y, split.parts];
            // SAFETY: arguments as the kernel declares them; `len` boxes are there and have room for their scores in each
            // row.
            unsafe {
                launch(driver, "boxes_score_large", &shape.defines(NARROW), grid, SCORE_WARPS * 32, &args)?;
            };
            return self.best(scores, scores, 0, rows, len, large);
        }
        let head_dim = 2 * shape.head_dim;
        let vectors = Block::new(driver, rows * head_dim * size_of::<f32>())?;
        let args = [data, n_heads, first_voter, voter_stride, vectors.arg()];
        // SAFETY: arguments as the kernel declares them; the vectors have room.
        unsafe {
            launch(driver, "boxes_queries", &shape.defines(NARROW), [rows, 1, 1], QUERY_THREADS, &args)?;
        };
        let q_len = rows / q.n_heads;
        let data = Arc::new(vectors);
        let rows_of_boxes = Rows { data, n_heads: q.n_heads, q_len, head_dim, first: 0 };
        let Shape { n_kv_heads, dtype, .. } = shape;
        // SAFETY: pages of boxes are as wide as those of keys twice as long, and `len` boxes are there.
        let as_keys = unsafe { Cached::new(driver, table, CachedShape { len, n_kv_heads, head_dim, dtype }) };
        let (pairing, rule) = (HeadPairing::Grouped, TopKRule::Exact);
        let request = TopKRequest { keys: 0..len, k: large, pairing, rule };
        let found = top_k(driver, &rows_of_boxes, &as_keys, &request)?;
        let sorted = Block::new(driver, rows * large * size_of::<u32>())?;
        let args = [found.indices.arg(), int(rows), int(large), sorted.arg()];
        let blocks = rows.div_ceil(SORT_WARPS as usize);
        // SAFETY: arguments as the kernel declares them; both lists have `large` slots a row.
        unsafe {
            launch(driver, "boxes_sort", &shape.defines(NARROW), [blocks, 1, 1], SORT_WARPS * 32, &args)?;
        };
        Ok(sorted)
    }

    /// The best `m` of the `n` boxes that each row has scored, u32 `[rows, m]`: those within the boxes of `lists`, `per` in
    /// each, or all boxes where `per` is 0.
    fn best(
        &self,
        scores: &Block,
        lists: &Block,
        per: usize,
        rows: usize,
        n: usize,
        m: usize,
    ) -> Result<Block, CudaError> {
        let best = Block::new(self.driver, rows * m * size_of::<u32>())?;
        let picker = Picker::of(n);
        let args = [scores.arg(), lists.arg(), int(per), int(n), int(m), best.arg()];
        // SAFETY: arguments as the kernel declares them; every row has `n` scores and `m` slots.
        unsafe {
            launch(
                self.driver,
                "boxes_best",
                &self.shape.defines(picker),
                [rows, 1, 1],
                picker.threads,
                &args,
            )?;
        }
        Ok(best)
    }
}

/// How many blocks share what there is to score for some rows.
struct Split {
    each: usize,
    parts: usize,
}

impl Split {
    /// Few blocks where there are many rows, more to fill the device where there are few; each has a multiple of `unit`.
    fn new(driver: &Arc<dyn Driver>, rows: usize, n: usize, unit: usize) -> Self {
        let wanted = 4 * driver.facts().multiprocessors;
        let parts = (wanted / rows).clamp(1, n.div_ceil(unit));
        let each = n.div_ceil(parts).next_multiple_of(unit);
        Self { each, parts: n.div_ceil(each) }
    }

    fn each(&self) -> Arg {
        int(self.each)
    }
}

fn int(x: usize) -> Arg {
    Arg::Int(x as i32)
}

/// Starts a kernel of this family.
///
/// # Safety
/// As for [`Driver::launch`].
unsafe fn launch(
    driver: &Arc<dyn Driver>,
    name: &'static str,
    defines: &[(&'static str, i64)],
    grid: [usize; 3],
    threads: u32,
    args: &[Arg],
) -> Result<(), CudaError> {
    let function = driver.function(&MODULE, defines, name)?;
    let launch = Launch { grid: grid.map(|n| n as u32), threads, shared: 0 };
    // SAFETY: by the caller.
    unsafe { driver.launch(function, launch, args) }
}
