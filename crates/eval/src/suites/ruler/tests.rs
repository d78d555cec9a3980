//! Every task: prompts as published, answers where they belong, lengths kept, the same bytes for a seed.

use super::*;
use crate::run::Suite as _;
use reattention_engine::{Engine, Package};
use reattention_kernels::Cpu;
use std::path::Path;
use std::sync::Arc;

fn engine() -> Engine {
    let package = Package::built_in().unwrap();
    package.engine(Arc::new(package.tokenizer().unwrap()), Arc::new(Cpu::new(1).unwrap())).unwrap()
}

fn suite(engine: &Engine, tasks: &[&str], lengths: &[usize], data: Option<&Path>) -> Suite {
    Suite::new(options(tasks, lengths, data), &Tools::of(engine)).unwrap()
}

fn options(tasks: &[&str], lengths: &[usize], data: Option<&Path>) -> Options {
    Options {
        tasks: tasks.iter().map(|t| (*t).to_string()).collect(),
        lengths: lengths.to_vec(),
        samples: 2,
        data: data.map(Path::to_path_buf),
        ..Options::default()
    }
}

fn made(suite: &Suite, engine: &Engine) -> Vec<(String, Asked)> {
    let make = |reading: &Reading| match suite.make(reading, &Tools::of(engine)).unwrap() {
        Made::Asked(asked) => (reading.task.clone(), asked),
        Made::Predicted { .. } => panic!("nothing is to be predicted"),
    };
    suite.readings().iter().map(make).collect()
}

fn answers(asked: &Asked) -> Vec<String> {
    serde_json::from_value(asked.questions[0].sample.expected.clone()).unwrap()
}

fn text(asked: &Asked) -> String {
    let question = &asked.questions[0];
    format!("{}{}{}{}", asked.before, asked.source.text, question.after, question.prefix)
}

/// SQuAD and HotpotQA in small.
fn documents(dir: &Path) {
    let paragraphs = |topic: &str| -> Vec<Value> {
        let paragraph = |i: usize| {
            let filler = crate::text::prose(i as u64, 150);
            json!({"context": format!("The {topic} of number {i} is red. {filler}"), "qas": [
                {"question": format!("What colour is {topic} {i}?"), "answers": [{"text": "red"}, {"text": "Red"}], "is_impossible": false},
                {"question": "What is the weather?", "answers": [], "is_impossible": true}]})
        };
        (0..15).map(paragraph).collect()
    };
    let squad = json!({"version": "v2.0", "data": [
        {"title": "a", "paragraphs": paragraphs("boat")}, {"title": "b", "paragraphs": paragraphs("house")}]});
    std::fs::write(dir.join("dev-v2.0.json"), squad.to_string()).unwrap();
    let rows: Vec<Value> = (0..9)
        .map(|i| {
            let context: Vec<Value> = (0..10)
                .map(|d| {
                    json!([format!("Title {i}.{d}"), ["One sentence.", format!(" Fact {}.", 10 * i + d)]])
                })
                .collect();
            json!({"question": format!("Fact {i}?"), "answer": "yes", "context": context})
        })
        .collect();
    std::fs::write(dir.join("hotpot_dev_distractor_v1.json"), json!(rows).to_string()).unwrap();
}

#[test]
fn all_tasks_are_made_within_their_length() {
    let (engine, dir) = (engine(), tempfile::tempdir().unwrap());
    documents(dir.path());
    let suite = suite(&engine, &[], &[2048, 5000], Some(dir.path()));
    assert_eq!(suite.left_out, Vec::<String>::new());
    assert_eq!(suite.readings().len(), 13 * 2 * 2);
    for (reading, (task, asked)) in suite.readings().iter().zip(made(&suite, &engine)) {
        let length = reading.length.unwrap();
        let size = whole(&Tools::of(&engine), &asked, &asked.questions[0]).unwrap();
        // One published step may be missing: 500 words of an essay, 25 lines or needles, 10 list words three times each.
        let least = if task.contains("niah") && length > SHORT { length / 3 } else { length * 3 / 4 };
        assert!((least..=length).contains(&size), "{task}: {size} of {length}");
        for answer in answers(&asked) {
            let colour = answer == "red" || answer == "Red" || answer == "yes";
            assert!(colour || asked.source.text.contains(&answer), "{task}: {answer}");
        }
        let score = |said: &str| {
            let sample = Sample { prediction: said.into(), ..asked.questions[0].sample.clone() };
            suite.score(&task, &sample).unwrap().value
        };
        assert_eq!((score(&answers(&asked).join(", ")), score("nothing")), (1.0, 0.0), "{task}");
    }
}

#[test]
fn the_same_seed_gives_the_same_bytes_whatever_else_is_made() {
    let engine = engine();
    let all = made(&suite(&engine, &[], &[1800, 2500], None), &engine);
    for task in ["niah_multikey_1", "vt", "cwe", "fwe"] {
        let alone = made(&suite(&engine, &[task], &[2500], None), &engine);
        let among: Vec<_> = all.iter().filter(|(t, _)| t == task).skip(2).collect();
        assert_eq!(
            alone.iter().map(|(_, a)| text(a)).collect::<Vec<_>>(),
            among.iter().map(|(_, a)| text(a)).collect::<Vec<_>>(),
            "{task}"
        );
        assert_ne!(text(&alone[0].1), text(&alone[1].1));
    }
}

