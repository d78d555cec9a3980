//! Retrieve.Number: the passkey's text with ten digits, of which neighbours are often equal.

use super::Drawn;
use super::passkey::{digit, hidden};
use crate::text::Rng;
use serde_json::json;

/// A text of `units` noise lines with the digits `depth` per cent of them down: five digits drawn freely, then five times one of
/// those that are there is put once more beside itself.
pub(super) fn draw(rng: &mut Rng, depth: f64, units: usize) -> Drawn {
    let mut digits: Vec<char> = (0..5).map(|_| digit(rng)).collect();
    while digits.len() < 10 {
        let at = rng.below(digits.len());
        digits.insert(at, digits[at]);
    }
    let key: String = digits.into_iter().collect();
    let told = format!("The sequence of digits is {key}. Remember it. {key} is the sequence of digits.\n");
    Drawn {
        context: hidden(&told, depth, units),
        fill: vec![("{input}", "What is the sequence of digits?".to_string())],
        answer: json!(key),
    }
}
