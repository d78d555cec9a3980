//! The keys with the largest products for each query and head: [`reattention_kernels::Backend::top_k`] on the device.
//!
//! Scores never reach memory. A block scores the queries of one KV head's heads against a part of the range, a tile of keys
//! after the other, and keeps the best keys of each row; a second kernel makes one list of those of the parts.

use crate::driver::{Arg, Block, CudaError, Driver, Dtype, Facts, Launch, Module};
use crate::paged::{Cached, Rows};
use reattention_kernels::{HeadPairing, ListedRequest, TopK, TopKRequest, TopKRule};
use std::sync::Arc;

/// The kernels.
pub const MODULE: Module = Module { name: "top_k", text: include_str!("../kernels/top_k.cu") };

/// The most keys that can be asked for.
pub const MOST_KEYS: usize = 64;

/// Keys of a tile of [`TopKRule::BestPerTile`].
pub const TILE: usize = 128;

/// The most lists that the second kernel makes one of; twin of the macro in `top_k.cu`.
const MOST_PARTS: usize = 1024;

/// Rows whose lists one block of the second kernel looks after; twin of the macro in `top_k.cu`.
const MERGE_WARPS: usize = 4;

/// The best keys of every query and head, on the device.
#[derive(Debug)]
pub struct Found {
    /// Token indices, u32 `[q_len, n_heads, k]`, best first, ties in ascending order.
    pub indices: Block,
    /// Their scores, f32, same shape.
    pub scores: Block,
    /// Queries.
    pub q_len: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Keys per query and head.
    pub k: usize,
}

impl Found {
    /// Copies it to the host.
    ///
    /// # Errors
    /// When the device fails.
    pub fn read(&self) -> Result<TopK, CudaError> {
        let Self { q_len, n_heads, k, .. } = *self;
        let slots = q_len * n_heads * k;
        let (indices, scores) = (self.indices.read(0, slots)?, self.scores.read(0, slots)?);
        Ok(TopK { q_len, n_heads, k, indices, scores })
    }
}

/// Which tokens of a step search: the token `first` and every `stride`th after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Voters {
    /// The first, counted from the first of the step.
    pub first: usize,
    /// From one to the next, at least 1.
    pub stride: usize,
}

impl Voters {
    /// Every token.
    pub const ALL: Self = Self { first: 0, stride: 1 };

    /// How many there are in a step of `q_len` tokens.
    pub fn count(self, q_len: usize) -> usize {
        q_len.saturating_sub(self.first).div_ceil(self.stride)
    }
}

/// The keys of `request.keys` with the largest `q · k` for each query and head, as
/// [`reattention_kernels::Backend::top_k`] finds them.
///
/// Queries are rounded to the type of the keys; sums are in f32. Scores that are not numbers never win; where the rule is
/// [`TopKRule::Exact`] and a query finds too few keys with a score above minus infinity, the slots left have the index
/// [`ListedRequest::NONE`] and a score of minus infinity.
///
/// # Errors
/// When more than [`MOST_KEYS`] keys are asked for, tiles are not of [`TILE`] keys, `head_dim` is no multiple of 16 up to 256, or
/// the device fails.
///
/// # Panics
/// If shapes do not fit together.
pub fn top_k(
    driver: &Arc<dyn Driver>,
    q: &Rows,
    kv: &Cached,
    request: &TopKRequest,
) -> Result<Found, CudaError> {
    top_k_of(driver, q, Voters::ALL, kv, request)
}

