//! Retrieve.PassKey: five digits, told twice in one line between copies of the noise line.

use super::super::generate::NOISE;
use super::{Drawn, place};
use crate::text::Rng;
use serde_json::json;

/// A text of `units` noise lines with the key `depth` per cent of them down.
pub(super) fn draw(rng: &mut Rng, depth: f64, units: usize) -> Drawn {
    let key: String = (0..5).map(|_| digit(rng)).collect();
    let told = format!("The pass key is {key}. Remember it. {key} is the pass key.\n");
    Drawn {
        context: hidden(&told, depth, units),
        fill: vec![("{input}", "What is the pass key?".to_string())],
        answer: json!(key),
    }
}

/// A digit; the first of a key may be 0.
pub(super) fn digit(rng: &mut Rng) -> char {
    char::from(b'0' + rng.below(10) as u8)
}

/// Noise lines with a line among them.
pub(super) fn hidden(line: &str, depth: f64, units: usize) -> String {
    let noise = format!("{NOISE}\n");
    let at = place(depth, units);
    format!("{}{line}{}", noise.repeat(at), noise.repeat(units - at))
}
