//! The selection suite: what is no loss is measured as none, and what is one as one.

use reattention::{KvDtype, Settings};
use reattention_engine::{Cancel, Engine, Package};
use reattention_eval::suites::selection::{Cell, Options, Report, Task, run};
use reattention_eval::{Arm, EvalError};
use reattention_kernels::Cpu;
use reattention_model::synth::{DenseType, Shape, write_hugging_face};
use std::sync::Arc;

fn engine(package: &Package) -> Engine {
    package.engine(Arc::new(package.tokenizer().unwrap()), Arc::new(Cpu::new(2).unwrap())).unwrap()
}

fn arm(name: &str, method: &str, settings: &[&str]) -> Arm {
    let settings = Settings::parse(settings).unwrap();
    Arm { name: name.into(), method: method.into(), settings, rope: None, kv: KvDtype::Bf16 }
}

fn measure(engine: &Engine, arms: &[Arm], options: &Options) -> Report {
    run(engine, arms, options, &Cancel::default(), |_, _| {}).unwrap()
}

fn total<'a>(report: &'a Report, arm: &str, task: Task) -> &'a Cell {
    report.totals.iter().find(|c| c.arm == arm && c.task == task).unwrap()
}

/// Every measure of an arm that does what the base does.
fn assert_lossless(report: &Report, arm: &str) {
    let cells: Vec<&Cell> = report.totals.iter().chain(&report.cells).filter(|c| c.arm == arm).collect();
    assert!(!cells.is_empty());
    for c in cells {
        assert_eq!((c.kl_first, c.kl_first_max, c.kl_answer), (Some(0.0), Some(0.0), Some(0.0)), "{c:?}");
        assert_eq!((c.agreement, c.recall), (Some(1.0), Some(1.0)), "{c:?}");
        assert!([c.mass, c.mass_selected].iter().all(|m| (m.unwrap() - 1.0).abs() < 1e-9), "{c:?}");
    }
    let deltas: Vec<_> = report.buckets.iter().filter(|b| b.arm == arm).map(|b| b.loss_delta).collect();
    assert!(!deltas.is_empty() && deltas.iter().all(|d| *d == Some(0.0)), "{deltas:?}");
}

#[test]
fn the_base_against_itself_loses_nothing_and_the_window_something() {
    let engine = engine(&Package::built_in().unwrap());
    let arms = [
        arm("exact", "reattention", &[]),
        arm("again", "reattention", &[]),
        arm("window", "reattention", &["prefill=window"]),
        arm("local", "streaming-llm", &[]),
    ];
    let options = Options { lengths: vec![2048], facts: 10, chains: 2, samples: 2, ..Options::default() };
    let report = measure(&engine, &arms, &options);
    assert_lossless(&report, "again");
    for task in [Task::NearDuplicates, Task::MultiNeedle] {
        let base = total(&report, "exact", task);
        assert_eq!((base.samples, base.correct, base.kl_first), (20, 20, None));
        let window = total(&report, "window", task);
        assert_eq!(window.correct, 20);
        assert!(window.kl_first > Some(0.0) && window.kl_first < Some(0.01), "{window:?}");
        assert!(window.recall < Some(0.95) && window.mass < Some(0.999), "{window:?}");
        // Whoever sees the local part alone loses what stands before it.
        let local = total(&report, "local", task);
        assert!(local.correct < 12 && local.kl_first > Some(0.5), "{local:?}");
        assert!(local.mass < window.mass && local.mass_selected < Some(0.5), "{local:?}");
    }
    let hops = total(&report, "exact", Task::MultiHop);
    assert!(hops.samples == 4 && hops.correct >= 3, "{hops:?}");
    // Ten depths for two tasks, and chains without a depth, of four arms.
    assert_eq!(report.cells.len(), 4 * (2 * 10 + 1));
    assert!(report.cells.iter().all(|c| c.samples == if c.depth.is_some() { 2 } else { 4 }));
    let read: usize = report.buckets.iter().filter(|b| b.arm == "window").map(|b| b.tokens).sum();
    assert_eq!(read, 2 * 2047);
    assert_eq!(report.runs.len(), 8);
    assert!(report.runs.iter().all(|r| r.tokens >= 2048 && r.prefill_s > 0.0 && r.decode_tok_s > Some(0.0)));
}

/// A model that answers nothing sensible goes through the same mill, with a list of segments for each KV head.
#[test]
fn a_random_model_of_another_family_is_measured_alike() {
    let dir = tempfile::tempdir().unwrap();
    write_hugging_face(dir.path(), &Shape::tiny("qwen2"), DenseType::Bf16, 3, None).unwrap();
    let engine = engine(&Package::open(dir.path()).unwrap());
    let small = ["global=2", "local=16", "span=4", "clip=3", "chunk=8", "top_k=2"];
    let heads = [&small[..], &["share=kv_head"]].concat();
    let options = Options {
        lengths: vec![2048],
        facts: 3,
        chains: 1,
        hops: 2,
        max_new_tokens: 6,
        ..Options::default()
    };
    for settings in [&small[..], &heads] {
        let arms = [
            arm("exact", "reattention", settings),
            arm("again", "reattention", settings),
            arm("layer", "reattention", &small),
            arm("full", "full", &["chunk=8"]),
        ];
        let report = measure(&engine, &arms, &options);
        assert_lossless(&report, "again");
        let full = total(&report, "full", Task::NearDuplicates);
        assert!(full.recall == Some(1.0) && (full.mass.unwrap() - 1.0).abs() < 1e-9, "{full:?}");
        let layer = total(&report, "layer", Task::NearDuplicates);
        if settings.len() > small.len() {
            assert!(layer.recall < Some(1.0) && layer.mass < Some(1.0), "{layer:?}");
        } else {
            assert_eq!(layer.recall, Some(1.0));
        }
    }
}

#[test]
fn what_cannot_be_measured_is_refused_before_anything_is_read() {
    let engine = engine(&Package::built_in().unwrap());
    let refused = |arms: &[Arm], options: Options| {
        run(&engine, arms, &options, &Cancel::default(), |_, _| panic!("something was read")).unwrap_err()
    };
    let whole = arm("together", "reattention", &["question_alone=false"]);
    let error = refused(&[arm("exact", "reattention", &[]), whole], Options::default());
    assert!(matches!(&error, EvalError::Whole { arm } if arm == "together"), "{error}");
    let exact = [arm("exact", "reattention", &[])];
    let short = Options { lengths: vec![4096, 100], ..Options::default() };
    assert!(refused(&exact, short).to_string().contains("longer text"));
    let many = Options { facts: usize::MAX, ..Options::default() };
    assert!(refused(&exact, many).to_string().contains("different ones"));
}
