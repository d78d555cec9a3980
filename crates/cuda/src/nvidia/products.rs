//! Dense products by cuBLASLt.
//!
//! It is taken under the first of these names that the system finds: `libcublasLt.so`, `libcublasLt.so.13`, `.12`, `.11`
//! (`cublasLt64_13.dll` on Windows).

use super::libraries;
use super::queue::Queue;
use crate::driver::{Address, CudaError, Dtype, Product};
use cudarc::cublaslt::sys as lt;
use lt::cublasLtMatmulDescAttributes_t as DescAttribute;
use lt::cublasLtMatmulPreferenceAttributes_t as PreferenceAttribute;
use std::collections::HashMap;
use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::Arc;

/// Memory that algorithms may use; NVIDIA's advice for Hopper and later.
const WORKSPACE: usize = 32 << 20;

/// Shapes whose algorithms are remembered: those of a model's matrices at a few row counts, with room to spare.
const REMEMBERED: usize = 1024;

/// Multiplies on one queue.
#[derive(Debug)]
pub(super) struct Products {
    queue: Arc<Queue>,
    handle: lt::cublasLtHandle_t,
    workspace: Address,
    plans: HashMap<Shape, Plan>,
}

// SAFETY: handles and descriptors may be used from every thread, by one at a time.
unsafe impl Send for Products {}

/// All that the choice of an algorithm depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Shape {
    rows: usize,
    inputs: usize,
    outputs: usize,
    dtype: Dtype,
    /// Boundaries that `w`, `x` and `y` stand on, in bytes.
    alignment: [u32; 3],
}

impl Products {
    pub(super) fn new(queue: &Arc<Queue>) -> Result<Self, CudaError> {
        libraries::cublaslt()?;
        queue.bind()?;
        let mut handle = null_mut();
        // SAFETY: the result is written to a variable; the context is bound.
        check("cublasLtCreate", unsafe { lt::cublasLtCreate(&mut handle) })?;
        // From here on, Drop gives back what was taken.
        let mut products = Self { queue: Arc::clone(queue), handle, workspace: 0, plans: HashMap::new() };
        products.workspace = queue.alloc(WORKSPACE)?;
        Ok(products)
    }

    /// # Safety
    /// The matrices are taken and have the shapes announced.
    pub(super) unsafe fn multiply(&mut self, product: &Product) -> Result<(), CudaError> {
        let Product { rows, inputs, outputs, dtype, x, w, y } = *product;
        let shape = Shape { rows, inputs, outputs, dtype, alignment: [w, x, y].map(alignment) };
        if self.plans.len() >= REMEMBERED && !self.plans.contains_key(&shape) {
            self.plans.clear();
        }
        self.queue.bind()?;
        let plan = match self.plans.entry(shape) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => entry.insert(Plan::new(self.handle, &shape)?),
        };
        let (one, zero) = (1f32, 0f32);
        // SAFETY: the caller promises the matrices; handle, descriptors and workspace live, and the workspace is used by work
        // of this stream alone, which runs one after another. With a factor of zero the old content of `y` is not read.
        let status = unsafe {
            lt::cublasLtMatmul(
                self.handle,
                plan.operation.0,
                (&raw const one).cast(),
                w as *const c_void,
                plan.w.0,
                x as *const c_void,
                plan.x.0,
                (&raw const zero).cast(),
                y as *const c_void,
                plan.y.0,
                y as *mut c_void,
                plan.y.0,
                &plan.algorithm,
                self.workspace as *mut c_void,
                WORKSPACE,
                self.queue.stream().cast(),
            )
        };
        check("cublasLtMatmul", status)
    }
}

impl Drop for Products {
    fn drop(&mut self) {
        self.plans.clear();
        // SAFETY: both were taken by `new`; work that uses them comes before on the stream, and destroying the handle waits.
        unsafe {
            let _ = self.queue.wait();
            lt::cublasLtDestroy(self.handle);
            if self.workspace != 0 {
                self.queue.free(self.workspace);
            }
        }
    }
}

/// How one shape is multiplied.
///
/// cuBLASLt counts in columns: row-major `x: [rows, inputs]` is its matrix of `inputs` rows and `rows` columns. So
/// `y = x · wᵀ`, `[rows, outputs]` by rows, is `yᵀ = w · xᵀ`: the transpose of what it sees in `w`, times what it sees in `x`.
#[derive(Debug)]
struct Plan {
    operation: Operation,
    w: Layout,
    x: Layout,
    y: Layout,
    algorithm: lt::cublasLtMatmulAlgo_t,
}

