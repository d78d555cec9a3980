//! Suites of questions: plan, load, ask, and write what came of it.

use super::choice::SuiteName;
use super::{Args, Described, blame, write};
use crate::common::{complain, distinct, method_json, print, print_json, warn_of_window};
use crate::failure::{Blame, Failure};
use crate::progress::Bar;
use crate::terminal::plain;
use anyhow::Context;
use reattention::ModelShape;
use reattention::methods::build;
use reattention::rope::RopeConfig;
use reattention_engine::{Cancel, Engine, Package, available};
use reattention_eval::run::{self, Journal, Row, Suite, Table, Tools};
use reattention_eval::suites::perplexity;
use reattention_eval::{Arm, figures};
use reattention_kernels::Backend;
use serde_json::{Map, Value, json};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

/// Problems of the user's files that are named one by one.
const SHOWN: usize = 20;

pub(super) fn run(args: &Args, names: &[SuiteName]) -> Result<ExitCode, Failure> {
    args.output.start();
    args.check_out()?;
    let package = args.model.open()?;
    let (shape, rope) = args.method.shape(&package)?;
    let described = args.by_method(&shape)?;
    let tokenizer = args.model.tokenizer(&package)?;
    let template = args.template(&package)?;
    let tools = Tools { tokenizer: &tokenizer, template: template.as_ref() };
    let suites = names.iter().map(|n| n.make(args, &tools, shape.window)).collect::<Result<Vec<_>, _>>()?;
    let problems = name_problems(&suites);
    if args.model.model.is_none() && names.iter().any(|n| !n.suits_built_in()) {
        args.output.say("the built-in model knows the facts of `needle` and nothing else: the other suites need a --model to say anything");
    }
    let arms = arms(args, described, rope);
    let backend = args.model.backend()?;
    let jobs = plan(args, &package, &shape, &arms, &suites, backend.as_ref())?;
    let engines = engines(args, &package, &tokenizer, jobs, backend)?;
    let (same, around) = manifest(args, &package, &engines, &arms, &suites)?;
    let mut journal = match &args.out {
        Some(dir) => Journal::open(dir, &same, &around).input()?,
        None => Journal::in_memory(),
    };
    if !journal.rows().is_empty() {
        args.output.say(format_args!("{} rows are there already; going on", journal.rows().len()));
    }
    for line in journal.torn() {
        complain(format_args!(
            "{}:{line}: not whole, as after a write that failed; its row is asked again",
            run::ROWS
        ));
    }
    let mut bar = Bar::new(args.output.quiet);
    let options = run::Options { evidence: args.evidence };
    let result = run::run(&engines, &arms, &suites, &options, &mut journal, &Cancel::default(), &mut |w| {
        bar.overall(w.rows, w.total, w.left, w.label, w.progress);
    });
    bar.clear();
    result.map_err(blame)?;
    finish(args, &same, &arms, &suites, &journal, jobs)?;
    let unscored = journal.rows().iter().filter(|r| is_unscored(r)).count();
    if unscored > 0 {
        complain(format_args!("{unscored} answers could not be scored: their rows say why"));
    }
    // The rest is done, but who asked must learn that it is the rest.
    Ok(if problems + unscored > 0 { ExitCode::from(2) } else { ExitCode::SUCCESS })
}

/// Asked, but with a reference that cannot be compared.
fn is_unscored(row: &Row) -> bool {
    row.score.is_none() && row.buckets.is_empty() && row.tokens.generated > 0
}

/// Says what is wrong with the user's files and what is not covered, and counts the faults.
fn name_problems(suites: &[Box<dyn Suite>]) -> usize {
    let problems: Vec<_> = suites.iter().flat_map(|s| s.problems()).collect();
    for problem in problems.iter().take(SHOWN) {
        complain(plain(&problem.to_string()));
    }
    if problems.len() > SHOWN {
        complain(format_args!("{} more rows cannot be asked", problems.len() - SHOWN));
    }
    problems.iter().filter(|p| p.is_fault()).count()
}

fn arms(args: &Args, described: Vec<Described>, rope: Option<RopeConfig>) -> Vec<Arm> {
    let arm =
        |(name, method, settings)| Arm { name, method, settings, rope: rope.clone(), kv: args.model.kv };
    described.into_iter().map(arm).collect()
}

