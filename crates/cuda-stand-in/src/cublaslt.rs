//! cuBLASLt: products as their descriptors say, by plain loops.

use crate::state::{current, new_handle, state};
use cudarc::cublaslt::sys as lt;
use half::{bf16, f16};
use lt::cublasLtMatmulDescAttributes_t as DescAttribute;
use lt::cublasLtMatmulPreferenceAttributes_t as PreferenceAttribute;
use lt::cublasStatus_t as Status;
use lt::cudaDataType_t as DataType;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{c_int, c_void};

/// Memory that the one algorithm needs where it may have it, in bytes.
const WORKSPACE: u64 = 1 << 20;
/// What an algorithm of ours carries.
const ALGORITHM: u64 = 0x57a2_d1b0;

/// All that was created and not destroyed.
#[derive(Default)]
pub(crate) struct Descriptors {
    handles: BTreeSet<usize>,
    operations: BTreeMap<usize, Operation>,
    layouts: BTreeMap<usize, Layout>,
    preferences: BTreeMap<usize, Preference>,
}

#[derive(Clone, Copy)]
struct Operation {
    sums: lt::cublasComputeType_t,
    scale: DataType,
    transposed: [bool; 2],
}

/// Of a matrix by columns: element `(row, column)` is number `column · ld + row`.
#[derive(Clone, Copy, PartialEq)]
struct Layout {
    element: DataType,
    rows: u64,
    columns: u64,
    ld: i64,
}

#[derive(Clone, Copy)]
struct Preference {
    workspace: u64,
    /// Boundaries that A, B, C and D stand on, in bytes.
    alignment: [u32; 4],
}

type Answer<T = ()> = Result<T, Status>;

fn code(answer: Answer) -> Status {
    match answer {
        Ok(()) => Status::CUBLAS_STATUS_SUCCESS,
        Err(status) => status,
    }
}

fn check(holds: bool) -> Answer {
    if holds { Ok(()) } else { Err(Status::CUBLAS_STATUS_INVALID_VALUE) }
}

fn give<T>(to: *mut *mut T, put: impl FnOnce(&mut Descriptors, usize)) -> Status {
    code(check(!to.is_null()).map(|()| {
        let handle = new_handle();
        put(&mut state().descriptors, handle);
        // SAFETY: the caller has room for the handle.
        unsafe { to.write(handle as *mut T) };
    }))
}

/// A value of an attribute, which has exactly the size of its type.
///
/// # Safety
/// `buffer` is null or has `size` bytes.
unsafe fn value<T: Copy>(buffer: *const c_void, size: usize) -> Answer<T> {
    check(!buffer.is_null() && size == size_of::<T>())?;
    // SAFETY: promised by the caller; the types asked for have any bit pattern.
    Ok(unsafe { buffer.cast::<T>().read_unaligned() })
}

fn found<T: Copy, P>(map: &BTreeMap<usize, T>, handle: *const P) -> Answer<T> {
    map.get(&(handle as usize)).copied().ok_or(Status::CUBLAS_STATUS_INVALID_VALUE)
}

/// cuBLASLt: needs a device.
#[unsafe(no_mangle)]
unsafe extern "C" fn cublasLtCreate(handle: *mut lt::cublasLtHandle_t) -> Status {
    if current(&mut state()).is_err() {
        return Status::CUBLAS_STATUS_NOT_INITIALIZED;
    }
    give(handle, |d, handle| {
        d.handles.insert(handle);
    })
}

/// cuBLASLt.
#[unsafe(no_mangle)]
unsafe extern "C" fn cublasLtDestroy(handle: lt::cublasLtHandle_t) -> Status {
    let known = state().descriptors.handles.remove(&(handle as usize));
    if known { Status::CUBLAS_STATUS_SUCCESS } else { Status::CUBLAS_STATUS_NOT_INITIALIZED }
}

/// cuBLASLt: no matrix is transposed until it is said.
#[unsafe(no_mangle)]
unsafe extern "C" fn cublasLtMatmulDescCreate(
    operation: *mut lt::cublasLtMatmulDesc_t,
    sums: lt::cublasComputeType_t,
    scale: DataType,
) -> Status {
    let new = Operation { sums, scale, transposed: [false; 2] };
    give(operation, |d, handle| {
        d.operations.insert(handle, new);
    })
}

/// cuBLASLt.
#[unsafe(no_mangle)]
unsafe extern "C" fn cublasLtMatmulDescDestroy(operation: lt::cublasLtMatmulDesc_t) -> Status {
    code(check(state().descriptors.operations.remove(&(operation as usize)).is_some()))
}

