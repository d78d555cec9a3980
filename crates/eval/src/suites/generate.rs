//! What suites that write their own texts share: sizing by the model's tokenizer, random identifiers, errors.

use crate::EvalError;
use crate::run::{Asked, Question, Reading, RowKey, Tools};
use crate::text::Rng;
use std::path::PathBuf;

/// The line that fills the texts of landmark attention's passkey (Mohtashami and Jaggi, arXiv 2305.16300), of InfiniteBench and of
/// RULER.
pub const NOISE: &str =
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.";

/// Why a benchmark's text cannot be generated.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum GenerateError {
    /// Not even the shortest text fits.
    #[error(
        "`{what}` takes at least {needed} tokens for prompt and answer together, and {length} were asked for; ask for a longer text"
    )]
    TooShort {
        /// Suite or task.
        what: String,
        /// Length asked for, in tokens.
        length: usize,
        /// Tokens needed.
        needed: usize,
    },
    /// An option is out of range.
    #[error("{suite}: {option} {problem}")]
    Option {
        /// The suite.
        suite: &'static str,
        /// Name of the option.
        option: &'static str,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// No such task.
    #[error("{suite} has no task `{task}`; it has {known}")]
    UnknownTask {
        /// The suite.
        suite: &'static str,
        /// What was asked for.
        task: String,
        /// All tasks.
        known: String,
    },
    /// A task needs a file of the user's that is not there.
    #[error("{task} needs {expected}, which is not in {place}", place = .data.as_ref().map_or("any folder: no data folder is given".to_string(), |d| d.display().to_string()))]
    NoData {
        /// The task.
        task: String,
        /// The file, and where it comes from.
        expected: String,
        /// Where it was looked for.
        data: Option<PathBuf>,
    },
    /// A file of the user's is not what it should be.
    #[error("{file}: {reason}; expected {expected}", file = .file.display())]
    Data {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        reason: String,
        /// What it should hold.
        expected: String,
    },
}

/// Refuses lengths, depths (in per cent) and numbers of samples that no grid can be made of.
///
/// # Errors
/// When there is none of them, or a depth is no percentage.
pub fn check_grid(
    suite: &'static str,
    lengths: &[usize],
    depths: &[f64],
    samples: usize,
) -> Result<(), GenerateError> {
    let bad = |option, problem: &str| Err(GenerateError::Option { suite, option, problem: problem.into() });
    if lengths.is_empty() {
        return bad("lengths", "is empty; give at least one length in tokens");
    }
    if depths.is_empty() {
        return bad("depths", "is empty; give at least one depth, 0 to 100");
    }
    if let Some(depth) = depths.iter().find(|d| !(0.0..=100.0).contains(*d)) {
        return bad("depths", &format!("has {depth}; a depth is 0 (the beginning) to 100 (the end)"));
    }
    if samples == 0 {
        return bad("samples", "is 0; at least 1 is needed");
    }
    Ok(())
}

/// A reading of one row for every length, place (a depth in per cent, or none) and sample; `at` and the row's name number them
/// within their length, samples of a place together.
pub fn grid(task: &str, lengths: &[usize], places: &[Option<f64>], samples: usize) -> Vec<Reading> {
    let reading = |length: usize, row: usize| Reading {
        task: task.to_string(),
        length: Some(length),
        rows: vec![RowKey { id: row.to_string(), depth: places[row / samples], task: None }],
        tokens: length,
        at: row as u64,
    };
    let rows = 0..places.len() * samples;
    lengths.iter().flat_map(|length| rows.clone().map(|row| reading(*length, row))).collect()
}

/// A text that can be cut at its tokens.
#[derive(Debug)]
pub struct Cut {
    text: String,
    /// Where each token ends.
    ends: Vec<usize>,
}

impl Cut {
    /// Texts one behind the other, and again from the first, until there are `tokens` of them; texts without any token end it too.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn filled(texts: &[&str], tokens: usize, tools: &Tools<'_>) -> Result<Self, EvalError> {
        let (mut text, mut next) = (String::new(), texts.iter().cycle());
        // A token of prose has about five bytes; where it has more, a second try has enough.
        let mut bytes = tokens.saturating_mul(6).max(1);
        loop {
            let before = text.len();
            while let Some(more) = next.next().filter(|_| text.len() < bytes) {
                text.push_str(more);
                if texts.iter().all(|t| t.is_empty()) {
                    break;
                }
            }
            let found = tools.tokenizer.encode_text(&text)?;
            if found.ids.len() >= tokens || text.len() == before {
                let ends = found.offsets.iter().map(|r| boundary(&text, r.end)).collect();
                return Ok(Self { text, ends });
            }
            bytes = bytes.saturating_mul(2);
        }
    }

    /// How many there are.
    pub fn tokens(&self) -> usize {
        self.ends.len()
    }

    /// The text of the tokens `from .. to`, or of those of them that there are.
    pub fn part(&self, from: usize, to: usize) -> &str {
        let byte = |token: usize| match token {
            0 => 0,
            n => self.ends.get(n - 1).copied().unwrap_or(self.text.len()),
        };
        self.text.get(byte(from)..byte(to.max(from))).unwrap_or_default()
    }

    /// The first `tokens` tokens with a needle before token `at`.
    pub fn with(&self, needle: &str, at: usize, tokens: usize) -> String {
        let at = at.min(tokens);
        format!("{}{needle}{}", self.part(0, at), self.part(at, tokens))
    }
}

