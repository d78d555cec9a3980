//! Scores of predictions, equal to those of the official scorers.
//!
//! [`Scorer::new`] finds the scorer of a suite's task, [`Scorer::score`] scores one [`Sample`], [`Scorer::summary`] averages as
//! the suite does, and [`file::score_file`] does all of it for a file of predictions. What the published code does is kept, with
//! its quirks; `docs/scorers.md` lists them. Where it raises, the score is 0, the sample counts, and [`Score::note`] says so.

pub mod babilong;
pub mod classification;
pub mod code_sim;
pub mod file;
pub mod infinitebench;
pub mod leval;
pub mod longbench;
pub mod longbench_v2;
pub mod needlebench;
pub mod normalize;
pub mod python;
pub mod retrieval;
pub mod rouge_google;
pub mod rouge_pltrdy;
pub mod ruler;
pub mod segment;
pub mod sequence;
mod summary;
pub mod token_f1;

pub use summary::{Group, Summary};

use serde::Serialize;
use serde_json::Value;

/// A prediction and what it is scored against.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    /// What the model said, as the official scorer gets it.
    pub prediction: String,
    /// The reference, in its published type: a text, a number, or a list of them.
    pub expected: Value,
    /// Names of all classes: LongBench's `trec` and `lsht`.
    pub classes: Option<Vec<String>>,
    /// The question: BABILong.
    pub question: Option<String>,
    /// Name of the model. InfiniteBench's `math_calc` drops the first number of `gpt4`.
    pub model: String,
    /// Length of the context in words or characters: LongBench-E's buckets.
    pub length: Option<u64>,
    /// Place in the file: L-Eval's topic retrieval takes it modulo 3.
    pub index: usize,
    /// Groups whose averages it counts in: difficulty and length of LongBench v2.
    pub groups: Vec<String>,
}

impl Sample {
    /// A sample with a prediction and a reference only.
    pub fn new(prediction: &str, expected: Value) -> Self {
        Self { prediction: prediction.to_string(), expected, ..Self::default() }
    }

    /// The reference as a list of texts; one text is a list of one.
    ///
    /// # Errors
    /// When it is something else.
    pub fn references(&self) -> Result<Vec<&str>, ScoreError> {
        match &self.expected {
            Value::String(one) => Ok(vec![one]),
            Value::Array(list) => list
                .iter()
                .map(|r| r.as_str().ok_or_else(|| wrong("a list of texts", &self.expected)))
                .collect(),
            other => Err(wrong("a text or a list of texts", other)),
        }
    }

    /// The reference as one text; a list must have one.
    ///
    /// # Errors
    /// When it is something else.
    pub fn text(&self) -> Result<&str, ScoreError> {
        match self.references()?[..] {
            [one] => Ok(one),
            _ => Err(wrong("one text", &self.expected)),
        }
    }

    fn question(&self) -> Result<&str, ScoreError> {
        self.question.as_deref().ok_or(ScoreError::Missing { field: "question" })
    }

    fn classes(&self) -> Result<&[String], ScoreError> {
        self.classes.as_deref().ok_or(ScoreError::Missing { field: "all_classes" })
    }
}

fn wrong(wanted: &'static str, found: &Value) -> ScoreError {
    ScoreError::WrongType { field: "the reference", wanted, found: crate::jsonl::kind(found) }
}

/// Score of one sample.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Score {
    /// The score, 0 to 1.
    pub value: f64,
    /// Scores that the suite reports apart, 0 to 1: both back ends of code similarity, ROUGE-1, 2 and L of L-Eval.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<(&'static str, f64)>,
    /// What is peculiar about the score: the official code raises here, or compares what can never be equal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<&'static str>,
}

impl Score {
    /// A score without parts.
    pub fn of(value: f64) -> Self {
        Self { value, ..Self::default() }
    }

    /// 0, because the official code raises `why`.
    pub fn raised(why: &'static str) -> Self {
        Self { note: Some(why), ..Self::default() }
    }

