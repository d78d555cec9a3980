//! InfiniPot on the built-in model: what a distillation keeps, forgets and reports.

use reattention::methods::{Step, StepKind};
use reattention::{Context, KvDtype, Settings, methods};
use reattention_engine::{
    Cancel, Engine, GenerateOptions, Generation, MemoryPlan, Package, Prompt, Session, SessionError, Source,
};
use reattention_kernels::{Backend, Cpu};
use reattention_model::{Logits, Scratch};
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

/// A text of about `tokens` tokens with one fact in the middle.
fn haystack(tokens: usize) -> Source {
    let nouns = ["river", "garden", "harbor", "clock", "sailor", "meadow", "lantern"];
    let line = |i: usize| {
        format!("The old {} watched the quiet {} by the sea. ", nouns[i % 7], nouns[(i * i + 3) % 7])
    };
    let filler: String = (0..tokens / 24).map(line).collect();
    Source {
        name: "haystack.txt".into(),
        text: format!("{filler}The secret code of Mara Velten is 48271. {filler}"),
    }
}

fn read(session: &mut Session, prompt: &Prompt) {
    session.prefill(prompt, &Cancel::default(), |_| {}).unwrap();
}

fn answer(engine: &Engine, session: &mut Session, tokens: usize) -> Generation {
    let options = GenerateOptions {
        max_new_tokens: tokens,
        ignore_end: true,
        evidence: 1,
        ..GenerateOptions::default()
    };
    session.generate(&options, Some(engine.tokenizer()), &Cancel::default(), |_| {}).unwrap()
}

#[test]
fn a_text_that_fits_is_read_as_under_full() {
    let engine = engine(2);
    let prompt = engine.ask(&[haystack(450)], QUESTION).unwrap();
    assert!((400..480).contains(&prompt.ids.len()), "{} tokens", prompt.ids.len());
    let seen = |method: &str| {
        let mut session = session(&engine, method, &[]);
        read(&mut session, &prompt);
        assert_eq!(session.kept(), prompt.ids.len());
        let logits = session.logits().to_vec();
        (logits, session.kv_bytes(), answer(&engine, &mut session, 8).ids)
    };
    assert_eq!(seen("infinipot"), seen("full"));
}

#[test]
fn a_roll_back_below_the_pin_moves_it() {
    let engine = engine(2);
    let ids = engine.ask(&[haystack(900)], QUESTION).unwrap().ids;
    let mut session = session(&engine, "infinipot", &["alpha=0"]);
    read(&mut session, &Prompt::from_ids(ids[..300].to_vec()));
    session.pin().unwrap();
    session.truncate(200).unwrap();
    for _ in 0..2 {
        // More than the pot holds, so that what was pinned is distilled away and has to come back.
        read(&mut session, &Prompt::from_ids(ids[200..800].to_vec()));
        assert!(session.kept() < 600, "{} kept", session.kept());
        session.truncate(200).unwrap();
        assert_eq!((session.len(), session.kept()), (200, 200));
    }
    read(&mut session, &Prompt::from_ids(ids[200..800].to_vec()));
    assert!(session.truncate(300).is_err(), "what the first pin named was never kept again");
}

#[test]
fn an_ephemeral_step_leaves_no_trace() {
    let engine = engine(2);
    let model = engine.model();
    for (method, settings) in
        [("full", ""), ("reattention", ""), ("streaming-llm", ""), ("infinipot", "catalyst=ids:5")]
    {
        let settings =
            Settings::parse(&[settings].into_iter().filter(|s| !s.is_empty()).collect::<Vec<_>>()).unwrap();
        let run = |is_disturbed: bool| {
            let method = methods::build(method, &settings, model.shape()).unwrap();
            let mut context =
                Context::new(model.shape(), method, None, KvDtype::F32, Arc::clone(engine.backend()));
            let (mut logits, mut scratch) = (Vec::new(), Scratch::default());
            for (tokens, kind) in [
                (0..150, StepKind::Prefill),
                (150..157, StepKind::Ephemeral),
                (150..155, StepKind::Question),
                (155..156, StepKind::Decode),
            ] {
                if kind != StepKind::Ephemeral || is_disturbed {
                    let ids: Vec<u32> = tokens.clone().map(|t| 7 + t as u32 * 13 % 2000).collect();
                    let step = Step { tokens, kind };
                    let new =
                        model.forward(&ids, &step, &mut context, &mut scratch, &Logits::All, None).unwrap();
                    assert_eq!(new.len(), ids.len() * 2048);
                    if kind != StepKind::Ephemeral {
                        logits = new;
                    }
                }
            }
            let rows: Vec<f32> = (0..model.shape().n_layers)
                .flat_map(|layer| {
                    let kv = context.cached(layer);
                    let mut row = vec![0.0; kv.len * kv.head_dim];
                    row.chunks_exact_mut(kv.head_dim).enumerate().for_each(|(t, row)| kv.copy_key(1, t, row));
                    row
                })
                .collect();
            (logits, rows, context.len(), context.kept(), context.kv_bytes())
        };
        assert!(run(true) == run(false), "{method} remembers an ephemeral step");
    }
}