/// The next byte from `byte` on at which a character begins: a token may end within one.
fn boundary(text: &str, mut byte: usize) -> usize {
    while !text.is_char_boundary(byte) {
        byte += 1;
    }
    byte
}

/// Tokens of a prompt and of the longest answer to it.
///
/// # Errors
/// When template or tokenizer fails.
pub fn whole(tools: &Tools<'_>, asked: &Asked, question: &Question) -> Result<usize, EvalError> {
    Ok(tools.prompt_tokens(asked, question)? + question.max_new_tokens)
}

/// The largest `n` of at least `least` with `size(n) <= limit`, or what `least` takes if that is too much. `size` must grow with
/// `n`, at least on the whole: where random content makes it uneven, the answer is one of those that fit.
///
/// # Errors
/// What `size` fails with.
pub fn most_that_fit<E>(
    least: usize,
    limit: usize,
    mut size: impl FnMut(usize) -> Result<usize, E>,
) -> Result<Result<usize, usize>, E> {
    let smallest = size(least)?;
    if smallest > limit {
        return Ok(Err(smallest));
    }
    // Texts are nearly linear in their units, so interpolation lands beside the border; bisection ends what is left.
    let (mut fits, mut fits_size) = (least, smallest);
    let mut exceeds: Option<(usize, usize)> = None;
    let (mut step, mut tries) = (16, 0);
    loop {
        let guess = match exceeds {
            None => fits + step,
            Some((over, _)) if over == fits + 1 => return Ok(Ok(fits)),
            Some((over, over_size)) if tries < 8 => {
                let share = (limit - fits_size) as f64 / (over_size - fits_size).max(1) as f64;
                (fits + ((over - fits) as f64 * share) as usize).clamp(fits + 1, over - 1)
            }
            Some((over, _)) => fits + (over - fits) / 2,
        };
        tries += usize::from(exceeds.is_some());
        let found = size(guess)?;
        if found > limit {
            exceeds = Some((guess, found));
        } else {
            let each = (found.saturating_sub(smallest) as f64 / (guess - least) as f64).max(1e-3);
            step = (((limit - found) as f64 / each) as usize).clamp(1, 4 * guess.max(16)) + 1;
            (fits, fits_size) = (guess, found);
        }
    }
}

/// A random UUID of version 4, as Python's `uuid.uuid4` prints it.
pub fn uuid(rng: &mut Rng) -> String {
    let bits = (u128::from(rng.next_u64()) << 64) | u128::from(rng.next_u64());
    // Version 4 in the thirteenth digit, the variant in the upper two bits of the seventeenth.
    let bits = (bits & !(0xF << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
    let hex = format!("{bits:032x}");
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// What stands before and behind `{context}` in a template; everything before if it has none.
pub fn around_context(template: &str) -> (&str, &str) {
    template.split_once("{context}").unwrap_or((template, ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn most(least: usize, limit: usize, size: impl Fn(usize) -> usize) -> (Result<usize, usize>, usize) {
        let mut calls = 0;
        let found = most_that_fit(least, limit, |n| {
            calls += 1;
            Ok::<_, ()>(size(n))
        });
        (found.unwrap(), calls)
    }

    #[test]
    fn the_largest_that_fits_is_found_in_few_steps() {
        for limit in [100, 1_000, 65_536, 4_000_000] {
            let (found, calls) = most(0, limit, |n| 61 + 24 * n + n / 7);
            let n = found.unwrap();
            assert!(61 + 24 * n + n / 7 <= limit && 61 + 24 * (n + 1) + (n + 1) / 7 > limit);
            assert!(calls <= 12, "{calls} for {limit}");
        }
        assert_eq!(most(5, 50, |n| n * n).0, Ok(7));
        assert_eq!(most(5, 20, |n| n * n).0, Err(25));
        assert_eq!(most(3, 9, |n| 3 * n).0, Ok(3));
        let steep = most(0, 1_000, |n| if n < 700 { n } else { 1_000_000 }).0;
        assert_eq!(steep, Ok(699));
    }

    #[test]
    fn identifiers_are_of_version_4() {
        let mut rng = Rng::new(5);
        let one = uuid(&mut rng);
        assert_ne!(one, uuid(&mut rng));
        for _ in 0..200 {
            let id = uuid(&mut rng);
            let parts: Vec<&str> = id.split('-').collect();
            assert_eq!(parts.iter().map(|p| p.len()).collect::<Vec<_>>(), [8, 4, 4, 4, 12], "{id}");
            assert!(parts[2].starts_with('4') && parts[3].starts_with(['8', '9', 'a', 'b']), "{id}");
        }
    }

    #[test]
    fn grids_that_cannot_be_are_refused() {
        assert_eq!(check_grid("x", &[1], &[0.0, 100.0], 1), Ok(()));
        for (lengths, depths, samples) in [
            (vec![], vec![0.0], 1),
            (vec![1], vec![], 1),
            (vec![1], vec![f64::NAN], 1),
            (vec![1], vec![101.0], 1),
            (vec![1], vec![0.0], 0),
        ] {
            assert!(check_grid("x", &lengths, &depths, samples).is_err());
        }
    }
}
