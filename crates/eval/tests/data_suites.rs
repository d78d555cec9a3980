//! Folders in the form of published benchmarks, run from files to tables.

use reattention::{KvDtype, Settings};
use reattention_engine::{Cancel, Engine, Package};
use reattention_eval::run::{Journal, Options as RunOptions, Row, Suite, Table, Tools, run};
use reattention_eval::suites::{babilong, infinitebench, leval, longbench, longbench_v2, ruler_data};
use reattention_eval::{Arm, EvalError};
use reattention_kernels::Cpu;
use reattention_model::synth::{DenseType, Shape, write_hugging_face};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;

/// A random model of a few thousand parameters whose tokens are bytes.
fn engine() -> Engine {
    let dir = tempfile::tempdir().unwrap();
    write_hugging_face(dir.path(), &Shape::tiny("qwen2"), DenseType::Bf16, 3, None).unwrap();
    let package = Package::open(dir.path()).unwrap();
    package.engine(Arc::new(package.tokenizer().unwrap()), Arc::new(Cpu::new(2).unwrap())).unwrap()
}

fn arm(method: &str, settings: &[&str]) -> Arm {
    let settings = Settings::parse(settings).unwrap();
    Arm { name: method.into(), method: method.into(), settings, rope: None, kv: KvDtype::Bf16 }
}

fn write(dir: &Path, name: &str, rows: &[Value]) {
    let path = dir.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, rows.iter().map(|row| format!("{row}\n")).collect::<String>()).unwrap();
}

/// The suites of a folder with a few rows in the form of each benchmark.
fn suites(dir: &Path, tools: &Tools<'_>) -> Result<Vec<Box<dyn Suite>>, EvalError> {
    write_all(dir);
    read_all(dir, tools)
}

fn write_all(dir: &Path) {
    let text = "Ann keeps the red box in the cellar. Tom has gone to the harbour with nine nets. ".repeat(12);
    let bench = |id: &str, answers: &[&str], more: Value| {
        let mut row = json!({
            "input": "Where is the box?", "context": text, "answers": answers, "length": 4200, "all_classes": null,
            "language": "en", "_id": id,
        });
        row.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        row
    };
    let classes = json!({ "all_classes": ["Sea", "Sky"] });
    write(
        dir,
        "longbench/data/hotpotqa.jsonl",
        &[bench("a", &["the cellar"], json!({})), bench("b", &["cellar", "below"], json!({}))],
    );
    write(dir, "longbench/data/trec.jsonl", &[bench("a", &["Sea"], classes)]);
    write(dir, "longbench/data/multifieldqa_zh.jsonl", &[bench("a", &["地窖"], json!({}))]);
    write(dir, "longbench/data/lcc.jsonl", &[bench("a", &["let a;"], json!({})), json!({ "input": 3 })]);
    write(
        dir,
        "v2/data.jsonl",
        &[json!({
            "_id": "a", "difficulty": "hard", "length": "long", "question": "Where is the box?", "choice_A": "Cellar",
            "choice_B": "Attic", "choice_C": "Harbour", "choice_D": "Net", "answer": "A", "context": text,
        })],
    );
    write(
        dir,
        "leval/quality.jsonl",
        &[json!({
            "instructions": ["Where? A. cellar B. attic", "Who? A. Tom B. Ann"], "outputs": ["A", "B"], "input": text,
            "evaluation": "exam",
        })],
    );
    write(
        dir,
        "leval/news_summ.jsonl",
        &[json!({
            "instructions": ["Sum it up."], "outputs": ["A box is kept."], "input": text, "evaluation": "rouge",
        })],
    );
    write(
        dir,
        "infinite/passkey.jsonl",
        &[json!({
            "id": 0, "context": text, "input": "What is the pass key?", "answer": ["71432"],
        })],
    );
    write(
        dir,
        "infinite/kv_retrieval.jsonl",
        &[json!({
            "id": 0, "context": "JSON data:\n{\"a\": \"b\"}", "input": "\nKey: \"a\"", "answer": ["b"],
        })],
    );
    write(
        dir,
        "ruler/2048/vt/validation.jsonl",
        &[json!({
            "index": 0, "input": format!("{text}\nQuestion: Which?"), "outputs": ["X"], "answer_prefix": " Answer:",
        })],
    );
    write(
        dir,
        "babilong/qa1/1k.json",
        &[json!({ "input": text, "question": "Where is Tom?", "target": "garden" })],
    );
}

