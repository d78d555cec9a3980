//! Whole models on the device, run by the emulator on the kernels' own text, beside the reference.

use cuda_emulator::{emulator, facts};
use reattention::methods::{Step, StepKind, build, specs};
use reattention::{Context, KvDtype, MethodError, Settings};
use reattention_cuda::driver::Facts;
use reattention_cuda::{Cuda, Offload};
use reattention_engine::{Cancel, GenerateOptions, Package, Source};
use reattention_eval::text::DocumentPlan;
use reattention_kernels::{Backend, Cpu, Reference};
use reattention_model::synth::{DenseType, Shape, write_hugging_face};
use reattention_model::{Checkpoint, Logits, Model, Scratch};
use std::sync::Arc;

/// The emulated device, or `None`, after saying so, where there is no C++ compiler.
fn device(offload: Offload, memory: usize) -> Option<Arc<dyn Backend>> {
    let emulator = emulator(Facts { memory, ..facts() })?;
    Some(Arc::new(Cuda::on(Arc::new(emulator), Cpu::new(2).unwrap(), offload)))
}

/// Settings small enough that 150 tokens are many times the scope; of methods that suit a device and of others.
const ARMS: &[(&str, &[&str])] = &[
    ("reattention", &["global=2", "local=16", "span=4", "clip=3", "chunk=8", "top_k=2"]),
    ("reattention", &["global=2", "local=16", "span=4", "clip=3", "chunk=8", "top_k=2", "vote=count"]),
    ("reattention", &["global=2", "local=16", "span=3", "clip=5", "chunk=8", "top_k=4", "vote=softmax"]),
    (
        "reattention",
        &["global=2", "local=16", "span=4", "clip=3", "chunk=8", "top_k=2", "positions=original"],
    ),
    ("reattention", &["global=2", "local=16", "span=4", "clip=3", "chunk=8", "top_k=2", "prefill=window"]),
    ("reattention", &["global=2", "local=16", "span=4", "clip=3", "chunk=8", "exact_below=40", "voters=3"]),
    ("reattention", &["global=2", "local=16", "span=4", "clip=3", "chunk=8", "share=kv_head"]),
    ("full", &["chunk=8"]),
    ("streaming-llm", &["global=2", "local=16", "chunk=8"]),
    ("lm-infinite", &["global=2", "local=16", "chunk=8"]),
    ("string", &["shift=24", "small_local=4", "chunk=8"]),
    ("self-extend", &["group=4", "local=16", "chunk=8", "log_scale=32"]),
    ("dca", &["size=24", "local=8", "chunk=8"]),
    ("mesa", &["train_length=40", "global=4", "last=8", "reserve=4", "stair=4", "chunk=8"]),
    ("infllm", &["global=2", "local=16", "block=4", "top_k=3", "repr=2", "exc_block=8"]),
    ("infinipot", &["pot=32", "keep=16", "global=2", "chunk=8", "catalyst=ids:7,8,9"]),
    ("ms-poe", &["layers=1-"]),
];

fn model(family: &str) -> Model {
    let dir = tempfile::tempdir().unwrap();
    write_hugging_face(dir.path(), &Shape::tiny(family), DenseType::F32, 5, None).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    Model::new(checkpoint.config().clone(), checkpoint.load().unwrap())
}

/// Up to 250 of them are distinct: equal tokens have equal keys in the first layer, between which rounding would choose.
fn ids(n: usize, salt: u32) -> Vec<u32> {
    (0..n as u32).map(|i| (i * 37 + salt) % 250).collect()
}

fn context(model: &Model, arm: (&str, &[&str]), kv: KvDtype, backend: &Arc<dyn Backend>) -> Context {
    let method = build(arm.0, &Settings::parse(arm.1).unwrap(), model.shape()).unwrap();
    Context::new(model.shape(), method, None, kv, Arc::clone(backend))
}

/// Logits of every token, fed as the method schedules them, and of some that follow one by one.
fn logits(model: &Model, context: &mut Context, ids: &[u32], prompt: usize) -> Vec<f32> {
    let (mut all, mut scratch) = (Vec::new(), Scratch::default());
    let mut steps = context.schedule(0..prompt, None);
    steps.extend((prompt..ids.len()).map(|i| Step { tokens: i..i + 1, kind: StepKind::Decode }));
    for step in steps {
        let tokens = &ids[step.tokens.clone()];
        all.extend(model.forward(tokens, &step, context, &mut scratch, &Logits::All, None).unwrap());
    }
    all
}