/// As [`top_k`], for some of the queries: [`Found::q_len`] is their number.
///
/// # Errors
/// As [`top_k`].
///
/// # Panics
/// As [`top_k`].
pub fn top_k_of(
    driver: &Arc<dyn Driver>,
    q: &Rows,
    voters: Voters,
    kv: &Cached,
    request: &TopKRequest,
) -> Result<Found, CudaError> {
    let Rows { n_heads, head_dim, .. } = *q;
    let keys = &request.keys;
    assert_eq!(head_dim, kv.head_dim, "queries of {head_dim} elements, keys of {}", kv.head_dim);
    assert!(
        kv.n_kv_heads > 0 && n_heads.is_multiple_of(kv.n_kv_heads),
        "{n_heads} query heads for {} KV heads",
        kv.n_kv_heads
    );
    assert!(keys.start <= keys.end && keys.end <= kv.len, "keys {keys:?} of {}", kv.len);
    let tile = match request.rule {
        TopKRule::Exact => None,
        TopKRule::BestPerTile { tile: TILE } => Some(TILE),
        TopKRule::BestPerTile { tile } => {
            return Err(CudaError::Unsupported {
                what: format!("the best of every {tile} keys, only of {TILE}"),
            });
        }
    };
    let k = if tile.is_some() { request.k } else { request.k.min(keys.len()) };
    if k > MOST_KEYS {
        return Err(CudaError::Unsupported {
            what: format!("the best {k} keys of a query, only {MOST_KEYS}"),
        });
    }
    if !head_dim.is_multiple_of(16) || !(16..=256).contains(&head_dim) {
        let what = format!("heads of {head_dim} elements, only multiples of 16 from 16 to 256");
        return Err(CudaError::Unsupported { what });
    }

    let (n_kv_heads, q_len) = (kv.n_kv_heads, voters.count(q.q_len));
    let group = n_heads / n_kv_heads;
    let rows = q_len * group;
    let slots = rows * n_kv_heads * k;
    let indices = Block::new(driver, slots * size_of::<u32>())?;
    let scores = Block::new(driver, slots * size_of::<f32>())?;
    let found = Found { indices, scores, q_len, n_heads, k };
    if slots == 0 {
        return Ok(found);
    }

    let work = Work { rows, n_kv_heads, keys: keys.len(), k, head_dim, dtype: kv.dtype, tile };
    let plan = Plan::new(driver.facts(), &work)?;
    let defines = plan.defines(&work);
    let listed = rows * n_kv_heads * plan.parts() * k;
    let listed_scores = Block::new(driver, listed * size_of::<f32>())?;
    let listed_tokens = Block::new(driver, listed * size_of::<u32>())?;
    let int = |x: usize| Arg::Int(x as i32);
    // Where the heads of a KV head stand.
    let (kv_step, head_step) = match request.pairing {
        HeadPairing::Grouped => (int(group), int(1)),
        HeadPairing::Interleaved => (int(1), int(n_kv_heads)),
    };
    if plan.splits > 0 {
        let args = [
            q.arg(driver)?,
            kv.arg(driver)?,
            int(n_heads),
            kv_step,
            head_step,
            int(group),
            int(voters.first),
            int(voters.stride),
            int(rows),
            int(keys.start),
            int(keys.end),
            int(plan.parts()),
            int(k),
            listed_scores.arg(),
            listed_tokens.arg(),
        ];
        let function = driver.function(&MODULE, &defines, "top_k_scores")?;
        // SAFETY: arguments as the kernel declares them; it reads queries and keys that the checks above keep within
        // what there is, and writes lists of the length just taken.
        unsafe { driver.launch(function, plan.launch(&work), &args)? };
    }
    let (score, token) = match tile {
        None => (f32::NEG_INFINITY, ListedRequest::NONE),
        Some(_) => (f32::MIN, keys.start as u32),
    };
    let args = [
        listed_scores.arg(),
        listed_tokens.arg(),
        int(n_heads),
        int(n_kv_heads),
        kv_step,
        head_step,
        int(group),
        int(rows),
        int(plan.parts()),
        int(k),
        Arg::Float(score),
        Arg::Int(token as i32),
        found.scores.arg(),
        found.indices.arg(),
    ];
    let function = driver.function(&MODULE, &defines, "top_k_merge")?;
    let blocks = (rows * n_kv_heads).div_ceil(MERGE_WARPS) as u32;
    let launch = Launch { grid: [blocks, 1, 1], threads: (MERGE_WARPS * 32) as u32, shared: 0 };
    // SAFETY: arguments as the kernel declares them; it reads the lists above and writes as many slots as were taken.
    unsafe { driver.launch(function, launch, &args)? };
    Ok(found)
}