/// cuBLASLt, for transposition: `CUBLAS_OP_N` (0) and `CUBLAS_OP_T` (1).
#[unsafe(no_mangle)]
unsafe extern "C" fn cublasLtMatmulDescSetAttribute(
    operation: lt::cublasLtMatmulDesc_t,
    attribute: DescAttribute,
    buffer: *const c_void,
    size: usize,
) -> Status {
    let set = || {
        let mut state = state();
        let operation = state.descriptors.operations.get_mut(&(operation as usize));
        let operation = operation.ok_or(Status::CUBLAS_STATUS_INVALID_VALUE)?;
        let which = match attribute {
            DescAttribute::CUBLASLT_MATMUL_DESC_TRANSA => 0,
            DescAttribute::CUBLASLT_MATMUL_DESC_TRANSB => 1,
            _ => return Err(Status::CUBLAS_STATUS_NOT_SUPPORTED),
        };
        // SAFETY: the caller's promise.
        let how: i32 = unsafe { value(buffer, size)? };
        check((0..=1).contains(&how))?;
        operation.transposed[which] = how == 1;
        Ok(())
    };
    code(set())
}

/// cuBLASLt.
#[unsafe(no_mangle)]
unsafe extern "C" fn cublasLtMatrixLayoutCreate(
    layout: *mut lt::cublasLtMatrixLayout_t,
    element: DataType,
    rows: u64,
    columns: u64,
    ld: i64,
) -> Status {
    let new = Layout { element, rows, columns, ld };
    give(layout, |d, handle| {
        d.layouts.insert(handle, new);
    })
}

/// cuBLASLt.
#[unsafe(no_mangle)]
unsafe extern "C" fn cublasLtMatrixLayoutDestroy(layout: lt::cublasLtMatrixLayout_t) -> Status {
    code(check(state().descriptors.layouts.remove(&(layout as usize)).is_some()))
}

/// cuBLASLt: no workspace and boundaries of 256 bytes until others are said.
#[unsafe(no_mangle)]
unsafe extern "C" fn cublasLtMatmulPreferenceCreate(
    preference: *mut lt::cublasLtMatmulPreference_t,
) -> Status {
    let new = Preference { workspace: 0, alignment: [256; 4] };
    give(preference, |d, handle| {
        d.preferences.insert(handle, new);
    })
}

/// cuBLASLt.
#[unsafe(no_mangle)]
unsafe extern "C" fn cublasLtMatmulPreferenceDestroy(preference: lt::cublasLtMatmulPreference_t) -> Status {
    code(check(state().descriptors.preferences.remove(&(preference as usize)).is_some()))
}

/// cuBLASLt, for workspace and boundaries.
#[unsafe(no_mangle)]
unsafe extern "C" fn cublasLtMatmulPreferenceSetAttribute(
    preference: lt::cublasLtMatmulPreference_t,
    attribute: PreferenceAttribute,
    buffer: *const c_void,
    size: usize,
) -> Status {
    let set = || {
        let mut state = state();
        let preference = state.descriptors.preferences.get_mut(&(preference as usize));
        let preference = preference.ok_or(Status::CUBLAS_STATUS_INVALID_VALUE)?;
        let which = match attribute {
            PreferenceAttribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES => {
                // SAFETY: the caller's promise.
                preference.workspace = unsafe { value(buffer, size)? };
                return Ok(());
            }
            PreferenceAttribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES => 0,
            PreferenceAttribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES => 1,
            PreferenceAttribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES => 2,
            PreferenceAttribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES => 3,
            _ => return Err(Status::CUBLAS_STATUS_NOT_SUPPORTED),
        };
        // SAFETY: the caller's promise.
        preference.alignment[which] = unsafe { value(buffer, size)? };
        Ok(())
    };
    code(set())
}

/// What is multiplied: `D = alpha · op(A) · op(B) + beta · C`, `op(A): [m, k]`, `op(B): [k, n]`.
#[derive(Clone, Copy)]
struct Problem {
    operation: Operation,
    /// A, B, C and D.
    layouts: [Layout; 4],
    m: usize,
    n: usize,
    k: usize,
}

