//! One linear layer, over dense or quantised weights.

use crate::quant::QuantMatrix;
use reattention_kernels::{Backend, Matrix};
use std::sync::Arc;

/// `y = x · wᵀ + bias`, or a table of rows when used as an embedding.
#[derive(Clone, Debug)]
pub struct Linear {
    weight: Weight,
    bias: Option<Arc<[f32]>>,
}

/// A weight matrix `[rows, cols]`, shared where two layers are the same (tied embeddings).
#[derive(Clone, Debug)]
pub enum Weight {
    /// As stored in a dense type.
    Dense(Arc<Matrix>),
    /// Blocks of few bits, as stored in a GGUF file.
    Quantised(Arc<QuantMatrix>),
}

impl Weight {
    /// Outputs.
    pub fn rows(&self) -> usize {
        match self {
            Self::Dense(m) => m.rows(),
            Self::Quantised(q) => q.rows(),
        }
    }

    /// Inputs.
    pub fn cols(&self) -> usize {
        match self {
            Self::Dense(m) => m.cols(),
            Self::Quantised(q) => q.cols(),
        }
    }

    /// Memory held, in bytes.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Dense(m) => m.bytes(),
            Self::Quantised(q) => q.bytes(),
        }
    }

    /// Whether both are the same memory.
    pub fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Dense(a), Self::Dense(b)) => Arc::ptr_eq(a, b),
            (Self::Quantised(a), Self::Quantised(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }
}

impl Linear {
    /// A layer.
    ///
    /// # Panics
    /// If the bias is not `weight.rows()` long.
    pub fn new(weight: Weight, bias: Option<Vec<f32>>) -> Self {
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

    /// The matrix.
    pub fn weight(&self) -> &Weight {
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
        match &self.weight {
            Weight::Dense(m) => backend.linear(x, rows, m, self.bias(), y),
            Weight::Quantised(q) => q.forward(backend, x, rows, self.bias(), y),
        }
    }

    /// Writes row `row` of the weights to `out: [cols]` in f32, as an embedding looks up a token.
    ///
    /// # Panics
    /// If `row` is out of range or `out` is not `cols` long.
    pub fn copy_row(&self, row: usize, out: &mut [f32]) {
        match &self.weight {
            Weight::Dense(m) => m.copy_row(row, out),
            Weight::Quantised(q) => q.copy_row(row, out),
        }
    }
}