/// Sets of macros that stand for all that the kernels are compiled with: every length of heads for one token and for a chunk,
/// and what else there is for one length.
pub fn variants(head_dims: &[usize]) -> Vec<Vec<(&'static str, i64)>> {
    let of = |head_dim, rows, dtype, tile| {
        let work = Work { rows, n_kv_heads: 8, keys: 1 << 17, k: 4, head_dim, dtype, tile };
        let facts = Facts {
            name: String::new(),
            capability: (9, 0),
            multiprocessors: 132,
            memory: 80 << 30,
            shared_per_block: 227 << 10,
        };
        Plan::new(&facts, &work).map(|plan| plan.defines(&work).to_vec()).ok()
    };
    let of_each =
        head_dims.iter().flat_map(|&head_dim| [4, 2048].map(|rows| of(head_dim, rows, Dtype::Bf16, None)));
    let others = [
        of(128, 32, Dtype::Bf16, None),
        of(128, 64, Dtype::F16, None),
        of(128, 2048, Dtype::Bf16, Some(TILE)),
        of(128, 4, Dtype::F32, None),
        of(128, 2048, Dtype::F32, None),
    ];
    of_each.chain(others).flatten().collect()
}

/// What there is to search.
#[derive(Clone, Copy, Debug)]
struct Work {
    /// Queries times heads of a KV head.
    rows: usize,
    n_kv_heads: usize,
    keys: usize,
    k: usize,
    head_dim: usize,
    dtype: Dtype,
    tile: Option<usize>,
}

/// How the work is dealt out; the macros of `top_k.cu` say what each means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Plan {
    warps: usize,
    fragments: usize,
    share_keys: bool,
    tile: usize,
    chunk: usize,
    stages: usize,
    blocks: usize,
    /// Blocks that share the rows of a KV head out.
    row_blocks: usize,
    /// Blocks that share the keys out; none where there are no keys.
    splits: usize,
    /// Shared memory of a block, in bytes.
    shared: usize,
}

impl Plan {
    fn new(facts: &Facts, work: &Work) -> Result<Self, CudaError> {
        let is_wide = work.dtype == Dtype::F32;
        let is_long = is_wide || work.head_dim > 128;
        // Queries stay in registers: a row of floats takes three times the room.
        let fragments = if work.rows <= 16 || (is_wide && work.head_dim > 64) { 1 } else { 2 };
        let warp_rows = 16 * fragments;
        let share_keys = work.rows > warp_rows;
        let most_warps = match work.rows.div_ceil(warp_rows) {
            1 => 4,
            2 => 2,
            3 | 4 => 4,
            // Fewer rows that are none, but keys are fetched for fewer rows at once.
            n if n.next_multiple_of(4) < n.next_multiple_of(8) => 4,
            _ => 8,
        };
        let tile = match (share_keys, is_long, is_wide) {
            (_, _, true) | (false, true, _) => 16,
            (true, true, _) | (false, false, _) => 32,
            (true, false, _) => 64,
        };
        let most_stages = if share_keys { 3 } else { 4 };
        let fits = |warps: usize| {
            let threads = warps * 32;
            // So that registers suffice: 255 a thread, 128 where a block has many threads, otherwise 168.
            let most_threads = if is_long { 256 } else { 384.max(2 * threads) };
            let most_blocks = (most_threads / threads).clamp(1, 4);
            let kinds = (1..=most_blocks)
                .rev()
                .flat_map(|blocks| (3..=most_stages).rev().map(move |stages| (blocks, stages)));
            kinds.chain([(1, 2)]).find_map(|(blocks, stages)| {
                let plan = Self {
                    warps,
                    fragments,
                    share_keys,
                    tile,
                    chunk: tile.min(32),
                    stages,
                    blocks,
                    row_blocks: work.rows.div_ceil(if share_keys { warps * warp_rows } else { warp_rows }),
                    splits: 0,
                    shared: 0,
                };
                let shared = plan.shared(work);
                // The device takes 1 KiB more for each block.
                (blocks * (shared + 1024) <= facts.shared_per_block + 1024).then_some(Self { shared, ..plan })
            })
        };
        let plan = [8, 4, 2, 1].into_iter().filter(|&warps| warps <= most_warps).find_map(fits);
        let plan = plan.ok_or_else(|| CudaError::Unsupported {
            what: format!(
                "the best {} of heads of {} elements with {} bytes of shared memory",
                work.k, work.head_dim, facts.shared_per_block
            ),
        })?;
        Ok(Self { splits: plan.best_splits(facts, work), ..plan })
    }