#[test]
fn one_needle_reads_as_published() {
    let engine = engine();
    let suite = suite(&engine, &["niah_single_1"], &[900], None);
    for (_, asked) in made(&suite, &engine) {
        let value = &answers(&asked)[0];
        let needle = asked.source.text.lines().find(|l| l.contains(value.as_str())).unwrap();
        let key = needle.split(' ').nth(7).unwrap();
        assert_eq!(needle, format!("One of the special magic numbers for {key} is: {value}."));
        assert!(value.len() == 7 && key.split_once('-').is_some(), "{needle}");
        let lines = asked.source.text.lines().filter(|l| *l == crate::suites::generate::NOISE).count();
        assert_eq!(lines + 1, asked.source.text.lines().count());
        assert_eq!(
            asked.before,
            "A special magic number is hidden within the following text. Make sure to memorize it. I will quiz you about the number afterwards.\n"
        );
        let question = &asked.questions[0];
        assert_eq!(
            question.after,
            format!("\nWhat is the special magic number for {key} mentioned in the provided text?")
        );
        assert_eq!(
            question.prefix,
            format!(" The special magic number for {key} mentioned in the provided text is")
        );
        assert_eq!(question.max_new_tokens, 128);
    }
}

#[test]
fn several_needles_are_asked_for_in_the_plural() {
    let engine = engine();
    let suite = suite(&engine, &["niah_multivalue", "niah_multiquery", "niah_multikey_3"], &[3000], None);
    for (task, asked) in made(&suite, &engine) {
        let told = asked.source.text.matches("One of the special magic ").count();
        let (question, answers) = (&asked.questions[0], answers(&asked));
        match task.as_str() {
            "niah_multikey_3" => {
                assert!(told > 5 && answers.len() == 1, "{told}");
                assert!(question.after.starts_with("\nWhat is the special magic uuid for "));
            }
            "niah_multivalue" => assert_eq!((told, answers.len()), (4, 4)),
            _ => {
                assert_eq!((told, answers.len()), (4, 4));
                assert_eq!(question.after.matches(", ").count(), 3, "{}", question.after);
                assert!(question.after.contains(", and ") && question.prefix.ends_with("provided text are"));
            }
        }
        let first = asked.before.lines().next().unwrap();
        assert_eq!(first.starts_with("A special magic uuid is hidden"), task == "niah_multikey_3", "{first}");
    }
}

#[test]
fn variables_are_tracked_through_the_chain() {
    let engine = engine();
    for (_, asked) in made(&suite(&engine, &["vt"], &[3000], None), &engine) {
        let names = answers(&asked);
        let question = &asked.questions[0];
        let value = question.after.split(' ').find(|w| w.parse::<u32>().is_ok()).unwrap();
        let at = |line: String| asked.source.text.split('\n').position(|l| l == line).unwrap();
        let mut places = vec![at(format!("VAR {} = {value}", names[0]))];
        places.extend(names.windows(2).map(|p| at(format!("VAR {} = VAR {} ", p[1], p[0]))));
        assert!(places.windows(2).all(|p| p[0] < p[1]) && places.len() == 5, "{places:?}");
        assert!(
            question.prefix.ends_with(&format!("5 variables are assigned the value {value}, they are: "))
        );
        // The example: its own chain of shorter names, with its answer.
        let (example, head) = asked.before.split_once("they are:  ").unwrap();
        let shown: Vec<&str> = head.lines().next().unwrap().split(' ').collect();
        assert!(shown.len() == 5 && shown.iter().all(|n| n.len() == 3), "{shown:?}");
        assert!(example.contains(&format!("VAR {} = VAR {} ", shown[4], shown[3])));
        assert!(!example.contains("12345") && !example.contains(value));
        assert!(head.ends_with(
            "\n\nMemorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
        ));
    }
}

#[test]
fn common_and_frequent_words_are_those() {
    let engine = engine();
    for length in [2500, 6000] {
        for (task, asked) in made(&suite(&engine, &["cwe", "fwe"], &[length], None), &engine) {
            let mut counts: HashMap<&str, usize> = HashMap::new();
            for word in asked.source.text.split(' ').filter(|w| !w.ends_with('.') || *w == "...") {
                *counts.entry(word).or_default() += 1;
            }
            let mut ranked: Vec<(usize, &str)> = counts.iter().map(|(w, n)| (*n, *w)).collect();
            ranked.sort_by(|a, b| b.cmp(a));
            let answers = answers(&asked);
            if task == "cwe" {
                let (often, seldom) = if length < SHORT { (6, 1) } else { (30, 3) };
                assert!(ranked[..10].iter().all(|(n, w)| *n == often && answers.iter().any(|a| a == w)));
                assert!(ranked[10..].iter().all(|(n, _)| *n == seldom), "{ranked:?}");
                assert!(asked.source.text.starts_with("1. "));
                assert_eq!(asked.before.matches("Below is a numbered list of words.").count(), 2);
                assert!(asked.before.contains("appear most often in the list are: 1. "));
            } else {
                assert_eq!(ranked[0].1, "...");
                assert_eq!(ranked[1..4].iter().map(|r| r.1).collect::<Vec<_>>(), answers);
                assert!(ranked[1].0 > ranked[2].0 && ranked[2].0 > ranked[3].0 && ranked[3].0 > ranked[4].0);
            }
        }
    }
}

