//! What is asked of both engines.

use anyhow::Result;
use serde_json::Value;

/// One engine with one sequence. What is timed are whole calls of [`Engine::prefill`], [`Engine::read`] and
/// [`Engine::decode`].
pub(crate) trait Engine {
    /// What it is, for the report.
    fn facts(&self) -> Value;

    /// Starts an empty sequence of at most `capacity` tokens.
    fn open(&mut self, capacity: usize) -> Result<()>;

    /// Tokens of the sequence.
    fn len(&self) -> usize;

    /// Reads a whole prompt, up to the logits after its last token.
    fn prefill(&mut self, tokens: &[u32]) -> Result<()>;

    /// Makes the sequence longer by keys and values that no model has computed.
    fn fill(&mut self, tokens: &[u32]) -> Result<()>;

    /// Reads tokens from the midst of a prompt: no logits.
    fn read(&mut self, tokens: &[u32]) -> Result<()>;

    /// Reads tokens one by one, as those of an answer: logits after each.
    fn decode(&mut self, tokens: &[u32]) -> Result<()>;

    /// Goes back to the first `n` tokens.
    fn rewind(&mut self, n: usize) -> Result<()>;
}

/// The token at a position of the text both engines read, evenly drawn (the finisher of SplitMix64).
pub(crate) fn token_at(position: usize, vocab_size: usize) -> u32 {
    let mut z = (position as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((z ^ (z >> 31)) % vocab_size as u64) as u32
}

/// The version a dependency was built at.
pub(crate) fn version_of(package: &str) -> Option<&'static str> {
    let lock = include_str!("../Cargo.lock");
    let entry = lock.split("[[package]]").find(|p| p.contains(&format!("name = \"{package}\"\n")))?;
    entry.split("version = \"").nth(1)?.split('"').next()
}
