//! Math.Calc: every intermediate value of a long sum.

use super::Drawn;
use crate::text::Rng;
use serde_json::json;

const MOST: i64 = 99;

/// A sum of `units` numbers, added or subtracted with even chances, that stays within 0 and 99: a number that would leave that
/// range is drawn again within what is left. The answer lists the value after each operation, without the first number.
pub(super) fn draw(rng: &mut Rng, units: usize) -> Drawn {
    let mut value = rng.between(0, MOST);
    let (mut context, mut values) = (value.to_string(), Vec::new());
    for _ in 1..units {
        let (plus, mut number) = (rng.percent(50), rng.between(0, MOST));
        let room = if plus { MOST - value } else { value };
        if number > room {
            number = rng.between(0, room);
        }
        context.push_str(&format!(" {} {number}", if plus { '+' } else { '-' }));
        value += if plus { number } else { -number };
        values.push(value);
    }
    Drawn { context, fill: Vec::new(), answer: json!(values) }
}
