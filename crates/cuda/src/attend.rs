//! Softmax attention over segments of cached keys.

use crate::driver::{Arg, Block, CudaError, Driver, Dtype, Launch, Module, Span};
use crate::paged::{Cached, Rows};
use crate::segments::{Views, with_segments};
use std::sync::Arc;

/// Its kernels.
pub const MODULE: Module = Module { name: "attend", text: with_segments!("attend.cu") };

/// Sets of macros that stand for all: few, some and many rows of cached bf16, and of f32 and halves what differs most.
pub fn variants(head_dims: &[usize]) -> Vec<Vec<(&'static str, i64)>> {
    let of = |dtype, rows: &'static [usize], head_dims: &[usize]| -> Vec<_> {
        let shape = |rows, head_dim| Shape { rows, n_kv_heads: 8, head_dim, dtype, lists: vec![vec![0; 3]] };
        let plans = head_dims
            .iter()
            .flat_map(|&dim| rows.iter().map(move |&rows| plan(&shape(rows, dim), 227 << 10)));
        plans.flatten().map(|plan| plan.defines.to_vec()).collect()
    };
    let ends: Vec<usize> =
        head_dims.iter().min().into_iter().chain(head_dims.iter().max()).copied().collect();
    [
        of(Dtype::Bf16, &[1, 64, 512], head_dims),
        of(Dtype::F32, &[1, 64], &ends),
        of(Dtype::F16, &[512], &ends),
    ]
    .concat()
}

/// Blocks that fill a large device twice over. The same number for every device, so that results are the same on all.
const BLOCKS: usize = 264;

/// Tiles of keys below which a split would mostly set out and come back.
const LEAST_TILES: usize = 2;

/// `MERGERS` of the kernel.
const MERGERS: usize = 4;

/// Splits at most: the merge goes over all of them.
const MOST_SPLITS: usize = 256;

/// Softmax attention over segments, as `Backend::attend` of `reattention-kernels` says.
///
/// `out: [q_len, n_heads, head_dim]` is overwritten, and so is `lse: [q_len, n_heads]`; both f32. Queries, output and
/// log-sum-exp start on boundaries of 16 bytes. Rotated keys, rotated queries and weights are rounded to the type of the
/// cached keys, sums are in f32. Results depend on the shape of the call, not on the device.
///
/// # Errors
/// When the device fails, or no kernel serves the shape.
///
/// # Panics
/// If shapes do not fit together.
pub fn attend(
    driver: &Arc<dyn Driver>,
    q: &Rows,
    kv: &Cached,
    views: &Views,
    scale: f32,
    out: Span,
    lse: Option<Span>,
) -> Result<(), CudaError> {
    assert!(
        q.head_dim == kv.head_dim && q.n_heads.is_multiple_of(kv.n_kv_heads),
        "attend: {} query heads of {}, {} KV heads of {}",
        q.n_heads,
        q.head_dim,
        kv.n_kv_heads,
        kv.head_dim
    );
    if q.q_len == 0 {
        return Ok(());
    }
    let group = q.n_heads / kv.n_kv_heads;
    views.check(kv);
    let shape = Shape {
        rows: q.q_len * group,
        n_kv_heads: kv.n_kv_heads,
        head_dim: kv.head_dim,
        dtype: kv.dtype,
        lists: views.lists().iter().map(|list| list.iter().map(|s| s.keys.capacity()).collect()).collect(),
    };
    let plan = plan(&shape, driver.facts().shared_per_block)?;
    let Plan { tile, defines, shared, row_blocks, splits } = plan;

    let all_rows = q.q_len * q.n_heads;
    let floats = if splits == 1 { 0 } else { splits * all_rows };
    let scratch = Block::new(driver, 4 * floats * (2 + q.head_dim))?;
    let part =
        |of: usize| Arg::Pointer(if splits == 1 { 0 } else { scratch.at() + (4 * floats * of) as u64 });
    let (split_max, split_sum, split_out) = (part(0), part(1), part(2));
    let out = out.arg(driver, all_rows * q.head_dim, size_of::<f32>())?;
    let lse = lse.map_or(Ok(Arg::Pointer(0)), |lse| lse.arg(driver, all_rows, size_of::<f32>()))?;
    let [entries, starts] = views.args(driver)?;
    let kernel = driver.function(&MODULE, &defines, "attend")?;
    let launch = Launch {
        grid: [row_blocks as u32, kv.n_kv_heads as u32, splits as u32],
        threads: (32 * tile.warps) as u32,
        shared: shared as u32,
    };
    let args = [
        q.arg(driver)?,
        kv.arg(driver)?,
        entries,
        starts,
        Arg::Int(views.lists().len() as i32),
        Arg::Int(q.q_len as i32),
        Arg::Int(q.n_heads as i32),
        Arg::Int(group as i32),
        Arg::Int(q.first as i32),
        Arg::Float(scale),
        out,
        lse,
        split_max,
        split_sum,
        split_out,
    ];
    // SAFETY: the arguments are those of the kernel; queries, pages, segments and results have been checked to be as long, and
    // the scratch memory holds a maximum, a sum and a row for each row of each split.
    unsafe { driver.launch(kernel, launch, &args)? };
    if splits > 1 {
        let kernel = driver.function(&MODULE, &defines, "merge_splits")?;
        let threads = (MERGERS * q.head_dim.next_multiple_of(32)) as u32;
        let launch = Launch { grid: [all_rows as u32, 1, 1], threads, shared: 0 };
        let args = [split_max, split_sum, split_out, Arg::Int(splits as i32), out, lse];
        // SAFETY: as above; the grid has a block for every row.
        unsafe { driver.launch(kernel, launch, &args)? };
    }
    Ok(())
}

