//! Writes a model of random weights: real sizes and formats for measurements and tests, without a download.
//!
//! `cargo run --release -p reattention-model --example synth -- SHAPE TYPE OUT`
//!
//! SHAPE is `qwen2.5-0.5b`, `llama-3.1-8b`, or the name of a family for a tiny model of it. TYPE is `bf16` or `f32` for a Hugging Face
//! folder, or `gguf:TYPE` with `q8_0`, `q4_0`, `q4_1`, `q5_0`, `q5_1`, `q2_k` to `q6_k`, `f16`, `bf16` or `f32` for a GGUF
//! file.

use reattention_model::Family;
use reattention_model::synth::{DenseType, GgufType, Shape, write_gguf, write_hugging_face};
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match write(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("synth: {message}");
            ExitCode::from(2)
        }
    }
}

fn write(args: &[String]) -> Result<(), String> {
    let [shape, dtype, out] = args else {
        return Err(
            "usage: synth SHAPE TYPE OUT, for instance: synth qwen2.5-0.5b gguf:q8_0 model.gguf".into()
        );
    };
    let shape = match shape.as_str() {
        "qwen2.5-0.5b" => Shape::qwen2_5_0_5b(),
        "llama-3.1-8b" => Shape::llama_3_1_8b(),
        family if Family::named(family).is_some() => Shape::tiny(family),
        other => return Err(format!("unknown shape `{other}`")),
    };
    let out = Path::new(out);
    let written = match dtype.as_str() {
        "bf16" => write_hugging_face(out, &shape, DenseType::Bf16, 1, None),
        "f32" => write_hugging_face(out, &shape, DenseType::F32, 1, None),
        "gguf:q8_0" => write_gguf(out, &shape, GgufType::Q8_0, 1),
        "gguf:q4_0" => write_gguf(out, &shape, GgufType::Q4_0, 1),
        "gguf:q4_1" => write_gguf(out, &shape, GgufType::Q4_1, 1),
        "gguf:q5_0" => write_gguf(out, &shape, GgufType::Q5_0, 1),
        "gguf:q5_1" => write_gguf(out, &shape, GgufType::Q5_1, 1),
        "gguf:q2_k" => write_gguf(out, &shape, GgufType::Q2K, 1),
        "gguf:q3_k" => write_gguf(out, &shape, GgufType::Q3K, 1),
        "gguf:q4_k" => write_gguf(out, &shape, GgufType::Q4K, 1),
        "gguf:q5_k" => write_gguf(out, &shape, GgufType::Q5K, 1),
        "gguf:q6_k" => write_gguf(out, &shape, GgufType::Q6K, 1),
        "gguf:f16" => write_gguf(out, &shape, GgufType::F16, 1),
        "gguf:bf16" => write_gguf(out, &shape, GgufType::Bf16, 1),
        "gguf:f32" => write_gguf(out, &shape, GgufType::F32, 1),
        other => return Err(format!("unknown type `{other}`")),
    };
    written.map_err(|e| e.to_string())
}
