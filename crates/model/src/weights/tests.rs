use super::*;
use crate::synth::{DenseType, GgufType, Shape, write_gguf, write_hugging_face};
use crate::{Checkpoint, load};
use reattention::rope::RopeScaling;
use reattention_kernels::Reference;
use serde_json::json;
use std::path::PathBuf;
use tempfile::TempDir;

const FAMILIES: [&str; 5] = ["llama", "mistral", "qwen2", "qwen3", "internlm2"];

fn folder(shape: &Shape, dtype: DenseType, shard: Option<u64>) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    write_hugging_face(dir.path(), shape, dtype, 1, shard).unwrap();
    dir
}

fn gguf(dir: &TempDir, shape: &Shape, dtype: GgufType) -> PathBuf {
    let path = dir.path().join(format!("{dtype:?}.gguf"));
    write_gguf(&path, shape, dtype, 1).unwrap();
    path
}

/// Every matrix and vector of the weights, in one order.
fn flat(weights: &Weights) -> Vec<Vec<f32>> {
    let rows = |l: &Linear| {
        let mut all = vec![0.0; l.rows() * l.cols()];
        all.chunks_exact_mut(l.cols()).enumerate().for_each(|(row, out)| l.copy_row(row, out));
        all.extend(l.bias().unwrap_or_default());
        all
    };
    let mut all = vec![rows(&weights.embed), weights.norm.clone(), rows(&weights.lm_head)];
    for l in &weights.layers {
        all.extend([&l.q, &l.k, &l.v, &l.o, &l.gate, &l.up, &l.down].map(rows));
        all.extend([l.attn_norm.clone(), l.mlp_norm.clone()]);
        all.extend([&l.q_norm, &l.k_norm].into_iter().flatten().cloned());
    }
    all
}