    /// Shared memory of a block: stages of padded rows, and a list for each row of each warp.
    fn shared(&self, work: &Work) -> usize {
        let row = work.head_dim * work.dtype.bytes() + 16;
        let lists = self.warps * 16 * self.fragments;
        self.teams() * self.stages * self.tile * row + lists * work.k * 8
    }

    /// Groups of warps of a block that read keys of their own.
    fn teams(&self) -> usize {
        if self.share_keys { 1 } else { self.warps }
    }

    /// Parts of the range of keys.
    fn parts(&self) -> usize {
        self.splits * self.teams()
    }

    /// The number of splits that ends soonest if all blocks are equally fast: enough to fill the device, and the last blocks to
    /// start must not leave most of it idle.
    fn best_splits(&self, facts: &Facts, work: &Work) -> usize {
        // What a part costs beside its keys, in keys: queries, the first tile, a list that fills anew.
        const START: usize = 512;
        let unit = work.tile.unwrap_or(self.tile);
        let units = work.keys.div_ceil(unit);
        let most = units.div_ceil(self.teams()).min(MOST_PARTS / self.teams());
        let (of_split, at_once) =
            (self.row_blocks * work.n_kv_heads, facts.multiprocessors.max(1) * self.blocks);
        let cost = |splits: usize| {
            let waves = (of_split * splits).div_ceil(at_once);
            waves * (units.div_ceil(splits * self.teams()) * unit + START)
        };
        // For each number of waves, as many splits as fit; many waves leave little idle anyway.
        let fewest = of_split.div_ceil(at_once);
        let splits = (fewest..fewest + 16).map(|waves| (waves * at_once / of_split).min(most));
        if most == 0 { 0 } else { splits.min_by_key(|&splits| cost(splits)).unwrap_or(1) }
    }

    fn launch(&self, work: &Work) -> Launch {
        Launch {
            grid: [self.row_blocks as u32, work.n_kv_heads as u32, self.splits as u32],
            threads: (self.warps * 32) as u32,
            shared: self.shared as u32,
        }
    }

