//! Sessions on the built-in model: side by side, cancelled, rolled back, repeated.

use reattention::methods::StepKind;
use reattention::{KvDtype, Settings, methods};
use reattention_engine::{
    Cancel, Engine, Finish, GenerateOptions, Package, Prompt, Sampling, Session, SessionError, Source,
};
use reattention_kernels::{Backend, Cpu};
use reattention_model::Logits;
use std::sync::Arc;

const QUESTION: &str = "What is the secret code of Mara Velten?";

fn engine(threads: usize) -> Engine {
    let package = Package::built_in().unwrap();
    let backend: Arc<dyn Backend> = Arc::new(Cpu::new(threads).unwrap());
    package.engine(Arc::new(package.tokenizer().unwrap()), backend).unwrap()
}

fn session(engine: &Engine, method: &str, settings: &[&str]) -> Session {
    let settings = Settings::parse(settings).unwrap();
    engine.session(methods::build(method, &settings, engine.model().shape()).unwrap(), None, KvDtype::Bf16)
}

/// Five thousand tokens with one fact in the middle.
fn haystack() -> Source {
    let filler = |n: usize| {
        let nouns = ["river", "garden", "harbor", "clock", "sailor", "meadow", "lantern"];
        let line = |i: usize| {
            format!("The old {} watched the quiet {} by the sea. ", nouns[i % 7], nouns[(i * i + 3) % 7])
        };
        (0..n).map(line).collect::<String>()
    };
    let text = format!("{}The secret code of Mara Velten is 48271. {}", filler(200), filler(200));
    Source { name: "haystack.txt".into(), text }
}

fn options(engine: &Engine) -> GenerateOptions {
    GenerateOptions {
        max_new_tokens: 24,
        stop_tokens: engine.stop_tokens(),
        stop_strings: vec!["\n".into()],
        ..GenerateOptions::default()
    }
}

fn ask(engine: &Engine, session: &mut Session, prompt: &Prompt, options: &GenerateOptions) -> String {
    session.prefill(prompt, &Cancel::default(), |_| {}).unwrap();
    session.generate(options, Some(engine.tokenizer().as_ref()), &Cancel::default(), |_| {}).unwrap().text
}

#[test]
fn two_methods_side_by_side_do_not_touch_each_other() {
    let engine = engine(2);
    let prompt = engine.ask(&[haystack()], QUESTION).unwrap();
    let alone = |method: &str| ask(&engine, &mut session(&engine, method, &[]), &prompt, &options(&engine));
    let (found, lost) = (alone("reattention"), alone("streaming-llm"));
    assert!(found.contains("48271"), "{found}");
    assert!(!lost.contains("48271"), "{lost}");

    // Interleaved, chunk by chunk of the prompt, each gives what it gives alone.
    let mut sessions = [session(&engine, "reattention", &[]), session(&engine, "streaming-llm", &[])];
    let (context, question) = (engine.context(&[haystack()]).unwrap(), engine.question(QUESTION).unwrap());
    assert_eq!([&context.ids[..], &question.ids[..]].concat(), prompt.ids);
    for session in &mut sessions {
        session.prefill(&context, &Cancel::default(), |_| {}).unwrap();
    }
    let answers: Vec<String> =
        sessions.iter_mut().rev().map(|s| ask(&engine, s, &question, &options(&engine))).collect();
    assert_eq!(answers, [lost.clone(), found.clone()]);

    // And at the same time on two threads.
    let at_once = std::thread::scope(|scope| {
        let spawn = |method: &'static str| {
            let (engine, context, question) = (&engine, &context, &question);
            scope.spawn(move || {
                let mut session = session(engine, method, &[]);
                session.prefill(context, &Cancel::default(), |_| {}).unwrap();
                ask(engine, &mut session, question, &options(engine))
            })
        };
        let running = [spawn("reattention"), spawn("streaming-llm")];
        running.map(|r| r.join().unwrap())
    });
    assert_eq!(at_once, [found, lost]);
}

#[test]
fn threads_do_not_change_the_tokens() {
    let sampled = |threads| {
        let engine = engine(threads);
        let prompt = engine.ask(&[haystack()], QUESTION).unwrap();
        let mut session = session(&engine, "reattention", &[]);
        session.prefill(&prompt, &Cancel::default(), |_| {}).unwrap();
        let logits = session.logits().to_vec();
        let sampling = Sampling { temperature: 1.5, top_p: 0.99, seed: 11, ..Sampling::default() };
        let options =
            GenerateOptions { max_new_tokens: 40, sampling, ignore_end: true, ..GenerateOptions::default() };
        (logits, session.generate(&options, None, &Cancel::default(), |_| {}).unwrap().ids)
    };
    let one = sampled(1);
    assert_eq!(one.1.len(), 40);
    assert!(one == sampled(2), "one thread and two differ");
}

