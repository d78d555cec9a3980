//! The suites by name: what each takes, and how it is made.

use super::Args;
use crate::common::distinct;
use crate::failure::{Blame, Failure};
use anyhow::{Context, anyhow};
use reattention_eval::run::{Suite, Tools};
use reattention_eval::suites::infinite::{self, Task};
use reattention_eval::suites::infinitebench::NewTokens;
use reattention_eval::suites::{
    babilong, data, haystack, infinitebench, leval, longbench, longbench_v2, multi_needle, needle,
    needlebench, perplexity, ruler, ruler_data,
};
use reattention_eval::{EvalError, figures};
use std::path::{Path, PathBuf};

#[derive(Clone, Copy, Debug, PartialEq, clap::ValueEnum)]
pub(super) enum SuiteName {
    /// Facts hidden at several depths of texts of several lengths, one question each.
    Needle,
    /// Four facts in a text, asked for in one question (as STRING and the Llama 3 report do).
    #[value(alias = "multi_needle")]
    MultiNeedle,
    /// OpenCompass's NeedleBench, which ReAttention reports: 11 depths, scored by keyword or likeness.
    Needlebench,
    /// The original needle in a haystack (gkamradt): one sentence among essays.
    Haystack,
    /// InfiniteBench's pass key, generated.
    Passkey,
    /// InfiniteBench's number string, generated.
    #[value(alias = "number_string")]
    NumberString,
    /// InfiniteBench's key-value retrieval, generated.
    #[value(alias = "kv_retrieval")]
    KvRetrieval,
    /// InfiniteBench's Math.Find, generated.
    #[value(alias = "math_find")]
    MathFind,
    /// InfiniteBench's Math.Calc, generated.
    #[value(alias = "math_calc")]
    MathCalc,
    /// InfiniteBench's Code.Run, generated.
    #[value(alias = "code_run")]
    CodeRun,
    /// RULER's 13 tasks, generated; --data is a folder with the essays and the question sets it takes from elsewhere.
    Ruler,
    /// RULER's rows as its own scripts write them, from --data.
    #[value(alias = "ruler_data")]
    RulerData,
    /// LongBench, from --data: 21 tasks.
    Longbench,
    /// LongBench-E, from --data: 13 tasks by length.
    LongbenchE,
    /// LongBench v2, from --data.
    #[value(name = "longbench-v2")]
    LongbenchV2,
    /// L-Eval, from --data: 20 tasks.
    Leval,
    /// InfiniteBench, from --data: 12 tasks.
    Infinitebench,
    /// BABILong, from --data: 20 tasks by length.
    Babilong,
    /// How well the next token is predicted, by position; --data is a text, or a folder of .txt files such as PG19's.
    Perplexity,
    /// What arms lose against a base arm that they approximate: facts, logits, votes, attention, perplexity, speed.
    Selection,
}

impl SuiteName {
    pub(super) fn name(self) -> String {
        clap::ValueEnum::to_possible_value(&self).map_or(String::new(), |v| v.get_name().to_string())
    }

