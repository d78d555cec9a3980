//! Every method on tiny random models of every family, on both backends.

use reattention::methods::{Step, StepKind, build, specs};
use reattention::rope::{RopeConfig, RopeScaling};
use reattention::{Context, KvDtype, MethodError, Settings};
use reattention_engine::{Cancel, Prompt, Session, SessionError};
use reattention_kernels::{Backend, Cpu, Reference};
use reattention_model::synth::{DenseType, Shape, write_hugging_face};
use reattention_model::{Checkpoint, Family, Logits, Model, Scratch};
use std::sync::Arc;

/// Settings small enough that 150 tokens are many times the scope.
fn small(method: &str) -> Vec<Settings> {
    let parse = |pairs: &[&str]| Settings::parse(pairs).unwrap();
    match method {
        "reattention" => {
            let base = ["global=2", "local=16", "span=4", "clip=3", "chunk=8", "top_k=2"];
            [
                &[][..],
                &["share=kv_head"],
                &["vote=margin"],
                &["vote=softmax"],
                &["prefill=window"],
                &["positions=original"],
                &["question_alone=false"],
            ]
            .iter()
            .map(|extra| parse(&[&base[..], extra].concat()))
            .collect()
        }
        "infinipot" => {
            let base = ["pot=32", "keep=16", "global=2", "chunk=8", "catalyst=ids:7,8,9"];
            [&[][..], &["alpha=0"], &["heads=max", "local=4"], &["alpha=1"]]
                .iter()
                .map(|extra| parse(&[&base[..], extra].concat()))
                .collect()
        }
        "infllm" => {
            let base = ["global=2", "local=16", "block=4", "top_k=3", "repr=2", "exc_block=8"];
            [&[][..], &["reference=true", "chunk=20"]]
                .iter()
                .map(|extra| parse(&[&base[..], extra].concat()))
                .collect()
        }
        "streaming-llm" | "lm-infinite" => vec![parse(&["global=2", "local=16", "chunk=8"])],
        "string" => vec![parse(&["shift=24", "small_local=4", "chunk=8"])],
        "self-extend" => {
            let base = ["group=4", "local=16", "chunk=8"];
            vec![parse(&base), parse(&[&base[..], &["log_scale=32"]].concat())]
        }
        "dca" => vec![parse(&["size=24", "local=8", "chunk=8"])],
        "mesa" => {
            vec![parse(&["train_length=40", "global=4", "last=8", "reserve=4", "stair=4", "chunk=8"])]
        }
        "ms-poe" => [&["layers=0-"][..], &["layers=1-", "head_type=normal"], &["layers=0", "reference=true"]]
            .map(parse)
            .to_vec(),
        _ => vec![parse(&["chunk=8"])],
    }
}

fn model(family: &str, extra: &[(&str, serde_json::Value)]) -> Model {
    let shape = extra.iter().fold(Shape::tiny(family), |s, (k, v)| s.with(k, v.clone()));
    let dir = tempfile::tempdir().unwrap();
    write_hugging_face(dir.path(), &shape, DenseType::F32, 5, None).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    Model::new(checkpoint.config().clone(), checkpoint.load().unwrap())
}

fn backends() -> [Arc<dyn Backend>; 2] {
    [Arc::new(Reference), Arc::new(Cpu::new(2).unwrap())]
}

/// Logits of every token, fed as the method schedules them.
fn logits(
    model: &Model,
    method: &str,
    settings: &Settings,
    ids: &[u32],
    backend: &Arc<dyn Backend>,
) -> Vec<f32> {
    logits_with(model, &model.shape().rope, method, settings, ids, backend)
}

/// The same with other frequencies.
fn logits_with(
    model: &Model,
    rope: &RopeConfig,
    method: &str,
    settings: &Settings,
    ids: &[u32],
    backend: &Arc<dyn Backend>,
) -> Vec<f32> {
    let shape = model.shape().clone().with_rope(rope.clone());
    let method = build(method, settings, &shape).unwrap();
    let mut context = Context::new(&shape, method, None, KvDtype::F32, Arc::clone(backend));
    let (mut all, mut scratch) = (Vec::new(), Scratch::default());
    for step in context.schedule(0..ids.len(), None) {
        let tokens = &ids[step.tokens.clone()];
        all.extend(model.forward(tokens, &step, &mut context, &mut scratch, &Logits::All, None).unwrap());
    }
    all
}

/// Up to 250 of them are distinct: equal tokens have equal keys in the first layer, between which rounding would choose.
fn ids(n: usize, salt: u32) -> Vec<u32> {
    (0..n as u32).map(|i| (i * 37 + salt) % 250).collect()
}

fn close(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(x, y)| (x - y).abs() < 1e-3)
}