/// What a call asks for.
#[derive(Clone, Debug)]
struct Shape {
    /// Query rows of a KV head: tokens times heads of the group.
    rows: usize,
    n_kv_heads: usize,
    head_dim: usize,
    dtype: Dtype,
    /// Keys at most, by list and segment.
    lists: Vec<Vec<usize>>,
}

impl Shape {
    /// Segments of the longest list.
    fn segments(&self) -> usize {
        self.lists.iter().map(Vec::len).max().unwrap_or(0)
    }
}

/// How the kernel is cut: its macros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tile {
    rows: usize,
    keys: usize,
    warps: usize,
    row_tiles: usize,
    stages: usize,
}

/// How a call is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Plan {
    tile: Tile,
    defines: [(&'static str, i64); 7],
    /// Dynamic shared memory of a block, in bytes.
    shared: usize,
    row_blocks: usize,
    splits: usize,
}

/// For at most 16 rows: the warps share out the keys of a tile.
const FEW_ROWS: &[Tile] = &[
    Tile { rows: 16, keys: 64, warps: 4, row_tiles: 1, stages: 3 },
    Tile { rows: 16, keys: 64, warps: 4, row_tiles: 1, stages: 2 },
    Tile { rows: 16, keys: 32, warps: 2, row_tiles: 1, stages: 2 },
    Tile { rows: 16, keys: 16, warps: 1, row_tiles: 1, stages: 2 },
];
/// For at most 64 rows, and where more do not fit.
const SOME_ROWS: &[Tile] = &[
    Tile { rows: 64, keys: 64, warps: 4, row_tiles: 1, stages: 2 },
    Tile { rows: 64, keys: 32, warps: 4, row_tiles: 1, stages: 2 },
    Tile { rows: 64, keys: 16, warps: 4, row_tiles: 1, stages: 2 },
];
/// For more rows: each key that a warp reads from shared memory is used twice.
const MANY_ROWS: &[Tile] = &[
    Tile { rows: 128, keys: 64, warps: 4, row_tiles: 2, stages: 2 },
    Tile { rows: 128, keys: 32, warps: 4, row_tiles: 2, stages: 2 },
];
/// Head dimensions up to which a thread has registers for [`MANY_ROWS`].
const MANY_ROWS_DIM: usize = 128;

impl Tile {
    fn defines(self, dtype: Dtype, head_dim: usize) -> [(&'static str, i64); 7] {
        [
            ("ELEMENT", dtype.element()),
            ("HEAD_DIM", head_dim as i64),
            ("ROWS", self.rows as i64),
            ("KEYS", self.keys as i64),
            ("WARPS", self.warps as i64),
            ("ROW_TILES", self.row_tiles as i64),
            ("STAGES", self.stages as i64),
        ]
    }

    /// Bytes of shared memory: `Memory` of the kernel, or what the warps merge in when that is over.
    fn shared(self, shape: &Shape) -> usize {
        let row = shape.head_dim * shape.dtype.bytes() + 16;
        let streams = self.rows * row
            + self.stages * 2 * self.keys * row
            + (self.stages + 1) * self.keys * (8 + 4)
            + (shape.segments() + 1) * 12;
        let key_warps = self.warps * 16 * self.row_tiles / self.rows;
        let merge = key_warps * self.rows * (2 + shape.head_dim + 8) * 4;
        if key_warps > 1 { streams.max(merge) } else { streams }
    }
}

fn plan(shape: &Shape, shared_per_block: usize) -> Result<Plan, CudaError> {
    let Shape { rows, n_kv_heads, head_dim, .. } = *shape;
    let unsupported = |what| Err(CudaError::Unsupported { what });
    if !(16..=256).contains(&head_dim) || !head_dim.is_multiple_of(16) {
        return unsupported(format!("heads of {head_dim} elements (multiples of 16 up to 256)"));
    }
    let many =
        if rows > 64 && head_dim <= MANY_ROWS_DIM && shape.dtype.bytes() == 2 { MANY_ROWS } else { &[] };
    let tiles =
        || if rows <= 16 { FEW_ROWS } else { many }.iter().chain(if rows > 16 { SOME_ROWS } else { &[] });
    // Two blocks on a multiprocessor: one computes while the other waits.
    let fits = |limit: usize| tiles().copied().find(|tile| tile.shared(shape) <= limit);
    let Some(tile) = fits(shared_per_block / 2).or_else(|| fits(shared_per_block)) else {
        return unsupported(format!(
            "heads of {head_dim} elements and {} segments in {shared_per_block} bytes of shared memory",
            shape.segments()
        ));
    };
    let row_blocks = rows.div_ceil(tile.rows);
    let key_tiles = shape
        .lists
        .iter()
        .map(|list| list.iter().map(|keys| keys.div_ceil(tile.keys)).sum())
        .max()
        .unwrap_or(0);
    let splits = (BLOCKS / (row_blocks * n_kv_heads)).min(key_tiles / LEAST_TILES).clamp(1, MOST_SPLITS);
    Ok(Plan {
        tile,
        defines: tile.defines(shape.dtype, head_dim),
        shared: tile.shared(shape),
        row_blocks,
        splits,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARED: usize = 227 * 1024;

    fn shape(rows: usize, head_dim: usize, dtype: Dtype, keys: usize) -> Shape {
        Shape { rows, n_kv_heads: 8, head_dim, dtype, lists: vec![vec![keys]] }
    }

    #[test]
    fn every_shape_has_a_tile_that_covers_its_rows_and_fits() {
        for head_dim in (16..=256).step_by(16) {
            for dtype in [Dtype::Bf16, Dtype::F16, Dtype::F32] {
                for rows in [1, 16, 17, 64, 65, 4096] {
                    // The least that a device of compute capability 8 offers, and an H100.
                    for shared in [99 * 1024, SHARED] {
                        if shared < SHARED && dtype == Dtype::F32 && head_dim > 128 {
                            continue;
                        }
                        let shape = shape(rows, head_dim, dtype, 100_000);
                        let plan = plan(&shape, shared).unwrap();
                        let Tile { rows: tile_rows, keys, warps, row_tiles, .. } = plan.tile;
                        assert!(plan.shared <= shared, "{plan:?}");
                        assert!(
                            plan.row_blocks * tile_rows >= rows && (plan.row_blocks - 1) * tile_rows < rows
                        );
                        let row_warps = tile_rows / (16 * row_tiles);
                        assert_eq!(warps % row_warps, 0);
                        // Each warp has whole steps of 16 keys, and a thread for every place of a tile and every row.
                        assert_eq!(keys % (16 * (warps / row_warps)), 0, "{plan:?}");
                        assert!(keys <= 32 * warps && tile_rows <= 32 * warps, "{plan:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn few_rows_are_split_until_a_device_is_full() {
        let splits = |rows, keys| plan(&shape(rows, 128, Dtype::Bf16, keys), SHARED).unwrap().splits;
        assert_eq!(splits(4, 1_000_000), BLOCKS / 8);
        assert_eq!(splits(4, 8192), BLOCKS / 8);
        assert_eq!(splits(4, 640), 5);
        assert_eq!(splits(4, 0), 1);
        assert_eq!(splits(4 * 512, 1_000_000), BLOCKS / (8 * 16));
        assert_eq!(splits(4 * 4096, 1_000_000), 1);
        let alone = Shape { n_kv_heads: 1, ..shape(1, 64, Dtype::Bf16, 16_000_000) };
        assert_eq!(plan(&alone, SHARED).unwrap().splits, MOST_SPLITS);
    }

    #[test]
    fn shapes_that_no_kernel_serves_are_refused() {
        for head_dim in [8, 24, 272] {
            assert!(matches!(
                plan(&shape(1, head_dim, Dtype::Bf16, 100), SHARED),
                Err(CudaError::Unsupported { .. })
            ));
        }
        let many = Shape { lists: vec![vec![1; 100_000]], ..shape(1, 64, Dtype::Bf16, 100) };
        assert!(matches!(plan(&many, SHARED), Err(CudaError::Unsupported { .. })));
    }
}