fn assert_close(got: &[f32], want: &[f32], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    let worst = got.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst < 1e-3, "{what}: logits differ by {worst}");
}

#[test]
fn every_method_gives_what_the_reference_gives() {
    let Some(device) = device(Offload::Off, 8 << 30) else { return };
    let reference: Arc<dyn Backend> = Arc::new(Reference);
    assert!(specs().all(|s| ARMS.iter().any(|arm| arm.0 == s.name)), "an arm for every method");
    for family in ["llama", "qwen2", "qwen3"] {
        let model = model(family);
        for &arm in ARMS {
            let what = format!("{family}, {} {:?}", arm.0, arm.1);
            let [mut there, mut here] = [&device, &reference].map(|b| context(&model, arm, KvDtype::F32, b));
            let suits =
                !matches!(arm.0, "infllm" | "infinipot" | "ms-poe") && !arm.1.contains(&"share=kv_head");
            assert_eq!(there.device().is_some(), suits, "{what}");
            let [got, want] = [&mut there, &mut here].map(|c| logits(&model, c, &ids(150, 1), 120));
            assert_close(&got, &want, &what);
            assert_eq!(there.attended_max(), here.attended_max(), "{what}: keys attended to");
            assert_eq!(there.kept(), here.kept(), "{what}: tokens kept");
        }
    }
}

#[test]
fn evidence_and_traces_are_those_of_the_host() {
    let Some(device) = device(Offload::Off, 8 << 30) else { return };
    let (model, reference) = (model("qwen3"), Arc::new(Reference) as Arc<dyn Backend>);
    for &arm in &ARMS[..9] {
        if arm.1.contains(&"share=kv_head") {
            continue;
        }
        let [mut there, mut here] = [&device, &reference].map(|b| context(&model, arm, KvDtype::F32, b));
        let looks = [&mut there, &mut here].map(|c| {
            c.trace(true);
            c.record_mass(true).unwrap();
            logits(&model, c, &ids(100, 2), 90);
            (c.trace(false), c.record_mass(false).unwrap())
        });
        let [(got, got_mass), (want, want_mass)] = looks;
        assert_eq!((got.len(), got_mass.len()), (want.len(), want_mass.len()), "{arm:?}");
        for (a, b) in got_mass.iter().zip(&want_mass) {
            assert!((a - b).abs() < 1e-3, "{arm:?}: attention of a token {a} and {b}");
        }
        for (a, b) in got.iter().zip(&want) {
            let keys = |t: &reattention::LayerTrace| -> Vec<(usize, i64)> {
                let of = |s: &reattention_kernels::Segment| {
                    let at = |rank| (s.keys.token(rank), s.key_position.at(s.keys.token(rank), rank));
                    (0..s.keys.len()).map(at).collect::<Vec<_>>()
                };
                t.segments[0].iter().flat_map(of).collect()
            };
            assert_eq!((a.layer, &a.tokens, keys(a)), (b.layer, &b.tokens, keys(b)), "{arm:?}");
        }
    }
}

#[test]
fn a_roll_back_forgets_what_came_after() {
    let Some(device) = device(Offload::Off, 8 << 30) else { return };
    let model = model("llama");
    for &arm in [&ARMS[0], &ARMS[5], &ARMS[7], &ARMS[8]] {
        let mut context = context(&model, arm, KvDtype::Bf16, &device);
        let first = logits(&model, &mut context, &ids(90, 3), 60);
        let mut scratch = Scratch::default();
        let mut again = Vec::new();
        context.truncate(80).unwrap();
        for i in 80..90 {
            let step = Step { tokens: i..i + 1, kind: StepKind::Decode };
            let token = [ids(90, 3)[i]];
            again.extend(
                model.forward(&token, &step, &mut context, &mut scratch, &Logits::All, None).unwrap(),
            );
        }
        assert_eq!(again[..], first[first.len() - again.len()..], "{arm:?}");
    }
}

#[test]
fn keys_and_values_in_host_memory_change_nothing() {
    let model = model("llama");
    let run = |offload, memory| {
        let device = device(offload, memory)?;
        let mut context = context(&model, ARMS[0], KvDtype::Bf16, &device);
        let all = logits(&model, &mut context, &ids(2300, 4)[..], 2290);
        Some((all[all.len() - 2000..].to_vec(), context.kv_bytes()))
    };
    let Some(off) = run(Offload::Off, 8 << 30) else { return };
    assert_eq!(run(Offload::Values, 8 << 30).unwrap(), off);
    // So little that pages of keys have to leave.
    assert_eq!(run(Offload::Old, 3 << 20).unwrap(), off);
}