#[test]
fn every_method_runs_on_every_family_and_both_backends_agree() {
    for family in Family::all() {
        let family = family.name;
        let model = model(family, &[]);
        let (slides, follows) =
            (model.shape().widest_window().is_some(), model.shape().rope.changes_with_length());
        for spec in specs() {
            for settings in small(spec.name) {
                // What a method cannot serve it refuses with the reason.
                if spec.name == "infinipot" && slides || spec.name == "ms-poe" && follows {
                    let error = build(spec.name, &settings, model.shape()).unwrap_err();
                    assert!(
                        matches!(error, MethodError::Unsuited { .. }),
                        "{family}, {}: {error}",
                        spec.name
                    );
                    continue;
                }
                let [plain, fast] =
                    backends().map(|b| logits(&model, spec.name, &settings, &ids(150, 1), &b));
                assert!(plain.iter().all(|l| l.is_finite()), "{family}, {}", spec.name);
                assert!(close(&plain, &fast), "{family}, {}: the backends differ", spec.name);
            }
        }
    }
}

/// Ms-PoE chooses how far each head compresses positions by the prompt's last token, before any token attends.
fn is_ranked_by_the_last_token(method: &str, settings: &Settings) -> bool {
    method == "ms-poe" && !settings.has("head_type")
}

#[test]
fn later_tokens_never_change_earlier_outputs() {
    let (model, vocab) = (model("qwen2", &[]), Shape::tiny("qwen2").vocab_size);
    let [_, backend] = backends();
    let (before, mut after) = (ids(120, 3), ids(120, 3));
    after[96..].copy_from_slice(&ids(24, 7)[..]);
    for spec in specs() {
        for settings in small(spec.name) {
            if is_ranked_by_the_last_token(spec.name, &settings) {
                continue;
            }
            // A chunk shares one selection, so its tokens may see each other's votes: the change starts at a chunk.
            let [a, b] = [&before, &after].map(|i| logits(&model, spec.name, &settings, i, &backend));
            let untouched = if spec.name == "reattention" { 90 } else { 96 };
            assert_eq!(a[..untouched * vocab], b[..untouched * vocab], "{}", spec.name);
            assert!(!close(&a[100 * vocab..], &b[100 * vocab..]), "{}: the change had no effect", spec.name);
        }
    }
}

/// Sources of frequencies: plain, fixed, following the length, and CLEX's with a model that has it.
fn sources() -> Vec<(Model, RopeConfig)> {
    let window = |n: usize| ("max_position_embeddings", serde_json::Value::from(n));
    let named = [
        "none",
        "linear:factor=2",
        "ntk:factor=2",
        "yarn:factor=2",
        "llama3:original=64",
        "dynamic:factor=2",
    ];
    let mut all: Vec<_> = named
        .iter()
        .map(|spec| {
            let model = model("llama", &[window(96)]);
            let rope = model.shape().rope.with_spec(spec).unwrap();
            (model, rope)
        })
        .collect();
    let scaling = serde_json::json!({ "type": "clex", "max_factor": 4, "param_factor": 1, "act": "tanh", "time_dt": 0.1 });
    let clex = model("llama", &[window(64), ("rope_scaling", scaling), ("log_scale", true.into())]);
    let rope = clex.shape().rope.clone();
    all.push((clex, rope));
    all
}

/// Tokens a method reads in the matrix: as many as its positions allow.
fn readable(method: &str) -> usize {
    if matches!(method, "ms-poe" | "string") { 90 } else { 120 }
}

/// What `docs/methods/rope.md` says is refused.
fn refuses(method: &str, settings: &Settings, rope: &RopeConfig) -> bool {
    let is_plain = rope.scaling == RopeScaling::None;
    method == "ms-poe" && (rope.changes_with_length() || settings.has("reference") && !is_plain)
}

#[test]
fn every_source_of_frequencies_serves_every_method_or_is_refused() {
    let [plain_backend, backend] = backends();
    for (model, rope) in sources() {
        let (vocab, none) =
            (Shape::tiny("llama").vocab_size, RopeConfig { scaling: RopeScaling::None, ..rope.clone() });
        for spec in specs() {
            for settings in small(spec.name) {
                let what = format!("{} {settings:?} with {:?}", spec.name, rope.scaling);
                let shape = model.shape().clone().with_rope(rope.clone());
                match build(spec.name, &settings, &shape) {
                    Err(MethodError::Unsuited { .. } | MethodError::Contradiction { .. })
                        if refuses(spec.name, &settings, &rope) =>
                    {
                        continue;
                    }
                    Err(error) => panic!("{what}: {error}"),
                    Ok(_) => assert!(!refuses(spec.name, &settings, &rope), "{what} was not refused"),
                }
                let n = readable(spec.name);
                let run = |rope: &RopeConfig, ids: &[u32], backend| {
                    logits_with(&model, rope, spec.name, &settings, ids, backend)
                };
                let before = ids(n, 1);
                let got = run(&rope, &before, &backend);
                assert!(got.iter().all(|l| l.is_finite()), "{what}");
                assert!(close(&got, &run(&rope, &before, &plain_backend)), "{what}: the backends differ");
                if rope != none && !rope.changes_with_length() {
                    assert!(!close(&got, &run(&none, &before, &backend)), "{what} changes nothing");
                }
                if !is_ranked_by_the_last_token(spec.name, &settings) {
                    let mut after = before.clone();
                    after[n - 24..].copy_from_slice(&ids(24, 7));
                    let untouched = (n - 30) * vocab;
                    assert_eq!(
                        got[..untouched],
                        run(&rope, &after, &backend)[..untouched],
                        "{what} looks ahead"
                    );
                }
            }
        }
    }
}

