//! `reattn eval`: evaluation suites.

use crate::common::{MethodArgs, ModelArgs, OutputArgs, distinct, print, print_json, tokens};
use crate::failure::{Blame, Failure};
use crate::progress::Bar;
use anyhow::{Context, anyhow};
use clap::Subcommand;
use reattention::methods::{build, specs};
use reattention::{ModelShape, Settings};
use reattention_engine::{Cancel, Engine, Package};
use reattention_eval::suites::{needle, perplexity, selection};
use reattention_eval::{Arm, EvalError, figures, text};
use serde::Serialize;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

/// Run an evaluation suite.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    suite: Suite,
}

#[derive(Subcommand)]
enum Suite {
    /// Facts hidden at several depths of texts of several lengths.
    Needle(NeedleArgs),
    /// How well the next token is predicted, by position.
    Perplexity(PerplexityArgs),
    /// What arms lose against a base arm that they approximate: facts, logits, votes, attention, perplexity, speed.
    ///
    /// Every arm reads the same generated texts and is asked the same questions from their end: facts that are hard to tell
    /// apart, several facts one after the other, and chains of facts. The first arm is the base; the others are compared
    /// with it on the base's answers.
    Selection(SelectionArgs),
}

#[derive(clap::Args)]
struct NeedleArgs {
    /// Text lengths: 512, 4k, 1m, ...
    #[arg(long, value_delimiter = ',', value_parser = tokens, default_value = "512,4k,32k", value_name = "N,...")]
    lengths: Vec<usize>,
    /// Depths in per cent.
    #[arg(long, value_delimiter = ',', default_value = "0,25,50,75,100", value_name = "D,...")]
    depths: Vec<f64>,
    /// Texts a length; each hides one fact at every depth.
    #[arg(long, default_value_t = 4, value_name = "N")]
    samples: usize,
    /// Further near-identical facts in every text.
    #[arg(long, default_value_t = 0, value_name = "N")]
    distractors: usize,
    #[command(flatten)]
    shared: Shared,
}

#[derive(clap::Args)]
struct PerplexityArgs {
    /// Text to read; generated prose if left out.
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// Tokens to read: all of a file; 16 windows of generated prose.
    #[arg(long, value_parser = tokens, value_name = "N")]
    tokens: Option<usize>,
    #[command(flatten)]
    shared: Shared,
}

#[derive(clap::Args)]
struct SelectionArgs {
    /// What is compared, repeatable; the first is the base. NAME alone stands for selector=NAME; NAME:key=value,... sets
    /// these over what --set gives to all arms, where the key method names another method than --method.
    #[arg(long, value_name = "NAME[:KEY=VALUE,...]", default_values = ["exact", "window:prefill=window"])]
    arm: Vec<String>,
    /// Text lengths: 4k, 64k, 1m, ...
    #[arg(long, value_delimiter = ',', value_parser = tokens, default_value = "4k,16k,64k", value_name = "N,...")]
    lengths: Vec<usize>,
    /// What to ask and measure.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "near-duplicates,multi-needle,multi-hop,perplexity",
        value_name = "TASK,..."
    )]
    tasks: Vec<TaskName>,
    /// Texts a length.
    #[arg(long, default_value_t = 1, value_parser = at_least_one, value_name = "N")]
    samples: usize,
    /// Facts in every text, at evenly spread depths; all of them are asked for.
    #[arg(long, default_value_t = 25, value_parser = at_least_one, value_name = "N")]
    facts: usize,
    /// Chains of facts in every text; all of them are asked for.
    #[arg(long, default_value_t = 4, value_parser = at_least_one, value_name = "N")]
    chains: usize,
    /// Links of a chain; the built-in model mostly follows one and sometimes two.
    #[arg(long, default_value_t = 1, value_parser = at_least_one, value_name = "N")]
    hops: usize,
    #[command(flatten)]
    shared: Shared,
}

#[derive(Clone, Copy, PartialEq, clap::ValueEnum)]
enum TaskName {
    /// Facts whose people share first and last names, one question at a time.
    NearDuplicates,
    /// The same facts, five questions one after the other, the answers staying in the context.
    MultiNeedle,
    /// Chains of facts, of which the last link is asked for.
    MultiHop,
    /// Prediction of the text itself.
    Perplexity,
}

