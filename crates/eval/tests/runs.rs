//! Runs: what was finished before a stop is not asked again, and the tables are those of a run that was not stopped.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use reattention::{KvDtype, Settings};
use reattention_engine::{Cancel, Engine, Package};
use reattention_eval::run::{self, Journal, JournalError, Options, ROWS, Suite, Table, Tools, Watch};
use reattention_eval::suites::{needle, perplexity};
use reattention_eval::{Arm, EvalError};
use reattention_kernels::Cpu;
use serde_json::{Map, Value, json};
use std::path::Path;
use std::sync::Arc;

fn engine(threads: usize) -> Engine {
    let package = Package::built_in().unwrap();
    package.engine(Arc::new(package.tokenizer().unwrap()), Arc::new(Cpu::new(threads).unwrap())).unwrap()
}

fn arms(names: &[&str]) -> Vec<Arm> {
    let arm = |name: &&str| Arm {
        name: (*name).to_string(),
        method: (*name).to_string(),
        settings: Settings::new(),
        rope: None,
        kv: KvDtype::Bf16,
    };
    names.iter().map(arm).collect()
}

fn suites(engine: &Engine) -> Vec<Box<dyn Suite>> {
    let tools = Tools::of(engine);
    let needles = needle::Options { lengths: vec![512, 1024], samples: 2, ..needle::Options::default() };
    let prose = perplexity::Options { tokens: Some(1500), seed: 3, ..perplexity::Options::default() };
    vec![
        Box::new(needle::Suite::new(needles, &tools).unwrap()),
        Box::new(perplexity::Suite::new(prose, &tools).unwrap()),
    ]
}

fn same() -> Map<String, Value> {
    json!({ "seed": 1 }).as_object().unwrap().clone()
}

fn open(dir: &Path) -> Journal {
    Journal::open(dir, &same(), &Map::new()).unwrap()
}

/// Scores by task and length; times and memory differ from run to run.
fn scores(suites: &[Box<dyn Suite>], journal: &Journal) -> Vec<Table> {
    let rows = journal.ordered(&["needle", "perplexity"], &[], &["full", "reattention", "string"]);
    let of = |s: &str| rows.iter().copied().filter(|r| r.suite == s).collect::<Vec<_>>();
    run::by_task("needle", &of("needle")).into_iter().chain(suites[1].tables(&of("perplexity"))).collect()
}

#[test]
fn a_stopped_run_goes_on_and_gives_the_same_tables() {
    let engines = [engine(1)];
    let suites = suites(&engines[0]);
    let arms = arms(&["full", "reattention"]);
    let mut whole = Journal::in_memory();
    let go = |journal: &mut Journal, cancel: &Cancel, watch: &mut (dyn FnMut(Watch<'_>) + Send)| {
        run::run(&engines, &arms, &suites, &Options { evidence: 1 }, journal, cancel, watch)
    };
    go(&mut whole, &Cancel::default(), &mut |_| {}).unwrap();
    // Two texts of two lengths with five questions, and one text predicted, under two methods.
    assert_eq!(whole.rows().len(), 2 * (2 * 2 * 5 + 1));
    assert!(whole.rows().iter().filter(|r| r.suite == "needle").all(|r| !r.evidence.is_empty()));

    let dir = tempfile::tempdir().unwrap();
    let cancel = Cancel::default();
    let mut journal = open(dir.path());
    let stopped = go(&mut journal, &cancel, &mut |w| {
        if w.rows >= 12 {
            cancel.cancel();
        }
    });
    assert!(stopped.is_err() || journal.rows().len() < whole.rows().len());
    let done = journal.rows().len();
    assert!((12..whole.rows().len()).contains(&done), "{done}");
    drop(journal);
    // A kill may leave half a line.
    let file = dir.path().join(ROWS);
    let mut text = std::fs::read_to_string(&file).unwrap();
    text.push_str("{\"suite\":\"needle\",\"ta");
    std::fs::write(&file, text).unwrap();
    let mut journal = open(dir.path());
    assert_eq!(journal.rows().len(), done);
    let mut first = None;
    go(&mut journal, &Cancel::default(), &mut |w| {
        first.get_or_insert((w.rows, w.total));
    })
    .unwrap();
    assert_eq!(first, Some((done, whole.rows().len())));
    assert_eq!(scores(&suites, &journal), scores(&suites, &whole));
    let (manifest, again) = run::read_run(dir.path()).unwrap();
    assert_eq!(manifest["seed"].as_u64(), Some(1));
    // What is read back is what was written, to the last digit.
    assert!(again.rows() == journal.rows());
}

#[test]
fn jobs_give_the_same_scores_as_one() {
    let engines = [engine(1), engine(1)];
    let suites = suites(&engines[0]);
    let arms = arms(&["full", "reattention", "string"]);
    let mut journals = [Journal::in_memory(), Journal::in_memory()];
    for (journal, engines) in journals.iter_mut().zip([&engines[..1], &engines[..]]) {
        run::run(engines, &arms, &suites, &Options::default(), journal, &Cancel::default(), &mut |_| {})
            .unwrap();
    }
    assert_eq!(scores(&suites, &journals[0]), scores(&suites, &journals[1]));
    let table = &scores(&suites, &journals[1])[0];
    // String refuses texts that leave the window, and says so in place of a score.
    assert_eq!((table.rows[1][4].as_str(), table.rows[1][5].as_str()), ("100.00", "-"), "{table:?}");
    assert!(table.notes.iter().any(|n| n.starts_with("string, single at 1k: ")), "{:?}", table.notes);
}

#[test]
fn a_folder_holds_one_run() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path());
    let other = json!({ "seed": 2 }).as_object().unwrap().clone();
    assert!(matches!(Journal::open(dir.path(), &same(), &Map::new()), Err(JournalError::InUse { .. })));
    drop(journal);
    let error = Journal::open(dir.path(), &other, &Map::new()).unwrap_err();
    assert!(matches!(&error, JournalError::Differs { key, .. } if key == "seed"), "{error}");
    assert!(error.to_string().contains("other `seed`"), "{error}");
    std::fs::write(dir.path().join(ROWS), "{}\n").unwrap();
    let error = Journal::open(dir.path(), &same(), &Map::new()).unwrap_err();
    assert!(matches!(error, JournalError::Malformed { line: 1, .. }), "{error}");
    std::fs::remove_file(dir.path().join("run.json")).unwrap();
    let error = Journal::open(dir.path(), &same(), &Map::new()).unwrap_err();
    assert!(matches!(error, JournalError::Orphaned { .. }), "{error}");
}

