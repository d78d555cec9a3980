//! Users' copies of published benchmarks: files found, checked and indexed once, and each row read again when its turn comes.
//!
//! A file is read whole when a suite is made: every row must be JSON with the fields the benchmark has, in their types. A row
//! that is not becomes a [`Problem`] that names file and line, and the others are run. What stays in memory is where each row
//! stands, so that a file of 700 MB takes none of it.

mod fields;
mod find;
mod prompt;
mod tally;

pub use fields::Fields;
pub use find::{books, find, jsonl, length};
pub use prompt::{around, published};
pub use tally::{Tally, grouped, mean, percent, table, tallies};

use crate::jsonl::{Record, Records, parse};
use crate::run::{Asked, Problem, Question, Reading, Tools};
use crate::scorers::{self, Sample, Scorer};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// Longest row that is read, in bytes: ten million tokens of BABILong take 50 MB.
pub const LONGEST_ROW: usize = 256 << 20;

/// Most problems that are kept of one file; the rest of it is then not read.
const MOST_PROBLEMS: usize = 1000;

/// What a suite has read of its files.
#[derive(Debug, Default)]
pub struct Shelf {
    files: Vec<(PathBuf, u64)>,
    readings: Vec<Reading>,
    rows: Vec<Place>,
    problems: Vec<Problem>,
}

/// Where a row stands.
#[derive(Clone, Copy, Debug)]
struct Place {
    file: usize,
    line: usize,
    /// Its number, where a row before it stands on the same line.
    number: Option<usize>,
    offset: u64,
    bytes: usize,
}