#[test]
fn each_layer_and_kv_head_keeps_tokens_of_its_own() {
    let engine = engine(2);
    let prompt = engine.context(&[haystack(3000)]).unwrap();
    let mut session = session(&engine, "infinipot", &[]);
    read(&mut session, &prompt);
    session.trace(true);
    session.feed_step(&[9], StepKind::Decode, &Logits::None).unwrap();
    let n = prompt.ids.len();
    let trace = session.trace(false);
    assert_eq!(trace.iter().map(|t| t.layer).collect::<Vec<_>>(), [0, 1, 2, 3]);
    let kept: Vec<&Vec<u32>> = trace.iter().flat_map(|t| &t.slots).collect();
    assert_eq!(kept.len(), 8, "four layers of two KV heads");
    for (i, slots) in kept.iter().enumerate() {
        assert_eq!(slots.len(), session.kept());
        assert!(slots.windows(2).all(|pair| pair[0] < pair[1]), "slots hold tokens in their order");
        assert_eq!((&slots[..4], slots.last()), (&[0, 1, 2, 3][..], Some(&(n as u32))));
        assert!(kept[..i].iter().all(|other| other != slots), "two heads keep the same");
    }
    let last = &trace[0];
    let missing = (0..n).find(|t| !kept[0].contains(&(*t as u32))).unwrap();
    assert!(last.holds(0, 3) && last.holds(0, n) && !last.holds(0, missing) && !last.holds(0, n + 1));
    // Whatever the text's length, memory and attention stay what they were, and within the plan.
    assert!(session.attended_max() <= 512 && session.kept() <= 512);
}

#[test]
fn memory_is_flat_and_within_the_plan() {
    let (engine, package) = (engine(2), Package::built_in().unwrap());
    let bytes = |tokens: usize| {
        let mut session = session(&engine, "infinipot", &[]);
        read(&mut session, &engine.context(&[haystack(tokens)]).unwrap());
        session.pin().unwrap();
        read(&mut session, &Prompt::from_ids(vec![11; 600]));
        let plan = MemoryPlan::new(package.config(), session.method(), KvDtype::Bf16, 0, session.len(), 0);
        assert!(session.kv_bytes() <= plan.kv, "{} held, {} planned", session.kv_bytes(), plan.kv);
        (session.kv_bytes(), session.attended_max(), plan.kv, plan.extra, plan.scratch)
    };
    let short = bytes(1500);
    assert_eq!(bytes(12_000), short);
    let all = MemoryPlan::new(
        package.config(),
        &methods::Full::new(&Settings::new(), engine.model().shape()).unwrap(),
        KvDtype::Bf16,
        0,
        12_000,
        0,
    );
    assert!(short.2 < all.kv / 2);
}

#[test]
fn threads_do_not_change_what_is_kept() {
    let run = |threads: usize| {
        let engine = engine(threads);
        let mut session = session(&engine, "infinipot", &[]);
        read(&mut session, &engine.ask(&[haystack(2500)], QUESTION).unwrap());
        let logits = session.logits().to_vec();
        (logits, answer(&engine, &mut session, 30).ids)
    };
    assert_eq!(run(1), run(2));
}

/// Questions and answers long enough to overflow the pot come and go; the pinned context stays what it was.
#[test]
fn several_questions_share_one_context_and_decoding_distils_too() {
    let engine = engine(2);
    let prompt = engine.ask(&[haystack(2500)], QUESTION).unwrap();
    let (context, question) =
        (engine.context(&[haystack(2500)]).unwrap(), engine.question(QUESTION).unwrap());
    let mut whole = session(&engine, "infinipot", &[]);
    read(&mut whole, &prompt);
    let expected = (whole.logits().to_vec(), answer(&engine, &mut whole, 700).ids);

    let mut session = session(&engine, "infinipot", &[]);
    read(&mut session, &context);
    session.pin().unwrap();
    for round in 0..3 {
        let longest = [700, 20, 700][round];
        read(&mut session, &question);
        assert_eq!(session.logits(), expected.0, "round {round}");
        let ids = answer(&engine, &mut session, longest).ids;
        assert_eq!(ids, expected.1[..ids.len()], "round {round}");
        assert!(session.attended_max() <= 512 && session.kept() <= 512);
        session.truncate(context.ids.len()).unwrap();
    }
    // Without the pin a point before the last distillation is gone, and the session stands where it stood.
    session.unpin();
    read(&mut session, &Prompt::from_ids(vec![11; 600]));
    let len = session.len();
    assert!(matches!(session.truncate(context.ids.len()), Err(SessionError::Truncate(_))));
    assert_eq!(session.len(), len);
    session.truncate(len - 1).unwrap();
    assert_eq!(session.len(), len - 1);
}

