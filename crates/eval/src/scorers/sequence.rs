//! Common subsequences and edit distances.

use super::ScoreError;
use std::collections::HashMap;

/// Most pairs of elements compared for one row; 16,000 words against 16,000.
pub const MOST_PAIRS: usize = 1 << 28;

/// Which sequence is stepped back in where both ways are equally long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tie {
    /// The first.
    First,
    /// The second.
    Second,
}

/// One longest common subsequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Common {
    /// Its places in the first sequence, ascending.
    pub places: Vec<usize>,
    /// Steps back from the ends until one sequence is used up.
    pub steps: usize,
}

/// The common subsequence that is found from the ends, with `tie` where there is a choice.
///
/// # Errors
/// When the sequences are too long.
pub fn common<T: Eq>(first: &[T], second: &[T], tie: Tie) -> Result<Common, ScoreError> {
    affordable(first.len(), second.len())?;
    const BOTH: u8 = 0;
    const IN_FIRST: u8 = 1;
    const IN_SECOND: u8 = 2;
    let width = second.len();
    let mut ways = vec![BOTH; first.len() * width];
    let (mut above, mut row) = (vec![0_u32; width + 1], vec![0_u32; width + 1]);
    for (i, x) in first.iter().enumerate() {
        for (j, y) in second.iter().enumerate() {
            let (up, left) = (above[j + 1], row[j]);
            let shorter = if tie == Tie::First { left > up } else { left >= up };
            (row[j + 1], ways[i * width + j]) = if x == y {
                (above[j] + 1, BOTH)
            } else if shorter {
                (left, IN_SECOND)
            } else {
                (up, IN_FIRST)
            };
        }
        std::mem::swap(&mut above, &mut row);
    }
    let (mut i, mut j, mut steps, mut places) = (first.len(), width, 0, Vec::new());
    while i > 0 && j > 0 {
        let way = ways[(i - 1) * width + j - 1];
        if way == BOTH {
            places.push(i - 1);
        }
        i -= usize::from(way != IN_SECOND);
        j -= usize::from(way != IN_FIRST);
        steps += 1;
    }
    places.reverse();
    Ok(Common { places, steps })
}

/// Length of the longest common subsequence.
///
/// # Errors
/// When the sequences are too long.
pub fn common_length<T: Eq>(first: &[T], second: &[T]) -> Result<usize, ScoreError> {
    affordable(first.len(), second.len())?;
    let mut row = vec![0_usize; second.len() + 1];
    for x in first {
        let mut diagonal = 0;
        for (j, y) in second.iter().enumerate() {
            let up = row[j + 1];
            row[j + 1] = if x == y { diagonal + 1 } else { up.max(row[j]) };
            diagonal = up;
        }
    }
    Ok(row[second.len()])
}

/// Levenshtein distance: insertions, deletions and substitutions cost 1.
///
/// # Errors
/// When the sequences are too long.
pub fn levenshtein<T: Eq>(first: &[T], second: &[T]) -> Result<usize, ScoreError> {
    affordable(first.len(), second.len())?;
    let mut row: Vec<usize> = (0..=second.len()).collect();
    for (i, x) in first.iter().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in second.iter().enumerate() {
            let up = row[j + 1];
            row[j + 1] = (up + 1).min(row[j] + 1).min(diagonal + usize::from(x != y));
            diagonal = up;
        }
    }
    Ok(row[second.len()])
}

/// How often each element occurs.
pub fn counts<T: std::hash::Hash + Eq>(elements: impl IntoIterator<Item = T>) -> HashMap<T, usize> {
    let mut counts = HashMap::new();
    for element in elements {
        *counts.entry(element).or_insert(0) += 1;
    }
    counts
}

/// Elements in common, each as often as in the side that has fewer of it.
pub fn shared<T: std::hash::Hash + Eq>(first: &HashMap<T, usize>, second: &HashMap<T, usize>) -> usize {
    first.iter().map(|(element, n)| second.get(element).map_or(0, |m| (*n).min(*m))).sum()
}

/// Refuses what would take minutes and gigabytes.
pub fn affordable(first: usize, second: usize) -> Result<(), ScoreError> {
    if first.saturating_mul(second) > MOST_PAIRS {
        return Err(ScoreError::TooLong { prediction: first, expected: second, most: MOST_PAIRS });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_are_broken_as_asked() {
        let (ab, ba) = (["a", "b"], ["b", "a"]);
        assert_eq!(common(&ab, &ba, Tie::First).map(|c| c.places).ok(), Some(vec![0]));
        assert_eq!(common(&ab, &ba, Tie::Second).map(|c| c.places).ok(), Some(vec![1]));
    }

    #[test]
    fn distances() {
        let chars = |s: &str| s.chars().collect::<Vec<_>>();
        assert_eq!(levenshtein(&chars("kitten"), &chars("sitting")).ok(), Some(3));
        assert_eq!(levenshtein(&chars(""), &chars("áé")).ok(), Some(2));
        assert_eq!(common_length(&chars("abcbdab"), &chars("bdcaba")).ok(), Some(4));
        let found = common(&chars("abcbdab"), &chars("bdcaba"), Tie::First);
        assert_eq!(found.map(|c| c.places.len()).ok(), Some(4));
    }

    #[test]
    fn too_long_is_refused() {
        let long = vec![0_u8; 20_000];
        assert!(matches!(common(&long, &long, Tie::First), Err(ScoreError::TooLong { .. })));
        assert!(matches!(levenshtein(&long, &long), Err(ScoreError::TooLong { .. })));
    }
}