/// Frequencies that follow the length are those of the whole prompt from its first token on.
#[test]
fn frequencies_that_follow_the_length_do_not_depend_on_the_cut() {
    let [_, backend] = backends();
    for (model, rope) in sources() {
        let read = |rope: &RopeConfig, chunk: usize| {
            logits_with(&model, rope, "full", &Settings::new().set("chunk", chunk), &ids(150, 4), &backend)
        };
        let whole = read(&rope, 150);
        for chunk in [1, 7, 64] {
            assert!(close(&read(&rope, chunk), &whole), "{:?} with chunk {chunk}", rope.scaling);
        }
        let none = RopeConfig { scaling: RopeScaling::None, ..rope.clone() };
        assert_eq!(close(&whole, &read(&none, 150)), rope == none, "{:?}", rope.scaling);
    }
}

#[test]
fn a_text_beyond_the_reach_of_clex_is_refused_at_its_first_step() {
    let [_, backend] = backends();
    let (model, _) = sources().pop().unwrap();
    assert_eq!(model.shape().window, 256);
    let method = build("full", &Settings::new(), model.shape()).unwrap();
    let mut context = Context::new(model.shape(), method, None, KvDtype::F32, backend);
    let step = context.schedule(0..257, None).remove(0);
    let tokens = ids(step.tokens.len(), 1);
    let error = model.forward(&tokens, &step, &mut context, &mut Scratch::default(), &Logits::None, None);
    let message = error.unwrap_err().to_string();
    assert!(message.contains("257") && message.contains("256"), "{message}");
    assert_eq!(context.len(), 0);
}

#[test]
fn below_its_scope_a_method_is_full_attention() {
    let model = model("llama", &[]);
    for backend in backends() {
        let full = logits(&model, "full", &small("full")[0], &ids(16, 2), &backend);
        // All but string, whose temperature holds at every length.
        let methods = [
            "reattention",
            "streaming-llm",
            "lm-infinite",
            "self-extend",
            "dca",
            "mesa",
            "infllm",
            "infinipot",
        ];
        for method in methods {
            for settings in small(method) {
                assert!(
                    close(&logits(&model, method, &settings, &ids(16, 2), &backend), &full),
                    "{method} {settings:?}"
                );
            }
        }
        let longer = |method: &str| logits(&model, method, &small(method)[0], &ids(60, 2), &backend);
        for method in methods {
            assert!(!close(&longer(method), &longer("full")), "{method}");
        }
    }
}

#[test]
fn the_cut_of_the_prompt_does_not_matter_where_it_should_not() {
    let model = model("qwen3", &[]);
    let [_, backend] = backends();
    for method in
        ["full", "streaming-llm", "lm-infinite", "string", "self-extend", "dca", "mesa", "infinipot"]
    {
        let with_chunk = |n: usize| {
            logits(&model, method, &small(method)[0].clone().set("chunk", n), &ids(100, 4), &backend)
        };
        let whole = with_chunk(100);
        for chunk in [1, 7, 16, 64] {
            assert!(close(&with_chunk(chunk), &whole), "{method} with chunk {chunk}");
        }
    }
}

#[test]
fn a_question_asked_later_gives_what_one_prompt_gives_where_the_method_says_so() {
    let model = model("llama", &[]);
    let [_, backend] = backends();
    let all = ids(130, 6);
    let answer = |method: &str, settings: &Settings, ends: &[usize]| {
        let method = build(method, settings, model.shape()).unwrap();
        let splits = method.splits();
        let mut context = Context::new(model.shape(), method, None, KvDtype::F32, Arc::clone(&backend));
        let (mut last, mut scratch) = (Vec::new(), Scratch::default());
        for &end in ends {
            for step in context.schedule(context.len()..end, Some(110)) {
                let ids = &all[step.tokens.clone()];
                last = model.forward(ids, &step, &mut context, &mut scratch, &Logits::Last, None).unwrap();
            }
        }
        (last, splits)
    };
    let mut methods = 0;
    for spec in specs() {
        for settings in small(spec.name) {
            let (whole, splits) = answer(spec.name, &settings, &[130]);
            if splits {
                let (halves, _) = answer(spec.name, &settings, &[110, 130]);
                assert!(close(&whole, &halves), "{} {settings:?}", spec.name);
                methods += 1;
            }
        }
    }
    assert!(methods > 5);
}

