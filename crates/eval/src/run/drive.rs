//! The driver: every reading of every suite under every arm, in one or several jobs.

use super::{Journal, Made, Reading, Row, Suite, Tools, ask};
use crate::{Arm, EvalError};
use reattention_engine::{Cancel, Engine, Progress, SessionError, reset_peak_rss};
use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How to run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Passages of evidence to keep with each row; 0 saves the work of gathering it.
    pub evidence: usize,
}

/// How far a run has come.
#[derive(Clone, Debug)]
pub struct Watch<'a> {
    /// What the job that reports is at: suite, task, length, arm.
    pub label: &'a str,
    /// Rows that are there, those of an earlier start among them.
    pub rows: usize,
    /// Rows in all.
    pub total: usize,
    /// Time left, from what these rows took for their lengths; none before there is anything to go by.
    pub left: Option<Duration>,
    /// How far the present text is read.
    pub progress: Progress,
}

/// Asks all questions that the journal does not have yet. There are as many jobs as engines; they share readings out among
/// themselves, and all arms of a reading run in one job, one after the other. A method that refuses a length gives rows that
/// say so; any other failure (a full disk or a lost device among them) ends the run, with all finished rows in the journal
/// and the others to be asked when it is resumed.
///
/// # Errors
/// When two rows of a suite cannot be told apart, a text cannot be made, a method refuses its settings, a step fails, or
/// the journal cannot be written.
pub fn run(
    engines: &[Engine],
    arms: &[Arm],
    suites: &[Box<dyn Suite>],
    options: &Options,
    journal: &mut Journal,
    cancel: &Cancel,
    watch: &mut (dyn FnMut(Watch<'_>) + Send),
) -> Result<(), EvalError> {
    refuse_twins(suites)?;
    let units = units(arms, suites, journal);
    let weight = |u: &Unit<'_>| u.arms.iter().map(|a| a.1.len()).sum::<usize>() as f64 * u.tokens();
    let total_rows =
        suites.iter().flat_map(|s| s.readings()).map(|r| r.rows.len()).sum::<usize>() * arms.len();
    let board = Mutex::new(Board {
        next: 0,
        rows: journal.rows().len(),
        total_rows,
        journal,
        watch,
        start: Instant::now(),
        weight_done: 0.0,
        weight: units.iter().map(weight).sum(),
    });
    let first_error: Mutex<Option<EvalError>> = Mutex::new(None);
    let job = |engine: &Engine| -> Result<(), EvalError> {
        loop {
            let unit = {
                let mut board = lock(&board);
                board.next += 1;
                match units.get(board.next - 1) {
                    Some(unit) if !cancel.is_cancelled() => unit,
                    _ => return Ok(()),
                }
            };
            unit.run(engine, arms, options, cancel, &board)?;
        }
    };
    std::thread::scope(|scope| {
        for engine in engines {
            let (job, first_error) = (&job, &first_error);
            scope.spawn(move || {
                if let Err(error) = job(engine) {
                    // The jobs that this ends fail with `Cancelled`, after the error that counts.
                    lock(first_error).get_or_insert(error);
                    cancel.cancel();
                }
            });
        }
    });
    match first_error.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the jobs share.
struct Board<'a> {
    next: usize,
    rows: usize,
    total_rows: usize,
    journal: &'a mut Journal,
    watch: &'a mut (dyn FnMut(Watch<'_>) + Send),
    start: Instant,
    /// Tokens to read, times rows: what time left is reckoned by.
    weight_done: f64,
    weight: f64,
}

impl Board<'_> {
    fn add(&mut self, row: Row, tokens: f64) -> Result<(), EvalError> {
        self.rows += 1;
        self.weight_done += tokens;
        Ok(self.journal.add(row)?)
    }

    fn show(&mut self, label: &str, progress: Progress) {
        let share = self.weight_done / self.weight.max(1.0);
        let left = (share > 0.0).then(|| self.start.elapsed().mul_f64((1.0 - share).max(0.0) / share));
        (self.watch)(Watch { label, rows: self.rows, total: self.total_rows, left, progress });
    }
}