    /// The flags that mean something to it.
    pub(super) fn takes(self) -> &'static [&'static str] {
        match self {
            Self::Needle => &["lengths", "depths", "samples", "distractors", "keys"],
            Self::MultiNeedle => &["lengths", "samples", "data"],
            Self::Needlebench => &["lengths", "depths", "samples", "data"],
            Self::Haystack => &["lengths", "depths", "data"],
            Self::Passkey | Self::NumberString | Self::KvRetrieval => &["lengths", "depths", "samples"],
            Self::MathFind | Self::MathCalc | Self::CodeRun => &["lengths", "samples"],
            Self::Ruler => &["lengths", "samples", "tasks", "data"],
            Self::RulerData | Self::Babilong => &["data", "tasks", "lengths", "samples"],
            Self::Longbench | Self::LongbenchE | Self::Leval | Self::Infinitebench => {
                &["data", "tasks", "samples", "limit"]
            }
            Self::LongbenchV2 => &["data", "samples", "limit"],
            Self::Perplexity => &["data", "tokens"],
            Self::Selection => &["lengths", "samples", "tasks", "arm", "facts", "chains", "hops"],
        }
    }

    /// Whether the built-in model was trained on anything it asks.
    pub(super) fn suits_built_in(self) -> bool {
        matches!(self, Self::Needle | Self::Perplexity | Self::Selection)
    }

    /// The suite as the flags describe it.
    pub(super) fn make(
        self,
        args: &Args,
        tools: &Tools<'_>,
        window: usize,
    ) -> Result<Box<dyn Suite>, Failure> {
        let seed = args.seed.value;
        let texts = &args.texts;
        let lengths = |default: Vec<usize>| texts.lengths.as_deref().map_or(default, distinct);
        let depths = |default: Vec<f64>| texts.depths.as_deref().map_or(default, distinct);
        let samples = |default: usize| texts.samples.unwrap_or(default);
        let (tasks, data, limit) = (texts.tasks.clone(), texts.data.clone(), texts.limit);
        match self {
            Self::Needle => {
                let d = needle::Options::default();
                let options = needle::Options {
                    lengths: lengths(d.lengths),
                    depths: depths(d.depths),
                    samples: samples(d.samples),
                    distractors: texts.distractors.unwrap_or(d.distractors),
                    keys: texts.keys.as_deref().map_or(d.keys, distinct),
                    seed,
                    max_new_tokens: d.max_new_tokens,
                };
                boxed(needle::Suite::new(options, tools))
            }
            Self::MultiNeedle => {
                let d = multi_needle::Options::default();
                let (lengths, samples) = (lengths(d.lengths.clone()), samples(d.samples));
                boxed(multi_needle::Suite::new(
                    multi_needle::Options { lengths, samples, seed, data, ..d },
                    tools,
                ))
            }
            Self::Needlebench => {
                let d = needlebench::Options::default();
                let (lengths, depths) = (lengths(d.lengths.clone()), depths(d.depths.clone()));
                let options =
                    needlebench::Options { lengths, depths, samples: samples(d.samples), seed, data, ..d };
                boxed(needlebench::Suite::new(options, tools))
            }
            Self::Haystack => {
                let d = haystack::Options::default();
                let (lengths, depths) = (lengths(d.lengths.clone()), depths(d.depths.clone()));
                boxed(haystack::Suite::new(haystack::Options { lengths, depths, seed, data, ..d }, tools))
            }
            Self::Passkey => self.infinite(Task::Passkey, args, tools),
            Self::NumberString => self.infinite(Task::NumberString, args, tools),
            Self::KvRetrieval => self.infinite(Task::KvRetrieval, args, tools),
            Self::MathFind => self.infinite(Task::MathFind, args, tools),
            Self::MathCalc => self.infinite(Task::MathCalc, args, tools),
            Self::CodeRun => self.infinite(Task::CodeRun, args, tools),
            Self::Ruler => {
                let d = ruler::Options::default();
                let options = ruler::Options {
                    lengths: lengths(d.lengths),
                    tasks: tasks.unwrap_or_default(),
                    samples: samples(d.samples),
                    seed,
                    data,
                };
                boxed(ruler::Suite::new(options, tools))
            }
            Self::RulerData => {
                let (data, lengths, samples) = (self.data(args)?, texts.lengths.clone(), texts.samples);
                boxed(ruler_data::Suite::new(ruler_data::Options { data, tasks, lengths, samples }, tools))
            }
            Self::Longbench | Self::LongbenchE => {
                let (data, extended, samples) = (self.data(args)?, self == Self::LongbenchE, texts.samples);
                let options = longbench::Options { data, tasks, extended, limit, samples };
                boxed(longbench::Suite::new(options, tools))
            }
            Self::LongbenchV2 => {
                let (data, samples) = (self.data(args)?, texts.samples);
                boxed(longbench_v2::Suite::new(longbench_v2::Options { data, limit, samples }, tools))
            }
            Self::Leval => {
                let (data, samples) = (self.data(args)?, texts.samples);
                boxed(leval::Suite::new(leval::Options { data, tasks, limit, samples }, tools))
            }
            Self::Infinitebench => {
                let options = infinitebench::Options {
                    data: self.data(args)?,
                    tasks,
                    limit,
                    samples: texts.samples,
                    // Chat models begin with words, and the official limits of 3 to 6 tokens would cut them off.
                    new_tokens: if tools.chat() { NewTokens::InfLlm } else { NewTokens::Official },
                    ..infinitebench::Options::default()
                };
                boxed(infinitebench::Suite::new(options, tools))
            }
            Self::Babilong => {
                let name = |n: &usize| figures::short(*n).replace('m', "M");
                let lengths = texts.lengths.as_ref().map(|l| l.iter().map(name).collect());
                let (data, samples) = (self.data(args)?, texts.samples);
                boxed(babilong::Suite::new(babilong::Options { data, tasks, lengths, samples }, tools))
            }
            Self::Perplexity => {
                let files = data.as_deref().map(text_files).transpose()?.unwrap_or_default();
                let tokens = texts.tokens.or(files.is_empty().then_some(16 * window));
                boxed(perplexity::Suite::new(perplexity::Options { files, tokens, seed }, tools))
            }
            Self::Selection => Err(Failure::Input(anyhow!("selection compares arms; run it by itself"))),
        }
    }

    fn infinite(self, task: Task, args: &Args, tools: &Tools<'_>) -> Result<Box<dyn Suite>, Failure> {
        let (texts, d) = (&args.texts, infinite::Options::default());
        let options = infinite::Options {
            lengths: texts.lengths.as_deref().map_or(d.lengths.clone(), distinct),
            depths: texts.depths.as_deref().map_or(d.depths.clone(), distinct),
            samples: texts.samples.unwrap_or(d.samples),
            seed: args.seed.value,
            ..d
        };
        boxed(infinite::Suite::new(task, options, tools))
    }

    /// The folder that it reads.
    fn data(self, args: &Args) -> Result<PathBuf, Failure> {
        let home = match self {
            Self::RulerData => "what NVIDIA/RULER's scripts/data writes",
            Self::Longbench | Self::LongbenchE => {
                "data.zip of huggingface.co/datasets/THUDM/LongBench, unpacked"
            }
            Self::LongbenchV2 => "data.json of huggingface.co/datasets/THUDM/LongBench-v2",
            Self::Leval => "LEval-data of github.com/OpenLMLab/LEval",
            Self::Infinitebench => "the files of huggingface.co/datasets/xinrongzhang2022/InfiniteBench",
            _ => "the files of huggingface.co/datasets/RMT-team/babilong",
        };
        let missing =
            || Failure::Input(anyhow!("{} reads your copy of it: --data DIR with {home}", self.name()));
        args.texts.data.clone().ok_or_else(missing)
    }
}

fn boxed<S: Suite + 'static>(suite: Result<S, EvalError>) -> Result<Box<dyn Suite>, Failure> {
    Ok(Box::new(suite.input()?))
}
/// A text, or the books of a folder in PG19's form.
fn text_files(path: &Path) -> Result<Vec<PathBuf>, Failure> {
    match std::fs::metadata(path).with_context(|| format!("--data {}", path.display())).input()?.is_dir() {
        true => Ok(data::books(path).input()?.into_iter().map(|(_, file)| file).collect()),
        false => Ok(vec![path.to_path_buf()]),
    }
}