#[test]
fn documents_hold_the_answer_among_others() {
    let (engine, dir) = (engine(), tempfile::tempdir().unwrap());
    documents(dir.path());
    for (task, asked) in made(&suite(&engine, &["qa_1", "qa_2"], &[2000], Some(dir.path())), &engine) {
        let sample = asked.questions[0].sample.index;
        let text = &asked.source.text;
        assert!(text.starts_with("Document 1:\n"));
        assert_eq!(asked.questions[0].prefix, " Answer:");
        if task == "qa_1" {
            assert!(asked.questions[0].after.ends_with(&format!("Question: What colour is boat {sample}?")));
            assert!(text.contains(&format!("The boat of number {sample} is red.")));
            // Others of the same article come before those of other articles.
            assert!(
                !text.contains("house") || (0..15).all(|i| text.contains(&format!("boat of number {i} is")))
            );
        } else {
            assert!((0..10).all(|d| text.contains(&format!("Title {sample}.{d}\nOne sentence."))));
        }
    }
}

#[test]
fn what_cannot_be_made_is_left_out_or_refused() {
    let engine = engine();
    let tools = Tools::of(&engine);
    let all = suite(&engine, &[], &[1500], None);
    assert_eq!(all.left_out.len(), 2, "{:?}", all.left_out);
    assert!(all.left_out[0].starts_with("qa_1 needs SQuAD's `dev-v2.0.json`"), "{:?}", all.left_out);
    assert_eq!(all.options()["haystack"], crate::suites::essays::OWN);
    let error = |options| Suite::new(options, &tools).unwrap_err().to_string();
    assert!(error(options(&["qa_2"], &[1500], None)).contains("no data folder is given"));
    assert!(
        error(options(&["niah"], &[1500], None)).contains("ruler has no task `niah`; it has niah_single_1")
    );
    assert!(error(options(&["vt"], &[300], None)).starts_with("`ruler vt` takes at least "));
    assert!(error(options(&[], &[20], None)).contains("no task can be made"));
    assert!(error(options(&[], &[1500], Some(Path::new("no/such/folder")))).contains("is not a folder"));
    let dir = tempfile::tempdir().unwrap();
    documents(dir.path());
    let many = Options { samples: 10, ..options(&["qa_2"], &[1500], Some(dir.path())) };
    assert!(error(many).contains("samples is 10, and qa_2 has 9 questions"));
    for (bytes, reason) in
        [("{\"data\": 3}", "invalid type"), ("{\"data\": []}", "no question"), ("[", "EOF")]
    {
        std::fs::write(dir.path().join("dev-v2.0.json"), bytes).unwrap();
        let error = error(options(&["qa_1"], &[1500], Some(dir.path())));
        assert!(error.contains("dev-v2.0.json") && error.contains(reason), "{error}");
    }
}

#[test]
fn essays_of_the_user_are_the_haystack() {
    let (engine, dir) = (engine(), tempfile::tempdir().unwrap());
    let essay = "The old   town sleeps.\nNobody is late. ".repeat(3);
    std::fs::write(dir.path().join("PaulGrahamEssays.json"), json!({ "text": essay }).to_string()).unwrap();
    let suite = suite(&engine, &["niah_single_2"], &[1500], Some(dir.path()));
    assert_eq!(suite.options()["haystack"], "PaulGrahamEssays.json");
    let (_, asked) = &made(&suite, &engine)[0];
    // Too short an essay is repeated, and white space is single spaces.
    assert!(asked.source.text.matches("The old town sleeps. Nobody is late.").count() > 20);
    let row =
        Row { task: "niah_single_2".into(), method: "full".into(), length: Some(1500), ..Row::default() };
    let tables = suite.tables(&[&row]);
    assert_eq!(tables[0].notes, ["haystack of the essay tasks: PaulGrahamEssays.json"]);
}

#[test]
fn words_are_different_however_many() {
    let material = Material::load(None, 1, 10).unwrap();
    for count in [10, 1_700, 20_000] {
        let words = material.lexicon.words(&mut Rng::new(2), count);
        let different: std::collections::BTreeSet<&String> = words.iter().collect();
        assert_eq!((words.len(), different.len()), (count, count));
    }
    assert!(prompt("qa").template.ends_with("Question: {query}"));
    assert!(TASKS.iter().all(|t| prompt(t.prompt).tokens_to_generate > 0));
}
