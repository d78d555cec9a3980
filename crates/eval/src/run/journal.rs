//! What a run leaves on disk while it goes: `run.json`, which says what is run, and `rows.jsonl`, one finished row a line.
//!
//! A run that was stopped is resumed with the same folder: rows in the journal are not asked again. A run of something else
//! is refused, so that no table mixes two of them.
//!
//! A line is handed to the system whole or taken back, so that a full disk leaves no half of one for the next to be written
//! behind. What the system had not written when the power failed is asked again, and so is what stands on a line that is
//! not JSON.

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
    file: Option<(PathBuf, Lines<File>)>,
    /// Lines that were left out, from 1.
    torn: Vec<usize>,
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
    /// When the folder holds another run or a file that cannot be read or written or that no run wrote, or another process is
    /// at it.
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
        let Found { rows: found, torn, whole } = read_rows(&rows)?;
        // What a kill left of a line is asked again.
        file.set_len(whole).map_err(|e| at(&rows, e))?;
        let lines = Lines { file, whole, is_torn: false };
        let mut journal = Self { file: Some((rows, lines)), torn, ..Self::default() };
        for row in found {
            journal.keep(row);
        }
        Ok(journal)
    }

    /// Lines of the file, from 1, that are not JSON and were left out: a write failed there. Their rows are missing, and asked
    /// again when the run is resumed.
    pub fn torn(&self) -> &[usize] {
        &self.torn
    }

    /// All rows, in the order they were finished.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Whether this row is there.
    pub fn has(&self, suite: &str, task: &str, length: Option<usize>, id: &str, method: &str) -> bool {
        self.seen.contains(&(suite.into(), task.into(), length, id.into(), method.into()))
    }

    /// Adds a finished row; the system has it when this returns, so that the end of the process loses nothing.
    ///
    /// # Errors
    /// When it cannot be written; the file then ends where it ended.
    pub fn add(&mut self, row: Row) -> Result<(), JournalError> {
        if let Some((path, lines)) = &mut self.file {
            let line = serde_json::to_vec(&row).map_err(|e| at(path, e.into()))?;
            lines.add(line).map_err(|e| at(path, e))?;
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
    let Found { rows, torn, .. } = read_rows(&dir.join(ROWS))?;
    journal.torn = torn;
    for row in rows {
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

/// What a file of rows holds.
struct Found {
    rows: Vec<Row>,
    /// Lines that are not JSON, from 1, the last one without an end apart.
    torn: Vec<usize>,
    /// Bytes up to the end of the last row.
    whole: u64,
}

fn read_rows(path: &Path) -> Result<Found, JournalError> {
    let bytes = std::fs::read(path).map_err(|e| at(path, e))?;
    let mut found = Found { rows: Vec::new(), torn: Vec::new(), whole: 0 };
    let mut end = 0;
    for (i, line) in bytes.split_inclusive(|b| *b == b'\n').enumerate() {
        end += line.len() as u64;
        let Some(line) = line.strip_suffix(b"\n") else { break };
        if line.is_empty() {
            continue;
        }
        let Ok(value) = serde_json::from_slice::<Value>(line) else {
            found.torn.push(i + 1);
            continue;
        };
        let row = serde_json::from_value(value).map_err(|e| JournalError::Malformed {
            file: path.to_path_buf(),
            line: i + 1,
            why: e.to_string(),
        })?;
        found.rows.push(row);
        found.whole = end;
    }
    Ok(found)
}

/// A file that grows by lines, each of which is there whole or not at all.
#[derive(Debug)]
struct Lines<F> {
    file: F,
    /// Bytes of the lines that are there.
    whole: u64,
    /// Whether something may stand behind them.
    is_torn: bool,
}

/// What lines can be appended to and taken back from.
trait Tail: Write {
    /// Forgets what stands behind the first `len` bytes.
    fn cut(&mut self, len: u64) -> std::io::Result<()>;
}

impl Tail for File {
    fn cut(&mut self, len: u64) -> std::io::Result<()> {
        self.set_len(len)
    }
}

impl<F: Tail> Lines<F> {
    /// Appends a line, given without its end. If that fails, what was written of it is taken back, now or before the next line.
    fn add(&mut self, mut line: Vec<u8>) -> std::io::Result<()> {
        line.push(b'\n');
        if self.is_torn {
            self.file.cut(self.whole)?;
            self.is_torn = false;
        }
        if let Err(error) = self.file.write_all(&line) {
            self.is_torn = self.file.cut(self.whole).is_err();
            return Err(error);
        }
        self.whole += line.len() as u64;
        Ok(())
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Error, Result};

    /// A disk that takes `room` bytes, then half of what it is given, and whose files cannot be cut so many times.
    #[derive(Debug, Default)]
    struct Disk {
        bytes: Vec<u8>,
        room: usize,
        stubborn: usize,
    }

    impl Write for Disk {
        fn write(&mut self, data: &[u8]) -> Result<usize> {
            let n = data.len().min(self.room - self.bytes.len());
            if n == 0 {
                return Err(Error::from(std::io::ErrorKind::StorageFull));
            }
            self.bytes.extend(&data[..n]);
            Ok(n)
        }

        fn flush(&mut self) -> Result<()> {
            Ok(())
        }
    }

    impl Tail for Disk {
        fn cut(&mut self, len: u64) -> Result<()> {
            if self.stubborn > 0 {
                self.stubborn -= 1;
                return Err(Error::other("stubborn"));
            }
            self.bytes.truncate(len as usize);
            Ok(())
        }
    }

    #[test]
    fn a_full_disk_leaves_whole_lines_only() {
        for stubborn in 0..3 {
            let mut lines =
                Lines { file: Disk { room: 25, stubborn, ..Disk::default() }, whole: 0, is_torn: false };
            lines.add(b"first row".to_vec()).unwrap();
            lines.add(b"second row".to_vec()).unwrap();
            for _ in 0..=stubborn {
                lines.add(b"third row".to_vec()).unwrap_err();
            }
            assert_eq!(lines.file.bytes, b"first row\nsecond row\n", "cut fails {stubborn} times");
            lines.file.room = 40;
            lines.add(b"third row".to_vec()).unwrap();
            assert_eq!(lines.file.bytes, b"first row\nsecond row\nthird row\n");
        }
    }

    fn row(id: &str) -> Row {
        Row { suite: "s".into(), task: "t".into(), method: "m".into(), id: id.into(), ..Row::default() }
    }

    /// A line that a failing write has torn, and one that was then written right behind it, are both asked again; the others
    /// are not lost with them.
    #[test]
    fn torn_lines_are_left_out_and_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(ROWS);
        let open = || Journal::open(dir.path(), &Map::new(), &Map::new()).unwrap();
        let mut journal = open();
        for id in ["1", "2", "3"] {
            journal.add(row(id)).unwrap();
        }
        drop(journal);
        let text = std::fs::read_to_string(&path).unwrap();
        let mut lines: Vec<&str> = text.lines().collect();
        let merged = format!("{}{}", &lines[1][..20], lines[1]);
        lines[1] = &merged;
        let torn = format!("{}\n{}\n{}", lines.join("\n"), &lines[2][..30], &lines[2][..9]);
        std::fs::write(&path, torn).unwrap();
        let (_, shown) = read_run(dir.path()).unwrap();
        assert_eq!((shown.rows().len(), shown.torn()), (2, &[2, 4][..]));
        let mut journal = open();
        assert_eq!(journal.torn(), [2, 4]);
        assert!(journal.has("s", "t", None, "1", "m") && !journal.has("s", "t", None, "2", "m"));
        journal.add(row("2")).unwrap();
        drop(journal);
        let journal = open();
        let ids: Vec<&str> = journal.rows().iter().map(|r| r.id.as_str()).collect();
        assert_eq!((ids, journal.torn()), (vec!["1", "3", "2"], &[2][..]));
    }
}
