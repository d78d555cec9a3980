//! Layers with a sliding window, with and without rotation, beside layers that go by the method.

use crate::methods::{self, Step};
use crate::rope::{RopeConfig, RopeScaling};
use crate::tests::tiny_shape;
use crate::{Context, KvDtype, LayerAttention, ModelShape, Settings, Store};
use reattention_kernels::{Cpu, PAGE, RopeTable};
use std::sync::Arc;

const WINDOW: usize = 40;
const TOKENS: usize = 2700;

/// Two layers: the first slides with frequencies of its own, the second sees everything and does not rotate.
fn shape() -> ModelShape {
    let sliding = RopeConfig { theta: 100.0, dim: 8, window: 512, scaling: RopeScaling::None };
    ModelShape {
        layers: [LayerAttention::sliding(WINDOW), LayerAttention { window: None, rotates: false }].into(),
        sliding_rope: Some(sliding),
        scale: Some(0.5),
        ..tiny_shape()
    }
}

/// The same numbers for the same token, layer and side, however the tokens are cut into steps.
fn rows(shape: &ModelShape, layer: usize, side: usize, tokens: std::ops::Range<usize>) -> Vec<f32> {
    let heads = if side == 0 { shape.n_heads } else { shape.n_kv_heads };
    let of = |token: usize, i: usize| {
        let hash = (token * 131 + layer * 17 + side * 7 + i * 29 + 1).wrapping_mul(2_654_435_761) >> 7;
        (hash % 2001) as f32 / 1000.0 - 1.0
    };
    tokens.flat_map(|token| (0..heads * shape.head_dim).map(move |i| of(token, i))).collect()
}

/// Reads `TOKENS` tokens in steps of `chunk`: what both layers give out, each `[TOKENS, n_heads, head_dim]`.
fn read(method: &str, settings: &[&str], chunk: usize) -> (Context, [Vec<f32>; 2]) {
    let shape = shape();
    let settings = Settings::parse(settings).unwrap();
    let method = methods::build(method, &settings, &shape).unwrap();
    let mut context = Context::new(&shape, method, None, KvDtype::F32, Arc::new(Cpu::new(2).unwrap()));
    let mut out = [Vec::new(), Vec::new()];
    let steps = context.schedule(0..TOKENS, None);
    let steps: Vec<Step> = match chunk {
        0 => steps,
        _ => methods::chunks(0..TOKENS, chunk, methods::StepKind::Prefill).collect(),
    };
    for step in steps {
        context.begin(&step);
        for (layer, out) in out.iter_mut().enumerate() {
            let [q, k, v] = [0, 1, 2].map(|side| rows(&shape, layer, side, step.tokens.clone()));
            let mut row = vec![0.0; q.len()];
            context.attend(layer, &q, &k, &v, None, &mut row).unwrap();
            out.extend(row);
        }
        context.finish();
    }
    (context, out)
}

/// Attention of one query and head by its definition, in double precision.
fn plain(layer: usize, query: usize, head: usize) -> Vec<f64> {
    let shape = shape();
    let (dim, kv_head) = (shape.head_dim, head / shape.group());
    let attention = shape.layers[layer];
    let (frequencies, _) = shape.sliding_rope.clone().unwrap().frequencies(TOKENS).unwrap();
    let table = RopeTable::new(frequencies, 1.0, TOKENS);
    let row = |side: usize, token: usize, head: usize| {
        let mut row = rows(&shape, layer, side, token..token + 1)[head * dim..(head + 1) * dim].to_vec();
        if side < 2 && attention.rotates {
            table.rotate(token as i64, &mut row);
        }
        row
    };
    let q = row(0, query, head);
    let oldest = attention.window.map_or(0, |w| (query + 1).saturating_sub(w));
    let logit = |key: usize| {
        let k = row(1, key, kv_head);
        q.iter().zip(&k).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>() * 0.5
    };
    let weights: Vec<f64> = (oldest..=query).map(|key| logit(key).exp()).collect();
    let sum: f64 = weights.iter().sum();
    let mut out = vec![0.0; dim];
    for (key, weight) in (oldest..=query).zip(weights) {
        let v = row(2, key, kv_head);
        out.iter_mut().zip(v).for_each(|(o, v)| *o += weight / sum * f64::from(v));
    }
    out
}

