//! What a run leaves on disk while it goes: `run.json`, which says what is run, and `rows.jsonl`, one finished row a line.
//!
//! A run that was killed is begun again with the same folder: rows in the journal are not asked again. A run of something else
//! is refused, so that no table mixes two of them.

use super::Row;
use serde_json::{Map, Value};
use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Name of the file that says what is run.
pub const MANIFEST: &str = "run.json";
/// Name of the file of rows.
pub const ROWS: &str = "rows.jsonl";

/// The rows of a run, on disk or in memory only.
#[derive(Debug, Default)]
pub struct Journal {
    rows: Vec<Row>,
    seen: HashSet<Key>,
    file: Option<(PathBuf, File)>,
}

/// Suite, task, length, id and method.
type Key = (String, String, Option<usize>, String, String);

impl Journal {
    /// A journal that is gone with the process.
    pub fn in_memory() -> Self {
        Self::default()
    }

    /// The journal in a folder: begun there, or gone on with if it is of the same run. `same` must agree for that; `around`
    /// (machine, threads) is recorded when the run begins.
    ///
    /// # Errors
    /// When the folder holds another run or a file that cannot be read or written, or another process is at it.
    pub fn open(
        dir: &Path,
        same: &Map<String, Value>,
        around: &Map<String, Value>,
    ) -> Result<Self, JournalError> {
        let manifest = dir.join(MANIFEST);
        std::fs::create_dir_all(dir).map_err(|e| at(dir, e))?;
        let rows = dir.join(ROWS);
        let file =
            OpenOptions::new().create(true).append(true).read(true).open(&rows).map_err(|e| at(&rows, e))?;
        file.try_lock().map_err(|_| JournalError::InUse { dir: dir.to_path_buf() })?;
        if manifest.exists() {
            let (found, _) = read_manifest(dir)?;
            for (key, value) in same {
                if found.get(key) != Some(value) {
                    return Err(JournalError::Differs { dir: dir.to_path_buf(), key: key.clone() });
                }
            }
        } else if file.metadata().is_ok_and(|m| m.len() > 0) {
            return Err(JournalError::Orphaned { file: rows });
        } else {
            let mut object = same.clone();
            object.extend(around.clone());
            // Renamed when it is whole: a kill between leaves no half manifest.
            let draft = dir.join(format!("{MANIFEST}.new"));
            let text = serde_json::to_string_pretty(&Value::Object(object)).unwrap_or_default();
            std::fs::write(&draft, text).map_err(|e| at(&draft, e))?;
            std::fs::rename(&draft, &manifest).map_err(|e| at(&manifest, e))?;
        }
        let (found, whole) = read_rows(&rows)?;
        // What a kill left of a line is asked again.
        file.set_len(whole).map_err(|e| at(&rows, e))?;
        let mut journal = Self { file: Some((rows, file)), ..Self::default() };
        for row in found {
            journal.keep(row);
        }
        Ok(journal)
    }

    /// All rows, in the order they were finished.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Whether this row is there.
    pub fn has(&self, suite: &str, task: &str, length: Option<usize>, id: &str, method: &str) -> bool {
        self.seen.contains(&(suite.into(), task.into(), length, id.into(), method.into()))
    }

