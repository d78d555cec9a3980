//! Random numbers from a seed.

/// SplitMix64 (Steele, Lea, Flood 2014): the same draws on every machine, whatever library versions.
#[derive(Clone, Debug)]
pub(crate) struct Draws {
    state: u64,
}

impl Draws {
    /// The start of a seed's sequence.
    pub(crate) fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// A number in `0.0..1.0`.
    pub(crate) fn uniform(&mut self) -> f64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}