#[derive(clap::Args)]
struct Shared {
    /// Folder for the results: JSON, table and figure.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Seed of generated texts.
    #[arg(long, default_value_t = 1, value_name = "N")]
    seed: u64,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    method: MethodArgs,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode, Failure> {
    match &args.suite {
        Suite::Needle(args) => run_needle(args),
        Suite::Perplexity(args) => run_perplexity(args),
        Suite::Selection(args) => run_selection(args),
    }
}

fn run_needle(args: &NeedleArgs) -> Result<ExitCode, Failure> {
    if let Some(depth) = args.depths.iter().find(|d| !(0.0..=100.0).contains(*d)) {
        return Err(Failure::Input(anyhow!("--depths: {depth} is not between 0 and 100 per cent")));
    }
    if args.samples == 0 || args.depths.is_empty() {
        return Err(Failure::Input(anyhow!("at least one depth and one sample are needed")));
    }
    let longest = args.lengths.iter().copied().max().unwrap_or(0);
    let (engine, arms) = args.shared.open(Shared::by_method, |_| Ok(longest + 256))?;
    let options = needle::Options {
        lengths: distinct(&args.lengths),
        depths: distinct(&args.depths),
        samples: args.samples,
        distractors: args.distractors,
        seed: args.shared.seed,
        ..needle::Options::default()
    };
    let mut bar = Bar::new(args.shared.output.quiet);
    let report = needle::run(&engine, &arms, &options, &Cancel::default(), |name, p| bar.show(name, p))
        .map_err(blame)?;
    bar.clear();
    let table = figures::needle_table(&report.cells);
    let heat = figures::needle_svg(&report.cells);
    let lines = figures::needle_lines_svg(&report.cells);
    args.shared.finish(
        "needle",
        &engine,
        &arms,
        &report,
        &table,
        &[("needle", &heat), ("needle-lines", &lines)],
    )
}

fn run_perplexity(args: &PerplexityArgs) -> Result<ExitCode, Failure> {
    let data = match &args.data {
        Some(path) => Some(
            std::fs::read_to_string(path).with_context(|| format!("--data {}", path.display())).input()?,
        ),
        None => None,
    };
    let generated = |window: usize| args.tokens.unwrap_or(16 * window);
    let (engine, arms) = args.shared.open(Shared::by_method, |package| {
        let all = match &data {
            Some(text) => package.tokenizer().and_then(|t| t.encode_text(text)).input()?.ids.len() + 1,
            None => usize::MAX,
        };
        Ok(all.min(if data.is_some() {
            args.tokens.unwrap_or(all)
        } else {
            generated(package.shape().window)
        }))
    })?;
    let (text, most) = match data {
        Some(text) => (text, args.tokens),
        None => {
            let tokens = generated(engine.model().shape().window);
            (text::prose(args.shared.seed, tokens * 8), Some(tokens))
        }
    };
    let mut bar = Bar::new(args.shared.output.quiet);
    let report =
        perplexity::run(&engine, &arms, &text, most, &Cancel::default(), |name, p| bar.show(name, p))
            .map_err(blame)?;
    bar.clear();
    let table = figures::perplexity_table(&report.buckets);
    args.shared.finish("perplexity", &engine, &arms, &report, &table, &[])
}

fn run_selection(args: &SelectionArgs) -> Result<ExitCode, Failure> {
    let lengths = distinct(&args.lengths);
    // Questions and answers of a dialogue stand behind the text.
    let longest = lengths.iter().copied().max().unwrap_or(0) + 128 * selection::TOGETHER;
    let arms = |shared: &Shared, shape: &ModelShape| {
        let arms = args.arm.iter().map(|text| shared.arm(text, shape)).collect::<Result<Vec<_>, _>>()?;
        for (i, (name, method, settings)) in arms.iter().enumerate() {
            let same = |(n, m, s): &&Described| n == name || (m, s) == (method, settings);
            if let Some((other, ..)) = arms[..i].iter().find(same) {
                return Err(Failure::Input(anyhow!(
                    "--arm {}: has the name or the settings of arm `{other}`; give it others",
                    args.arm[i]
                )));
            }
        }
        Ok(arms)
    };
    let (engine, arms) = args.shared.open(arms, |_| Ok(longest))?;
    let options = selection::Options {
        lengths,
        tasks: distinct(&args.tasks).into_iter().map(TaskName::task).collect(),
        samples: args.samples,
        facts: args.facts,
        chains: args.chains,
        hops: args.hops,
        seed: args.shared.seed,
        ..selection::Options::default()
    };
    let mut bar = Bar::new(args.shared.output.quiet);
    let report = selection::run(&engine, &arms, &options, &Cancel::default(), |name, p| bar.show(name, p))
        .map_err(blame)?;
    bar.clear();
    args.shared.finish("selection", &engine, &arms, &report, &figures::selection_table(&report), &[])
}

impl TaskName {
    fn task(self) -> selection::Task {
        match self {
            Self::NearDuplicates => selection::Task::NearDuplicates,
            Self::MultiNeedle => selection::Task::MultiNeedle,
            Self::MultiHop => selection::Task::MultiHop,
            Self::Perplexity => selection::Task::Perplexity,
        }
    }
}

/// An arm as the user describes it: name, method, settings.
type Described = (String, String, Settings);

impl Shared {
    /// An arm for each method.
    fn by_method(&self, shape: &ModelShape) -> Result<Vec<Described>, Failure> {
        Ok(self.method.each(shape)?.into_iter().map(|(method, s)| (method.clone(), method, s)).collect())
    }