#[test]
fn the_built_in_model_finds_facts_and_says_where() {
    let Some(device) = device(Offload::Off, 8 << 30) else { return };
    let package = Package::built_in().unwrap();
    let engine = package.engine(Arc::new(package.tokenizer().unwrap()), Arc::clone(&device)).unwrap();
    let count = |text: &str| engine.tokenizer().encode_text(text).unwrap().ids.len();
    let document = DocumentPlan::new(5, 1500).depths([0.2, 0.8]).distractors(2).build(count).unwrap();
    for selector in ["exact", "boxes"] {
        let settings = Settings::parse(&[&format!("selector={selector}"), "exact_below=256"]).unwrap();
        let method = build("reattention", &settings, engine.model().shape()).unwrap();
        let plan = package.plan(method.as_ref(), KvDtype::Bf16, 2000, 0, device.as_ref());
        let on_device = plan.device.clone().unwrap();
        assert!(on_device.kv > 0 && plan.kv == 0 && on_device.weights > 0, "{plan:?}");
        let mut session = engine.session(method, None, KvDtype::Bf16);
        let source = Source { name: "text".into(), text: document.text.clone() };
        session.prefill(&engine.context(&[source]).unwrap(), &Cancel::default(), |_| {}).unwrap();
        session.pin().unwrap();
        let read = session.len();
        for placed in &document.facts {
            let question = engine.question(&placed.fact.question()).unwrap();
            session.gather_evidence();
            session.prefill(&question, &Cancel::default(), |_| {}).unwrap();
            let options = GenerateOptions {
                max_new_tokens: 16,
                stop_tokens: engine.stop_tokens(),
                stop_strings: engine.stop_strings(),
                evidence: 1,
                ..GenerateOptions::default()
            };
            let tokenizer = Some(engine.tokenizer().as_ref());
            let answer = session.generate(&options, tokenizer, &Cancel::default(), |_| {}).unwrap();
            assert!(placed.fact.is_answered_by(&answer.text), "{selector}: {}", answer.text);
            let seen = &answer.evidence[0];
            assert!(seen.text.contains(&placed.fact.value), "{selector}: {seen:?}");
            assert!(session.attended_max() <= 512 && session.attended_max() > 128, "{selector}");
            session.truncate(read).unwrap();
        }
    }
}

#[test]
fn what_does_not_fit_the_device_is_refused_before_it_is_taken() {
    let Some(device) = device(Offload::Off, 1 << 30) else { return };
    let package = Package::built_in().unwrap();
    let method = build("full", &Settings::default(), &package.shape()).unwrap();
    let plan = |tokens, kv| package.plan(method.as_ref(), kv, tokens, 0, device.as_ref());
    plan(100_000, KvDtype::Bf16).check().unwrap();
    let error = plan(4_000_000, KvDtype::F32).check().unwrap_err().to_string();
    assert!(error.contains("on emulated") && error.contains("--kv-offload"), "{error}");
    // However much is asked for.
    let method = build("reattention", &Settings::default(), &package.shape()).unwrap();
    let most = package.plan(method.as_ref(), KvDtype::F32, usize::MAX, usize::MAX, device.as_ref());
    assert!(most.check().is_err(), "{most:?}");
}

#[test]
fn a_made_up_cache_holds_what_the_hosts_would() {
    let Some(device) = device(Offload::Off, 8 << 30) else { return };
    let model = Arc::new(model("qwen3"));
    let reference: Arc<dyn Backend> = Arc::new(Reference);
    let filled = [&device, &reference].map(|backend| {
        let method = build("full", &Settings::parse(&["chunk=16"]).unwrap(), model.shape()).unwrap();
        let backend = Arc::clone(backend);
        let mut session =
            reattention_engine::Session::new(Arc::clone(&model), method, None, KvDtype::F32, backend);
        let prompt = reattention_engine::Prompt::from_ids(ids(40, 1));
        session.prefill(&prompt, &Cancel::default(), |_| {}).unwrap();
        session.fill(&ids(100, 2), 7).unwrap();
        assert_eq!(session.len(), 140);
        session.feed_step(&[5], StepKind::Decode, &Logits::Last).unwrap()
    });
    assert_close(&filled[0], &filled[1], "after a made-up stretch");
}