#[test]
fn a_length_too_short_for_its_facts_is_refused_at_once() {
    let engine = engine(1);
    let options = needle::Options { lengths: vec![512, 20], ..needle::Options::default() };
    let error = needle::Suite::new(options, &Tools::of(&engine)).unwrap_err();
    assert!(matches!(error, EvalError::Text(_)), "{error}");
}

#[test]
fn one_text_serves_questions_for_one_fact_and_for_three() {
    let engines = [engine(1)];
    let tools = Tools::of(&engines[0]);
    let depths = vec![0.0, 20.0, 40.0, 60.0, 80.0, 100.0];
    let of = |keys: Vec<usize>| needle::Options {
        lengths: vec![512],
        depths: depths.clone(),
        samples: 1,
        keys,
        ..needle::Options::default()
    };
    assert!(needle::Suite::new(of(vec![7]), &tools).unwrap_err().to_string().contains("it can be 1 to 6"));
    let suite = needle::Suite::new(of(vec![1, 3]), &tools).unwrap();
    assert_eq!(suite.readings().len(), 1, "the text is read once");
    let run::Made::Asked(asked) = suite.make(&suite.readings()[0], &tools).unwrap() else { panic!() };
    assert_eq!(asked.questions.len(), 12);
    let three = &asked.questions[6];
    assert_eq!(three.after.matches("What is the").count(), 3);
    let values: Vec<&str> = three.sample.references().unwrap();
    assert!(values.iter().all(|v| asked.source.text.contains(v)));
    let score = |prediction: String, task: &str| {
        let sample = run_sample(&prediction, &three.sample);
        suite.score(task, &sample).unwrap().value
    };
    assert_eq!(score(format!("{}, {} and {}", values[2], values[0], values[1]), "keys-3"), 1.0);
    assert_eq!(score(format!("{} and 1{}", values[1], values[0]), "keys-3"), 1.0 / 3.0);

    let suites: Vec<Box<dyn Suite>> = vec![Box::new(suite)];
    let mut journal = Journal::in_memory();
    run::run(
        &engines,
        &arms(&["full"]),
        &suites,
        &Options::default(),
        &mut journal,
        &Cancel::default(),
        &mut |_| {},
    )
    .unwrap();
    let of = |task: &str| journal.rows().iter().filter(|r| r.task == task).collect::<Vec<_>>();
    assert_eq!((of("single").len(), of("keys-3").len()), (6, 6));
    assert!(of("single").iter().all(|r| r.depth.is_some()) && of("keys-3").iter().all(|r| r.depth.is_none()));
    assert!(of("single").iter().all(|r| r.is_right()), "the built-in model finds facts within its window");
    // Prompt and longest answer keep to the length named, and do not waste it.
    let three = of("keys-3");
    let longest = three.iter().map(|r| r.tokens.prompt + 3 * 32).max().unwrap();
    assert!((480..=512).contains(&longest), "{longest}");
}

fn run_sample(prediction: &str, of: &reattention_eval::scorers::Sample) -> reattention_eval::scorers::Sample {
    reattention_eval::scorers::Sample { prediction: prediction.into(), ..of.clone() }
}
