//! One linear layer, over weights in any type that a matrix holds.

use reattention_kernels::{Backend, Matrix};
use std::sync::Arc;

/// `y = x · wᵀ + bias`, or a table of rows when used as an embedding.
#[derive(Clone, Debug)]
pub struct Linear {
    weight: Arc<Matrix>,
    bias: Option<Arc<[f32]>>,
}

impl Linear {
    /// A layer. Layers whose weights are the same (tied embeddings) share the matrix.
    ///
    /// # Panics
    /// If the bias is not `weight.rows()` long.
    pub fn new(weight: Arc<Matrix>, bias: Option<Vec<f32>>) -> Self {
        assert!(bias.as_ref().is_none_or(|b| b.len() == weight.rows()), "bias length");
        Self { weight, bias: bias.map(Into::into) }
    }

    /// Outputs.
    pub fn rows(&self) -> usize {
        self.weight.rows()
    }

    /// Inputs.
    pub fn cols(&self) -> usize {
        self.weight.cols()
    }

    /// The matrix `[rows, cols]`.
    pub fn weight(&self) -> &Arc<Matrix> {
        &self.weight
    }

    /// Added to every output: `[rows]`.
    pub fn bias(&self) -> Option<&[f32]> {
        self.bias.as_deref()
    }

    /// Memory held, in bytes.
    pub fn bytes(&self) -> usize {
        self.weight.bytes() + self.bias.as_ref().map_or(0, |b| size_of_val(&b[..]))
    }

    /// `y = x · wᵀ + bias` for `x: [rows, self.cols()]`, `y: [rows, self.rows()]` (overwritten).
    ///
    /// # Panics
    /// If the lengths do not fit.
    pub fn forward(&self, backend: &dyn Backend, x: &[f32], rows: usize, y: &mut [f32]) {
        assert_eq!(x.len(), rows * self.cols(), "input length of a linear layer of {} inputs", self.cols());
        assert_eq!(y.len(), rows * self.rows(), "output length of a linear layer of {} outputs", self.rows());
        backend.linear(x, rows, &self.weight, self.bias(), y);
    }

    /// Writes row `row` of the weights to `out: [cols]` in f32, as an embedding looks up a token.
    ///
    /// # Panics
    /// If `row` is out of range or `out` is not `cols` long.
    pub fn copy_row(&self, row: usize, out: &mut [f32]) {
        self.weight.copy_row(row, out);
    }
}