fn read_all(dir: &Path, tools: &Tools<'_>) -> Result<Vec<Box<dyn Suite>>, EvalError> {
    let limit = Some(4000);
    let data = |name: &str| dir.join(name);
    Ok(vec![
        Box::new(longbench::Suite::new(
            longbench::Options { data: data("longbench"), limit: Some(600), ..Default::default() },
            tools,
        )?),
        Box::new(longbench_v2::Suite::new(
            longbench_v2::Options { data: data("v2"), limit, samples: None },
            tools,
        )?),
        Box::new(leval::Suite::new(
            leval::Options { data: data("leval"), limit, ..Default::default() },
            tools,
        )?),
        Box::new(infinitebench::Suite::new(
            infinitebench::Options { data: data("infinite"), limit, ..Default::default() },
            tools,
        )?),
        Box::new(ruler_data::Suite::new(
            ruler_data::Options { data: data("ruler"), ..Default::default() },
            tools,
        )?),
        Box::new(babilong::Suite::new(
            babilong::Options { data: data("babilong"), ..Default::default() },
            tools,
        )?),
    ])
}

#[test]
fn folders_become_rows_and_tables() {
    let (engine, dir) = (engine(), tempfile::tempdir().unwrap());
    let suites = suites(dir.path(), &Tools::of(&engine)).unwrap();
    let small = ["global=2", "local=16", "span=4", "clip=3", "chunk=8", "top_k=2"];
    let arms = [arm("full", &[]), arm("reattention", &small)];
    let mut journal = Journal::in_memory();
    let options = RunOptions { evidence: 1 };
    run(&[engine], &arms, &suites, &options, &mut journal, &Cancel::default(), &mut |_| {}).unwrap();
    let rows_of = |suite: &str| -> Vec<&Row> { journal.rows().iter().filter(|r| r.suite == suite).collect() };
    let counts: Vec<(&str, usize)> = suites.iter().map(|s| (s.name(), rows_of(s.name()).len())).collect();
    let expected = [
        ("longbench", 10),
        ("longbench-v2", 2),
        ("leval", 6),
        ("infinitebench", 4),
        ("ruler-data", 2),
        ("babilong", 2),
    ];
    assert_eq!(counts, expected);
    for row in journal.rows() {
        assert!(row.score.is_some_and(|s| (0.0..=1.0).contains(&s)) && row.refused.is_none(), "{row:?}");
        assert!(row.tokens.prompt > 20 && row.tokens.context > 0, "{row:?}");
        // Only LongBench's prompts are longer than their limit.
        assert_eq!(row.tokens.cut > 0, row.suite == "longbench", "{row:?}");
        if row.suite == "longbench" {
            assert!(row.tokens.prompt <= 600 + 8, "{row:?}");
            assert_eq!(row.words, Some(4200));
        }
    }
    // The same texts were asked under both methods.
    let tokens = |method: &str| -> Vec<usize> {
        journal.rows().iter().filter(|r| r.method == method).map(|r| r.tokens.prompt).collect()
    };
    assert_eq!(tokens("full"), tokens("reattention"));
    let problems: Vec<String> = suites.iter().flat_map(|s| s.problems()).map(|p| p.to_string()).collect();
    assert!(matches!(&problems[..], [p] if p.contains("lcc.jsonl:2: ")), "{problems:?}");
    for suite in &suites {
        let tables = suite.tables(&rows_of(suite.name()));
        assert!(tables.iter().all(|t| !t.rows.is_empty()), "{tables:?}");
    }
    check_categories(&suites[0].tables(&rows_of("longbench")), &rows_of("longbench"));
}

/// The averages by category are those of the rows.
fn check_categories(tables: &[Table], rows: &[&Row]) {
    let mean = |task: &str| {
        let scores: Vec<f64> =
            rows.iter().filter(|r| r.task == task && r.method == "full").filter_map(|r| r.score).collect();
        100.0 * scores.iter().sum::<f64>() / scores.len() as f64
    };
    let [sqa, mqa, fsl, code] = ["multifieldqa_zh", "hotpotqa", "trec", "lcc"].map(mean);
    let all = (sqa + mqa + fsl + code) / 4.0;
    assert_eq!(tables[0].head, ["method", "SQA", "MQA", "FSL", "Code", "mean of groups", "mean of tasks"]);
    let line = [sqa, mqa, fsl, code, all, all].map(|v| format!("{v:.2}"));
    assert_eq!(tables[0].rows[0][1..], line);
    let english = [mqa, fsl, code].map(|v| format!("{v:.2}"));
    assert_eq!(tables[1].rows[0][1..4], english);
}