#[test]
fn cancelling_leaves_the_session_usable() {
    let engine = engine(2);
    let prompt = engine.ask(&[haystack()], QUESTION).unwrap();
    let mut session = session(&engine, "reattention", &[]);
    let cancel = Cancel::default();
    let mut calls = 0;
    let error = session
        .prefill(&prompt, &cancel, |p| {
            calls += 1;
            assert!(p.done <= p.total && p.rate > 0.0);
            if p.done > 1000 {
                cancel.cancel();
            }
        })
        .unwrap_err();
    let SessionError::Cancelled { done, total } = error else { panic!("{error}") };
    assert!(calls > 5 && done > 1000 && done < 1200 && total == prompt.ids.len());
    assert_eq!(session.len(), done);

    // Reading on from there gives what reading in one go gives.
    let origins = prompt.origins[done..].to_vec();
    let rest = Prompt {
        ids: prompt.ids[done..].to_vec(),
        origins,
        question: prompt.question.map(|q| q - done),
        sources: prompt.sources.clone(),
    };
    let answer = ask(&engine, &mut session, &rest, &options(&engine));
    assert!(answer.contains("48271"), "{answer}");

    // What was asked before a cancelled prompt is no answer to continue from.
    let mut again = 0;
    let cancel = Cancel::default();
    let progress = |_| {
        again += 1;
        cancel.cancel();
    };
    session.prefill(&rest, &cancel, progress).unwrap_err();
    let none = session.generate(&options(&engine), None, &Cancel::default(), |_| {}).unwrap_err();
    assert!(matches!(none, SessionError::NothingRead) && again == 1);

    let cancelled = Cancel::default();
    cancelled.cancel();
    session.truncate(500).unwrap();
    session.prefill(&rest, &Cancel::default(), |_| {}).unwrap();
    let tokenizer = Some(engine.tokenizer().as_ref());
    let stopped = session.generate(&options(&engine), tokenizer, &cancelled, |_| {}).unwrap();
    assert_eq!((stopped.finish, stopped.ids.len()), (Finish::Cancelled, 0));
}

#[test]
fn several_questions_share_one_reading() {
    let engine = engine(2);
    for method in ["reattention", "streaming-llm", "full", "lm-infinite", "dca", "mesa", "infllm"] {
        let (context, question) =
            (engine.context(&[haystack()]).unwrap(), engine.question(QUESTION).unwrap());
        let mut session = session(&engine, method, &[]);
        session.prefill(&context, &Cancel::default(), |_| {}).unwrap();
        session.pin().unwrap();
        let read = session.len();
        let first = ask(&engine, &mut session, &question, &options(&engine));
        for _ in 0..2 {
            session.truncate(read).unwrap();
            assert_eq!(ask(&engine, &mut session, &question, &options(&engine)), first, "{method}");
        }
    }
}

/// Where keys and values lie changes nothing but the memory they take.
#[test]
fn blocks_on_disk_give_what_blocks_in_memory_give() {
    let engine = engine(2);
    let (context, question) = (engine.context(&[haystack()]).unwrap(), engine.question(QUESTION).unwrap());
    let read = |settings: &[&str]| {
        let mut session = session(&engine, "infllm", settings);
        session.prefill(&context, &Cancel::default(), |_| {}).unwrap();
        session.pin().unwrap();
        let bytes = (session.kv_bytes(), session.disk_bytes());
        let mut answers = Vec::new();
        for _ in 0..2 {
            let answer = ask(&engine, &mut session, &question, &options(&engine));
            answers.push((answer, session.logits().to_vec()));
            // Back into pages that went to disk, and over them again.
            session.truncate(context.ids.len()).unwrap();
        }
        (bytes, answers)
    };
    let (memory, disk) = (read(&[]), read(&["cold=disk", "hot=16"]));
    assert!(memory.1 == disk.1, "answers differ");
    // About five pages of 1,024 tokens, of which the first, the last and one for what follows stay.
    assert_eq!(memory.0.1, 0);
    assert!(
        disk.0.0 <= memory.0.0 * 3 / 5 && disk.0.1 as usize > memory.0.0 / 2,
        "{:?}, {:?}",
        memory.0,
        disk.0
    );
}

#[test]
fn evidence_points_at_the_sentence() {
    let engine = engine(2);
    let source = haystack();
    for (method, needed) in [("reattention", true), ("full", false)] {
        let prompt = engine.ask(std::slice::from_ref(&source), QUESTION).unwrap();
        let mut session = session(&engine, method, &[]);
        session.gather_evidence();
        session.prefill(&prompt, &Cancel::default(), |_| {}).unwrap();
        let options = GenerateOptions { evidence: 3, ..options(&engine) };
        let answer = session
            .generate(&options, Some(engine.tokenizer().as_ref()), &Cancel::default(), |_| {})
            .unwrap();
        assert_eq!(answer.evidence.len(), 3);
        for e in &answer.evidence {
            assert_eq!(source.text[e.start_byte..e.end_byte], e.text);
            assert!(e.weight > 0.0 && e.weight <= 1.0 && e.source == "haystack.txt");
        }
        if needed {
            assert_eq!(answer.evidence[0].text, "The secret code of Mara Velten is 48271.");
        }
    }
}

