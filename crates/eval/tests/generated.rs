//! The generated suites from end to end on the built-in model: every row is asked within its length and scored.

use reattention::{KvDtype, Settings};
use reattention_engine::{Cancel, Engine, Package};
use reattention_eval::Arm;
use reattention_eval::run::{Journal, Options, Row, Suite, Tools, run};
use reattention_eval::suites::{haystack, infinite, multi_needle, needlebench, ruler};
use reattention_kernels::Cpu;
use std::sync::Arc;

const LENGTH: usize = 1800;

fn suites(engine: &Engine) -> Vec<Box<dyn Suite>> {
    let tools = &Tools::of(engine);
    let lengths = vec![LENGTH];
    let mut suites: Vec<Box<dyn Suite>> = Vec::new();
    for task in infinite::Task::ALL.into_iter().filter(|t| *t != infinite::Task::MathCalc) {
        let depths = vec![0.0, 50.0, 100.0];
        let options =
            infinite::Options { lengths: lengths.clone(), depths, samples: 1, ..Default::default() };
        suites.push(Box::new(infinite::Suite::new(task, options, tools).unwrap()));
    }
    let options = ruler::Options { lengths: lengths.clone(), samples: 1, ..Default::default() };
    suites.push(Box::new(ruler::Suite::new(options, tools).unwrap()));
    let depths = vec![20.0, 80.0];
    let options = needlebench::Options {
        lengths: lengths.clone(),
        depths: depths.clone(),
        samples: 1,
        ..Default::default()
    };
    suites.push(Box::new(needlebench::Suite::new(options, tools).unwrap()));
    let options = haystack::Options { lengths: lengths.clone(), depths, ..Default::default() };
    suites.push(Box::new(haystack::Suite::new(options, tools).unwrap()));
    let options = multi_needle::Options { lengths, samples: 1, ..Default::default() };
    suites.push(Box::new(multi_needle::Suite::new(options, tools).unwrap()));
    suites
}

#[test]
fn every_row_is_asked_within_its_length_and_scored() {
    let package = Package::built_in().unwrap();
    let tokenizer = Arc::new(package.tokenizer().unwrap());
    let engine = package.engine(tokenizer, Arc::new(Cpu::new(2).unwrap())).unwrap();
    let suites = suites(&engine);
    let arm = |method: &str| Arm {
        name: method.into(),
        method: method.into(),
        settings: Settings::default(),
        rope: None,
        kv: KvDtype::Bf16,
    };
    let arms = [arm("reattention"), arm("streaming-llm")];
    let mut journal = Journal::in_memory();
    let engines = [engine];
    let cancel = Cancel::default();
    run(&engines, &arms, &suites, &Options::default(), &mut journal, &cancel, &mut |_| {}).unwrap();
    let readings: usize = suites.iter().map(|s| s.readings().len()).sum();
    assert_eq!(journal.rows().len(), 2 * readings);
    for row in journal.rows() {
        let size = row.tokens.prompt + row.tokens.generated;
        assert!(size <= LENGTH && row.tokens.context > 0 && row.tokens.cut == 0, "{row:?}");
        assert!(row.score.is_some_and(|s| (0.0..=1.0).contains(&s)) && row.refused.is_none(), "{row:?}");
    }
    for suite in &suites {
        let rows: Vec<&Row> = journal.rows().iter().filter(|r| r.suite == suite.name()).collect();
        let tables = suite.tables(&rows);
        assert!(!tables.is_empty() && tables.iter().all(|t| t.rows.iter().all(|l| l.len() == t.head.len())));
    }
}