    fn defines(&self, work: &Work) -> [(&'static str, i64); 10] {
        [
            ("ELEMENT", work.dtype.element()),
            ("HEAD_DIM", work.head_dim as i64),
            ("WARPS", self.warps as i64),
            ("FRAGMENTS", self.fragments as i64),
            ("SHARE_KEYS", i64::from(self.share_keys)),
            ("TILE", self.tile as i64),
            ("CHUNK", self.chunk as i64),
            ("STAGES", self.stages as i64),
            ("BLOCKS", self.blocks as i64),
            ("BEST_PER_TILE", work.tile.unwrap_or(0) as i64),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(multiprocessors: usize, shared_per_block: usize) -> Facts {
        let name = String::new();
        Facts { name, capability: (9, 0), multiprocessors, memory: 80 << 30, shared_per_block }
    }

    fn works() -> impl Iterator<Item = Work> {
        let rows = [1, 4, 16, 17, 32, 33, 64, 96, 128, 129, 300, 512, 2048, 16_384];
        let keys = [1, 15, 16, 127, 128, 129, 1000, 4096, 131_072, 1 << 20, 16 << 20];
        rows.into_iter().flat_map(move |rows| {
            keys.into_iter().flat_map(move |keys| {
                [1, 4, 64].into_iter().flat_map(move |k| {
                    [16, 64, 80, 128, 144, 256].into_iter().flat_map(move |head_dim| {
                        [(Dtype::Bf16, None), (Dtype::F32, None), (Dtype::Bf16, Some(TILE))]
                            .map(|(dtype, tile)| Work { rows, n_kv_heads: 8, keys, k, head_dim, dtype, tile })
                    })
                })
            })
        })
    }

    /// The keys of a part, as the kernel computes them.
    fn part(plan: &Plan, work: &Work, part: usize) -> std::ops::Range<usize> {
        let unit = work.tile.unwrap_or(plan.tile);
        let units = work.keys.div_ceil(unit);
        let end = |part: usize| (units * part / plan.parts() * unit).min(work.keys);
        end(part)..end(part + 1)
    }

    #[test]
    fn parts_cover_all_keys_once_and_no_split_is_empty() {
        // A100, H100, an Ada card, and one with less of everything.
        for facts in
            [device(108, 163 << 10), device(132, 227 << 10), device(76, 99 << 10), device(4, 99 << 10)]
        {
            for work in works() {
                let plan = Plan::new(&facts, &work).unwrap();
                let mut next = 0;
                for split in 0..plan.splits {
                    let first = next;
                    for team in 0..plan.teams() {
                        let keys = part(&plan, &work, split * plan.teams() + team);
                        assert_eq!(keys.start, next, "{plan:?} {work:?}");
                        next = keys.end;
                    }
                    assert!(next > first, "{plan:?} {work:?}");
                }
                assert_eq!(next, work.keys, "{plan:?} {work:?}");
                assert!(plan.parts() <= MOST_PARTS);
                let rows =
                    plan.row_blocks * 16 * plan.fragments * if plan.share_keys { plan.warps } else { 1 };
                assert!(rows >= work.rows && plan.shared <= facts.shared_per_block, "{plan:?} {work:?}");
                let launch = plan.launch(&work);
                assert!(launch.grid[1] <= 65_535 && launch.grid[2] <= 65_535 && launch.threads <= 1024);
                assert!(plan.tile.is_multiple_of(plan.chunk) && TILE.is_multiple_of(plan.tile));
            }
        }
    }

    #[test]
    fn variants_stand_for_tokens_and_chunks_of_every_length() {
        let all = variants(&[32, 64, 80, 96, 128, 256]);
        assert_eq!(all.len(), 17);
        for (i, variant) in all.iter().enumerate() {
            assert!(!all[..i].contains(variant), "{variant:?}");
        }
    }

    #[test]
    fn one_query_keeps_the_whole_device_busy() {
        let facts = device(132, 227 << 10);
        let of_8b = Work {
            rows: 4,
            n_kv_heads: 8,
            keys: 131_072,
            k: 4,
            head_dim: 128,
            dtype: Dtype::Bf16,
            tile: None,
        };
        let plan = Plan::new(&facts, &of_8b).unwrap();
        let blocks = plan.row_blocks * 8 * plan.splits;
        assert!(blocks > 132 && blocks <= 132 * plan.blocks, "{plan:?}");
        let few = Work { keys: 100, ..of_8b };
        assert_eq!(Plan::new(&facts, &few).unwrap().splits, 1);
        assert_eq!(Plan::new(&facts, &Work { keys: 0, ..of_8b }).unwrap().splits, 0);
    }

    #[test]
    fn no_other_number_of_splits_would_end_much_sooner() {
        let facts = device(132, 227 << 10);
        for work in works().filter(|work| work.k == 4) {
            let plan = Plan::new(&facts, &work).unwrap();
            let keys_in_turn = |splits: usize| {
                let waves = (plan.row_blocks * 8 * splits).div_ceil(132 * plan.blocks);
                waves * (work.keys.div_ceil(splits * plan.teams()) + 512)
            };
            let best = (1..=MOST_PARTS / plan.teams()).map(keys_in_turn).min().unwrap();
            let slack = plan.tile.max(work.tile.unwrap_or(0)) * 16;
            assert!(keys_in_turn(plan.splits) <= best + best / 16 + slack, "{plan:?} {work:?}");
        }
    }

    #[test]
    fn voters_stand_a_stride_apart() {
        assert_eq!(Voters::ALL.count(7), 7);
        let every_fourth = Voters { first: 2, stride: 4 };
        assert_eq!([0, 2, 3, 6, 7, 10].map(|q_len| every_fourth.count(q_len)), [0, 0, 1, 1, 2, 2]);
    }
}