/// Checks that the longest text fits under every arm, and says how many jobs there are to be.
fn plan(
    args: &Args,
    package: &Package,
    shape: &ModelShape,
    arms: &[Arm],
    suites: &[Box<dyn Suite>],
    backend: &dyn Backend,
) -> Result<usize, Failure> {
    let readings = || suites.iter().flat_map(|s| s.readings());
    let longest = readings().map(|r| r.tokens).max().unwrap_or(1);
    let all: usize = readings().map(|r| r.tokens).sum();
    let threads = args.model.threads()?;
    // A text that is a large part of the run would be left to one job's share of the threads, and a GPU works on one at a time.
    let balanced = if backend.device().is_none() && longest * threads <= all {
        threads.min(readings().count()).max(1)
    } else {
        1
    };
    let mut jobs = args.jobs.unwrap_or(balanced).min(threads);
    for arm in arms {
        let built = build(&arm.method, &arm.settings, shape).input()?;
        let plan = package.plan(built.as_ref(), arm.kv, longest, 16 * longest, backend);
        args.output.say(format_args!("{}: {}", arm.name, plan.line()));
        plan.check().input()?;
        warn_of_window(&args.output, &arm.method, arm.rope.is_some(), longest, shape.window);
        let each = plan.total.saturating_sub(plan.weights).max(1);
        if let Some(available) = available().filter(|_| args.jobs.is_none()) {
            jobs = jobs.min((available.saturating_sub(plan.weights) / each).max(1));
        }
    }
    Ok(jobs)
}

/// The model, once for each job, with its share of the threads.
fn engines(
    args: &Args,
    package: &Package,
    tokenizer: &Arc<reattention_model::Tokenizer>,
    jobs: usize,
    backend: Arc<dyn Backend>,
) -> Result<Vec<Engine>, Failure> {
    let threads = (args.model.threads()? / jobs).max(1);
    // Jobs share a device and its copy of the weights, and otherwise the threads.
    let is_shared = jobs == 1 || backend.device().is_some();
    let each = || if is_shared { Ok(Arc::clone(&backend)) } else { args.model.backend_of(threads) };
    // What the jobs tokenise while they run, each does on its own share of the threads.
    let tokenizer = match jobs {
        1 => Arc::clone(tokenizer),
        _ => Arc::new(package.tokenizer().input()?.with_threads(threads)),
    };
    let engine = package.engine(tokenizer, each()?).input()?;
    let engine = engine.with_template(args.template(package)?);
    let mut engines = Vec::new();
    for _ in 1..jobs {
        engines.push(engine.on(each()?));
    }
    engines.push(engine);
    Ok(engines)
}

type Object = Map<String, Value>;

/// What makes the run what it is, and what stood around it.
fn manifest(
    args: &Args,
    package: &Package,
    engines: &[Engine],
    arms: &[Arm],
    suites: &[Box<dyn Suite>],
) -> Result<(Object, Object), Failure> {
    let engine = &engines[0];
    let mut methods = Vec::new();
    for arm in arms {
        let mut method = method_json(arm.build(engine).input()?.as_ref());
        method["arm"] = arm.name.clone().into();
        method["kv"] = format!("{:?}", arm.kv).to_lowercase().into();
        methods.push(method);
    }
    let suite = |s: &dyn Suite| {
        json!({
            "name": s.name(), "version": s.version(), "options": s.options(), "tasks": tasks(s),
            "readings": s.readings().len(),
            "rows": s.readings().iter().map(|r| r.rows.len()).sum::<usize>(),
            "problems": s.problems(),
        })
    };
    let (config, shape) = (package.config(), package.shape());
    let same = json!({
        "suites": suites.iter().map(|s| suite(s.as_ref())).collect::<Vec<_>>(),
        "arms": methods,
        "rope": args.method.rope(),
        "model": {
            "name": args.model_name(), "fingerprint": package.fingerprint().input()?, "family": config.family.name,
            "window": shape.window, "chat_template": engine.has_template(),
            "thinking": engine.template().filter(|t| t.can_think()).and_then(|t| t.thinking()),
        },
        "backend": without_threads(&engine.backend().name()),
        "seed": args.seed.value,
        "evidence": args.evidence,
        "version": env!("CARGO_PKG_VERSION"),
    });
    let around = json!({
        "machine": machine(),
        "threads": args.model.threads()?,
        "jobs": engines.len(),
        "command": std::iter::once("reattn".to_string()).chain(std::env::args_os().skip(1).map(|a| a.to_string_lossy().into_owned())).collect::<Vec<_>>().join(" "),
        "started_unix": std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs()),
    });
    let object = |value| if let Value::Object(object) = value { object } else { Map::new() };
    Ok((object(same), object(around)))
}

