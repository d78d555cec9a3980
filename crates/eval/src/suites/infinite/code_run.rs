//! Code.Run: what a function returns that calls another one, which calls another one, and so on.

use super::Drawn;
use crate::text::Rng;
use serde_json::json;

/// How many functions a call goes through.
pub(super) const LEVELS: [usize; 5] = [2, 4, 6, 8, 10];

/// Fewest functions: one of each level.
pub(super) const LEAST: usize = 10;

/// `units` functions, as many on each level (fewer where that does not come out even), in the order of their numbers. Each calls
/// one of the next level and adds -12 to 17; those of the last level add to their argument, which is -10 to 10.
pub(super) fn draw(rng: &mut Rng, kind: usize, units: usize) -> Drawn {
    let levels = LEVELS[kind % LEVELS.len()];
    let each = units / levels;
    // Numbers of 1 to twice as many as there are functions.
    let numbers: Vec<usize> = rng.sample(2 * units, levels * each).into_iter().map(|n| n + 1).collect();
    let mut functions: Vec<(usize, String)> = Vec::new();
    let mut steps = Vec::new();
    for (i, number) in numbers.iter().enumerate() {
        let next = (i / each + 1) * each;
        let called = (next < numbers.len()).then(|| next + rng.below(each));
        let added = rng.between(-12, 17);
        let inner = called.map_or("x".to_string(), |c| format!("func_{}(x)", numbers[c]));
        let sum = match added {
            0 => inner,
            1.. => format!("{inner} + {added}"),
            _ => format!("{inner} - {}", -added),
        };
        functions.push((*number, format!("def func_{number}(x):\n    return {sum}\n")));
        steps.push((called, added));
    }
    functions.sort_unstable();
    let texts: Vec<String> = functions.into_iter().map(|(_, text)| format!("{text}\n")).collect();
    let (asked, argument) = (rng.below(each), rng.between(-10, 10));
    let (mut at, mut value) = (Some(asked), argument);
    while let Some(i) = at {
        value += steps[i].1;
        at = steps[i].0;
    }
    let name = format!("func_{}", numbers[asked]);
    Drawn {
        context: format!("\nHere is the content of functions_module.py:\n\n{}", texts.concat()),
        fill: vec![("{func_call}", format!("{name}({argument})")), ("{func}", name)],
        answer: json!(value),
    }
}
