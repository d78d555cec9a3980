//! The activations of gated MLPs.

/// What becomes of `gate` and `up` before the last matrix of a gated MLP.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    /// SwiGLU: `silu(gate) · up`.
    Silu,
    /// `gelu(gate) · up` with GELU's tanh form, `x / 2 · (1 + tanh(√(2/π) · (x + 0.044715 · x³)))`, as Gemma has it.
    GeluTanh,
    /// gpt-oss: `gate` at most `limit`, `up` within `±limit`, then `gate · sigmoid(alpha · gate) · (up + 1)`.
    ClampedSwiglu {
        /// Slope of the sigmoid.
        alpha: f32,
        /// Bound of what comes in.
        limit: f32,
    },
}

/// `√(8/π)`: half of one plus a tanh is a sigmoid of twice its argument.
pub(crate) const GELU_SLOPE: f32 = 1.595_769_2;
/// GELU's cubic part.
pub(crate) const GELU_CUBIC: f32 = 0.044_715;

impl Activation {
    /// The plain form, one pair at a time.
    pub(crate) fn of(self, gate: f32, up: f32) -> f32 {
        let gated = |x: f32, slope: f32| x / (1.0 + (-slope).exp());
        match self {
            Self::Silu => gated(gate, gate) * up,
            Self::GeluTanh => gated(gate, GELU_SLOPE * (gate + GELU_CUBIC * gate * gate * gate)) * up,
            Self::ClampedSwiglu { alpha, limit } => {
                // Not `min`, which would turn a NaN into the limit.
                let gate = if gate > limit { limit } else { gate };
                gated(gate, alpha * gate) * (up.clamp(-limit, limit) + 1.0)
            }
        }
    }
}
