//! The report of a run: one HTML page that needs no network, its figures as SVG files, and the same tables as Markdown.
//!
//! What is shown is gathered in one place (`content`) from the run's manifest, rows and results, and set down twice: as a page
//! (`page`, with the rows embedded by `embed`) and as Markdown. The page's own parts are files: `page.html`, `style.css`,
//! `view.js`. Everything that came from a model or a file of the user is escaped on its way into the page.

mod content;
mod embed;
mod manifest;
mod page;
mod text;

use crate::figures::FOLDER;
use crate::run::{JournalError, read_run};
use serde::{Serialize, Serializer};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Name of the page.
pub const PAGE: &str = "report.html";
/// Name of the Markdown.
pub const MARKDOWN: &str = "report.md";
/// Name of the file in which a finished run keeps its tables.
pub const RESULTS: &str = "results.json";

/// What a report consists of.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Written {
    /// The page.
    #[serde(serialize_with = "lossy")]
    pub page: PathBuf,
    /// Its size in bytes.
    pub page_bytes: usize,
    /// The Markdown.
    #[serde(serialize_with = "lossy")]
    pub markdown: PathBuf,
    /// The figures.
    #[serde(serialize_with = "all_lossy")]
    pub figures: Vec<PathBuf>,
    /// Rows that the run has.
    pub rows: usize,
    /// Rows that it is to have, if its manifest says so.
    pub total: Option<usize>,
    /// Rows that can be browsed on the page: all, or what fits of them.
    pub browsable: usize,
}

/// A file's name as JSON has it: what of it is no Unicode is U+FFFD.
fn lossy<S: Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&path.to_string_lossy())
}

fn all_lossy<S: Serializer>(paths: &[PathBuf], to: S) -> Result<S::Ok, S::Error> {
    to.collect_seq(paths.iter().map(|path| path.to_string_lossy()))
}

/// Writes the report of the run in `dir` into it: [`PAGE`], [`MARKDOWN`] and the figures. A run that is not finished is reported
/// as far as it has come.
///
/// # Errors
/// When `dir` holds no run or a malformed one, or a file cannot be written.
pub fn write(dir: &Path) -> Result<Written, ReportError> {
    let (manifest, journal) = read_run(dir)?;
    let results = read_results(&dir.join(RESULTS))?;
    let content = content::Content::new(&manifest, &journal, results.as_ref());
    let embedded = embed::rows(&content.rows, embed::BUDGET);

    let folder = dir.join(FOLDER);
    let mut figures = Vec::new();
    for figure in content.figures() {
        std::fs::create_dir_all(&folder)
            .map_err(|error| ReportError::File { file: folder.clone(), error })?;
        figures.push(put(folder.join(format!("{}.svg", figure.name)), &figure.file())?);
    }
    let page = page::html(&content, &embedded);
    let markdown = put(dir.join(MARKDOWN), &text::markdown(&content))?;
    Ok(Written {
        page_bytes: page.len(),
        page: put(dir.join(PAGE), &page)?,
        markdown,
        figures,
        rows: content.rows.len(),
        total: content.total,
        browsable: embedded.rows,
    })
}

fn put(file: PathBuf, text: &str) -> Result<PathBuf, ReportError> {
    match std::fs::write(&file, text) {
        Ok(()) => Ok(file),
        Err(error) => Err(ReportError::File { file, error }),
    }
}

/// What a finished run has written of its tables; none where there is no such file.
fn read_results(file: &Path) -> Result<Option<Value>, ReportError> {
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(ReportError::File { file: file.to_path_buf(), error }),
    };
    serde_json::from_str(&text).map(Some).map_err(|error| {
        ReportError::Run(JournalError::Malformed {
            file: file.to_path_buf(),
            line: error.line(),
            why: error.to_string(),
        })
    })
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReportError {
    /// The folder holds no run, or a malformed one.
    #[error(transparent)]
    Run(#[from] JournalError),
    /// A file cannot be read or written.
    #[error("{}: {error}", file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// What the system says.
        error: std::io::Error,
    },
}