#[test]
fn evidence_names_the_sentence_whose_tokens_moved_to_other_slots() {
    let engine = engine(2);
    let prompt = engine.ask(&[haystack(1200)], QUESTION).unwrap();
    let mut session = session(&engine, "infinipot", &["alpha=1"]);
    session.gather_evidence();
    read(&mut session, &prompt);
    assert!(session.kept() < prompt.ids.len());
    let answer = answer(&engine, &mut session, 13);
    assert!(answer.text.contains("48271"), "{}", answer.text);
    assert_eq!(answer.evidence[0].text, "The secret code of Mara Velten is 48271.");
}

#[test]
fn a_catalyst_that_cannot_be_fed_is_an_error_that_says_so() {
    let engine = engine(2);
    let context = engine.context(&[haystack(1200)]).unwrap();
    for (settings, says) in [
        (&["catalyst=question"][..], "no question is known"),
        (&["catalyst=ids:5,99999"], "99999"),
        (&["keep=500", "alpha=0"], "shorten the catalyst"),
    ] {
        let mut session = session(&engine, "infinipot", settings);
        let error = session.prefill(&context, &Cancel::default(), |_| {}).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
        assert!(session.len() > 400 && session.kept() == session.len(), "what was read stays");
    }
    let mut filled = session(&engine, "infinipot", &[]);
    read(&mut filled, &Prompt::from_ids(vec![5; 100]));
    assert!(matches!(filled.fill(&[7; 3000], 1), Err(SessionError::CannotFill("infinipot"))));
    filled.fill(&[7; 100], 1).unwrap();
    assert_eq!(filled.len(), 200);
}

/// What stays after one distillation, worked out from what is seen without any: the losses of the tokens, and the
/// attention that the catalyst's tokens pay when they are fed one by one.
#[test]
fn what_stays_is_what_surprised_most_and_is_attended_to_most() {
    const READ: usize = 200;
    let engine = engine(2);
    let ids = engine.context(&[haystack(600)]).unwrap().ids;
    let catalyst = [5, 77, 300, 12];

    let mut open = session(&engine, "infinipot", &["alpha=0"]);
    let losses =
        open.feed_step(&ids[..READ], StepKind::Prefill, &Logits::Loss(ids[1..READ].to_vec())).unwrap();
    open.gather_evidence();
    open.trace(true);
    for id in catalyst {
        open.feed_step(&[id], StepKind::Decode, &Logits::None).unwrap();
    }
    let looks = open.trace(false);
    let attention = |layer: usize, head: usize| -> Vec<f32> {
        let mut sums = vec![0.0; READ];
        for look in looks.iter().filter(|l| l.layer == layer) {
            sums.iter_mut().zip(&look.mass[head]).for_each(|(s, m)| *s += m);
        }
        sums
    };
    let surprise: Vec<f32> = std::iter::once(f32::NEG_INFINITY).chain(losses).collect();
    let best = |scores: &[f32], taken: &[usize], n: usize| -> Vec<usize> {
        let mut rest: Vec<usize> = (0..READ).filter(|t| !taken.contains(t)).collect();
        rest.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
        rest.truncate(n);
        [taken, &rest].concat()
    };

    for (alpha, novel) in [("alpha=0", 0), ("alpha=1", 98), ("alpha=0.25", 25)] {
        let ids_of = "catalyst=ids:5,77,300,12";
        let mut pot = session(&engine, "infinipot", &["pot=204", "keep=100", "global=2", alpha, ids_of]);
        pot.prefill(&Prompt::from_ids(ids[..READ].to_vec()), &Cancel::default(), |_| {}).unwrap();
        assert_eq!(pot.kept(), READ, "it fits");
        pot.trace(true);
        pot.feed_step(&ids[READ..READ + 1], StepKind::Decode, &Logits::None).unwrap();
        assert_eq!((pot.kept(), pot.len()), (101, READ + 1));
        for look in pot.trace(false) {
            for (head, slots) in look.slots.iter().enumerate() {
                let chosen = best(&surprise, &[0, 1], novel);
                let chosen = best(&attention(look.layer, head), &chosen, 98 - novel);
                let same = chosen.iter().filter(|t| slots[..100].contains(&(**t as u32))).count();
                // Cut otherwise, sums are rounded otherwise: the last place may go to another.
                assert!(same >= 98, "{alpha}, layer {}, head {head}: {same} of 100", look.layer);
            }
        }
    }
}
