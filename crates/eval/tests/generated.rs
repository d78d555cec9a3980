//! The generated suites from end to end on the built-in model: every row is asked within its length and scored.

use reattention::{KvDtype, Settings};
use reattention_engine::{Cancel, Package};
use reattention_eval::Arm;
use reattention_eval::run::{Journal, Made, Options, Row, Suite, Tools, run};
use reattention_eval::suites::{haystack, infinite, multi_needle, needle, needlebench, ruler};
use reattention_kernels::Cpu;
use reattention_model::ChatTemplate;
use std::sync::Arc;

const LENGTH: usize = 1800;

fn suites(tools: &Tools<'_>) -> Vec<Box<dyn Suite>> {
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
    let suites = suites(&Tools::of(&engine));
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

/// A template with a long system message, as chat models have.
const TEMPLATE: &str = "<|system|>\nYou are a helpful assistant of a company that takes pride in its short and exact answers.\n\
    {% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}<|assistant|>\n";

#[test]
fn prompts_of_chat_models_and_their_longest_answers_keep_to_the_length() {
    let package = Package::built_in().unwrap();
    let (tokenizer, template) =
        (package.tokenizer().unwrap(), ChatTemplate::new(TEMPLATE, None, None).unwrap());
    let tools = Tools { tokenizer: &tokenizer, template: Some(&template) };
    let mut suites = suites(&tools);
    let options =
        needle::Options { lengths: vec![LENGTH], samples: 1, keys: vec![1, 3], ..Default::default() };
    suites.push(Box::new(needle::Suite::new(options, &tools).unwrap()));
    for suite in suites {
        for reading in suite.readings() {
            let Made::Asked(asked) = suite.make(reading, &tools).unwrap() else { panic!("asked") };
            let longest = tools.longest(&asked).unwrap();
            let (name, task) = (suite.name(), &reading.task);
            assert!(longest <= LENGTH && reading.tokens <= LENGTH, "{name} {task}: {longest}");
        }
    }
}
