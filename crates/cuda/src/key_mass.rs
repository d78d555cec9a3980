//! The attention that keys get, added up over queries or heads.

use crate::driver::{Arg, Block, CudaError, Driver, Dtype, Launch, Module, Span};
use crate::paged::{Cached, Rows};
use crate::segments::{DeviceKeys, DeviceSegment, Views, with_segments};
use std::sync::Arc;

/// Its kernels.
pub const MODULE: Module = Module { name: "key_mass", text: with_segments!("key_mass.cu") };

fn defines(dtype: Dtype, head_dim: usize) -> [(&'static str, i64); 2] {
    [("ELEMENT", dtype.element()), ("HEAD_DIM", head_dim as i64)]
}

/// Sets of macros, all of them for these head dimensions.
pub fn variants(head_dims: &[usize]) -> Vec<Vec<(&'static str, i64)>> {
    let dtypes = [Dtype::Bf16, Dtype::F16, Dtype::F32];
    dtypes
        .into_iter()
        .flat_map(|dtype| head_dims.iter().map(move |&dim| defines(dtype, dim).to_vec()))
        .collect()
}

/// `MASS_KEYS`, `MASS_THREADS` and `MASS_ROWS` of the kernels.
const KEYS: usize = 32;
const THREADS: u32 = 256;
const ROWS: usize = 16;

/// What [`key_mass`] gives.
#[derive(Debug)]
pub struct Masses {
    /// f32 `[n_heads, stride]`: a number for each key of the head's list, then anything.
    pub data: Block,
    /// Numbers from one head to the next.
    pub stride: usize,
    /// Keys of each query head's list.
    pub lens: Vec<usize>,
}

impl Masses {
    /// On the host: one list a query head.
    ///
    /// # Errors
    /// When the device fails.
    pub fn read(&self) -> Result<Vec<Vec<f32>>, CudaError> {
        let all: Vec<f32> = self.data.read(0, self.lens.len() * self.stride)?;
        Ok(self
            .lens
            .iter()
            .enumerate()
            .map(|(head, len)| all[head * self.stride..][..*len].to_vec())
            .collect())
    }
}

/// The attention that each key of `views` gets from each query head, added up over the queries of the step in their order, as
/// `Backend::key_mass` of `reattention-kernels` says. `lse: [q_len, n_heads]` is what [`crate::attend::attend`] gave.
///
/// Rotated keys and queries stay in f32 here, so the sums of a head differ from the number of its queries by what attention lost
/// in rounding them.
///
/// # Errors
/// When the device fails, or no kernel serves the shape.
///
/// # Panics
/// If shapes do not fit together, or only the device knows how many keys there are.
pub fn key_mass(
    driver: &Arc<dyn Driver>,
    q: &Rows,
    kv: &Cached,
    views: &Views,
    scale: f32,
    lse: Span,
) -> Result<Masses, CudaError> {
    let counted = |s: &DeviceSegment| matches!(s.keys, DeviceKeys::Counted { .. });
    assert!(
        !views.lists().iter().flatten().any(counted),
        "key_mass: the number of keys must be known to the host"
    );
    let call = Call::new(q, kv, views)?;
    let len = |head: usize| views.list(head / call.group).iter().map(|s| s.keys.capacity()).sum();
    let lens: Vec<usize> = (0..q.n_heads).map(len).collect();
    let stride = lens.iter().copied().max().unwrap_or(0);
    let data = Block::new(driver, 4 * q.n_heads * stride)?;
    if stride > 0 && q.q_len == 0 {
        return Ok(Masses { data: Block::zeroed(driver, 4 * q.n_heads * stride)?, stride, lens });
    }
    if stride > 0 {
        let [entries, starts] = views.args(driver)?;
        let args = [
            q.arg(driver)?,
            kv.arg(driver)?,
            entries,
            starts,
            Arg::Int(views.lists().len() as i32),
            Arg::Int(q.q_len as i32),
            Arg::Int(q.n_heads as i32),
            Arg::Int(call.group as i32),
            Arg::Int(q.first as i32),
            Arg::Float(scale),
            lse.arg(driver, q.q_len * q.n_heads, size_of::<f32>())?,
            data.arg(),
            Arg::Long(stride as i64),
        ];
        // SAFETY: the arguments are those of the kernel; queries, pages, segments and `lse` have been checked to be as long, and
        // there is a number for every head and key.
        unsafe { call.launch(driver, "key_mass", kv.n_kv_heads, &args)? };
    }
    Ok(Masses { data, stride, lens })
}

/// Adds to `mass[t]`, for each token t of the one list that all KV heads share, the attention that it gets from all heads of one query, the
/// heads in their order. `mass: [tokens]` in f32 has room for every token of the list, in which each stands at most once;
/// `lse: [n_heads]` is what [`crate::attend::attend`] gave.
///
/// # Errors
/// When the device fails, or no kernel serves the shape.
///
/// # Panics
/// If shapes do not fit together, or there is more than one query or list.
pub fn add_mass_of_tokens(
    driver: &Arc<dyn Driver>,
    q: &Rows,
    kv: &Cached,
    views: &Views,
    scale: f32,
    lse: Span,
    mass: Span,
) -> Result<(), CudaError> {
    assert_eq!(q.q_len, 1, "the mass of tokens is added up over the heads of one query");
    assert_eq!(views.lists().len(), 1, "KV heads that see different tokens have no mass of tokens together");
    let call = Call::new(q, kv, views)?;
    let [entries, starts] = views.args(driver)?;
    let args = [
        q.arg(driver)?,
        kv.arg(driver)?,
        entries,
        starts,
        Arg::Int(kv.n_kv_heads as i32),
        Arg::Int(q.n_heads as i32),
        Arg::Int(call.group as i32),
        Arg::Int(q.first as i32),
        Arg::Float(scale),
        lse.arg(driver, q.n_heads, size_of::<f32>())?,
        mass.arg(driver, views.end(), size_of::<f32>())?,
    ];
    // SAFETY: as in `key_mass`; `mass` has room for the tokens of the list.
    unsafe { call.launch(driver, "add_mass_of_tokens", 1, &args) }
}

/// What both kernels need.
struct Call {
    group: usize,
    head_dim: usize,
    dtype: Dtype,
    /// Tiles of the longest list.
    tiles: usize,
}

impl Call {
    fn new(q: &Rows, kv: &Cached, views: &Views) -> Result<Self, CudaError> {
        let (heads, kv_heads, head_dim) = (q.n_heads, kv.n_kv_heads, kv.head_dim);
        assert!(
            q.head_dim == head_dim && heads.is_multiple_of(kv_heads),
            "key_mass: {heads} query heads of {}, {kv_heads} KV heads of {head_dim}",
            q.head_dim
        );
        if !(16..=256).contains(&head_dim) || !head_dim.is_multiple_of(16) {
            return Err(CudaError::Unsupported {
                what: format!("heads of {head_dim} elements (multiples of 16 up to 256)"),
            });
        }
        views.check(kv);
        let tiles = |list: &Vec<DeviceSegment>| list.iter().map(|s| s.keys.capacity().div_ceil(KEYS)).sum();
        Ok(Self {
            group: heads / kv_heads,
            head_dim,
            dtype: kv.dtype,
            tiles: views.lists().iter().map(tiles).max().unwrap_or(0),
        })
    }

    /// # Safety
    /// As for [`Driver::launch`].
    unsafe fn launch(
        &self,
        driver: &Arc<dyn Driver>,
        name: &'static str,
        heads: usize,
        args: &[Arg],
    ) -> Result<(), CudaError> {
        if self.tiles == 0 {
            return Ok(());
        }
        let defines = defines(self.dtype, self.head_dim);
        let kernel = driver.function(&MODULE, &defines, name)?;
        // `Memory` of the kernels.
        let floats = ROWS * self.head_dim + KEYS * (self.head_dim + 1) + ROWS * KEYS + self.group * KEYS;
        let launch = Launch {
            grid: [self.tiles as u32, heads as u32, 1],
            threads: THREADS,
            shared: 4 * floats as u32,
        };
        // SAFETY: promised by the caller.
        unsafe { driver.launch(kernel, launch, args) }
    }
}