fn largest_difference(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    assert_eq!(a.len(), b.len());
    let pairs = a.iter().zip(b).flat_map(|(a, b)| {
        assert_eq!(a.len(), b.len());
        a.iter().zip(b)
    });
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn dense_files_of_every_family_hold_the_same_weights() {
    for family in FAMILIES {
        let shape = Shape::tiny(family);
        let dir = folder(&shape, DenseType::F32, None);
        let (config, weights) = load(dir.path()).unwrap();
        let want = flat(&weights);
        for (dtype, shard) in
            [(DenseType::Bf16, None), (DenseType::F16, Some(20_000)), (DenseType::Bf16, Some(1))]
        {
            let dir = folder(&shape, dtype, shard);
            let (_, weights) = load(dir.path()).unwrap();
            assert!(largest_difference(&flat(&weights), &want) < 1e-6, "{family} {dtype:?}");
        }
        for dtype in [GgufType::F32, GgufType::Bf16, GgufType::F16] {
            let (read, weights) = load(&gguf(&dir, &shape, dtype)).unwrap();
            assert!(largest_difference(&flat(&weights), &want) < 1e-6, "{family} {dtype:?}");
            // Mistral without a sliding window is a Llama in GGUF.
            if family != "mistral" {
                assert_eq!(
                    Config { dtype: None, ..read },
                    Config { dtype: None, ..config.clone() },
                    "{family}"
                );
            }
        }
    }
}

#[test]
fn biases_are_read_permuted_and_split_like_their_rows() {
    for (family, key) in [("llama", "attention_bias"), ("internlm2", "bias"), ("qwen3", "attention_bias")] {
        let shape = Shape::tiny(family).with(key, json!(true)).with("mlp_bias", json!(true));
        let dir = folder(&shape, DenseType::F32, None);
        let (config, weights) = load(dir.path()).unwrap();
        assert!(config.qkv_bias && config.o_bias && config.mlp_bias == (family == "llama"));
        let (_, other) = load(&gguf(&dir, &shape, GgufType::F32)).unwrap();
        assert_eq!(flat(&weights), flat(&other), "{family}");
    }
}

/// The layouts written down by hand, since writer and reader share their arithmetic.
#[test]
fn rows_are_taken_from_where_the_formats_keep_them() {
    // llama.cpp stores row (head, half, i) at (head, i, half): heads of 4 become 0 2 1 3.
    let order: Vec<usize> = Pieces::half_split(2, 4).ranges().iter().cloned().flatten().collect();
    assert_eq!(order, [0, 2, 1, 3, 4, 6, 5, 7]);
    // InternLM2 with 4 heads and 2 KV heads of 2 rows: per KV head two query heads, the key, the value.
    let mut shape = Shape::tiny("internlm2");
    (shape.head_dim, shape.hidden) = (2, 8);
    let config = shape.config().unwrap();
    let layout = Layout { names: config.family.tensors, packed_qkv: true, interleaved: false };
    let roles = Roles { config: &config, layout };
    let [q, k, v, ..] =
        roles.linears(0).map(|l| l.pieces.ranges().iter().cloned().flatten().collect::<Vec<_>>());
    assert_eq!((q, k, v), (vec![0, 1, 2, 3, 8, 9, 10, 11], vec![4, 5, 12, 13], vec![6, 7, 14, 15]));
}

#[test]
fn the_plan_is_what_loading_holds() {
    for family in FAMILIES {
        let dir = folder(&Shape::tiny(family), DenseType::Bf16, Some(30_000));
        let path = gguf(&dir, &Shape::tiny(family), GgufType::Q8_0);
        for path in [dir.path().to_path_buf(), path] {
            let checkpoint = Checkpoint::open(&path).unwrap();
            let (plan, weights) = (checkpoint.plan().unwrap(), checkpoint.load().unwrap());
            assert_eq!(plan.bytes_resident, weights.bytes() as u64, "{}", path.display());
            assert_eq!(plan.bytes_by_type.values().sum::<u64>(), plan.bytes_resident);
        }
    }
    let config = Shape::qwen2_5_0_5b().config().unwrap();
    assert_eq!((config.n_layers, config.qkv_bias, config.tie_embeddings), (24, true, true));
}

#[test]
fn quantised_files_are_close_and_their_products_too() {
    let mut shape = Shape::tiny("llama");
    (shape.hidden, shape.intermediate, shape.n_heads, shape.head_dim) = (256, 512, 8, 32);
    let dir = folder(&shape, DenseType::F32, None);
    let (_, dense) = load(dir.path()).unwrap();
    let want = flat(&dense);
    // The largest error of a weight as a part of the largest weight, about 4 standard deviations.
    for (dtype, tolerance) in [
        (GgufType::Q8_0, 0.005),
        (GgufType::Q6K, 0.04),
        (GgufType::Q5K, 0.05),
        (GgufType::Q4K, 0.08),
        (GgufType::Q4_0, 0.13),
        (GgufType::Q4_1, 0.08),
        (GgufType::Q5_0, 0.07),
        (GgufType::Q5_1, 0.04),
        (GgufType::Q3K, 0.2),
        (GgufType::Q2K, 0.4),
    ] {
        let (_, weights) = load(&gguf(&dir, &shape, dtype)).unwrap();
        for (got, want) in flat(&weights).iter().zip(&want) {
            let scale = want.iter().fold(0f32, |m, w| m.max(w.abs()));
            let error = largest_difference(std::slice::from_ref(got), std::slice::from_ref(want));
            assert!(error <= tolerance * scale, "{dtype:?}: {error} of {scale}");
        }
        products_match(&weights.layers[0].down, dtype);
    }
}

/// The product is that with the weights as an embedding reads them.
fn products_match(linear: &Linear, dtype: GgufType) {
    for rows in [1, 3, 40] {
        let x: Vec<f32> = (0..rows * linear.cols()).map(|i| (i as f32 * 0.37).sin()).collect();
        let mut y = vec![0.0; rows * linear.rows()];
        linear.forward(&Reference, &x, rows, &mut y);
        let mut row = vec![0.0; linear.cols()];
        let mut worst = 0f32;
        for r in 0..linear.rows() {
            linear.copy_row(r, &mut row);
            for i in 0..rows {
                let want: f32 =
                    x[i * linear.cols()..][..linear.cols()].iter().zip(&row).map(|(a, b)| a * b).sum();
                worst = worst.max((want - y[i * linear.rows() + r]).abs());
            }
        }
        // Outputs have a standard deviation of about 0.7; the reference rounds nothing.
        assert!(worst < 1e-4, "{dtype:?}, {rows} rows: {worst}");
    }
}

#[test]
fn gguf_keeps_tokenizer_scaling_and_window() {
    let llama3 = json!({ "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 128 });
    let shape = Shape::tiny("llama").with("rope_scaling", llama3);
    let dir = folder(&shape, DenseType::F32, None);
    let path = gguf(&dir, &shape, GgufType::F32);
    let (hf, file) = (Checkpoint::open(dir.path()).unwrap(), Checkpoint::open(&path).unwrap());
    assert!(matches!(file.config().rope.scaling, RopeScaling::Divisors(_)));
    let (want, got) =
        (hf.config().rope.frequencies(1).unwrap().0, file.config().rope.frequencies(1).unwrap().0);
    assert!(want.iter().zip(&got).all(|(a, b)| (a - b).abs() <= 1e-6 * a), "{want:?} {got:?}");
    let text = "The naïve café of the 東京 <|eos|>";
    let (a, b) = (hf.tokenizer().unwrap(), file.tokenizer().unwrap());
    assert_eq!(a.encode(text, true).unwrap(), b.encode(text, true).unwrap());
    assert_eq!((b.bos_id(), b.eos_id(), b.vocab_size()), (Some(0), Some(1), 320));
    assert!(file.chat_template().unwrap().is_none());

    let yarn = json!({ "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128 });
    let shape = Shape::tiny("mistral").with("rope_scaling", yarn).with("sliding_window", json!(48));
    let file = Checkpoint::open(&gguf(&dir, &shape, GgufType::F32)).unwrap();
    assert_eq!(
        Config { dtype: None, ..file.config().clone() },
        Config { dtype: None, ..shape.config().unwrap() }
    );
}

/// Overwrites what follows the name of a tensor in the header: its dimensions are skipped, its type is set.
fn set_type(bytes: &mut [u8], tensor: &str, number: u32) {
    let at = bytes.windows(tensor.len()).position(|w| w == tensor.as_bytes()).unwrap() + tensor.len();
    let dims = u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    bytes[at + 4 + 8 * dims..][..4].copy_from_slice(&number.to_le_bytes());
}

/// A model with blocks of 256 weights in a row, so that they may have any type.
fn wide_llama() -> Shape {
    let mut shape = Shape::tiny("llama");
    (shape.hidden, shape.intermediate, shape.n_heads, shape.head_dim) = (256, 512, 8, 32);
    shape
}

/// Nothing here quantises to these types: other bytes are read as their blocks.
#[test]
fn every_type_of_blocks_is_read_in_place() {
    let dir = tempfile::tempdir().unwrap();
    let path = gguf(&dir, &wide_llama(), GgufType::Q8_0);
    let original = std::fs::read(&path).unwrap();
    for kind in BlockType::ALL {
        let mut bytes = original.clone();
        set_type(&mut bytes, "blk.1.ffn_up.weight", gguf::types::number(kind));
        let path = dir.path().join("changed.gguf");
        std::fs::write(&path, bytes).unwrap();
        let checkpoint = Checkpoint::open(&path).unwrap();
        let (plan, weights) = (checkpoint.plan().unwrap(), checkpoint.load().unwrap());
        let up = weights.layers[1].up.weight();
        assert_eq!((up.rows(), up.cols()), (512, 256));
        assert_eq!(up.bytes(), 512 * kind.row_bytes(256).unwrap(), "{kind:?}: held as stored");
        assert_eq!(plan.bytes_resident, weights.bytes() as u64, "{kind:?}");
        assert!(plan.bytes_by_type[kind.name()] >= up.bytes() as u64, "{kind:?}");
    }
}

#[test]
fn types_that_are_not_served_are_called_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = gguf(&dir, &wide_llama(), GgufType::Q8_0);
    let original = std::fs::read(&path).unwrap();
    for (number, name, way) in [
        (16, "type IQ2_XXS;", "Q2_K file"),
        (18, "type IQ3_XXS;", "IQ4_XS"),
        (4, "type Q4_2 (removed from llama.cpp);", "newer"),
        (137, "type IQ2_K (ik_llama.cpp);", "llama.cpp itself reads"),
        (212, "type Q4_K_R4 (rows interleaved, ik_llama.cpp);", "llama.cpp itself reads"),
        (26, "type I32;", "made by llama.cpp"),
        (99_999, "type number 99999, which is unknown;", "IQ4_XS"),
    ] {
        let mut bytes = original.clone();
        set_type(&mut bytes, "blk.0.attn_q.weight", number);
        let path = dir.path().join("changed.gguf");
        std::fs::write(&path, bytes).unwrap();
        let error = message(&path);
        for part in ["changed.gguf", "`blk.0.attn_q.weight`", name, way] {
            assert!(error.contains(part), "{number}: {error}");
        }
    }
}

#[test]
fn weights_with_a_scale_of_the_whole_matrix_are_not_read_without_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = gguf(&dir, &wide_llama(), GgufType::Q8_0);
    let mut bytes = std::fs::read(&path).unwrap();
    set_type(&mut bytes, "blk.0.ffn_up.weight", gguf::types::number(BlockType::Nvfp4));
    std::fs::write(&path, &bytes).unwrap();
    Checkpoint::open(&path).and_then(|c| c.load()).unwrap();
    // A name as long as that of the scale lends its place.
    let (old, new) = ("output_norm.weight", "blk.0.ffn_up.scale");
    let at = bytes.windows(old.len()).position(|w| w == old.as_bytes()).unwrap();
    bytes[at..at + new.len()].copy_from_slice(new.as_bytes());
    std::fs::write(&path, &bytes).unwrap();
    let error = message(&path);
    assert!(error.contains("`blk.0.ffn_up.scale`") && error.contains("NVFP4"), "{error}");
}

fn message(path: &std::path::Path) -> String {
    match Checkpoint::open(path).and_then(|c| c.load().map(|_| ())) {
        Ok(()) => panic!("{} was accepted", path.display()),
        Err(e) => e.to_string(),
    }
}

#[test]
fn what_does_not_fit_is_named() {
    let shape = Shape::tiny("llama");
    let dir = folder(&shape, DenseType::F32, None);
    let config =
        |shape: &Shape| std::fs::write(dir.path().join("config.json"), shape.config_json("float32")).unwrap();
    config(&Shape { intermediate: 128, ..shape.clone() });
    let error = message(dir.path());
    assert!(
        error.contains("gate_proj") && error.contains("[96, 64]") && error.contains("[128, 64]"),
        "{error}"
    );
    config(&Shape { n_layers: 3, ..shape.clone() });
    assert!(message(dir.path()).contains("model.layers.2"));
    config(&Shape::tiny("qwen2"));
    assert!(message(dir.path()).contains("q_proj.bias"));
    config(&shape);
    let whole = std::fs::read(dir.path().join("model.safetensors")).unwrap();
    std::fs::write(dir.path().join("model.safetensors"), &whole[..whole.len() - 4]).unwrap();
    assert!(message(dir.path()).contains("download"));

    let biased = Shape::tiny("llama").with("attention_bias", json!(true));
    let dir = folder(&biased, DenseType::F32, None);
    std::fs::write(dir.path().join("config.json"), shape.config_json("float32")).unwrap();
    assert!(message(dir.path()).contains("q_proj.bias"));
    assert!(message(&dir.path().join("nothing.gguf")).contains("nothing.gguf"));
    assert!(message(&dir.path().join("config.json")).contains("neither"));
}

#[test]
fn shards_are_checked_against_their_index() {
    let shape = Shape::tiny("llama");
    let dir = folder(&shape, DenseType::Bf16, Some(30_000));
    let index = dir.path().join("model.safetensors.index.json");
    let text = std::fs::read_to_string(&index).unwrap();
    for (from, to, culprit) in [
        ("model-00001", "../model-00001", "inside the folder"),
        ("model-00001", "/etc/model-00001", "inside the folder"),
        ("model-00002-of", "model-00077-of", "model-00077"),
        ("\"model.norm.weight\":", "\"model.other.weight\":", "model.other.weight"),
        ("{", "[", "not a valid index"),
    ] {
        assert!(text.contains(from));
        std::fs::write(&index, text.replace(from, to)).unwrap();
        let error = message(dir.path());
        assert!(error.contains(culprit), "{error}");
    }
    let two = text.replace("model-00002-of", "model-00001-copy-of");
    std::fs::write(&index, two).unwrap();
    let name = |n: &str| {
        std::fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().path())
            .find(|p| p.to_string_lossy().contains(n))
            .unwrap()
    };
    let first = name("model-00001-of");
    let copy = first.to_string_lossy().replace("model-00001-of", "model-00001-copy-of");
    std::fs::copy(&first, copy).unwrap();
    assert!(message(dir.path()).contains("keep one of the two"));
}

/// candle's own reader as the oracle for the files written here.
#[test]
fn candle_reads_the_same_gguf() {
    let dir = tempfile::tempdir().unwrap();
    let path = gguf(&dir, &Shape::tiny("qwen3"), GgufType::Q8_0);
    let mut file = std::fs::File::open(&path).unwrap();
    let content = candle_core::quantized::gguf_file::Content::read(&mut file).unwrap();
    let (_, weights) = load(&path).unwrap();
    assert_eq!(content.tensor_infos.len(), 2 + 2 * 11);
    let device = candle_core::Device::Cpu;
    for (name, linear) in [("token_embd", &weights.embed), ("blk.1.ffn_down", &weights.layers[1].down)] {
        let tensor = content.tensor(&mut file, &format!("{name}.weight"), &device).unwrap();
        let rows = tensor.dequantize(&device).unwrap().to_vec2::<f32>().unwrap();
        let mut row = vec![0.0; linear.cols()];
        for (i, want) in rows.iter().enumerate() {
            linear.copy_row(i, &mut row);
            assert_eq!(&row, want, "{name} {i}");
        }
    }
}

fn clex_scaling(changes: serde_json::Value) -> serde_json::Value {
    let mut scaling = json!({ "type": "clex", "factor": 1, "max_factor": 4, "param_factor": 2, "act": "tanh", "time_dt": 0.1 });
    changes.as_object().unwrap().iter().for_each(|(key, value)| scaling[key] = value.clone());
    scaling
}

#[test]
fn a_clex_layer_is_solved_when_the_model_is_opened() {
    let shape = Shape::tiny("llama").with("rope_scaling", clex_scaling(json!({})));
    let dir = folder(&shape, DenseType::F32, Some(1));
    let config = Checkpoint::open(dir.path()).unwrap().config().clone();
    assert_eq!((config.rope.window, config.shape().window), (512, 2048));
    let frequencies = |config: &Config, n| config.rope.frequencies(n).unwrap().0;
    let (plain, far) = (frequencies(&config, 512), frequencies(&config, 2048));
    assert!(far.iter().zip(&plain).any(|(a, b)| a < b) && config.rope.frequencies(2049).is_err());
    // The weights are rounded to bf16 in both.
    let narrow = Checkpoint::open(folder(&shape, DenseType::Bf16, None).path()).unwrap().config().clone();
    assert_eq!(frequencies(&narrow, 2048), far);
    load(dir.path()).unwrap();
}

#[test]
fn a_clex_layer_that_is_missing_or_damaged_is_refused() {
    let open = |dir: &TempDir| Checkpoint::open(dir.path()).map(|_| ()).unwrap_err().to_string();
    let config = |dir: &TempDir, shape: &Shape| {
        std::fs::write(dir.path().join("config.json"), shape.config_json("float32")).unwrap();
    };
    let plain = Shape::tiny("llama");
    let dir = folder(&plain, DenseType::F32, None);
    config(&dir, &plain.clone().with("rope_scaling", clex_scaling(json!({}))));
    assert!(open(&dir).contains("model.clex_layer.proj_func.ode_up_proj"), "{}", open(&dir));

    let dir = folder(&plain.clone().with("rope_scaling", clex_scaling(json!({}))), DenseType::F32, None);
    config(&dir, &plain.with("rope_scaling", clex_scaling(json!({ "param_factor": 1 }))));
    assert!(open(&dir).contains("[8, 16]") && open(&dir).contains("[8, 32]"), "{}", open(&dir));

    let shape = Shape::tiny("llama").with("rope_scaling", clex_scaling(json!({})));
    let dir = folder(&shape, DenseType::F32, None);
    let file = dir.path().join("model.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    let start = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..start]).unwrap();
    let at = start
        + header["model.clex_layer.proj_func.ode_down_proj"]["data_offsets"][0].as_u64().unwrap() as usize;
    bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&file, bytes).unwrap();
    assert!(open(&dir).contains("ode_down_proj is NaN"), "{}", open(&dir));
}
