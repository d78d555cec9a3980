//! Retrieve.KV: the value of one key in a JSON object of random identifiers, after lost-in-the-middle
//! (nelson-liu/lost-in-the-middle `scripts/make_kv_retrieval_data.py`, arXiv 2307.03172; MIT).

use super::super::generate::uuid;
use super::{Drawn, place};
use crate::text::Rng;
use serde_json::json;

/// An object of `units` pairs, and the key that stands `depth` per cent of them down.
pub(super) fn draw(rng: &mut Rng, depth: f64, units: usize) -> Drawn {
    let pairs: Vec<(String, String)> = (0..units).map(|_| (uuid(rng), uuid(rng))).collect();
    let (key, value) = pairs.get(place(depth, units.saturating_sub(1))).cloned().unwrap_or_default();
    let members: Vec<String> = pairs.iter().map(|(k, v)| format!("\"{k}\": \"{v}\"")).collect();
    let asked = format!("\nKey: \"{key}\"\nThe value associated with the specified key is: ");
    Drawn {
        context: format!("JSON data:\n{{{}}}", members.join(", ")),
        fill: vec![("{input}", asked)],
        answer: json!(value),
    }
}