/// A reading with what is left to ask of it: indices of arms, each with indices of rows.
struct Unit<'a> {
    suite: &'a dyn Suite,
    reading: &'a Reading,
    arms: Vec<(usize, Vec<usize>)>,
}

/// Refuses rows that share suite, task, length and id: the journal would keep one of them, and the score would be its alone.
fn refuse_twins(suites: &[Box<dyn Suite>]) -> Result<(), EvalError> {
    let mut seen = HashSet::new();
    for suite in suites {
        for reading in suite.readings() {
            for (index, key) in reading.rows.iter().enumerate() {
                let (task, id) = (reading.task_of(index), &key.id);
                if !seen.insert((suite.name(), task, reading.length, id)) {
                    let (suite, task) = (suite.name().to_string(), task.to_string());
                    return Err(EvalError::Twins { suite, task, id: id.clone() });
                }
            }
        }
    }
    Ok(())
}

fn units<'a>(arms: &[Arm], suites: &'a [Box<dyn Suite>], journal: &Journal) -> Vec<Unit<'a>> {
    let mut units = Vec::new();
    for suite in suites {
        for reading in suite.readings() {
            let left = |arm: &Arm| -> Vec<usize> {
                let has = |i: &usize| {
                    let id = &reading.rows[*i].id;
                    journal.has(suite.name(), reading.task_of(*i), reading.length, id, &arm.name)
                };
                (0..reading.rows.len()).filter(|i| !has(i)).collect()
            };
            let arms: Vec<_> =
                arms.iter().map(left).enumerate().filter(|(_, rows)| !rows.is_empty()).collect();
            if !arms.is_empty() {
                units.push(Unit { suite: suite.as_ref(), reading, arms });
            }
        }
    }
    units
}

impl Unit<'_> {
    fn tokens(&self) -> f64 {
        self.reading.tokens.max(1) as f64
    }

    fn run(
        &self,
        engine: &Engine,
        arms: &[Arm],
        options: &Options,
        cancel: &Cancel,
        board: &Mutex<Board<'_>>,
    ) -> Result<(), EvalError> {
        let (suite, reading) = (self.suite, self.reading);
        let made = suite.make(reading, &Tools::of(engine))?;
        for (arm, wanted) in &self.arms {
            let arm = &arms[*arm];
            let length =
                reading.length.map_or(String::new(), |n| format!(" at {}", crate::figures::short(n)));
            let label = format!("{} {}{length}, {}", suite.name(), reading.task, arm.name);
            let add = |row: Row| lock(board).add(row, self.tokens());
            let watch = |p: Progress| lock(board).show(&label, p);
            reset_peak_rss();
            let result = match &made {
                Made::Asked(asked) => {
                    ask::ask(engine, arm, suite, reading, asked, wanted, options.evidence, cancel, watch, add)
                }
                Made::Predicted { text, most } => arm
                    .session(engine)
                    .map_err(EvalError::from)
                    .and_then(|mut session| ask::predict(engine, &mut session, text, *most, cancel, watch))
                    .and_then(|row| add(self.named(row, arm, wanted[0]))),
            };
            match result {
                Err(EvalError::Session(SessionError::Method(reason))) if reason.is_refusal() => {
                    for &index in wanted {
                        let id = &reading.rows[index].id;
                        let row = Row { refused: Some(reason.to_string()), ..Row::default() };
                        let mut board = lock(board);
                        let task = reading.task_of(index);
                        if !board.journal.has(suite.name(), task, reading.length, id, &arm.name) {
                            board.add(self.named(row, arm, index), self.tokens())?;
                        }
                    }
                }
                result => result?,
            }
        }
        Ok(())
    }

    /// A row with the names of the reading's row `index`.
    fn named(&self, row: Row, arm: &Arm, index: usize) -> Row {
        let key = &self.reading.rows[index];
        Row {
            suite: self.suite.name().to_string(),
            task: self.reading.task_of(index).to_string(),
            length: self.reading.length,
            depth: key.depth,
            id: key.id.clone(),
            method: arm.name.clone(),
            ..row
        }
    }
}
