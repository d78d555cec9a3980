//! Math.Find: one number of a list of integers.

use super::Drawn;
use crate::text::Rng;
use serde_json::{Value, json};

/// What is asked for.
pub(super) const KINDS: [&str; 7] = [
    "largest number",
    "second largest number",
    "third largest number",
    "smallest number",
    "second smallest number",
    "third smallest number",
    "median",
];

/// Fewest numbers of a list: there are surely three different ones among them.
pub(super) const LEAST: usize = 40;

const MOST: i64 = 99;

/// A list of `units` numbers of 0 to 99. The end of the range that is asked for is moved inwards by up to a fifth, so that the
/// answer is not always the same; the median's list has one of both ends moved. Equal numbers count once.
pub(super) fn draw(rng: &mut Rng, kind: usize, units: usize) -> Drawn {
    let name = KINDS[kind % KINDS.len()];
    let low_moves = match name {
        "median" => rng.percent(50),
        _ => name.ends_with("smallest number"),
    };
    let (low, high) =
        if low_moves { (rng.between(0, MOST / 5), MOST) } else { (0, rng.between(MOST * 4 / 5, MOST)) };
    let list: Vec<i64> = (0..units).map(|_| rng.between(low, high)).collect();
    let noun = if name == "median" { "median number" } else { name };
    let asked =
        format!("You should answer with only one number, no other words. The {noun} of the list is: ");
    Drawn {
        context: format!("{list:?}"),
        fill: vec![("{prefix}", format!("What is the {noun} in the following list?")), ("{input}", asked)],
        answer: answer(name, list),
    }
}

fn answer(name: &str, mut list: Vec<i64>) -> Value {
    list.sort_unstable();
    let middle = list.len() / 2;
    if name == "median" {
        return match list.len() % 2 {
            0 if middle > 0 => json!((list[middle] + list[middle - 1]) as f64 / 2.0),
            _ => json!(list.get(middle)),
        };
    }
    list.dedup();
    if name.ends_with("largest number") {
        list.reverse();
    }
    let rank = ["second", "third"].iter().position(|w| name.starts_with(w)).map_or(0, |p| p + 1);
    json!(list.get(rank))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_by_rank_among_different_numbers() {
        let list = vec![7, 9, 9, 1, 1, 4];
        let found: Vec<Value> = KINDS.iter().map(|k| answer(k, list.clone())).collect();
        assert_eq!(found, [json!(9), json!(7), json!(4), json!(1), json!(4), json!(7), json!(5.5)]);
        assert_eq!(answer("median", vec![3, 1, 2]), json!(2));
    }
}
