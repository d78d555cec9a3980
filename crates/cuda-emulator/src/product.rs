//! Dense products, with sums in double precision.

use half::{bf16, f16};
use reattention_cuda::driver::{Dtype, Product};

/// Bytes of an element.
pub(crate) fn size(dtype: Dtype) -> usize {
    match dtype {
        Dtype::Bf16 | Dtype::F16 => 2,
        Dtype::F32 => 4,
    }
}

/// # Safety
/// The matrices are there and have the shapes announced.
pub(crate) unsafe fn multiply(product: &Product) {
    let Product { rows, inputs, outputs, dtype, x, w, y } = *product;
    // SAFETY: promised by the caller; elements of 2 and 4 bytes lie on boundaries that device memory has.
    let (x, w, y) = unsafe {
        (
            floats(x, rows * inputs, dtype),
            floats(w, outputs * inputs, dtype),
            std::slice::from_raw_parts_mut(y as *mut f32, rows * outputs),
        )
    };
    for (x, y) in x.chunks_exact(inputs).zip(y.chunks_exact_mut(outputs)) {
        for (w, y) in w.chunks_exact(inputs).zip(y) {
            *y = dot(x, w) as f32;
        }
    }
}

/// Eight sums, so that the compiler may take as many steps at once.
fn dot(x: &[f32], w: &[f32]) -> f64 {
    let mut sums = [0f64; 8];
    let (x, w) = (x.chunks(8), w.chunks(8));
    for (x, w) in x.zip(w) {
        for (sum, (&x, &w)) in sums.iter_mut().zip(x.iter().zip(w)) {
            *sum += f64::from(x) * f64::from(w);
        }
    }
    sums.iter().sum()
}

/// # Safety
/// `len` elements are there.
unsafe fn floats(at: u64, len: usize, dtype: Dtype) -> Vec<f32> {
    // SAFETY: promised by the caller; half's types have any bit pattern.
    unsafe {
        match dtype {
            Dtype::Bf16 => {
                std::slice::from_raw_parts(at as *const bf16, len).iter().map(|x| x.to_f32()).collect()
            }
            Dtype::F16 => {
                std::slice::from_raw_parts(at as *const f16, len).iter().map(|x| x.to_f32()).collect()
            }
            Dtype::F32 => std::slice::from_raw_parts(at as *const f32, len).to_vec(),
        }
    }
}
