//! A session stands as a fresh one that was fed what is left of it, whatever was asked of it in whatever order, and a step
//! that failed is taken back or refused until it is.

use proptest::prelude::*;
use reattention::methods::{Step, StepKind, build};
use reattention::{KvDtype, Settings};
use reattention_engine::{Cancel, Finish, GenerateOptions, Prompt, Sampling, Session, SessionError};
use reattention_kernels::{Backend, Cpu};
use reattention_model::synth::{DenseType, Shape, write_hugging_face};
use reattention_model::{Checkpoint, Logits, Model};
use std::path::Path;
use std::sync::{Arc, LazyLock};

/// A random model of a few thousand parameters.
static MODEL: LazyLock<Arc<Model>> = LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap();
    write_hugging_face(dir.path(), &Shape::tiny("llama"), DenseType::F32, 5, None).unwrap();
    load(dir.path())
});

fn load(dir: &Path) -> Arc<Model> {
    let checkpoint = Checkpoint::open(dir).unwrap();
    Arc::new(Model::new(checkpoint.config().clone(), checkpoint.load().unwrap()))
}

fn session(model: &Arc<Model>, method: &str, settings: &[&str]) -> Session {
    let method = build(method, &Settings::parse(settings).unwrap(), model.shape()).unwrap();
    let backend: Arc<dyn Backend> = Arc::new(Cpu::new(1).unwrap());
    Session::new(Arc::clone(model), method, None, KvDtype::F32, backend)
}

const METHODS: &[(&str, &[&str])] = &[
    ("full", &["chunk=8"]),
    ("streaming-llm", &["global=2", "local=16", "chunk=8"]),
    ("infllm", &["global=2", "local=16", "block=4", "top_k=3", "repr=2", "exc_block=8"]),
    ("infinipot", &["pot=32", "keep=16", "alpha=0", "global=2", "chunk=8", "catalyst=ids:7,8,9"]),
    ("reattention", &["global=2", "local=16", "span=4", "clip=3", "chunk=8", "top_k=2"]),
];

/// What is asked of a session.
#[derive(Clone, Debug)]
enum Act {
    Read(usize),
    /// Reads and cancels after so many thousandths of the tokens.
    Cancel(usize, usize),
    Generate(usize),
    /// Rolls back to the end of a step, so many thousandths of all of them.
    Return(usize),
    /// Rolls back to the current length, or to what is fed of it.
    ReturnToEnd(bool),
    Pin,
    /// Feeds a token as an answer's, as evaluations do.
    Feed(u32),
    /// Something that is refused.
    Refused(usize),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let share = || 0usize..=1000;
    let act = prop_oneof![
        3 => (1usize..50).prop_map(Act::Read),
        1 => (1usize..50, share()).prop_map(|(n, s)| Act::Cancel(n, s)),
        4 => (0usize..5).prop_map(Act::Generate),
        2 => share().prop_map(Act::Return),
        2 => any::<bool>().prop_map(Act::ReturnToEnd),
        2 => Just(Act::Pin),
        1 => (0u32..100).prop_map(Act::Feed),
        1 => (0usize..5).prop_map(Act::Refused),
    ];
    proptest::collection::vec(act, 1..14)
}

/// What is left of a session.
#[derive(Clone, Debug, Default)]
struct Plain {
    steps: Vec<(Vec<u32>, StepKind)>,
    /// A token of an answer that is not fed yet.
    pending: Option<u32>,
    /// Whether logits follow from the last step.
    has_logits: bool,
}

impl Plain {
    fn fed(&self) -> usize {
        self.steps.iter().map(|s| s.0.len()).sum()
    }

    fn len(&self) -> usize {
        self.fed() + usize::from(self.pending.is_some())
    }

    fn feed_pending(&mut self) {
        if let Some(token) = self.pending.take() {
            self.steps.push((vec![token], StepKind::Decode));
            self.has_logits = true;
        }
    }
}

/// The tokens of a prompt, which depend on where it stands.
fn ids(start: usize, n: usize) -> Vec<u32> {
    (start..start + n).map(|i| ((i * 37 + 11) % 90) as u32).collect()
}