/// The name of a backend without its threads, which decide no score: `cpu (avx2)`.
fn without_threads(backend: &str) -> String {
    backend.split_once(", ").map_or(backend.to_string(), |(kind, _)| format!("{kind})"))
}

fn tasks(suite: &dyn Suite) -> Vec<String> {
    distinct(&suite.readings().iter().flat_map(|r| r.tasks()).map(str::to_string).collect::<Vec<_>>())
}

/// Processor, cores, memory and system, as far as they can be told.
fn machine() -> Value {
    let file = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = file.lines().find(|l| l.starts_with("model name")).and_then(|l| l.split_once(": "));
    json!({
        "processor": name.map_or(std::env::consts::ARCH, |n| n.1),
        "cores": std::thread::available_parallelism().map_or(0, usize::from),
        "memory_bytes": available(),
        "system": std::env::consts::OS,
    })
}

/// Prints the tables or the results, and writes both.
fn finish(
    args: &Args,
    same: &Object,
    arms: &[Arm],
    suites: &[Box<dyn Suite>],
    journal: &Journal,
    jobs: usize,
) -> Result<(), Failure> {
    let names: Vec<&str> = suites.iter().map(|s| s.name()).collect();
    let all: Vec<String> = suites.iter().flat_map(|s| tasks(s.as_ref())).collect();
    let methods: Vec<&str> = arms.iter().map(|a| a.name.as_str()).collect();
    let rows = journal.ordered(&names, &all.iter().map(String::as_str).collect::<Vec<_>>(), &methods);
    let of = |s: &dyn Suite| rows.iter().copied().filter(|r| r.suite == s.name()).collect::<Vec<_>>();
    let mut tables: Vec<Table> = Vec::new();
    let mut named = Vec::new();
    for suite in suites {
        for table in suite.tables(&of(suite.as_ref())) {
            let mut object = serde_json::to_value(&table).running()?;
            object["suite"] = suite.name().into();
            named.push(object);
            tables.push(table);
        }
    }
    let cells = run::cells(&rows);
    let mut object = Map::new();
    object.insert("suite".into(), names.join(",").into());
    object.extend(same.clone());
    object.insert("arms".into(), methods.into());
    object.insert("methods".into(), same.get("arms").cloned().unwrap_or_default());
    object.insert("model".into(), args.model_name().into());
    object.insert("fingerprint".into(), same.get("model").map_or(Value::Null, |m| m["fingerprint"].clone()));
    object.insert("cells".into(), serde_json::to_value(&cells).running()?);
    object.insert("tables".into(), named.into());
    let buckets = perplexity::buckets(&rows);
    if !buckets.is_empty() {
        object.insert("buckets".into(), serde_json::to_value(buckets).running()?);
    }
    let text: Vec<String> = tables.iter().map(Table::markdown).collect();
    let text = text.join("\n");
    if let Some(dir) = &args.out {
        write(dir, "results.json", &serde_json::to_string_pretty(&object).running()?)?;
        write(dir, "table.md", &text)?;
        write_figures(dir, &rows, &names, arms, jobs)?;
        args.output.say(format_args!(
            "written to {}; `reattn report {}` makes a page of it",
            dir.display(),
            dir.display()
        ));
    }
    if args.output.json {
        object.insert("rows".into(), serde_json::to_value(&rows).running()?);
        print_json(&object)
    } else {
        print(text.trim_end())
    }
}

/// The figures of all suites, as the report has them.
fn write_figures(
    dir: &Path,
    rows: &[&Row],
    names: &[&str],
    arms: &[Arm],
    jobs: usize,
) -> Result<(), Failure> {
    let folder = dir.join(figures::FOLDER);
    std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string()).input()?;
    let methods: Vec<String> = arms.iter().map(|a| a.name.clone()).collect();
    for suite in names {
        // The memory of several jobs is no method's own.
        for figure in figures::of_suite(suite, rows, &methods, jobs == 1) {
            write(&folder, &format!("{}.svg", figure.name), &figure.file())?;
        }
    }
    Ok(())
}
