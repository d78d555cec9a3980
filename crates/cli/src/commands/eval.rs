//! `reattn eval`: evaluation suites.

use crate::common::{MethodArgs, ModelArgs, OutputArgs, distinct, print, print_json, tokens};
use crate::failure::{Blame, Failure};
use crate::progress::Bar;
use anyhow::{Context, anyhow};
use clap::Subcommand;
use reattention_engine::{Cancel, Engine, Package};
use reattention_eval::suites::{needle, perplexity};
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
    let (engine, arms) = args.shared.open(|_| Ok(longest + 256))?;
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
    let svg = figures::needle_svg(&report.cells);
    args.shared.finish("needle", &engine, &arms, &report, &table, Some(&svg))
}

fn run_perplexity(args: &PerplexityArgs) -> Result<ExitCode, Failure> {
    let data = match &args.data {
        Some(path) => Some(
            std::fs::read_to_string(path).with_context(|| format!("--data {}", path.display())).input()?,
        ),
        None => None,
    };
    let generated = |window: usize| args.tokens.unwrap_or(16 * window);
    let (engine, arms) = args.shared.open(|package| {
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
    args.shared.finish("perplexity", &engine, &arms, &report, &table, None)
}

impl Shared {
    /// The loaded model and the methods to compare; the longest context is planned for first.
    fn open(
        &self,
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
        let shape = package.shape();
        let rope = self.method.rope(&shape)?;
        let longest = longest(&package)?;
        let mut arms = Vec::new();
        for (method, settings) in self.method.each(&shape)? {
            let arm = Arm { method, settings, rope: rope.clone(), kv: self.model.kv };
            let built = reattention::methods::build(&arm.method, &arm.settings, &shape).input()?;
            let plan = package.plan(built.as_ref(), arm.kv, longest, 16 * longest);
            self.output.say(format_args!("{}: {}", arm.method, plan.line()));
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
        svg: Option<&str>,
    ) -> Result<ExitCode, Failure> {
        let mut object = json!({
            "suite": suite,
            "version": env!("CARGO_PKG_VERSION"),
            "model": self.model.model.as_ref().map_or("built-in".into(), |m| m.display().to_string()),
            "backend": engine.backend().name(),
            "seed": self.seed,
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
            if let Some(svg) = svg {
                write(dir, &format!("{suite}.svg"), svg)?;
            }
            self.output.say(format_args!("written to {}", dir.display()));
        }
        Ok(ExitCode::SUCCESS)
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