fn act(session: &mut Session, plain: &mut Plain, act: &Act) {
    let no_progress = |_| {};
    match *act {
        Act::Read(n) | Act::Cancel(n, _) => {
            plain.feed_pending();
            let start = plain.fed();
            let prompt = ids(start, n);
            // Asked of a session of its own, so that this one is told nothing.
            let steps: Vec<Step> = session.method().schedule(start..start + n, None);
            let stop = match act {
                Act::Cancel(_, share) => steps.len() * share / 1000,
                _ => steps.len(),
            };
            let cancel = Cancel::default();
            if stop == 0 {
                cancel.cancel();
            }
            let mut done = 0;
            let result = session.prefill(&Prompt::from_ids(prompt.clone()), &cancel, |_| {
                done += 1;
                if done == stop && stop < steps.len() {
                    cancel.cancel();
                }
            });
            for step in &steps[..stop] {
                let tokens = prompt[step.tokens.start - start..step.tokens.end - start].to_vec();
                plain.steps.push((tokens, step.kind));
            }
            plain.has_logits = stop == steps.len();
            match result {
                Ok(read) => assert!(plain.has_logits && read.tokens == n),
                Err(SessionError::Cancelled { done, total }) => {
                    let fed = plain.fed() - start;
                    assert!(!plain.has_logits && (done, total) == (fed, n), "{done} of {total}, {fed} fed");
                }
                Err(error) => panic!("{error}"),
            }
        }
        Act::Generate(n) => {
            let options = GenerateOptions { max_new_tokens: n, ..GenerateOptions::default() };
            match session.generate(&options, None, &Cancel::default(), |_| {}) {
                Ok(answer) => {
                    assert!(plain.has_logits, "there was nothing to continue");
                    assert_eq!((answer.ids.len(), answer.finish), (n, Finish::Length));
                    for token in answer.ids {
                        plain.feed_pending();
                        plain.pending = Some(token);
                    }
                }
                Err(error) => {
                    assert!(matches!(error, SessionError::NothingRead) && !plain.has_logits, "{error}");
                }
            }
        }
        Act::Return(share) => {
            let keep = plain.steps.len() * share / 1000;
            let n: usize = plain.steps[..keep].iter().map(|s| s.0.len()).sum();
            match session.truncate(n) {
                Ok(()) if n == plain.len() => {}
                Ok(()) => {
                    plain.has_logits &= n == plain.fed();
                    plain.steps.truncate(keep);
                    plain.pending = None;
                }
                Err(error) => assert!(matches!(error, SessionError::Truncate(_)), "{error}"),
            }
        }
        Act::ReturnToEnd(with_pending) => {
            session.truncate(if with_pending { plain.len() } else { plain.fed() }).unwrap();
            if !with_pending {
                plain.pending = None;
            }
        }
        Act::Pin => {
            plain.feed_pending();
            session.pin().unwrap();
            // What was pinned can be returned to, whatever the method.
            let n = plain.len();
            if n > 0 {
                session.prefill(&Prompt::from_ids(ids(n, 20)), &Cancel::default(), no_progress).unwrap();
                session.truncate(n).unwrap();
                plain.has_logits = false;
            }
        }
        Act::Feed(token) => {
            plain.feed_pending();
            session.feed_step(&[token], StepKind::Decode, &Logits::Last).unwrap();
            plain.steps.push((vec![token], StepKind::Decode));
            plain.has_logits = false;
        }
        Act::Refused(0) => {
            let empty = session.prefill(&Prompt::default(), &Cancel::default(), no_progress).unwrap_err();
            assert!(matches!(empty, SessionError::EmptyPrompt) && empty.is_refusal());
        }
        Act::Refused(1) => {
            let prompt = Prompt::from_ids(vec![1, 4_000_000]);
            let error = session.prefill(&prompt, &Cancel::default(), no_progress).unwrap_err();
            assert!(matches!(error, SessionError::UnknownToken { token: 4_000_000, .. }));
        }
        Act::Refused(which) => {
            let options = match which {
                2 => GenerateOptions { stop_strings: vec![String::new()], ..GenerateOptions::default() },
                3 => GenerateOptions { stop_strings: vec!["a".into()], ..GenerateOptions::default() },
                _ => {
                    let sampling = Sampling { top_p: 0.0, ..Sampling::default() };
                    GenerateOptions { sampling, ..GenerateOptions::default() }
                }
            };
            let error = session.generate(&options, None, &Cancel::default(), |_| {}).unwrap_err();
            match error {
                SessionError::NothingRead => assert!(!plain.has_logits),
                SessionError::EmptyStop => assert_eq!(which, 2),
                SessionError::NoTokenizer => assert_eq!(which, 3),
                SessionError::Sampling(_) => assert_eq!(which, 4),
                error => panic!("{error}"),
            }
        }
    }
    assert_eq!(session.len(), plain.len(), "after {act:?}");
    assert_eq!(session.logits().is_empty(), !plain.has_logits, "after {act:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 160, ..ProptestConfig::default() })]

    #[test]
    fn any_order_of_calls_leaves_what_a_fresh_session_over_the_same_tokens_has(
        which in 0..METHODS.len(),
        acts in acts(),
    ) {
        let (method, settings) = METHODS[which];
        let (mut used, mut plain) = (session(&MODEL, method, settings), Plain::default());
        for one in &acts {
            act(&mut used, &mut plain, one);
        }
        let mut fresh = session(&MODEL, method, settings);
        let mut last = Vec::new();
        for (tokens, kind) in &plain.steps {
            last = fresh.feed_step(tokens, *kind, &Logits::Last).unwrap();
        }
        if plain.has_logits {
            prop_assert_eq!(used.logits(), &last[..], "{}: logits of the last token", method);
        }
        if let Some(token) = plain.pending {
            fresh.feed_step(&[token], StepKind::Decode, &Logits::Last).unwrap();
        }
        for token in [5, 6, 7] {
            let [a, b] =
                [&mut used, &mut fresh].map(|s| s.feed_step(&[token], StepKind::Decode, &Logits::Last).unwrap());
            prop_assert!(a == b, "{method}: what follows differs");
        }
    }
}

#[test]
fn the_length_counts_an_answers_last_token_and_may_be_returned_to() {
    let mut session = session(&MODEL, "full", &[]);
    let read = Prompt::from_ids(ids(0, 12));
    session.prefill(&read, &Cancel::default(), |_| {}).unwrap();
    let options = |n| GenerateOptions { max_new_tokens: n, ..GenerateOptions::default() };
    let generate = |session: &mut Session, n| {
        session.generate(&options(n), None, &Cancel::default(), |_| {}).unwrap().ids
    };
    let first = generate(&mut session, 3);
    let n = session.len();
    assert_eq!(n, 15);
    session.truncate(n).unwrap();
    assert_eq!(session.len(), n);
    session.pin().unwrap();
    let second = generate(&mut session, 4);
    session.truncate(n).unwrap();
    assert_eq!(session.len(), n, "a pin is where the session stood");
    // Both answers in one, by a session that was never interrupted.
    let mut whole = self::session(&MODEL, "full", &[]);
    whole.prefill(&read, &Cancel::default(), |_| {}).unwrap();
    assert_eq!(generate(&mut whole, 7), [first, second].concat());
}

/// A model whose embedding of token 9 is no number.
fn damaged() -> Arc<Model> {
    let dir = tempfile::tempdir().unwrap();
    write_hugging_face(dir.path(), &Shape::tiny("llama"), DenseType::F32, 5, None).unwrap();
    let file = dir.path().join("model.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    let data = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..data]).unwrap();
    assert!(header["lm_head.weight"].is_object(), "the output head is another matrix");
    let table = &header["model.embed_tokens.weight"];
    let first = data + table["data_offsets"][0].as_u64().unwrap() as usize;
    let row = 4 * table["shape"][1].as_u64().unwrap() as usize;
    bytes[first + 9 * row..first + 10 * row].fill(0xFF);
    std::fs::write(&file, bytes).unwrap();
    load(dir.path())
}

#[test]
fn nothing_is_built_on_a_step_that_gave_no_numbers() {
    let model = damaged();
    let prompt = |ids: &[u32]| Prompt::from_ids(ids.to_vec());
    let read = |session: &mut Session, ids: &[u32]| session.prefill(&prompt(ids), &Cancel::default(), |_| {});
    let is_broken = |error: SessionError| {
        let is_broken = matches!(error, SessionError::NotANumber { token: 5 });
        assert!(is_broken && !error.is_refusal(), "{error}");
    };
    let mut session = session(&model, "full", &[]);
    read(&mut session, &[1, 2, 3]).unwrap();
    let sound = session.logits().to_vec();
    assert!(sound.iter().all(|l| l.is_finite()));
    is_broken(read(&mut session, &[4, 9]).unwrap_err());
    assert_eq!(session.len(), 5, "the context holds what it was fed");
    assert!(session.logits().is_empty());
    for _ in 0..2 {
        is_broken(read(&mut session, &[4]).unwrap_err());
        is_broken(session.feed_step(&[4], StepKind::Decode, &Logits::Last).unwrap_err());
        is_broken(session.pin().unwrap_err());
        is_broken(session.fill(&[4; 10], 1).unwrap_err());
        let answer = session.generate(&GenerateOptions::default(), None, &Cancel::default(), |_| {});
        is_broken(answer.unwrap_err());
        assert_eq!(session.len(), 5);
    }
    // Before that step it stands as if it had never been taken.
    session.truncate(3).unwrap();
    read(&mut session, &[6, 7]).unwrap();
    let mut fresh = self::session(&model, "full", &[]);
    read(&mut fresh, &[1, 2, 3]).unwrap();
    assert_eq!(fresh.logits(), sound);
    read(&mut fresh, &[6, 7]).unwrap();
    assert_eq!((session.len(), session.logits()), (5, fresh.logits()));
}