    /// The arm that `--arm` describes.
    fn arm(&self, text: &str, shape: &ModelShape) -> Result<Described, Failure> {
        let wrong = |why: &str| Failure::Input(anyhow!("--arm {text}: {why}"));
        let (name, settings) = match text.split_once(':') {
            Some((name, settings)) => (name, settings.to_string()),
            None => (text, format!("selector={text}")),
        };
        if name.is_empty() || name.contains(['=', ',']) {
            return Err(wrong("write NAME for selector=NAME, or NAME:key=value,..."));
        }
        let (methods, own): (Vec<&str>, Vec<&str>) =
            settings.split(',').partition(|pair| pair.trim_start().starts_with("method="));
        let method = match (&methods[..], &self.method.method[..]) {
            ([method], _) => method.trim().trim_start_matches("method=").to_string(),
            ([], [method]) => method.clone(),
            ([], _) => return Err(wrong("--method names several methods; say which by method=NAME")),
            _ => return Err(wrong("names several methods")),
        };
        let common = self.method.pairs();
        // A method is handed what it has of the settings for all; its own it must know.
        let mine = |pair: &&String| {
            let key = pair.split('=').next().unwrap_or_default();
            self.method.method == [method.as_str()]
                || specs().any(|s| s.name == method && s.params.iter().any(|p| p.name == key))
        };
        let pairs: Vec<&str> = common.iter().filter(mine).map(String::as_str).chain(own).collect();
        let settings = Settings::parse(&pairs).with_context(|| format!("--arm {text}")).input()?;
        build(&method, &settings, shape).with_context(|| format!("--arm {text}")).input()?;
        Ok((name.to_string(), method, settings))
    }

    /// The loaded model and the arms to compare; the longest context is planned for first.
    fn open(
        &self,
        arms: impl FnOnce(&Self, &ModelShape) -> Result<Vec<Described>, Failure>,
        longest: impl FnOnce(&Package) -> Result<usize, Failure>,
    ) -> Result<(Engine, Vec<Arm>), Failure> {
        self.output.start();
        if let Some(dir) = &self.out {
            std::fs::create_dir_all(dir)
                .and_then(|()| std::fs::write(dir.join(".writable"), ""))
                .and_then(|()| std::fs::remove_file(dir.join(".writable")))
                .with_context(|| format!("--out {}", dir.display()))
                .input()?;
        }
        let package = self.model.open()?;
        let (shape, rope) = self.method.shape(&package)?;
        let described = arms(self, &shape)?;
        let longest = longest(&package)?;
        let mut arms = Vec::new();
        for (name, method, settings) in described {
            let arm = Arm { name, method, settings, rope: rope.clone(), kv: self.model.kv };
            let built = build(&arm.method, &arm.settings, &shape).input()?;
            let plan = package.plan(built.as_ref(), arm.kv, longest, 16 * longest);
            self.output.say(format_args!("{}: {}", arm.name, plan.line()));
            plan.check().input()?;
            arms.push(arm);
        }
        let tokenizer = Arc::new(package.tokenizer().input()?);
        Ok((self.model.load(&package, tokenizer)?, arms))
    }

    /// Prints the result and writes the files.
    fn finish(
        &self,
        suite: &str,
        engine: &Engine,
        arms: &[Arm],
        report: &impl Serialize,
        table: &str,
        figures: &[(&str, &str)],
    ) -> Result<ExitCode, Failure> {
        let mut object = json!({
            "suite": suite,
            "version": env!("CARGO_PKG_VERSION"),
            "model": self.model.model.as_ref().map_or("built-in".into(), |m| m.display().to_string()),
            "backend": engine.backend().name(),
            "seed": self.seed,
            "arms": arms.iter().map(|a| &a.name).collect::<Vec<_>>(),
            "methods": arms.iter().map(|a| Ok(crate::common::method_json(a.build(engine)?.as_ref()))).collect::<Result<Vec<Value>, EvalError>>().input()?,
        });
        if let (Value::Object(object), Value::Object(report)) =
            (&mut object, serde_json::to_value(report).running()?)
        {
            object.extend(report);
        }
        if self.output.json {
            print_json(&object)?
        } else {
            print(table.trim_end())?
        }
        if let Some(dir) = &self.out {
            write(dir, &format!("{suite}.json"), &serde_json::to_string_pretty(&object).running()?)?;
            write(dir, &format!("{suite}.md"), table)?;
            for (name, svg) in figures {
                write(dir, &format!("{name}.svg"), svg)?;
            }
            self.output.say(format_args!("written to {}", dir.display()));
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// A number of things of which one must be there.
fn at_least_one(text: &str) -> anyhow::Result<usize> {
    match text.parse() {
        Ok(n) if n > 0 => Ok(n),
        _ => Err(anyhow!("`{text}` is not a number from 1")),
    }
}

fn write(dir: &Path, name: &str, text: &str) -> Result<(), Failure> {
    let path = dir.join(name);
    std::fs::create_dir_all(dir)
        .and_then(|()| std::fs::write(&path, text))
        .with_context(|| path.display().to_string())
        .input()
}

/// Methods, prompts and texts are what the user asked for; sessions fail while running.
fn blame(error: EvalError) -> Failure {
    match error {
        EvalError::Session(_) => Failure::Run(error.into()),
        _ => Failure::Input(error.into()),
    }
}