    /// With a part.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: f64) -> Self {
        self.parts.push((name, value));
        self
    }

    /// A part by its name.
    pub fn part(&self, name: &str) -> Option<f64> {
        self.parts.iter().find(|(n, _)| *n == name).map(|(_, value)| *value)
    }

    /// Whether the score is of one, else of zero: for scorers that say right or wrong.
    fn right(right: bool) -> Self {
        Self::of(f64::from(u8::from(right)))
    }
}

/// Why a sample has no score.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ScoreError {
    /// No such suite.
    #[error("unknown suite `{suite}`; known are {known}")]
    UnknownSuite {
        /// What was asked for.
        suite: String,
        /// All suites.
        known: String,
    },
    /// No such task.
    #[error("suite {suite} has no task `{task}` that can be scored here; it has {known}")]
    UnknownTask {
        /// The suite.
        suite: Suite,
        /// What was asked for.
        task: String,
        /// All tasks.
        known: String,
    },
    /// The sample lacks what the scorer needs.
    #[error("`{field}` is missing")]
    Missing {
        /// Its name in the published files.
        field: &'static str,
    },
    /// Something has another type than in the published files.
    #[error("{field} is {found} where {wanted} belongs")]
    WrongType {
        /// What it is.
        field: &'static str,
        /// What belongs there.
        wanted: &'static str,
        /// What was found.
        found: &'static str,
    },
    /// Comparing the texts would take too long.
    #[error(
        "too long to compare: {prediction} words or characters with {expected}, and at most {most} pairs are looked at"
    )]
    TooLong {
        /// Length of one text.
        prediction: usize,
        /// Length of the other.
        expected: usize,
        /// Most pairs.
        most: usize,
    },
}

/// A benchmark whose predictions can be scored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Suite {
    /// OpenBMB/InfiniteBench.
    InfiniteBench,
    /// THUDM/LongBench, version 1, with its -E variants.
    LongBench,
    /// THUDM/LongBench, version 2.
    #[serde(rename = "longbench-v2")]
    LongBenchV2,
    /// OpenLMLab/LEval.
    LEval,
    /// NVIDIA/RULER.
    Ruler,
    /// booydar/babilong.
    BabiLong,
    /// OpenCompass's NeedleBench.
    NeedleBench,
}

impl Suite {
    /// All suites.
    pub const ALL: [Self; 7] = [
        Self::InfiniteBench,
        Self::LongBench,
        Self::LongBenchV2,
        Self::LEval,
        Self::Ruler,
        Self::BabiLong,
        Self::NeedleBench,
    ];

    /// Its name on the command line and in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::InfiniteBench => "infinitebench",
            Self::LongBench => "longbench",
            Self::LongBenchV2 => "longbench-v2",
            Self::LEval => "leval",
            Self::Ruler => "ruler",
            Self::BabiLong => "babilong",
            Self::NeedleBench => "needlebench",
        }
    }

    /// Names of its tasks.
    pub fn tasks(self) -> Vec<String> {
        match self {
            Self::InfiniteBench => names(&infinitebench::TASKS),
            Self::LongBench => names(&longbench::TASKS),
            Self::LongBenchV2 => vec!["longbench-v2".to_string()],
            Self::LEval => names(&leval::TASKS),
            Self::Ruler => names(&RULER),
            Self::BabiLong => (1..=20).map(|n| format!("qa{n}")).collect(),
            Self::NeedleBench => vec!["needlebench".to_string()],
        }
    }
}

impl std::fmt::Display for Suite {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Suite {
    type Err = ScoreError;