#[test]
fn losses_logits_of_some_tokens_and_hidden_states_are_those_of_the_host() {
    let Some(device) = device(Offload::Off, 8 << 30) else { return };
    let reference: Arc<dyn Backend> = Arc::new(Reference);
    for family in ["llama", "qwen2"] {
        let (model, tokens) = (model(family), ids(70, 6));
        let wants = [Logits::Loss(ids(69, 7)), Logits::At(vec![3, 69, 40]), Logits::Last, Logits::All];
        let [got, want] = [&device, &reference].map(|backend| {
            let mut all = Vec::new();
            for want in &wants {
                let mut context = context(&model, ("full", &["chunk=512"]), KvDtype::F32, backend);
                let step = Step { tokens: 0..70, kind: StepKind::Prefill };
                let mut seen = |_: usize, states: &[f32]| all.extend_from_slice(states);
                let scratch = &mut Scratch::default();
                let given = model.forward(&tokens, &step, &mut context, scratch, want, Some(&mut seen));
                all.extend(given.unwrap());
            }
            all
        });
        assert_close(&got, &want, family);
    }
}

/// A device that fails at any call of a step: the step is refused, and the context is what it was, so that the same step gives
/// the same once the device runs again.
#[test]
fn a_device_that_fails_refuses_the_step_and_leaves_the_context() {
    let small = ["global=2", "local=16", "span=4", "clip=3", "chunk=8", "top_k=2"];
    let with = |more: &[&'static str]| [&small[..], more].concat();
    let arms: &[(&str, Vec<&str>)] = &[
        ("reattention", with(&[])),
        ("reattention", with(&["selector=boxes", "exact_below=40"])),
        // Keys on the host from here on: their search and attention are copied to the device.
        ("reattention", with(&["share=kv_head"])),
        ("infllm", vec!["global=2", "local=16", "block=4", "top_k=3", "repr=2", "exc_block=8"]),
        ("ms-poe", vec!["layers=1-"]),
    ];
    let model = model("qwen3");
    for (name, settings) in arms {
        let what = format!("{name} {settings:?}");
        let Some(emulator) = emulator(facts()).map(Arc::new) else { return };
        let device: Arc<dyn Backend> =
            Arc::new(Cuda::on(Arc::clone(&emulator) as _, Cpu::new(1).unwrap(), Offload::Off));
        let arm = (*name, &settings[..]);
        let [mut sound, mut hurt] = [0, 1].map(|_| context(&model, arm, KvDtype::F32, &device));
        let read = ids(112, 8);
        for context in [&mut sound, &mut hurt] {
            logits(&model, context, &read[..96], 96);
            context.record_mass(true).unwrap();
            context.trace(true);
        }
        let mut scratch = Scratch::default();
        for step in [
            Step { tokens: 96..104, kind: StepKind::Prefill },
            Step { tokens: 104..111, kind: StepKind::Question },
            Step { tokens: 111..112, kind: StepKind::Decode },
        ] {
            let mut feed = |context: &mut Context| {
                let tokens = &read[step.tokens.clone()];
                model.forward(tokens, &step, context, &mut scratch, &Logits::All, None)
            };
            emulator.fail_after(i64::MAX);
            let want = feed(&mut sound).unwrap();
            let calls = i64::MAX - emulator.calls_left();
            assert!(calls > 10, "{what}: {calls} calls");
            let kept = hurt.kept();
            let (mut refused, mut given) = (0, None);
            for n in (0..calls).step_by((calls as usize / 12).max(1)) {
                emulator.fail_after(n);
                let error = match feed(&mut hurt) {
                    Err(error) => error,
                    // What earlier attempts took is there now, so a step needs fewer calls.
                    Ok(logits) => {
                        assert!(emulator.calls_left() >= 0, "{what}: call {n} failed, and nobody said so");
                        given = Some(logits);
                        break;
                    }
                };
                refused += 1;
                assert!(matches!(error, MethodError::Device(_)), "{what}, call {n} of {calls}: {error}");
                assert!(error.to_string().contains("a test lets it fail"), "{what}: {error}");
                assert_eq!((hurt.len(), hurt.kept()), (step.tokens.start, kept), "{what}, call {n}");
            }
            assert!(refused >= 6, "{what}: {refused} failures of {calls} calls");
            emulator.fail_after(-1);
            let given = given.unwrap_or_else(|| feed(&mut hurt).unwrap());
            assert!(given == want, "{what}, {:?}: logits after failures", step.kind);
        }
        let [got, want] =
            [&mut hurt, &mut sound].map(|c| (c.trace(false).len(), c.record_mass(false).unwrap().len()));
        assert_eq!(got, want, "{what}: traced layers, tokens looked at");
    }
}
