//! Every task: what is asked is there, lengths hold, the same seed gives the same bytes.

use super::*;
use crate::run::Suite as _;
use reattention_engine::{Engine, Package};
use reattention_kernels::Cpu;
use std::sync::Arc;

fn engine() -> Engine {
    let package = Package::built_in().unwrap();
    package.engine(Arc::new(package.tokenizer().unwrap()), Arc::new(Cpu::new(1).unwrap())).unwrap()
}

fn options(lengths: &[usize]) -> Options {
    Options { lengths: lengths.to_vec(), samples: 2, ..Options::default() }
}

/// All prompts of a suite, with the tokens they and their answers may take.
fn prompts(suite: &Suite, tools: &Tools<'_>) -> Vec<(Asked, usize)> {
    let made = |reading: &Reading| match suite.make(reading, tools).unwrap() {
        Made::Asked(asked) => {
            let size = whole(tools, &asked, &asked.questions[0]).unwrap();
            (asked, size)
        }
        Made::Predicted { .. } => panic!("nothing is to be predicted"),
    };
    suite.readings().iter().map(made).collect()
}

fn text(asked: &Asked) -> String {
    format!("{}{}{}", asked.before, asked.source.text, asked.questions[0].after)
}

#[test]
fn lengths_are_filled_and_never_exceeded() {
    let engine = engine();
    let tools = Tools::of(&engine);
    for task in Task::ALL {
        for length in [1024, 5000] {
            let suite = Suite::new(task, options(&[length]), &tools).unwrap();
            let prompts = prompts(&suite, &tools);
            assert_eq!(prompts.len(), task.kinds().unwrap_or(5) * 2);
            for (asked, size) in prompts {
                // Functions are added a level at a time, so up to ten of them may be wanting.
                let slack = if task == Task::CodeRun { 400 } else { 120 };
                assert!(size <= length && size + slack > length, "{}: {size} of {length}", task.name());
                assert!(!asked.chat && asked.cut == 0);
            }
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_bytes() {
    let engine = engine();
    let tools = Tools::of(&engine);
    for task in Task::ALL {
        let of = |seed, lengths: &[usize]| {
            let suite = Suite::new(task, Options { seed, ..options(lengths) }, &tools).unwrap();
            prompts(&suite, &tools).into_iter().map(|(a, _)| text(&a)).collect::<Vec<_>>()
        };
        let (once, again) = (of(1, &[1500]), of(1, &[3000, 1500]));
        assert_eq!(once, again[again.len() / 2..], "{}", task.name());
        assert_ne!(once, of(2, &[1500]));
        assert_ne!(once[0], once[1]);
    }
}

#[test]
fn prompts_are_the_published_ones() {
    let engine = engine();
    let tools = Tools::of(&engine);
    let suite = Suite::new(Task::Passkey, Options { depths: vec![50.0], ..options(&[400]) }, &tools).unwrap();
    let (asked, _) = &prompts(&suite, &tools)[0];
    let key = asked.questions[0].sample.expected.as_str().unwrap();
    assert_eq!(key.len(), 5);
    let noise = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.\n";
    let told = format!("The pass key is {key}. Remember it. {key} is the pass key.\n");
    let lines = asked.source.text.matches(noise).count();
    assert!(lines >= 2, "{lines}");
    let half = (lines as f64 / 2.0).round() as usize;
    assert_eq!(
        text(asked),
        format!(
            "There is an important info hidden inside a lot of irrelevant text. Find it and memorize it. I will quiz you about the important information.\n\n{}{told}{}\n\nWhat is the pass key?\n\nThe pass key is",
            noise.repeat(half),
            noise.repeat(lines - half)
        )
    );
    assert_eq!(suite.score("passkey", &Sample::new(&format!(" {key}."), json!(key))).unwrap().value, 1.0);
}

#[test]
fn answers_stand_at_their_depths() {
    let engine = engine();
    let tools = Tools::of(&engine);
    for task in [Task::Passkey, Task::NumberString, Task::KvRetrieval] {
        let suite = Suite::new(task, options(&[8000]), &tools).unwrap();
        for (reading, (asked, _)) in suite.readings().iter().zip(prompts(&suite, &tools)) {
            let answer = asked.questions[0].sample.expected.as_str().unwrap();
            let at = asked.source.text.find(answer).unwrap() as f64 / asked.source.text.len() as f64;
            let depth = reading.rows[0].depth.unwrap() / 100.0;
            assert!((at - depth).abs() < 0.025, "{}: {at} for {depth}", task.name());
        }
    }
}

#[test]
fn digits_repeat_beside_themselves() {
    for seed in 0..50 {
        let drawn = number_string::draw(&mut Rng::new(seed), 0.0, 0);
        let key = drawn.answer.as_str().unwrap().to_string();
        let mut runs: Vec<char> = key.chars().collect();
        runs.dedup();
        assert!(key.len() == 10 && runs.len() <= 5, "{key}");
    }
}

#[test]
fn pairs_are_json_and_the_asked_one_is_among_them() {
    let drawn = kv_retrieval::draw(&mut Rng::new(1), 100.0, 30);
    let object: Value = serde_json::from_str(drawn.context.strip_prefix("JSON data:\n").unwrap()).unwrap();
    assert_eq!(object.as_object().unwrap().len(), 30);
    let key = drawn.fill[0].1.split('"').nth(1).unwrap();
    assert_eq!(object[key], drawn.answer);
    assert!(drawn.fill[0].1.ends_with("\"\nThe value associated with the specified key is: "));
}

#[test]
fn sums_are_right_and_stay_in_range() {
    let drawn = math_calc::draw(&mut Rng::new(9), 200);
    let mut tokens = drawn.context.split(' ');
    let mut value: i64 = tokens.next().unwrap().parse().unwrap();
    let mut values = Vec::new();
    while let (Some(sign), Some(number)) = (tokens.next(), tokens.next()) {
        let number: i64 = number.parse().unwrap();
        value += if sign == "+" { number } else { -number };
        assert!((0..=99).contains(&value));
        values.push(value);
    }
    assert_eq!((json!(values), values.len()), (drawn.answer, 199));
}

/// Runs the functions as Python would.
#[test]
fn functions_return_what_is_expected() {
    for kind in 0..code_run::LEVELS.len() {
        let drawn = code_run::draw(&mut Rng::new(kind as u64), kind, 45);
        let call = &drawn.fill[0].1;
        let (mut name, argument) = call.strip_suffix(')').unwrap().split_once('(').unwrap();
        let (mut value, mut calls) = (argument.parse::<i64>().unwrap(), 0);
        while name != "x" {
            let head = format!("def {name}(x):\n    return ");
            assert_eq!(drawn.context.matches(&head).count(), 1);
            let body = drawn.context.split(&head).nth(1).unwrap().lines().next().unwrap();
            let mut words = body.split(' ');
            name = words.next().unwrap().trim_end_matches("(x)");
            let sign = words.next().map_or(0, |w| if w == "+" { 1 } else { -1 });
            value += sign * words.next().map_or(0, |w| w.parse::<i64>().unwrap());
            calls += 1;
        }
        assert_eq!((json!(value), calls), (drawn.answer, code_run::LEVELS[kind]));
    }
}

#[test]
fn what_cannot_be_made_is_named() {
    let engine = engine();
    let tools = Tools::of(&engine);
    let error = |options| Suite::new(Task::KvRetrieval, options, &tools).unwrap_err().to_string();
    let short = error(options(&[8192, 60]));
    assert!(
        short.starts_with("`kv_retrieval` takes at least ") && short.contains("60 were asked for"),
        "{short}"
    );
    assert!(error(Options { depths: vec![50.0, -1.0], ..Options::default() }).contains("has -1"));
    assert!(error(Options { samples: 0, ..Options::default() }).contains("samples is 0"));
    assert!(error(options(&[])).contains("lengths is empty"));
}

#[test]
fn every_task_has_both_forms_of_its_prompt() {
    for task in Task::ALL {
        for chat in [false, true] {
            assert!(template(chat, task).contains("{context}"), "{}", task.name());
        }
        assert_eq!(Task::named(task.name()), Some(task));
        assert_eq!(task.max_new_tokens(false).is_none(), task == Task::MathCalc);
    }
    assert_eq!(
        template(false, Task::KvRetrieval),
        "Extract the value corresponding to the specified key in the JSON object below.\n\n{context}\n\n{input}"
    );
}

#[test]
fn thousands_set_apart_are_the_same_number() {
    let engine = engine();
    let suite = Suite::new(Task::Passkey, options(&[1024]), &Tools::of(&engine)).unwrap();
    let score = |said: &str| suite.score("passkey", &Sample::new(said, json!("71432"))).unwrap();
    for (said, value, published) in
        [("71432", 1.0, 1.0), ("The pass key is **71,432**.", 1.0, 0.0), ("71,433", 0.0, 0.0)]
    {
        let score = score(said);
        assert_eq!((score.value, score.part("published")), (value, Some(published)), "{said}");
    }
}