impl Problem {
    fn new(
        descriptors: &Descriptors,
        operation: lt::cublasLtMatmulDesc_t,
        layouts: [lt::cublasLtMatrixLayout_t; 4],
    ) -> Answer<Self> {
        let operation = found(&descriptors.operations, operation)?;
        let mut all = [Layout { element: DataType::CUDA_R_32F, rows: 0, columns: 0, ld: 0 }; 4];
        for (to, handle) in all.iter_mut().zip(layouts) {
            *to = found(&descriptors.layouts, handle)?;
        }
        let turned = |layout: Layout, turn: bool| {
            if turn { (layout.columns, layout.rows) } else { (layout.rows, layout.columns) }
        };
        let [a, b, c, d] = all;
        let ((m, k), (k_b, n)) = (turned(a, operation.transposed[0]), turned(b, operation.transposed[1]));
        check(k == k_b && (d.rows, d.columns) == (m, n) && (c.rows, c.columns) == (m, n))?;
        check(all.iter().all(|x| x.rows > 0 && x.columns > 0 && x.ld >= x.rows as i64))?;
        // The table of types of `cublasLtMatmul`, where sums are in f32.
        let inputs = [DataType::CUDA_R_16BF, DataType::CUDA_R_16F, DataType::CUDA_R_32F];
        let supported = operation.sums == lt::cublasComputeType_t::CUBLAS_COMPUTE_32F
            && operation.scale == DataType::CUDA_R_32F
            && inputs.contains(&a.element)
            && a.element == b.element
            && c.element == d.element
            && (d.element == DataType::CUDA_R_32F || d.element == a.element);
        if !supported {
            return Err(Status::CUBLAS_STATUS_NOT_SUPPORTED);
        }
        Ok(Self { operation, layouts: all, m: m as usize, n: n as usize, k: k as usize })
    }
}

impl Layout {
    fn element_bytes(&self) -> usize {
        if self.element == DataType::CUDA_R_32F { 4 } else { 2 }
    }

    /// From the first element to the end of the last.
    fn bytes(&self) -> usize {
        (self.ld as usize * (self.columns as usize - 1) + self.rows as usize) * self.element_bytes()
    }

    /// # Safety
    /// The matrix stands at `at`.
    unsafe fn get(&self, at: u64, row: usize, column: usize) -> f64 {
        let i = column * self.ld as usize + row;
        // SAFETY: promised by the caller.
        unsafe {
            match self.element {
                DataType::CUDA_R_16BF => f64::from((*(at as *const bf16).add(i)).to_f32()),
                DataType::CUDA_R_16F => f64::from((*(at as *const f16).add(i)).to_f32()),
                _ => f64::from(*(at as *const f32).add(i)),
            }
        }
    }

    /// # Safety
    /// As for [`Self::get`].
    unsafe fn set(&self, at: u64, row: usize, column: usize, value: f32) {
        let i = column * self.ld as usize + row;
        // SAFETY: promised by the caller.
        unsafe {
            match self.element {
                DataType::CUDA_R_16BF => *(at as *mut bf16).add(i) = bf16::from_f32(value),
                DataType::CUDA_R_16F => *(at as *mut f16).add(i) = f16::from_f32(value),
                _ => *(at as *mut f32).add(i) = value,
            }
        }
    }
}

/// cuBLASLt: the one algorithm counts on the boundaries and the workspace that the preference names.
#[unsafe(no_mangle)]
unsafe extern "C" fn cublasLtMatmulAlgoGetHeuristic(
    handle: lt::cublasLtHandle_t,
    operation: lt::cublasLtMatmulDesc_t,
    a: lt::cublasLtMatrixLayout_t,
    b: lt::cublasLtMatrixLayout_t,
    c: lt::cublasLtMatrixLayout_t,
    d: lt::cublasLtMatrixLayout_t,
    preference: lt::cublasLtMatmulPreference_t,
    wanted: c_int,
    results: *mut lt::cublasLtMatmulHeuristicResult_t,
    n: *mut c_int,
) -> Status {
    let state = state();
    let descriptors = &state.descriptors;
    if !descriptors.handles.contains(&(handle as usize)) {
        return Status::CUBLAS_STATUS_NOT_INITIALIZED;
    }
    let answer = || {
        check(wanted > 0 && !results.is_null() && !n.is_null())?;
        let problem = Problem::new(descriptors, operation, [a, b, c, d])?;
        let preference = found(&descriptors.preferences, preference)?;
        let aligned = |(layout, boundary): (&Layout, &u32)| {
            boundary.is_power_of_two() && *boundary as usize >= layout.element_bytes()
        };
        check(problem.layouts.iter().zip(&preference.alignment).all(aligned))?;
        let workspace = WORKSPACE.min(preference.workspace);
        let mut data = [0; 8];
        (data[0], data[1]) = (ALGORITHM, workspace);
        for (to, boundary) in data[2..].iter_mut().zip(preference.alignment) {
            *to = u64::from(boundary);
        }
        let result = lt::cublasLtMatmulHeuristicResult_t {
            algo: lt::cublasLtMatmulAlgo_t { data },
            workspaceSize: workspace as usize,
            state: Status::CUBLAS_STATUS_SUCCESS,
            wavesCount: 1.0,
            reserved: [0; 4],
        };
        // SAFETY: the caller has room for one result at the least.
        unsafe {
            results.write(result);
            n.write(1);
        }
        Ok(())
    };
    code(answer())
}