#[test]
fn stop_strings_end_the_answer_and_are_not_shown() {
    let engine = engine(1);
    let prompt = engine.ask(&[haystack()], QUESTION).unwrap();
    let mut session = session(&engine, "reattention", &[]);
    session.prefill(&prompt, &Cancel::default(), |_| {}).unwrap();
    let options = GenerateOptions {
        stop_strings: vec![" is 4".into()],
        max_new_tokens: 24,
        ..GenerateOptions::default()
    };
    let mut shown = String::new();
    let answer = session
        .generate(&options, Some(engine.tokenizer().as_ref()), &Cancel::default(), |t| shown.push_str(t))
        .unwrap();
    assert_eq!(answer.finish, Finish::StopString);
    assert_eq!(answer.text, " The secret code of Mara Velten");
    assert_eq!(shown, answer.text);
}

#[test]
fn bad_input_is_refused_and_nothing_is_lost() {
    let engine = engine(1);
    let mut session = session(&engine, "reattention", &[]);
    let empty = session.prefill(&Prompt::default(), &Cancel::default(), |_| {}).unwrap_err();
    assert!(matches!(empty, SessionError::EmptyPrompt));
    let none = session.generate(&GenerateOptions::default(), None, &Cancel::default(), |_| {}).unwrap_err();
    assert!(matches!(none, SessionError::NothingRead));
    session.prefill(&Prompt::from_ids(vec![0, 5, 9]), &Cancel::default(), |_| {}).unwrap();
    let unknown =
        session.prefill(&Prompt::from_ids(vec![7, 99_999]), &Cancel::default(), |_| {}).unwrap_err();
    assert!(matches!(unknown, SessionError::UnknownToken { token: 99_999, vocab_size: 2048 }));
    assert_eq!(session.len(), 3);
}

#[test]
fn streaming_memory_stays_flat() {
    let engine = engine(2);
    let bytes = |method: &str, tokens: usize| {
        let mut session = session(&engine, method, &[]);
        let ids = (0..tokens as u32).map(|i| 2 + i * 7 % 2000).collect();
        session.prefill(&Prompt::from_ids(ids), &Cancel::default(), |_| {}).unwrap();
        session.kv_bytes()
    };
    for method in ["streaming-llm", "lm-infinite"] {
        assert_eq!(bytes(method, 8000), bytes(method, 16_000), "{method}");
        assert!(bytes(method, 16_000) < bytes("full", 5000), "{method}");
    }
}

/// Without a trace the last layer of a chunk makes no view; with one it does, and nothing else may differ.
#[test]
fn views_that_nobody_attends_to_change_nothing() {
    let engine = engine(2);
    let prompt = engine.ask(&[haystack()], QUESTION).unwrap();
    for method in ["reattention", "full", "streaming-llm", "dca", "mesa"] {
        let logits = |traced: bool| {
            let mut session = session(&engine, method, &[]);
            session.trace(traced);
            session.prefill(&prompt, &Cancel::default(), |_| {}).unwrap();
            let layers = session.trace(false).iter().map(|t| t.layer).max();
            (session.logits().to_vec(), layers)
        };
        let (traced, untraced) = (logits(true), logits(false));
        assert_eq!((traced.1, untraced.1), (Some(3), None));
        assert_eq!(traced.0, untraced.0, "{method}");
    }
}

#[test]
fn a_filled_session_goes_on_and_forgets_the_fill_when_rolled_back() {
    let engine = engine(2);
    let prompt = engine.ask(&[haystack()], QUESTION).unwrap();
    for method in ["reattention", "full", "streaming-llm", "infllm"] {
        let mut session = session(&engine, method, &[]);
        assert!(matches!(session.fill(&[1], 1), Err(SessionError::NothingToImitate)), "{method}");
        let read = Prompt::from_ids(prompt.ids[..300].to_vec());
        session.prefill(&read, &Cancel::default(), |_| {}).unwrap();
        session.pin().unwrap();
        let logits =
            |session: &mut Session| session.feed_step(&[5], StepKind::Decode, &Logits::Last).unwrap();
        let before = logits(&mut session);
        session.truncate(300).unwrap();

        assert!(matches!(session.fill(&[u32::MAX], 1), Err(SessionError::UnknownToken { .. })), "{method}");
        session.fill(&[7; 3000], 1).unwrap();
        assert_eq!(session.len(), 3300, "{method}");
        assert!(matches!(
            session.generate(&options(&engine), None, &Cancel::default(), |_| {}),
            Err(SessionError::NothingRead)
        ));
        let filled = logits(&mut session);
        assert!(filled.iter().all(|l| l.is_finite()), "{method}");
        // Which methods see that far decides whether the made-up keys count; some of them always lie in the local part.
        assert_ne!(before, filled, "{method} does not see what was filled");
        session.truncate(300).unwrap();
        assert_eq!(logits(&mut session), before, "{method} remembers what was filled");
    }
}