#[test]
fn windows_and_layers_without_rotation_equal_their_definition() {
    let shape = shape();
    for chunk in [0, 1000, 37] {
        let (_, out) = read("full", &[], chunk);
        for layer in 0..2 {
            for (query, head) in [(0, 0), (39, 1), (40, 2), (41, 3), (1023, 0), (2699, 3)] {
                let at = (query * shape.n_heads + head) * shape.head_dim;
                let want = plain(layer, query, head);
                for (i, want) in want.iter().enumerate() {
                    let got = f64::from(out[layer][at + i]);
                    assert!(
                        (got - want).abs() < 2e-5,
                        "chunk {chunk}, layer {layer}, query {query}: {got} {want}"
                    );
                }
            }
        }
    }
}

/// A sliding layer is the model's own whatever the method, and the others are the method's.
#[test]
fn every_method_leaves_sliding_layers_as_they_are() {
    let (_, full) = read("full", &[], 0);
    for (method, settings) in [
        ("reattention", &["global=8", "local=64", "chunk=32", "span=4", "clip=8"][..]),
        ("reattention", &["prefill=window", "global=8", "local=64", "chunk=32"]),
        ("streaming-llm", &["global=4", "local=16"]),
        ("lm-infinite", &["global=4", "local=16"]),
        ("infllm", &["local=64", "block=16", "exc_block=16", "chunk=32"]),
        ("dca", &[]),
    ] {
        let (context, out) = read(method, settings, 0);
        let off = full[0].iter().zip(&out[0]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(off < 2e-5, "{method}: {off}");
        assert_eq!(context.len(), TOKENS);
        if method != "dca" {
            let differs = full[1].iter().zip(&out[1]).any(|(a, b)| (a - b).abs() > 1e-3);
            assert!(differs, "{method} decides in layers that see everything");
        }
    }
}

#[test]
fn a_sliding_layer_gives_back_what_left_its_window() {
    let shape = shape();
    let (mut context, _) = read("full", &[], 100);
    let page = 2 * shape.n_kv_heads * PAGE * shape.head_dim * 4;
    // The second layer holds all three pages, the first its last.
    assert_eq!(context.kv_bytes(), 4 * page);
    assert!(context.kv_bytes() <= Store::planned_bytes(&shape, KvDtype::F32, TOKENS, TOKENS, 100));
    assert!(
        Store::planned_bytes(&shape, KvDtype::F32, 1 << 20, 1 << 20, 100) < (1 << 20) * page / PAGE * 6 / 5
    );
    assert_eq!(context.kept(), TOKENS);
    // It cannot go back to where the window would reach into what is gone.
    assert!(context.truncate(500).unwrap_err().to_string().contains("pin"));
    context.truncate(TOKENS).unwrap();
}

#[test]
fn a_pinned_point_keeps_its_window() {
    let shape = shape();
    let method = methods::build("full", &Settings::new(), &shape).unwrap();
    let mut context = Context::new(&shape, method, None, KvDtype::F32, Arc::new(Cpu::new(1).unwrap()));
    let feed = |context: &mut Context, n: usize| {
        let mut out = Vec::new();
        let from = context.len();
        for step in methods::chunks(from..from + n, 300, methods::StepKind::Prefill) {
            context.begin(&step);
            for layer in 0..2 {
                let [q, k, v] = [0, 1, 2].map(|side| rows(&shape, layer, side, step.tokens.clone()));
                let mut row = vec![0.0; q.len()];
                context.attend(layer, &q, &k, &v, None, &mut row).unwrap();
                out.extend(row);
            }
            context.finish();
        }
        out
    };
    feed(&mut context, 1500);
    context.pin();
    let first = feed(&mut context, 1500);
    context.truncate(1500).unwrap();
    assert_eq!(feed(&mut context, 1500), first);
}