impl Plan {
    fn new(handle: lt::cublasLtHandle_t, shape: &Shape) -> Result<Self, CudaError> {
        let Shape { rows, inputs, outputs, dtype, alignment } = *shape;
        let element = match dtype {
            Dtype::Bf16 => lt::cudaDataType_t::CUDA_R_16BF,
            Dtype::F16 => lt::cudaDataType_t::CUDA_R_16F,
            Dtype::F32 => lt::cudaDataType_t::CUDA_R_32F,
        };
        let operation = Operation::new()?;
        let w = Layout::new(element, inputs, outputs)?;
        let x = Layout::new(element, inputs, rows)?;
        let y = Layout::new(lt::cudaDataType_t::CUDA_R_32F, outputs, rows)?;
        let preference = Preference::new()?;
        preference.set(PreferenceAttribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, WORKSPACE as u64)?;
        preference.set(PreferenceAttribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment[0])?;
        preference.set(PreferenceAttribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment[1])?;
        preference.set(PreferenceAttribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment[2])?;
        preference.set(PreferenceAttribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment[2])?;

        let mut found = std::mem::MaybeUninit::zeroed();
        let mut n = 0;
        // SAFETY: all descriptors live; one result is asked for, and there is room for one.
        let status = unsafe {
            lt::cublasLtMatmulAlgoGetHeuristic(
                handle,
                operation.0,
                w.0,
                x.0,
                y.0,
                y.0,
                preference.0,
                1,
                found.as_mut_ptr(),
                &mut n,
            )
        };
        let refuse = |reason| CudaError::Call {
            call: "cublasLtMatmulAlgoGetHeuristic",
            reason: format!("{reason} for {shape:?}"),
        };
        if status != lt::cublasStatus_t::CUBLAS_STATUS_SUCCESS {
            return Err(refuse(format!("{status:?}")));
        }
        if n < 1 {
            return Err(refuse("no algorithm".into()));
        }
        // SAFETY: one result was written.
        let found: lt::cublasLtMatmulHeuristicResult_t = unsafe { found.assume_init() };
        if found.state != lt::cublasStatus_t::CUBLAS_STATUS_SUCCESS {
            return Err(refuse(format!("{:?}", found.state)));
        }
        Ok(Self { operation, w, x, y, algorithm: found.algo })
    }
}

/// The largest power of two up to 256 that divides an address.
fn alignment(at: Address) -> u32 {
    1 << at.trailing_zeros().min(8)
}

/// `cublasOperation_t` of cublas_api.h, which bindings of cuBLASLt leave out.
const AS_IT_IS: i32 = 0;
const TRANSPOSED: i32 = 1;

/// What is done with the matrices: sums in f32, the first matrix transposed.
#[derive(Debug)]
struct Operation(lt::cublasLtMatmulDesc_t);

impl Operation {
    fn new() -> Result<Self, CudaError> {
        let mut operation = null_mut();
        // Single precision throughout: this type never rounds f32 inputs to TF32.
        let sums = lt::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        // SAFETY: the result is written to a variable.
        let status =
            unsafe { lt::cublasLtMatmulDescCreate(&mut operation, sums, lt::cudaDataType_t::CUDA_R_32F) };
        check("cublasLtMatmulDescCreate", status)?;
        let operation = Self(operation);
        for (attribute, how) in [
            (DescAttribute::CUBLASLT_MATMUL_DESC_TRANSA, TRANSPOSED),
            (DescAttribute::CUBLASLT_MATMUL_DESC_TRANSB, AS_IT_IS),
        ] {
            // SAFETY: both attributes are a cublasOperation_t, which is 4 bytes and is copied.
            let status = unsafe {
                lt::cublasLtMatmulDescSetAttribute(
                    operation.0,
                    attribute,
                    (&raw const how).cast(),
                    size_of_val(&how),
                )
            };
            check("cublasLtMatmulDescSetAttribute", status)?;
        }
        Ok(operation)
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        // SAFETY: nothing else holds it.
        unsafe { lt::cublasLtMatmulDescDestroy(self.0) };
    }
}

/// A matrix without gaps between its columns.
#[derive(Debug)]
struct Layout(lt::cublasLtMatrixLayout_t);

impl Layout {
    fn new(element: lt::cudaDataType_t, rows: usize, columns: usize) -> Result<Self, CudaError> {
        let mut layout = null_mut();
        // SAFETY: the result is written to a variable.
        let status = unsafe {
            lt::cublasLtMatrixLayoutCreate(&mut layout, element, rows as u64, columns as u64, rows as i64)
        };
        check("cublasLtMatrixLayoutCreate", status).map(|()| Self(layout))
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: nothing else holds it.
        unsafe { lt::cublasLtMatrixLayoutDestroy(self.0) };
    }
}

/// What an algorithm may count on.
struct Preference(lt::cublasLtMatmulPreference_t);

impl Preference {
    fn new() -> Result<Self, CudaError> {
        let mut preference = null_mut();
        // SAFETY: the result is written to a variable.
        let status = unsafe { lt::cublasLtMatmulPreferenceCreate(&mut preference) };
        check("cublasLtMatmulPreferenceCreate", status).map(|()| Self(preference))
    }

    /// `value` has the very type of the attribute: u64 for sizes, u32 for alignments.
    fn set<T: bytemuck::Pod>(&self, attribute: PreferenceAttribute, value: T) -> Result<(), CudaError> {
        // SAFETY: the value is copied; cuBLASLt refuses a size that is not the attribute's.
        let status = unsafe {
            lt::cublasLtMatmulPreferenceSetAttribute(
                self.0,
                attribute,
                (&raw const value).cast(),
                size_of::<T>(),
            )
        };
        check("cublasLtMatmulPreferenceSetAttribute", status)
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: nothing else holds it.
        unsafe { lt::cublasLtMatmulPreferenceDestroy(self.0) };
    }
}

fn check(call: &'static str, status: lt::cublasStatus_t) -> Result<(), CudaError> {
    match status {
        lt::cublasStatus_t::CUBLAS_STATUS_SUCCESS => Ok(()),
        status => Err(CudaError::Call { call, reason: format!("{status:?}") }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alignments_are_those_of_the_address() {
        assert_eq!([0, 256, 4096, 128, 80, 2, 7].map(alignment), [256, 256, 256, 128, 16, 2, 1]);
    }
}
