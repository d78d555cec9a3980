//! `reattn eval selection`: arms beside a base that they approximate.

use super::{Args, Described, at_least_one, blame, write};
use crate::common::{distinct, method_json, print, print_json, tokens};
use crate::failure::{Blame, Failure};
use crate::progress::Bar;
use anyhow::{Context, anyhow};
use reattention::methods::{build, specs};
use reattention::{ModelShape, Settings};
use reattention_engine::{Cancel, Engine};
use reattention_eval::suites::selection::{self, Task};
use reattention_eval::{Arm, EvalError, figures};
use serde_json::{Value, json};
use std::process::ExitCode;

/// What is compared. Every arm reads the same generated texts and is asked the same questions from their end: facts that are
/// hard to tell apart, several facts one after the other, and chains of facts. The first arm is the base; the others are
/// compared with it on the base's answers.
#[derive(clap::Args)]
#[command(next_help_heading = "Selection")]
pub(super) struct SelectionArgs {
    /// What is compared, repeatable; the first is the base (`exact` and `window:prefill=window` if left out). NAME alone
    /// stands for selector=NAME; NAME:key=value,... sets these over what --set gives to all arms, where the key method names
    /// another method than --method.
    #[arg(long, value_name = "NAME[:KEY=VALUE,...]")]
    arm: Vec<String>,
    /// Facts in every text, at evenly spread depths; all of them are asked for. 25 if left out.
    #[arg(long, value_parser = at_least_one, value_name = "N")]
    facts: Option<usize>,
    /// Chains of facts in every text; all of them are asked for. 4 if left out.
    #[arg(long, value_parser = at_least_one, value_name = "N")]
    chains: Option<usize>,
    /// Links of a chain; the built-in model mostly follows one and sometimes two. 1 if left out.
    #[arg(long, value_parser = at_least_one, value_name = "N")]
    hops: Option<usize>,
}

impl SelectionArgs {
    /// Which of its flags were given.
    pub(super) fn given(&self) -> [(&'static str, bool); 4] {
        [
            ("arm", !self.arm.is_empty()),
            ("facts", self.facts.is_some()),
            ("chains", self.chains.is_some()),
            ("hops", self.hops.is_some()),
        ]
    }
}

pub(super) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let (texts, own) = (&args.texts, &args.selection);
    let lengths = match &texts.lengths {
        Some(lengths) => distinct(lengths),
        None => ["4k", "16k", "64k"].map(tokens).into_iter().collect::<Result<_, _>>().input()?,
    };
    // Questions and answers of a dialogue stand behind the text.
    let longest = lengths.iter().copied().max().unwrap_or(0) + 128 * selection::TOGETHER;
    let default = selection::Options::default();
    let options = selection::Options {
        lengths,
        tasks: texts.tasks.as_deref().map_or(Ok(default.tasks), tasks)?,
        samples: texts.samples.unwrap_or(1),
        facts: own.facts.unwrap_or(25),
        chains: own.chains.unwrap_or(4),
        hops: own.hops.unwrap_or(1),
        seed: args.seed.value,
        ..selection::Options::default()
    };
    let (engine, arms) = args.open(longest)?;
    let mut bar = Bar::new(args.output.quiet);
    let report = selection::run(&engine, &arms, &options, &Cancel::default(), |name, p| bar.show(name, p))
        .map_err(blame)?;
    bar.clear();
    args.finish(&engine, &arms, &report)?;
    Ok(ExitCode::SUCCESS)
}

/// The tasks of these names.
fn tasks(names: &[String]) -> Result<Vec<Task>, Failure> {
    let task = |name: &String| {
        Task::ALL.into_iter().find(|t| t.name() == name).ok_or_else(|| {
            let known = Task::ALL.map(Task::name).join(", ");
            Failure::Input(anyhow!("--tasks {name}: selection has {known}"))
        })
    };
    distinct(names).iter().map(task).collect()
}

impl Args {
    /// The loaded model and the arms to compare; the longest context is planned for first.
    fn open(&self, longest: usize) -> Result<(Engine, Vec<Arm>), Failure> {
        self.output.start();
        self.check_out()?;
        let package = self.model.open()?;
        let (shape, rope) = self.method.shape(&package)?;
        let backend = self.model.backend()?;
        if backend.device().is_some() {
            return Err(Failure::Input(anyhow!(
                "`eval selection` compares what searches on the CPU; leave --device out"
            )));
        }
        let mut arms = Vec::new();
        for (name, method, settings) in self.described(&shape)? {
            let arm = Arm { name, method, settings, rope: rope.clone(), kv: self.model.kv };
            let built = build(&arm.method, &arm.settings, &shape).input()?;
            let plan = package.plan(built.as_ref(), arm.kv, longest, 16 * longest, backend.as_ref());
            self.output.say(format_args!("{}: {}", arm.name, plan.line()));
            plan.check().input()?;
            arms.push(arm);
        }
        let tokenizer = self.model.tokenizer(&package)?;
        let engine = self.model.load(&package, tokenizer, backend)?;
        Ok((engine.with_template(self.template(&package)?), arms))
    }

    /// The arms asked for; no two may be alike.
    fn described(&self, shape: &ModelShape) -> Result<Vec<Described>, Failure> {
        let given = match self.selection.arm.is_empty() {
            true => vec!["exact".to_string(), "window:prefill=window".to_string()],
            false => self.selection.arm.clone(),
        };
        let arms = given.iter().map(|text| self.arm(text, shape)).collect::<Result<Vec<_>, _>>()?;
        for (i, (name, method, settings)) in arms.iter().enumerate() {
            let same = |(n, m, s): &&Described| n == name || (m, s) == (method, settings);
            if let Some((other, ..)) = arms[..i].iter().find(same) {
                return Err(Failure::Input(anyhow!(
                    "--arm {}: has the name or the settings of arm `{other}`; give it others",
                    given[i]
                )));
            }
        }
        Ok(arms)
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

    /// Prints the result and writes the files.
    fn finish(&self, engine: &Engine, arms: &[Arm], report: &selection::Report) -> Result<(), Failure> {
        let methods: Result<Vec<Value>, EvalError> =
            arms.iter().map(|a| Ok(method_json(a.build(engine)?.as_ref()))).collect();
        let mut object = json!({
            "suite": "selection",
            "version": env!("CARGO_PKG_VERSION"),
            "model": self.model_name(),
            "backend": engine.backend().name(),
            "seed": self.seed.value,
            "arms": arms.iter().map(|a| &a.name).collect::<Vec<_>>(),
            "methods": methods.input()?,
        });
        if let (Value::Object(object), Value::Object(report)) =
            (&mut object, serde_json::to_value(report).running()?)
        {
            object.extend(report);
        }
        let table = figures::selection_table(report);
        if self.output.json {
            print_json(&object)?
        } else {
            print(table.trim_end())?
        }
        if let Some(dir) = &self.out {
            write(dir, "selection.json", &serde_json::to_string_pretty(&object).running()?)?;
            write(dir, "selection.md", &table)?;
            self.output.say(format_args!("written to {}", dir.display()));
        }
        Ok(())
    }
}