/// cuBLASLt: factors are read at once, all else when somebody waits for it.
#[unsafe(no_mangle)]
unsafe extern "C" fn cublasLtMatmul(
    handle: lt::cublasLtHandle_t,
    operation: lt::cublasLtMatmulDesc_t,
    alpha: *const c_void,
    a: *const c_void,
    a_layout: lt::cublasLtMatrixLayout_t,
    b: *const c_void,
    b_layout: lt::cublasLtMatrixLayout_t,
    beta: *const c_void,
    c: *const c_void,
    c_layout: lt::cublasLtMatrixLayout_t,
    d: *mut c_void,
    d_layout: lt::cublasLtMatrixLayout_t,
    algorithm: *const lt::cublasLtMatmulAlgo_t,
    workspace: *mut c_void,
    workspace_bytes: usize,
    stream: lt::cudaStream_t,
) -> Status {
    let mut state = state();
    if !state.descriptors.handles.contains(&(handle as usize)) {
        return Status::CUBLAS_STATUS_NOT_INITIALIZED;
    }
    let mut multiply = || {
        let problem = Problem::new(&state.descriptors, operation, [a_layout, b_layout, c_layout, d_layout])?;
        check(!alpha.is_null() && !beta.is_null() && !algorithm.is_null())?;
        let matrices = [a as u64, b as u64, c as u64, d as u64];
        // SAFETY: the caller's promise: factors have the type of the scale, which is f32.
        let (factors, data) =
            unsafe { ((alpha.cast::<f32>().read(), beta.cast::<f32>().read()), (*algorithm).data) };
        check(data[0] == ALGORITHM && workspace_bytes as u64 >= data[1])?;
        check(matrices.iter().zip(&data[2..]).all(|(at, boundary)| at.is_multiple_of(*boundary)))?;
        // In place, C is read as D is written.
        check(c != d.cast_const() || problem.layouts[2] == problem.layouts[3])?;
        let needed = data[1] as usize;
        let context = current(&mut state).map_err(|_| Status::CUBLAS_STATUS_EXECUTION_FAILED)?;
        let scratch = workspace as u64;
        check(needed == 0 || scratch.is_multiple_of(256) && context.memory.is_taken(scratch, needed))?;
        let taken = |(at, layout): (&u64, &Layout)| context.memory.is_taken(*at, layout.bytes());
        let all_taken = matrices.iter().zip(&problem.layouts).all(taken);
        let queued = context.push_run(stream as usize, move |_| {
            if !all_taken {
                return Err("a matrix points to nothing that is taken".into());
            }
            // SAFETY: the ranges were taken when the call came, and nothing before in the stream gives them back.
            unsafe {
                (scratch as *mut u8).write_bytes(0xa5, needed);
                product(&problem, matrices, factors);
            }
            Ok(())
        });
        queued.map_err(|_| Status::CUBLAS_STATUS_EXECUTION_FAILED)
    };
    code(multiply())
}

/// # Safety
/// The matrices are there.
unsafe fn product(problem: &Problem, matrices: [u64; 4], (alpha, beta): (f32, f32)) {
    let Problem { operation: Operation { transposed, .. }, layouts, m, n, k } = *problem;
    for column in 0..n {
        for row in 0..m {
            // SAFETY: promised by the caller; all indices lie within the layouts.
            unsafe {
                let element = |of: usize, row, column| {
                    let (row, column) = if transposed[of] { (column, row) } else { (row, column) };
                    layouts[of].get(matrices[of], row, column)
                };
                let sum: f64 = (0..k).map(|i| element(0, row, i) * element(1, i, column)).sum();
                let mut value = f64::from(alpha) * sum;
                if beta != 0.0 {
                    value += f64::from(beta) * layouts[2].get(matrices[2], row, column);
                }
                layouts[3].set(matrices[3], row, column, value as f32);
            }
        }
    }
}