    fn from_str(name: &str) -> Result<Self, ScoreError> {
        Self::ALL.into_iter().find(|s| s.name() == name).ok_or_else(|| ScoreError::UnknownSuite {
            suite: name.to_string(),
            known: Self::ALL.map(Self::name).join(", "),
        })
    }
}

fn names<T>(tasks: &[(&str, T)]) -> Vec<String> {
    tasks.iter().map(|(name, _)| (*name).to_string()).collect()
}

fn find<T: Copy>(tasks: &[(&str, T)], name: &str) -> Option<T> {
    tasks.iter().find(|(n, _)| *n == name).map(|(_, task)| *task)
}

/// Scores the samples of one task.
#[derive(Clone, Debug)]
pub struct Scorer {
    suite: Suite,
    task: String,
    kind: Kind,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Infinite(infinitebench::Task),
    LongBench(longbench::Metric),
    LongBenchV2,
    LEval(leval::Task),
    Ruler(Match),
    BabiLong(&'static [&'static str]),
    NeedleBench,
}

#[derive(Clone, Copy, Debug)]
enum Match {
    All,
    Part,
}

const RULER: [(&str, Match); 13] = [
    ("niah_single_1", Match::All),
    ("niah_single_2", Match::All),
    ("niah_single_3", Match::All),
    ("niah_multikey_1", Match::All),
    ("niah_multikey_2", Match::All),
    ("niah_multikey_3", Match::All),
    ("niah_multivalue", Match::All),
    ("niah_multiquery", Match::All),
    ("vt", Match::All),
    ("cwe", Match::All),
    ("fwe", Match::All),
    ("qa_1", Match::Part),
    ("qa_2", Match::Part),
];

impl Scorer {
    /// The scorer of a task. LongBench-E's tasks end in `_e`.
    ///
    /// # Errors
    /// When the suite has no such task.
    pub fn new(suite: Suite, task: &str) -> Result<Self, ScoreError> {
        let kind = match suite {
            Suite::InfiniteBench => find(&infinitebench::TASKS, task).map(Kind::Infinite),
            Suite::LongBench => {
                find(&longbench::TASKS, task.strip_suffix("_e").unwrap_or(task)).map(Kind::LongBench)
            }
            Suite::LongBenchV2 => (task == "longbench-v2").then_some(Kind::LongBenchV2),
            Suite::LEval => find(&leval::TASKS, task).map(Kind::LEval),
            Suite::Ruler => find(&RULER, task).map(Kind::Ruler),
            Suite::BabiLong => babilong::labels(task).map(Kind::BabiLong),
            Suite::NeedleBench => (task == "needlebench").then_some(Kind::NeedleBench),
        };
        match kind {
            Some(kind) => Ok(Self { suite, task: task.to_string(), kind }),
            None => Err(ScoreError::UnknownTask {
                suite,
                task: task.to_string(),
                known: suite.tasks().join(", "),
            }),
        }
    }

    /// The suite.
    pub fn suite(&self) -> Suite {
        self.suite
    }

    /// The task.
    pub fn task(&self) -> &str {
        &self.task
    }

    /// Names of the scores that the task reports apart: what [`Score::parts`] has, as far as a sample has them.
    pub fn parts(&self) -> &'static [&'static str] {
        match self.kind {
            Kind::LongBench(longbench::Metric::Code) => &["levenshtein", "difflib"],
            Kind::LEval(leval::Task::Rouge) => &["rouge1", "rouge2", "rougeL"],
            Kind::LEval(leval::Task::Judge) => &["loyalty", "fact"],
            _ => &[],
        }
    }

    /// Scores a sample.
    ///
    /// # Errors
    /// When it lacks what the scorer needs, has it in another type, or is too long to compare.
    pub fn score(&self, sample: &Sample) -> Result<Score, ScoreError> {
        match self.kind {
            Kind::Infinite(task) => infinitebench::score(task, sample),
            Kind::LongBench(metric) => longbench::score(metric, &self.task, sample),
            Kind::LongBenchV2 => longbench_v2::score(sample),
            Kind::LEval(task) => leval::score(task, sample),
            Kind::Ruler(Match::All) => ruler::match_all(sample),
            Kind::Ruler(Match::Part) => ruler::match_part(sample),
            Kind::BabiLong(labels) => babilong::babilong(labels, sample),
            Kind::NeedleBench => needlebench::needlebench(sample),
        }
    }
}