#[test]
fn a_run_that_goes_on_asks_nothing_twice() {
    let (engine, dir, out) = (engine(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut suites = suites(dir.path(), &Tools::of(&engine)).unwrap();
    suites.retain(|s| matches!(s.name(), "longbench" | "ruler-data" | "babilong"));
    let same: serde_json::Map<String, Value> =
        suites.iter().map(|s| (s.name().to_string(), s.options())).collect();
    let engines = [engine];
    let mut finished = Vec::new();
    for round in 0..2 {
        let mut journal = Journal::open(out.path(), &same, &serde_json::Map::new()).unwrap();
        let cancel = Cancel::default();
        let result = run(
            &engines,
            &[arm("full", &[])],
            &suites,
            &RunOptions::default(),
            &mut journal,
            &cancel,
            &mut |watch| {
                if round == 0 && watch.rows >= 2 {
                    cancel.cancel();
                }
            },
        );
        assert!(round == 0 || result.is_ok(), "{result:?}");
        finished.push(journal.rows().to_vec());
    }
    assert!(finished[0].len() >= 2 && finished[0].len() < finished[1].len());
    assert_eq!(finished[1][..finished[0].len()], finished[0][..]);
    assert_eq!(finished[1].len(), 7);
    // Another file is another run.
    write(
        dir.path(),
        "babilong/qa1/1k.json",
        &[json!({ "input": "x", "question": "y", "target": "garden" })],
    );
    let options = babilong::Options { data: dir.path().join("babilong"), ..Default::default() };
    let changed = babilong::Suite::new(options, &Tools::of(&engines[0])).unwrap();
    let mut other = same.clone();
    other.insert("babilong".into(), changed.options());
    assert!(Journal::open(out.path(), &other, &serde_json::Map::new()).is_err());
}

/// Every file below `dir`.
fn files(dir: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// Rows without an id of their own are told apart by their number, whether each stands on a line of its own or not.
#[test]
fn a_list_on_one_line_gives_all_its_rows() {
    let (engine, dir) = (engine(), tempfile::tempdir().unwrap());
    write_all(dir.path());
    let mut copies = std::collections::BTreeMap::new();
    for file in files(dir.path()) {
        let text = std::fs::read_to_string(&file).unwrap();
        let mut row: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        for id in ["_id", "id"] {
            row.as_object_mut().unwrap().remove(id);
        }
        std::fs::write(&file, json!([row, row, row]).to_string()).unwrap();
        let suite = file.strip_prefix(dir.path()).unwrap().iter().next().unwrap().to_owned();
        *copies.entry(suite).or_insert(0) += 3;
    }
    let suites = read_all(dir.path(), &Tools::of(&engine)).unwrap();
    let folders = ["longbench", "v2", "leval", "infinite", "ruler", "babilong"];
    for (suite, folder) in suites.iter().zip(folders) {
        assert_eq!(suite.problems(), [], "{}", suite.name());
        let readings = suite.readings();
        assert_eq!(readings.len(), copies[std::ffi::OsStr::new(folder)], "{}", suite.name());
        let ids: std::collections::HashSet<_> =
            readings.iter().flat_map(|r| r.rows.iter().map(|key| (&r.task, r.length, &key.id))).collect();
        let rows: usize = readings.iter().map(|r| r.rows.len()).sum();
        assert_eq!(ids.len(), rows, "{}: rows share an id", suite.name());
    }
    let mut journal = Journal::in_memory();
    let arms = [arm("full", &[])];
    let options = RunOptions::default();
    run(&[engine], &arms, &suites, &options, &mut journal, &Cancel::default(), &mut |_| {}).unwrap();
    let rows: usize = suites.iter().flat_map(|s| s.readings()).map(|r| r.rows.len()).sum();
    assert_eq!(journal.rows().len(), rows, "a row was asked and lost");
}