    /// Adds a finished row; it is on disk when this returns.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn add(&mut self, row: Row) -> Result<(), JournalError> {
        if let Some((path, file)) = &mut self.file {
            let mut line = serde_json::to_vec(&row).map_err(|e| at(path, e.into()))?;
            line.push(b'\n');
            file.write_all(&line).map_err(|e| at(path, e))?;
        }
        self.keep(row);
        Ok(())
    }

    /// The rows sorted as tables show them: by suite, task and method in the order given, then by length, depth and id.
    pub fn ordered(&self, suites: &[&str], tasks: &[&str], methods: &[&str]) -> Vec<&Row> {
        let place = |list: &[&str], name: &str| list.iter().position(|n| *n == name).unwrap_or(list.len());
        let mut rows: Vec<&Row> = self.rows.iter().collect();
        rows.sort_by(|a, b| {
            let key = |r: &Row| {
                (place(suites, &r.suite), place(tasks, &r.task), place(methods, &r.method), r.length)
            };
            let number = |r: &Row| r.id.parse::<u64>().unwrap_or(u64::MAX);
            let depth = |r: &Row| r.depth.unwrap_or(-1.0);
            key(a)
                .cmp(&key(b))
                .then(depth(a).total_cmp(&depth(b)))
                .then((number(a), &a.id).cmp(&(number(b), &b.id)))
        });
        rows
    }

    fn keep(&mut self, row: Row) {
        let key = (row.suite.clone(), row.task.clone(), row.length, row.id.clone(), row.method.clone());
        if self.seen.insert(key) {
            self.rows.push(row);
        }
    }
}

/// The manifest and the rows of a run in a folder, to report on.
///
/// # Errors
/// When there is none, or a file of it is malformed.
pub fn read_run(dir: &Path) -> Result<(Map<String, Value>, Journal), JournalError> {
    let (manifest, _) = read_manifest(dir)?;
    let mut journal = Journal::default();
    for row in read_rows(&dir.join(ROWS))?.0 {
        journal.keep(row);
    }
    Ok((manifest, journal))
}

fn read_manifest(dir: &Path) -> Result<(Map<String, Value>, PathBuf), JournalError> {
    let path = dir.join(MANIFEST);
    let text = std::fs::read_to_string(&path).map_err(|e| at(&path, e))?;
    match serde_json::from_str(&text) {
        Ok(Value::Object(object)) => Ok((object, path)),
        Ok(_) => Err(JournalError::Malformed { file: path, line: 1, why: "not an object".into() }),
        Err(e) => Err(JournalError::Malformed { file: path, line: e.line(), why: e.to_string() }),
    }
}

/// The rows of a file, and how many bytes of it are whole lines.
fn read_rows(path: &Path) -> Result<(Vec<Row>, u64), JournalError> {
    let bytes = std::fs::read(path).map_err(|e| at(path, e))?;
    let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |last| last + 1);
    let mut rows = Vec::new();
    for (i, line) in bytes[..whole].split(|b| *b == b'\n').enumerate() {
        if line.is_empty() {
            continue;
        }
        let row = serde_json::from_slice(line).map_err(|e| JournalError::Malformed {
            file: path.to_path_buf(),
            line: i + 1,
            why: e.to_string(),
        })?;
        rows.push(row);
    }
    Ok((rows, whole as u64))
}

fn at(path: &Path, error: std::io::Error) -> JournalError {
    JournalError::File { file: path.to_path_buf(), error }
}

/// Why a run's folder cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JournalError {
    /// A file cannot be read or written.
    #[error("{}: {error}", file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// What the system says.
        error: std::io::Error,
    },
    /// A file is not what a run writes.
    #[error("{}:{line}: not what a run writes: {why}", file.display())]
    Malformed {
        /// The file.
        file: PathBuf,
        /// Its line.
        line: usize,
        /// What is wrong.
        why: String,
    },
    /// The folder holds another run.
    #[error(
        "{} holds a run with other `{key}` ({MANIFEST}); a run goes on only as it began: choose another folder, or the same options",
        dir.display()
    )]
    Differs {
        /// The folder.
        dir: PathBuf,
        /// What differs.
        key: String,
    },
    /// Rows without a manifest.
    #[error("{} has rows, but no {MANIFEST} beside it says of what; choose another folder", file.display())]
    Orphaned {
        /// The file of rows.
        file: PathBuf,
    },
    /// Another process writes there.
    #[error("{}: another run writes there", dir.display())]
    InUse {
        /// The folder.
        dir: PathBuf,
    },
}