impl Shelf {
    /// Indexes a file: `read` checks a row and says what is asked of it, given the row's number, from 1 (a list may hold all
    /// its rows on one line, so lines tell no rows apart); what it says [`Reading::at`] is does not count. Reading stops after
    /// `samples` good rows. Rows with an id that stands in the file already are problems.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn add(
        &mut self,
        path: &Path,
        samples: Option<usize>,
        mut read: impl FnMut(&Fields, usize) -> Result<Reading, String>,
    ) -> Result<(), DataError> {
        let unread = |source| DataError::Unread { file: path.to_path_buf(), source };
        let input = File::open(path).map_err(unread)?;
        let size = input.metadata().map_err(unread)?.len();
        let mut records = Records::of(BufReader::new(input), LONGEST_ROW).map_err(unread)?;
        let file = self.files.len();
        self.files.push((path.to_path_buf(), size));
        let (mut first_with, mut good, mut bad, mut number, mut last_line) = (HashMap::new(), 0, 0, 0, 0);
        while samples.is_none_or(|most| good < most)
            && let Some(Record { line, offset, bytes }) = records.next().map_err(unread)?
        {
            let length = bytes.as_ref().map_or(0, Vec::len);
            number += 1;
            let own_number = (line == last_line).then_some(number);
            last_line = line;
            let reading = bytes.and_then(|b| parse(&b)).and_then(|row| {
                let reading = read(&Fields::new(row), number)?;
                if let Some((id, (row, line))) =
                    reading.rows.iter().find_map(|key| Some((&key.id, first_with.get(&key.id)?)))
                {
                    return Err(format!("id `{id}` stands on line {line} already (row {row})"));
                }
                first_with.extend(reading.rows.iter().map(|key| (key.id.clone(), (number, line))));
                Ok(reading)
            });
            match reading {
                Ok(reading) => {
                    good += 1;
                    self.readings.push(Reading { at: self.rows.len() as u64, ..reading });
                    self.rows.push(Place { file, line, number: own_number, offset, bytes: length });
                }
                Err(problem) => {
                    bad += 1;
                    let problem = own_number.map_or(problem.clone(), |n| format!("row {n}: {problem}"));
                    self.problem(path, Some(line), problem);
                    if bad == MOST_PROBLEMS {
                        let problem = format!("{bad} problems; the rest of the file is not read");
                        self.problem(path, None, problem);
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    /// Notes what is wrong with a line of a file, or with all of it.
    pub fn problem(&mut self, file: &Path, line: Option<usize>, problem: String) {
        self.problems.push(Problem { file: file.display().to_string(), line, problem });
    }

    /// Refuses a folder of which nothing can be asked.
    ///
    /// # Errors
    /// When there is no reading.
    pub fn not_empty(self) -> Result<Self, DataError> {
        if self.readings.is_empty() {
            let files: Vec<String> = self.files.iter().map(|(path, _)| path.display().to_string()).collect();
            let problem = self.problems.first().map_or("they are empty".to_string(), Problem::to_string);
            return Err(DataError::NoRow { files: files.join(", "), problem });
        }
        Ok(self)
    }

    /// Every reading, in the order of files and rows.
    pub fn readings(&self) -> &[Reading] {
        &self.readings
    }

    /// Rows that cannot be asked.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Names and sizes of the files, by which a run that goes on knows them again.
    pub fn files(&self) -> Value {
        let name = |path: &Path| path.file_name().map(|n| n.to_string_lossy().into_owned());
        self.files.iter().map(|(path, bytes)| json!({ "file": name(path), "bytes": bytes })).collect()
    }

    /// Reads the row of a reading again, and makes something of it.
    ///
    /// # Errors
    /// When the file cannot be read, or is another by now.
    pub fn row<T>(
        &self,
        reading: &Reading,
        make: impl FnOnce(&Fields) -> Result<T, String>,
    ) -> Result<T, DataError> {
        let place = usize::try_from(reading.at).ok().and_then(|at| self.rows.get(at));
        let Some(&Place { file, line, offset, bytes, .. }) = place else {
            return Err(DataError::NoSuchRow { task: reading.task.clone(), at: reading.at });
        };
        let path = &self.files[file].0;
        let read = || {
            let mut input = File::open(path)?;
            input.seek(SeekFrom::Start(offset))?;
            let mut row = vec![0; bytes];
            input.read_exact(&mut row)?;
            Ok(row)
        };
        let row = read().map_err(|source| DataError::Unread { file: path.clone(), source })?;
        let changed = |problem| DataError::Changed { file: path.clone(), line, problem };
        parse(&row).and_then(|row| make(&Fields::new(row))).map_err(changed)
    }

    /// What evidence calls the text of a reading: its file and line, and its number where the line holds others before it.
    pub fn source_name(&self, reading: &Reading) -> String {
        let place = usize::try_from(reading.at).ok().and_then(|at| self.rows.get(at));
        let name = |place: &Place| {
            let file = self.files[place.file].0.file_name().unwrap_or_default().to_string_lossy();
            let number = place.number.map_or(String::new(), |n| format!(", row {n}"));
            format!("{file}:{}{number}", place.line)
        };
        place.map_or_else(|| reading.task.clone(), name)
    }
}

/// What is planned for a row with one text: tokens of text and question, as well as they can be guessed, or `limit` if prompts are
/// cut to that; then the answer's, and some for a template.
pub fn planned(asked: &Asked, limit: Option<usize>, tools: &Tools<'_>) -> usize {
    const TEMPLATE: usize = 64;
    let count = |text: &str| estimate(text, |part| tools.count(part));
    let of = |q: &Question| (count(&q.after) + count(&q.prefix), q.max_new_tokens);
    let (question, answer) =
        asked.questions.iter().map(of).fold((0, 0), |most, q| (most.0.max(q.0), most.1.max(q.1)));
    let prompt = count(&asked.before) + count(&asked.source.text) + question;
    prompt.min(limit.unwrap_or(usize::MAX)) + answer + TEMPLATE
}

/// Makes sure that answers to a sample can be scored, before hours are spent on them.
///
/// # Errors
/// When its reference is not what the scorer needs.
pub fn scorable(suite: scorers::Suite, task: &str, sample: &Sample) -> Result<(), String> {
    let scored = Scorer::new(suite, task).and_then(|scorer| scorer.score(sample));
    scored.map(drop).map_err(|error| error.to_string())
}

/// Tokens of a text, guessed from parts of it where it is long: from 6 KiB on, its beginning, middle and end, and a tenth more.
/// A benchmark has thousands of rows: to count each whole would take minutes before the first is asked.
pub fn estimate(text: &str, count: impl Fn(&str) -> usize) -> usize {
    const PART: usize = 2 << 10;
    if text.len() <= 3 * PART {
        return count(text);
    }
    let boundary = |at: usize| (at..text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
    let parts = [0, (text.len() - PART) / 2, text.len() - PART]
        .map(|from| &text[boundary(from)..boundary(from + PART)]);
    let (tokens, bytes) = parts.iter().fold((0, 0), |sum, p| (sum.0 + count(p), sum.1 + p.len()));
    (text.len() as f64 * 1.1 * tokens as f64 / bytes.max(1) as f64) as usize
}

/// Why a benchmark's files cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// No folder.
    #[error("{}: {source}; the folder with the benchmark's files belongs here", dir.display())]
    Folder {
        /// What was given.
        dir: PathBuf,
        /// What is wrong with it.
        source: std::io::Error,
    },
    /// The benchmark has no such task.
    #[error("{suite} has no task `{task}`; it has {known}")]
    UnknownTask {
        /// The benchmark.
        suite: &'static str,
        /// What was asked for.
        task: String,
        /// All tasks.
        known: String,
    },
    /// The file of a task that was asked for is missing.
    #[error("no file for {task} in {}: expected {expected}; found {found}", dir.display())]
    NoFile {
        /// The task.
        task: String,
        /// The folder.
        dir: PathBuf,
        /// Files that would do.
        expected: String,
        /// What the folder has.
        found: String,
    },
    /// There is no file of the benchmark.
    #[error("no file of {suite} in {}: expected any of {expected}; found {found}", dir.display())]
    Nothing {
        /// The benchmark.
        suite: &'static str,
        /// The folder.
        dir: PathBuf,
        /// Files that would do.
        expected: String,
        /// What the folder has.
        found: String,
    },
    /// A file cannot be read.
    #[error("{}: {source}", file.display())]
    Unread {
        /// The file.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A row is no longer what it was when the file was indexed.
    #[error("{}:{line}: the file has changed while it was in use: {problem}", file.display())]
    Changed {
        /// The file.
        file: PathBuf,
        /// Number of the line.
        line: usize,
        /// What is wrong with the row.
        problem: String,
    },
    /// No row can be asked.
    #[error("no row can be asked of {files}; the first problem is: {problem}")]
    NoRow {
        /// The files.
        files: String,
        /// The first problem.
        problem: String,
    },
    /// A reading of another suite.
    #[error("there is no row {at} of {task}")]
    NoSuchRow {
        /// The task.
        task: String,
        /// Its number.
        at: u64,
    },
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::run::{Made, RowKey, Suite};
    use reattention_engine::Package;

    /// A folder with files of these names and texts.
    pub(crate) fn folder_of(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        dir
    }

    /// The tokenizer of the built-in model, without a template.
    pub(crate) fn with_tools<T>(run: impl FnOnce(&Tools<'_>) -> T) -> T {
        let tokenizer = Package::built_in().unwrap().tokenizer().unwrap();
        run(&Tools { tokenizer: &tokenizer, template: None })
    }

    /// What the reading `at` asks.
    pub(crate) fn nth(suite: &impl Suite, at: usize) -> Asked {
        match with_tools(|tools| suite.make(&suite.readings()[at], tools)).unwrap() {
            Made::Asked(asked) => asked,
            Made::Predicted { .. } => panic!("questions are asked"),
        }
    }

    /// What the first reading asks.
    pub(crate) fn first(suite: &impl Suite) -> Asked {
        nth(suite, 0)
    }

    /// The prompt of the first question, template apart.
    pub(crate) fn prompt(asked: &Asked) -> String {
        format!(
            "{}{}{}{}",
            asked.before, asked.source.text, asked.questions[0].after, asked.questions[0].prefix
        )
    }

    fn shelf(text: &[u8], samples: Option<usize>) -> (tempfile::TempDir, Shelf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.jsonl");
        std::fs::write(&path, text).unwrap();
        let mut shelf = Shelf::default();
        shelf
            .add(&path, samples, |row, number| {
                let id = row.id(&["id"])?.unwrap_or_else(|| number.to_string());
                let key = RowKey { id, depth: None, task: None };
                row.text("input")?;
                Ok(Reading { rows: vec![key], ..Reading::default() })
            })
            .unwrap();
        (dir, shelf)
    }

    fn input(shelf: &Shelf, reading: &Reading) -> Result<String, DataError> {
        shelf.row(reading, |row| Ok(row.text("input")?.to_string()))
    }

    const ROWS: &str = concat!(
        "{\"id\": \"a\", \"input\": \"é one\"}\n",
        "\n",
        "{\"id\": \"a\", \"input\": \"again\"}\n",
        "{\"id\": \"b\"}\n",
        "{\"id\": \"c\", \"input\": 3}\n",
        "[1]\n",
        "{\"id\": \"d\", \"inp",
        "\n",
        "{\"id\": \"e\", \"input\": \"five\"}",
    );

    #[test]
    fn good_rows_are_read_again_and_bad_ones_are_named() {
        let (_dir, shelf) = shelf(ROWS.as_bytes(), None);
        let texts: Vec<String> = shelf
            .readings()
            .iter()
            .map(|r| format!("{} {}", shelf.source_name(r), input(&shelf, r).unwrap()))
            .collect();
        assert_eq!(texts, ["t.jsonl:1 é one", "t.jsonl:8 five"]);
        let expected = [
            (3, "id `a` stands on line 1 already (row 1)"),
            (4, "`input` is missing"),
            (5, "`input` is a number where a text belongs"),
            (6, "a list where an object belongs"),
            (7, "not JSON"),
        ];
        assert_eq!(shelf.problems().len(), expected.len(), "{:?}", shelf.problems());
        for (found, (line, part)) in shelf.problems().iter().zip(expected) {
            assert!(found.line == Some(line) && found.problem.contains(part), "{found}");
            assert!(found.to_string().contains(&format!("t.jsonl:{line}: ")), "{found}");
        }
    }

    #[test]
    fn lists_are_read_like_lines() {
        let text = "[\n {\"id\": \"a\",\n  \"input\": \"one\"},\n {\"id\": 1},\n {\"id\": \"b\", \"input\": \"two\"}\n]";
        let (_dir, shelf) = shelf(text.as_bytes(), None);
        let texts: Vec<String> = shelf.readings().iter().map(|r| input(&shelf, r).unwrap()).collect();
        assert_eq!(texts, ["one", "two"]);
        assert!(matches!(shelf.problems(), [p] if p.line == Some(4)), "{:?}", shelf.problems());
    }

    #[test]
    fn rows_of_a_list_on_one_line_are_told_apart_by_their_number() {
        let text = concat!(
            r#"[{"input": "one"}, {"input": "two"}, {"id": "a", "input": "three"}, {"input": 4}, "#,
            r#"{"id": "a", "input": "five"}, {"id": "2", "input": "six"}]"#
        );
        let (_dir, shelf) = shelf(text.as_bytes(), None);
        let rows: Vec<String> = shelf
            .readings()
            .iter()
            .map(|r| format!("{} {} {}", r.rows[0].id, shelf.source_name(r), input(&shelf, r).unwrap()))
            .collect();
        assert_eq!(rows, ["1 t.jsonl:1 one", "2 t.jsonl:1, row 2 two", "a t.jsonl:1, row 3 three"]);
        let problems: Vec<&str> = shelf.problems().iter().map(|p| p.problem.as_str()).collect();
        assert_eq!(
            problems,
            [
                "row 4: `input` is a number where a text belongs",
                "row 5: id `a` stands on line 1 already (row 3)",
                "row 6: id `2` stands on line 1 already (row 2)",
            ]
        );
    }

    #[test]
    fn samples_are_the_first_good_rows_and_nothing_after_them_is_read() {
        let (_dir, shelf) = shelf(ROWS.as_bytes(), Some(1));
        assert_eq!((shelf.readings().len(), shelf.problems().len()), (1, 0));
    }

    #[test]
    fn bytes_that_are_no_text_and_endless_problems_are_problems() {
        let (_dir, one) = shelf(b"{\"id\": \"\xff\"}\n", None);
        assert!(matches!(one.problems(), [p] if p.problem.contains("not UTF-8")));
        let (_dir, many) = shelf("7\n".repeat(MOST_PROBLEMS + 5).as_bytes(), None);
        assert_eq!(many.problems().len(), MOST_PROBLEMS + 1);
        assert!(many.problems().last().is_some_and(|p| p.line.is_none() && p.problem.contains("not read")));
        assert!(
            matches!(many.not_empty(), Err(DataError::NoRow { problem, .. }) if problem.contains("t.jsonl:1: "))
        );
    }

    #[test]
    fn a_file_that_changes_is_noticed() {
        let (dir, shelf) = shelf(ROWS.as_bytes(), None);
        std::fs::write(dir.path().join("t.jsonl"), "x".repeat(ROWS.len())).unwrap();
        let found = input(&shelf, &shelf.readings()[1]);
        assert!(matches!(&found, Err(DataError::Changed { line: 8, .. })), "{found:?}");
        std::fs::write(dir.path().join("t.jsonl"), "x").unwrap();
        assert!(matches!(input(&shelf, &shelf.readings()[1]), Err(DataError::Unread { .. })));
    }

    #[test]
    fn tokens_are_guessed_from_parts() {
        let count = |text: &str| text.len() / 4;
        assert_eq!(estimate("12345678", count), 2);
        let guessed = estimate(&"é ".repeat(100_000), count);
        assert!((75_000..90_000).contains(&guessed), "{guessed}");
    }
}
