//! `models/needle/golden.json`: tokenizer, dense logits, selections and answers of the model as its trainer measured them
//! in PyTorch with f32 weights. The shipped weights are those rounded to bf16, so logits agree to a few hundredths, and
//! heads without a preference may vote for other keys.

use reattention::methods::{Step, StepKind, build};
use reattention::{Context, KvDtype, LayerTrace, Settings};
use reattention_engine::{Package, argmax};
use reattention_kernels::{Backend, Cpu, Reference};
use reattention_model::{Logits, Model, Scratch};
use serde_json::Value;
use std::sync::Arc;

fn golden() -> Value {
    serde_json::from_str(include_str!("../../../models/needle/golden.json")).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
}

/// Both backends with both types of cache, and how far logits may be off: bf16 weights alone, and bf16 activations too.
fn arms() -> Vec<(Arc<dyn Backend>, KvDtype, f32)> {
    vec![
        (Arc::new(Reference), KvDtype::F32, 0.05),
        (Arc::new(Cpu::new(2).unwrap()), KvDtype::F32, 0.2),
        (Arc::new(Cpu::new(2).unwrap()), KvDtype::Bf16, 0.2),
    ]
}

fn context(
    model: &Model,
    method: &str,
    settings: &Settings,
    kv: KvDtype,
    backend: &Arc<dyn Backend>,
) -> Context {
    let method = build(method, settings, model.shape()).unwrap();
    Context::new(model.shape(), method, None, kv, Arc::clone(backend))
}

#[test]
fn tokenizer() {
    let tokenizer = Package::built_in().unwrap().tokenizer().unwrap();
    for case in golden()["tokenizer"].as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        assert_eq!(tokenizer.encode(text, false).unwrap().ids, ids(&case["ids"]), "{text}");
        assert_eq!(tokenizer.encode(text, true).unwrap().ids, ids(&case["ids_with_bos"]), "{text}");
        assert_eq!(tokenizer.decode(&ids(&case["ids"]), true).unwrap(), case["decoded"].as_str().unwrap());
    }
}

#[test]
fn dense_logits() {
    let (model, golden) = (Package::built_in().unwrap().load().unwrap(), golden());
    let dense = &golden["dense"];
    let prompt = ids(&dense["ids"]);
    for (backend, kv, tolerance) in arms() {
        let mut context = context(&model, "full", &Settings::new(), kv, &backend);
        let mut scratch = Scratch::default();
        let step = Step { tokens: 0..prompt.len(), kind: StepKind::Prefill };
        let logits = model.forward(&prompt, &step, &mut context, &mut scratch, &Logits::All, None).unwrap();
        let vocab = model.config().vocab_size;
        for (row, want) in logits.chunks(vocab).zip(dense["logits_l2_per_position"].as_array().unwrap()) {
            let norm = row.iter().map(|l| f64::from(*l).powi(2)).sum::<f64>().sqrt();
            let want = want.as_f64().unwrap();
            assert!((norm - want).abs() < 0.01 * want, "{}: norm {norm} instead of {want}", backend.name());
        }
        let mut last = logits[(prompt.len() - 1) * vocab..].to_vec();
        check_top("dense", &last, &dense["last_top8"], tolerance);
        for (got, want) in last.iter().zip(dense["last_logits_first8"].as_array().unwrap()) {
            assert!((f64::from(*got) - want.as_f64().unwrap()).abs() < f64::from(tolerance));
        }
        let mut greedy = Vec::new();
        for at in prompt.len()..prompt.len() + 6 {
            greedy.push(argmax(&last));
            let step = Step { tokens: at..at + 1, kind: StepKind::Decode };
            let id = [greedy[greedy.len() - 1]];
            last = model.forward(&id, &step, &mut context, &mut scratch, &Logits::Last, None).unwrap();
        }
        assert_eq!(greedy, ids(&dense["greedy"]));
    }
}

#[test]
fn reattention_with_selection_in_prefill() {
    reattention("reattention_select_in_prefill", "select");
}

#[test]
fn reattention_with_window_prefill() {
    reattention("reattention_stream_prefill", "window");
}

fn reattention(name: &str, prefill: &str) {
    let (model, golden) = (Package::built_in().unwrap().load().unwrap(), golden());
    let (case, haystack) = (&golden[name], ids(&golden["reattention_select_in_prefill"]["haystack_ids"]));
    let question = ids(&case["question_ids"]);
    let at = haystack.len();
    let prompt = [haystack, question].concat();
    let settings = Settings::new().set("share", "kv_head").set("vote", "count").set("prefill", prefill);
    for (backend, kv, tolerance) in arms() {
        let mut context = context(&model, "reattention", &settings, kv, &backend);
        let mut scratch = Scratch::default();
        let mut logits = Vec::new();
        let steps = context.schedule(0..prompt.len(), Some(at));
        assert_eq!(steps[steps.len() - 1].kind, StepKind::Decode);
        for step in &steps {
            context.trace(true);
            let tokens = &prompt[step.tokens.clone()];
            logits = model.forward(tokens, step, &mut context, &mut scratch, &Logits::Last, None).unwrap();
        }
        check_selection(&context.trace(false), &case["selected_per_layer_kvhead_at_first_decode"], 0.8);
        check_top(name, &logits, &case["top8"], tolerance);
        let mut greedy = Vec::new();
        for at in prompt.len()..prompt.len() + 6 {
            greedy.push(argmax(&logits));
            let step = Step { tokens: at..at + 1, kind: StepKind::Decode };
            let id = [greedy[greedy.len() - 1]];
            logits = model.forward(&id, &step, &mut context, &mut scratch, &Logits::Last, None).unwrap();
        }
        assert_eq!(greedy, ids(&case["greedy"]), "{}", backend.name());
        assert_eq!(greedy[..5], ids(&case["expected_value_ids"]));
    }
}

/// The share of selected tokens, over all layers and KV heads, that the golden run selected too.
fn check_selection(trace: &[LayerTrace], want: &Value, least: f64) {
    let (mut common, mut all) = (0, 0);
    for (layer, heads) in trace.iter().zip(want.as_array().unwrap()) {
        assert_eq!(layer.selections.len(), heads.as_array().unwrap().len());
        for (ours, theirs) in layer.selections.iter().zip(heads.as_array().unwrap()) {
            let theirs = ids(theirs);
            common += ours.tokens.iter().filter(|t| theirs.binary_search(t).is_ok()).count();
            all += theirs.len().max(ours.tokens.len());
        }
    }
    let share = common as f64 / all as f64;
    assert!(share >= least, "{share:.3} of the selected tokens agree, at least {least} should");
}

fn check_top(what: &str, logits: &[f32], want: &Value, tolerance: f32) {
    for pair in want.as_array().unwrap() {
        let (id, want) = (pair[0].as_u64().unwrap() as usize, pair[1].as_f64().unwrap() as f32);
        let off = (logits[id] - want).abs();
        assert!(off < tolerance, "{what}: token {id} has {} instead of {want}", logits[id]);
    }
}
