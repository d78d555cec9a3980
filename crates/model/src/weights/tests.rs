use super::*;
use crate::synth::{DenseType, GgufType, Shape, write_gguf, write_hugging_face};
use crate::{Checkpoint, Family, load};
use reattention::rope::RopeScaling;
use reattention_kernels::Reference;
use serde_json::json;
use std::path::PathBuf;
use tempfile::TempDir;

fn families() -> impl Iterator<Item = &'static str> {
    Family::all().iter().map(|family| family.name)
}

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
        all.extend([&l.q, &l.k, &l.v, &l.o].map(rows));
        match &l.mlp {
            Mlp::Dense(mlp) => all.extend(mlp.linears().map(rows)),
            Mlp::Sparse(sparse) => {
                all.push(rows(&sparse.router));
                all.extend(sparse.experts.iter().flat_map(|mlp| mlp.linears().map(rows)));
                if let Some((mlp, weight)) = &sparse.shared {
                    all.extend(mlp.linears().into_iter().chain([weight]).map(rows));
                }
            }
        }
        let norms = [&l.attn_norm, &l.attn_post_norm, &l.mlp_norm, &l.mlp_post_norm, &l.q_norm, &l.k_norm];
        all.extend(norms.into_iter().chain([&l.sinks]).flatten().cloned());
    }
    all
}