/// The published rule: a cache of the first and the last tokens, positions counted in it. With a single layer, whose keys
/// know nothing of evicted tokens, the last token sees what it would see in a text without them.
#[test]
fn streaming_equals_a_cache_that_evicts() {
    let shape = Shape { n_layers: 1, ..Shape::tiny("mistral") };
    let dir = tempfile::tempdir().unwrap();
    write_hugging_face(dir.path(), &shape, DenseType::F32, 5, None).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let (model, vocab) =
        (Model::new(checkpoint.config().clone(), checkpoint.load().unwrap()), shape.vocab_size);
    let prompt = ids(60, 9);
    let kept = [&prompt[..2], &prompt[44..]].concat();
    for backend in backends() {
        let streaming = logits(&model, "streaming-llm", &small("streaming-llm")[0], &prompt, &backend);
        let full = logits(&model, "full", &small("full")[0], &kept, &backend);
        assert!(close(&streaming[59 * vocab..], &full[17 * vocab..]));
    }
}

#[test]
fn every_method_but_infinipot_serves_a_model_with_sliding_layers() {
    let model = model("mistral", &[("sliding_window", 24.into())]);
    for spec in specs() {
        for settings in small(spec.name) {
            if spec.name == "infinipot" {
                let error = build(spec.name, &settings, model.shape()).unwrap_err();
                assert!(
                    matches!(&error, MethodError::Unsuited { .. }) && error.to_string().contains("24"),
                    "{error}"
                );
                continue;
            }
            // Every layer slides, so no method has anything to decide: all give what full attention gives.
            let [full, other] = ["full", spec.name].map(|name| {
                let settings = if name == "full" { small("full")[0].clone() } else { settings.clone() };
                logits(&model, name, &settings, &ids(80, 1), &backends()[1])
            });
            assert!(close(&full, &other), "{}", spec.name);
        }
    }
    let [plain, fast] = backends().map(|b| logits(&model, "full", &small("full")[0], &ids(80, 1), &b));
    assert!(close(&plain, &fast));
}

#[test]
fn a_view_larger_than_the_window_is_an_error_and_the_context_stands() {
    let model = model("llama", &[]);
    let [_, backend] = backends();
    let window = model.shape().window;
    let settings =
        Settings::parse(&["global=2", "local=16", "span=32", "clip=none", "chunk=16", "top_k=8"]).unwrap();
    let method = build("reattention", &settings, model.shape()).unwrap();
    let mut context = Context::new(model.shape(), method, None, KvDtype::F32, backend);
    let (prompt, mut scratch) = (ids(4 * window, 5), Scratch::default());
    let mut refused = None;
    for step in context.schedule(0..prompt.len(), None) {
        let tokens = &prompt[step.tokens.clone()];
        if let Err(error) = model.forward(tokens, &step, &mut context, &mut scratch, &Logits::None, None) {
            refused = Some((step, error));
            break;
        }
    }
    let (step, error) = refused.expect("the unlimited view outgrows the window");
    assert!(error.to_string().contains("exceeds the model's window"), "{error}");
    assert_eq!(context.len(), step.tokens.start);
    let retry = Step { tokens: context.len()..context.len() + 1, kind: StepKind::Decode };
    assert!(model.forward(&[1], &retry, &mut context, &mut scratch, &Logits::Last, None).is_ok());
}

#[test]
fn damaged_weights_are_an_error_and_not_an_answer() {
    let dir = tempfile::tempdir().unwrap();
    write_hugging_face(dir.path(), &Shape::tiny("llama"), DenseType::F32, 5, None).unwrap();
    let file = dir.path().join("model.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    bytes[header..].fill(0xFF);
    std::fs::write(&file, bytes).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let model = Arc::new(Model::new(checkpoint.config().clone(), checkpoint.load().unwrap()));
    for backend in backends() {
        let method = build("reattention", &Settings::new(), model.shape()).unwrap();
        let mut session = Session::new(Arc::clone(&model), method, None, KvDtype::F32, backend);
        let error = session.prefill(&Prompt::from_ids(ids(20, 1)), &Cancel::default(), |_| {}).unwrap_err();
        assert!(matches!(error, SessionError::NotANumber { .. }), "{error}");
    }
}