/// The down projection of a layer without experts.
fn down(weights: &Weights, layer: usize) -> &Linear {
    match &weights.layers[layer].mlp {
        Mlp::Dense(mlp) => &mlp.down,
        Mlp::Sparse(_) => panic!("layer {layer} is sparse"),
    }
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
    for family in families() {
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
            let same = if family == "mistral" { config.family } else { read.family };
            assert_eq!(
                Config { dtype: None, family: same, ..read },
                Config { dtype: None, ..config.clone() },
                "{family}"
            );
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
    let flat = |pieces: &Pieces| pieces.ranges().iter().cloned().flatten().collect::<Vec<_>>();
    // llama.cpp stores row (head, half, i) at (head, i, half): heads of 4 become 0 2 1 3.
    assert_eq!(flat(&Pieces::of_pairs(2, 4, 4, true)), [0, 2, 1, 3, 4, 6, 5, 7]);
    assert_eq!(flat(&Pieces::of_pairs(2, 4, 4, false)), [0, 1, 2, 3, 4, 5, 6, 7]);
    // Of heads of 8 only the first 4 rows turn: 0 with 2 and 1 with 3 (or 0 with 1 and 2 with 3), which then lie 4 apart.
    assert_eq!(flat(&Pieces::of_pairs(1, 8, 4, false)), [0, 1, 4, 5, 2, 3, 6, 7]);
    assert_eq!(flat(&Pieces::of_pairs(1, 8, 4, true)), [0, 2, 4, 5, 1, 3, 6, 7]);
    assert_eq!(flat(&Pieces::of_pairs(2, 6, 4, false)), [0, 1, 4, 2, 3, 5, 6, 7, 10, 8, 9, 11]);
    let rows_of = |shape: &Shape| {
        let config = shape.config().unwrap();
        let roles = Roles { config: &config, layout: Layout::hugging_face(config.family) };
        let of = |role: &Role| match &role.weight.part {
            Part::Rows(pieces) | Part::Mxfp4(pieces) => flat(pieces),
            Part::Columns { rows, columns } => [flat(&Pieces::range(rows.clone())), flat(columns)].concat(),
        };
        let mut all: Vec<_> = roles.attention(0)[..3].iter().map(of).collect();
        match roles.mlp(0) {
            MlpRoles::Dense(mlp) => all.extend(mlp.iter().map(of)),
            MlpRoles::Sparse(_) => all.extend(roles.experts(0).flatten().map(|role| of(&role))),
        }
        all
    };
    let small = |family: &str| Shape { head_dim: 2, hidden: 8, intermediate: 3, ..Shape::tiny(family) };
    // 4 heads and 2 KV heads of 2 rows. InternLM2: per KV head two query heads, the key, the value.
    let internlm2 = rows_of(&small("internlm2"));
    assert_eq!(internlm2[..3], [vec![0, 1, 2, 3, 8, 9, 10, 11], vec![4, 5, 12, 13], vec![6, 7, 14, 15]]);
    // Phi-3: all of the query, of the key, of the value; then the gate's rows before the up's.
    let phi3 = rows_of(&small("phi3"));
    let want: [Vec<usize>; 5] =
        [(0..8).collect(), (8..12).collect(), (12..16).collect(), (0..3).collect(), (3..6).collect()];
    assert_eq!(phi3[..5], want);
    // gpt-oss: 8 input rows an expert, of which columns of gate and up take turns; the second expert's begin at row 8.
    let gpt_oss = rows_of(&Shape { intermediate: 3, hidden: 8, ..Shape::tiny("gpt_oss") });
    let columns =
        |rows: std::ops::Range<usize>, columns: [usize; 3]| [rows.collect(), columns.to_vec()].concat();
    assert_eq!(gpt_oss[3], columns(0..8, [0, 2, 4]));
    assert_eq!(gpt_oss[4], columns(0..8, [1, 3, 5]));
    assert_eq!(gpt_oss[6], columns(8..16, [0, 2, 4]));
}

/// Experts in the 4-bit form that gpt-oss is published in, their bytes written by hand.
#[test]
fn experts_in_mxfp4_are_read() {
    let shape = Shape { n_layers: 1, intermediate: 32, hidden: 32, ..Shape::tiny("gpt_oss") };
    let dir = folder(&shape, DenseType::F32, None);
    let (_, dense) = load(dir.path()).unwrap();
    let file = dir.path().join("model.safetensors");
    let bytes = std::fs::read(&file).unwrap();
    let all = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let is_expert =
        |name: &str| name.ends_with("experts.gate_up_proj") || name.ends_with("experts.down_proj");
    let mut tensors: Vec<_> = all.tensors().into_iter().filter(|(name, _)| !is_expert(name)).collect();
    let (mut blocks, mut scales) = (vec![vec![0u8; 4 * 64 * 16], vec![0u8; 4 * 32 * 16]], Vec::new());
    for (i, byte) in blocks.iter_mut().flatten().enumerate() {
        *byte = (i * 37 % 251) as u8;
    }
    for rows in [4 * 64, 4 * 32] {
        scales.push((0..rows).map(|row| 120 + (row % 9) as u8).collect::<Vec<u8>>());
    }
    for ((name, rows), (blocks, scales)) in
        [("gate_up", 64), ("down", 32)].iter().zip(blocks.iter().zip(&scales))
    {
        let view = |end: &str, shape: &[usize], data| {
            let name = format!("model.layers.0.mlp.experts.{name}_proj_{end}");
            (
                name,
                ::safetensors::tensor::TensorView::new(::safetensors::Dtype::U8, shape.to_vec(), data)
                    .unwrap(),
            )
        };
        tensors.push(view("blocks", &[4, *rows, 1, 16], blocks));
        tensors.push(view("scales", &[4, *rows, 1], scales));
    }
    let written = ::safetensors::serialize(tensors, None).unwrap();
    std::fs::write(&file, written).unwrap();
    let config = shape.clone().with("quantization_config", json!({ "quant_method": "mxfp4" }));
    std::fs::write(dir.path().join("config.json"), config.config_json("bfloat16")).unwrap();
    let (_, weights) = load(dir.path()).unwrap();
    let values = [0.0f32, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    let value = |code: u8| if code < 8 { values[code as usize] } else { -values[code as usize - 8] };
    let (Mlp::Sparse(sparse), Mlp::Sparse(before)) = (&weights.layers[0].mlp, &dense.layers[0].mlp) else {
        panic!("a sparse layer")
    };
    for (expert, mlp) in sparse.experts.iter().enumerate() {
        // Rows of gate and up take turns; the lower half of a byte comes first.
        for (linear, which, step, first, per_expert) in
            [(&mlp.gate, 0, 2, 0, 64), (&mlp.up, 0, 2, 1, 64), (&mlp.down, 1, 1, 0, 32)]
        {
            let mut row = vec![0.0; 32];
            for r in 0..linear.rows() {
                linear.copy_row(r, &mut row);
                let stored = expert * per_expert + first + r * step;
                let scale = 2f32.powi(i32::from(scales[which][stored]) - 127);
                for (i, got) in row.iter().enumerate() {
                    let byte = blocks[which][stored * 16 + i / 2];
                    let want = value(if i % 2 == 0 { byte & 15 } else { byte >> 4 }) * scale;
                    assert_eq!(*got, want, "expert {expert}, row {r}, weight {i}");
                }
            }
        }
        assert_eq!(mlp.gate.bias(), before.experts[expert].gate.bias());
    }
    let plan = Checkpoint::open(dir.path()).unwrap().plan().unwrap();
    assert_eq!(plan.bytes_resident, weights.bytes() as u64);
}

/// Of the experts only as many count as a token passes.
#[test]
fn the_plan_tells_active_parameters() {
    for (family, per_layer) in [("mixtral", 2 * 3 * 64 * 96), ("qwen3_moe", 2 * 3 * 64 * 32), ("llama", 0)] {
        let shape = Shape::tiny(family);
        let plan = Checkpoint::open(folder(&shape, DenseType::F32, None).path()).unwrap().plan().unwrap();
        assert_eq!(plan.params - plan.active_params, 2 * per_layer, "{family}");
    }
}

/// Files of other tools hold experts in one tensor, or gate and up in one, or queries, keys and values.
#[test]
fn matrices_are_found_however_a_file_packs_them() {
    let shape = Shape::tiny("qwen3_moe");
    let dir = folder(&shape, DenseType::F32, None);
    let (_, want) = load(dir.path()).unwrap();
    let file = dir.path().join("model.safetensors");
    let bytes = std::fs::read(&file).unwrap();
    let all = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let data = |name: String| all.tensor(&name).unwrap().data().to_vec();
    let mut packed: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
    for (name, tensor) in all.tensors() {
        if !name.contains(".experts.")
            && !name.contains("q_proj")
            && !name.contains("k_proj")
            && !name.contains("v_proj")
        {
            packed.push((name, tensor.shape().to_vec(), tensor.data().to_vec()));
        }
    }
    for layer in 0..2 {
        let of = |name: &str| format!("model.layers.{layer}.{name}.weight");
        let expert = |e: usize, name: &str| data(of(&format!("mlp.experts.{e}.{name}_proj")));
        let gate_up = (0..4).flat_map(|e| [expert(e, "gate"), expert(e, "up")].concat()).collect();
        let down = (0..4).flat_map(|e| expert(e, "down")).collect();
        let experts = |name: &str| format!("model.layers.{layer}.mlp.experts.{name}");
        packed.push((experts("gate_up_proj"), vec![4, 64, 64], gate_up));
        packed.push((experts("down_proj"), vec![4, 64, 32], down));
        let qkv = ["q", "k", "v"].map(|n| data(of(&format!("self_attn.{n}_proj")))).concat();
        packed.push((of("self_attn.qkv_proj"), vec![256, 64], qkv));
    }
    let views = packed.iter().map(|(name, shape, data)| {
        (
            name,
            ::safetensors::tensor::TensorView::new(::safetensors::Dtype::F32, shape.clone(), data).unwrap(),
        )
    });
    std::fs::write(&file, ::safetensors::serialize(views, None).unwrap()).unwrap();
    let (_, got) = load(dir.path()).unwrap();
    assert_eq!(flat(&got), flat(&want));
}

#[test]
fn the_plan_is_what_loading_holds() {
    for family in families() {
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
        products_match(down(&weights, 0), dtype);
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
        let crate::weights::Mlp::Dense(mlp) = &weights.layers[1].mlp else { panic!("a dense layer") };
        let up = mlp.up.weight();
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
    for (name, linear) in [("token_embd", &weights.embed), ("blk.1.ffn_down", down(&weights, 1))] {
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
