use super::*;
use crate::family::QkNorm;
use reattention::rope::{Activation, ClexSettings, LogScale, RopeScaling};
use serde_json::json;

/// A Llama configuration with `changes` merged in; a null removes nothing, it is stored.
fn with(changes: Value) -> Result<Config, ModelError> {
    let mut base = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 5e5, "bos_token_id": 1, "eos_token_id": 2,
        "hidden_act": "silu", "torch_dtype": "bfloat16", "attention_dropout": 0.0, "pretraining_tp": 1
    });
    for (key, value) in changes.as_object().unwrap() {
        base[key] = value.clone();
    }
    Config::from_json(&base.to_string(), "config.json")
}

fn family(name: &str, class: &str, changes: Value) -> Result<Config, ModelError> {
    let mut all = json!({ "architectures": [class], "model_type": name });
    for (key, value) in changes.as_object().unwrap() {
        all[key] = value.clone();
    }
    with(all)
}

#[test]
fn each_family_has_its_biases_and_norms() {
    let llama = with(json!({})).unwrap();
    assert_eq!((llama.head_dim, llama.rope.window, llama.rope.theta), (16, 4096, 5e5));
    assert_eq!(
        (llama.bos_id, &llama.eos_ids[..], llama.dtype.as_deref()),
        (Some(1), &[2][..], Some("bfloat16"))
    );
    assert!(!llama.qkv_bias && !llama.o_bias && !llama.mlp_bias);
    let biased = with(json!({ "attention_bias": true, "mlp_bias": true })).unwrap();
    assert!(biased.qkv_bias && biased.o_bias && biased.mlp_bias);
    let qwen2 =
        family("qwen2", "Qwen2ForCausalLM", json!({ "sliding_window": 32, "max_window_layers": 1 })).unwrap();
    assert!(qwen2.qkv_bias && !qwen2.o_bias && qwen2.layers.iter().all(|l| l.window.is_none()));
    let qwen3 =
        family("qwen3", "Qwen3ForCausalLM", json!({ "head_dim": 32, "attention_bias": false })).unwrap();
    assert!(qwen3.family.qk_norm == QkNorm::Head && qwen3.head_dim == 32 && !qwen3.qkv_bias);
    let internlm2 = family("internlm2", "InternLM2ForCausalLM", json!({ "bias": false })).unwrap();
    assert!(!internlm2.qkv_bias);
    assert!(family("internlm2", "InternLM2ForCausalLM", json!({})).unwrap().qkv_bias);
}

/// Windows of the layers, 0 for those that see everything.
fn windows(config: &Config) -> Vec<usize> {
    config.layers.iter().map(|layer| layer.window.unwrap_or(0)).collect()
}

#[test]
fn sliding_windows_follow_the_family() {
    let of = |name: &str, class: &str, keys: Value| family(name, class, keys).map(|c| windows(&c));
    let mistral = |v: Value| of("mistral", "MistralForCausalLM", json!({ "sliding_window": v })).unwrap();
    assert_eq!(mistral(Value::Null), [0, 0, 0]);
    assert_eq!(mistral(json!(48)), [48, 48, 48]);
    // As long as the trained window it narrows nothing.
    assert_eq!(mistral(json!(4096)), [0, 0, 0]);
    let qwen2 = |layers: u64, types: Value| {
        let keys = json!({ "use_sliding_window": true, "sliding_window": 32, "max_window_layers": layers, "layer_types": types });
        of("qwen2", "Qwen2ForCausalLM", keys)
    };
    assert_eq!(qwen2(2, Value::Null).unwrap(), [0, 0, 32]);
    assert_eq!(qwen2(28, Value::Null).unwrap(), [0, 0, 0]);
    let types = json!(["sliding_attention", "full_attention", "sliding_attention"]);
    assert_eq!(qwen2(28, types.clone()).unwrap(), [32, 0, 32]);
    let error = qwen2(28, json!(["full_attention", "full_attention"])).unwrap_err().to_string();
    assert!(error.contains("layer_types") && error.contains("2 entries"), "{error}");
    let error = qwen2(28, json!(["chunked_attention", "full_attention", "full_attention"])).unwrap_err();
    assert!(error.to_string().contains("chunked_attention"), "{error}");
    let off = json!({ "use_sliding_window": false, "sliding_window": 32, "layer_types": types });
    assert_eq!(of("qwen3", "Qwen3ForCausalLM", off).unwrap(), [0, 0, 0]);

    let seven = |mut keys: Value| {
        keys["num_hidden_layers"] = json!(7);
        keys["sliding_window"] = json!(32);
        keys
    };
    let gemma2 = of("gemma2", "Gemma2ForCausalLM", seven(json!({}))).unwrap();
    assert_eq!(gemma2, [32, 0, 32, 0, 32, 0, 32]);
    let gemma3 = |keys: Value| of("gemma3_text", "Gemma3ForCausalLM", seven(keys)).unwrap();
    assert_eq!(gemma3(json!({})), [32, 32, 32, 32, 32, 0, 32]);
    assert_eq!(gemma3(json!({ "sliding_window_pattern": 3 })), [32, 32, 0, 32, 32, 0, 32]);
    let gpt_oss = of("gpt_oss", "GptOssForCausalLM", seven(json!({}))).unwrap();
    assert_eq!(gpt_oss, [32, 0, 32, 0, 32, 0, 32]);
    let olmo3 = of("olmo3", "Olmo3ForCausalLM", seven(json!({}))).unwrap();
    assert_eq!(olmo3, [32, 32, 32, 0, 32, 32, 32]);
}

#[test]
fn layers_without_rotation_are_listed_or_every_so_many() {
    let rotates = |keys: Value| {
        let mut all = json!({ "num_hidden_layers": 5 });
        keys.as_object().unwrap().iter().for_each(|(key, value)| all[key] = value.clone());
        let config = family("smollm3", "SmolLM3ForCausalLM", all)?;
        Ok::<_, ModelError>(config.layers.iter().map(|layer| layer.rotates).collect::<Vec<_>>())
    };
    assert_eq!(rotates(json!({})).unwrap(), [true, true, true, false, true]);
    assert_eq!(rotates(json!({ "no_rope_layer_interval": 2 })).unwrap(), [true, false, true, false, true]);
    let list = json!({ "no_rope_layers": [0, 1, 1, 1, 0], "no_rope_layer_interval": 2 });
    assert_eq!(rotates(list).unwrap(), [false, true, true, true, false]);
    for wrong in [json!([1, 0]), json!([1, 1, 2, 1, 1]), json!("all")] {
        let error = rotates(json!({ "no_rope_layers": wrong })).unwrap_err().to_string();
        assert!(error.contains("no_rope_layers"), "{error}");
    }
}

/// What the published configuration classes have where a file says nothing.
#[test]
fn absent_keys_have_the_published_values() {
    let bare = |name: &str, class: &str| {
        let text = json!({ "architectures": [class], "model_type": name, "hidden_size": 4096, "intermediate_size": 96,
            "num_hidden_layers": 2, "num_attention_heads": 32, "vocab_size": 100 });
        Config::from_json(&text.to_string(), "config.json").unwrap()
    };
    let gemma3 = bare("gemma3_text", "Gemma3ForCausalLM");
    assert_eq!((gemma3.head_dim, gemma3.n_kv_heads, gemma3.tie_embeddings), (256, 4, true));
    assert_eq!((gemma3.embedding_scale, gemma3.attention_scale), (64.0, Some(0.0625)));
    assert_eq!((gemma3.activation, gemma3.logit_softcap), (reattention_kernels::Activation::GeluTanh, None));
    let gemma2 = bare("gemma2", "Gemma2ForCausalLM");
    assert_eq!((gemma2.attention_softcap, gemma2.logit_softcap), (Some(50.0), Some(30.0)));
    let smollm3 = bare("smollm3", "SmolLM3ForCausalLM");
    assert_eq!((smollm3.tie_embeddings, smollm3.rope.theta, smollm3.n_kv_heads), (true, 2e6, 4));
    let granite = bare("granite", "GraniteForCausalLM");
    assert_eq!(
        (granite.attention_scale, granite.embedding_scale, granite.logit_scale),
        (Some(1.0), 1.0, 1.0)
    );
    let gpt_oss = bare("gpt_oss", "GptOssForCausalLM");
    assert!(gpt_oss.qkv_bias && gpt_oss.o_bias && windows(&gpt_oss) == [128, 0]);
    let clamped = reattention_kernels::Activation::ClampedSwiglu { alpha: 1.702, limit: 7.0 };
    assert_eq!(gpt_oss.activation, clamped);
    let experts = gpt_oss.experts.unwrap();
    assert_eq!((experts.count, experts.per_token, experts.intermediate, experts.biases), (128, 4, 96, true));
    let glm4 = bare("glm4", "Glm4ForCausalLM");
    assert_eq!((glm4.qkv_bias, glm4.o_bias, glm4.head_dim, glm4.n_kv_heads), (true, false, 128, 2));
    let mistral = bare("mistral", "MistralForCausalLM");
    assert_eq!((windows(&mistral), mistral.n_kv_heads), (vec![4096, 4096], 8));
    assert_eq!(bare("qwen3", "Qwen3ForCausalLM").head_dim, 128);
    let qwen3_moe = bare("qwen3_moe", "Qwen3MoeForCausalLM").experts.unwrap();
    assert_eq!((qwen3_moe.count, qwen3_moe.per_token, qwen3_moe.renormalises), (128, 8, false));
    let mixtral = bare("mixtral", "MixtralForCausalLM").experts.unwrap();
    assert_eq!((mixtral.count, mixtral.per_token, mixtral.renormalises), (8, 2, true));
    let qwen2_moe = bare("qwen2_moe", "Qwen2MoeForCausalLM");
    assert!(qwen2_moe.qkv_bias && qwen2_moe.experts.unwrap().shared == Some(5632));
}

#[test]
fn sparse_layers_follow_the_step_and_the_list() {
    let sparse = |keys: Value| {
        let mut all = json!({ "num_hidden_layers": 6, "num_experts": 8, "num_experts_per_tok": 2 });
        keys.as_object().unwrap().iter().for_each(|(key, value)| all[key] = value.clone());
        family("qwen3_moe", "Qwen3MoeForCausalLM", all).map(|c| c.experts.unwrap().sparse.to_vec())
    };
    assert_eq!(sparse(json!({})).unwrap(), [true; 6]);
    let keys = json!({ "decoder_sparse_step": 2, "mlp_only_layers": [3, 99] });
    assert_eq!(sparse(keys).unwrap(), [false, true, false, false, false, true]);
    for (key, wrong) in
        [("num_experts_per_tok", json!(9)), ("mlp_only_layers", json!(["a"])), ("num_experts", json!(0))]
    {
        let error = sparse(json!({ key: wrong })).unwrap_err().to_string();
        assert!(error.contains(key), "{error}");
    }
}

#[test]
fn the_text_part_of_a_model_that_also_sees_is_read() {
    let text = json!({ "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "eos_token_id": [1, 106],
        "text_config": { "model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240,
            "num_hidden_layers": 34, "sliding_window": 1024 }, "vision_config": { "hidden_size": 1152 } });
    let config = Config::from_json(&text.to_string(), "config.json").unwrap();
    assert_eq!(
        (config.family.name, config.hidden, config.n_heads, config.vocab_size),
        ("gemma3", 2560, 8, 262_208)
    );
    assert_eq!(config.eos_ids, [1, 106]);
    let text = json!({ "architectures": ["LlavaForConditionalGeneration"], "model_type": "llava", "text_config": {} });
    let error = Config::from_json(&text.to_string(), "config.json").unwrap_err().to_string();
    assert!(error.contains("LlavaForConditionalGeneration"), "{error}");
}

#[test]
fn architectures_that_people_know_are_refused_by_their_name_and_reason() {
    for (name, class, words) in [
        ("qwen3_next", "Qwen3NextForCausalLM", ["Qwen3-Next", "recurrent"]),
        ("qwen3_5_text", "Qwen3_5ForCausalLM", ["Qwen3.5", "recurrent"]),
        ("deepseek_v3", "DeepseekV3ForCausalLM", ["DeepSeek", "latent"]),
        ("gpt2", "GPT2LMHeadModel", ["GPT-2", "LayerNorm"]),
    ] {
        let error = family(name, class, json!({})).unwrap_err();
        assert!(matches!(error, ModelError::Unserved { .. }), "{error:?}");
        let error = error.to_string();
        assert!(words.iter().chain([&class]).all(|word| error.contains(word)), "{error}");
    }
}

#[test]
fn rope_scaling_is_read_in_both_spellings() {
    let scaling = |v: Value| with(json!({ "rope_scaling": v })).unwrap().rope.scaling;
    assert_eq!(scaling(Value::Null), RopeScaling::None);
    assert_eq!(scaling(json!({ "type": "linear", "factor": 2 })), RopeScaling::Linear { factor: 2.0 });
    assert_eq!(
        scaling(json!({ "rope_type": "dynamic", "factor": 2.5 })),
        RopeScaling::DynamicNtk { factor: 2.5 }
    );
    let llama3 = json!({ "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192 });
    assert!(matches!(scaling(llama3.clone()), RopeScaling::Llama3 { original_window: 8192, .. }));
    let mut parameters = llama3;
    parameters["rope_theta"] = json!(1e6);
    let rope = with(json!({ "rope_parameters": parameters, "rope_theta": null })).unwrap().rope;
    assert_eq!(rope.theta, 1e6);
    assert!(matches!(rope.scaling, RopeScaling::Llama3 { .. }));
}

/// What the file says, and the ratio of windows only where it says nothing: Qwen3's card has a window of 40960, an original
/// one of 32768 and a factor of 4.
#[test]
fn yarn_takes_its_factor_before_the_ratio_of_the_windows() {
    let yarn = |v: Value| match with(json!({ "rope_scaling": v })).unwrap().rope.scaling {
        RopeScaling::Yarn { factor, original_window, .. } => (factor, original_window),
        other => panic!("{other:?}"),
    };
    assert_eq!(
        yarn(json!({ "type": "yarn", "factor": 9.0, "original_max_position_embeddings": 1024 })),
        (9.0, 1024)
    );
    assert_eq!(yarn(json!({ "type": "yarn", "original_max_position_embeddings": 1024 })), (4.0, 1024));
    assert_eq!(
        yarn(json!({ "type": "yarn", "factor": 9.0, "original_max_position_embeddings": 4096 })),
        (9.0, 4096)
    );
    assert_eq!(yarn(json!({ "type": "yarn", "factor": 9.0 })), (9.0, 4096));
}

#[test]
fn rope_theta_is_found_wherever_it_is_written() {
    for config in [
        json!({ "rope_theta": 5e5 }),
        json!({ "rope_theta": null, "rope_scaling": { "rope_type": "default", "rope_theta": 5e5 } }),
        json!({ "rope_theta": null, "rope_parameters": { "rope_type": "default", "rope_theta": 5e5 } }),
        json!({ "rope_theta": 1e4, "rope_scaling": { "type": "linear", "factor": 2.0, "rope_theta": 5e5 } }),
        json!({ "rope_theta": null, "rope_parameters": {
            "full_attention": { "rope_type": "default", "rope_theta": 5e5 },
            "sliding_attention": { "rope_type": "default", "rope_theta": 1e4 } } }),
    ] {
        assert_eq!(with(config.clone()).unwrap().rope.theta, 5e5, "{config}");
    }
}

#[test]
fn kinds_of_layers_have_frequencies_of_their_own() {
    let linear = json!({ "rope_type": "linear", "factor": 8.0, "rope_theta": 1e6 });
    let of_kinds = with(json!({ "rope_parameters": {
        "full_attention": linear, "sliding_attention": { "rope_type": "default", "rope_theta": 1e4 } } }))
    .unwrap();
    let local = with(json!({ "rope_scaling": linear, "rope_local_base_freq": 1e4 })).unwrap();
    for config in [of_kinds, local] {
        assert_eq!((config.rope.theta, &config.rope.scaling), (1e6, &RopeScaling::Linear { factor: 8.0 }));
        let sliding = config.sliding_rope.unwrap();
        assert_eq!((sliding.theta, sliding.scaling), (1e4, RopeScaling::None));
    }
    assert_eq!(with(json!({ "rope_scaling": linear })).unwrap().sliding_rope, None);
}

#[test]
fn longrope_is_read_in_every_spelling() {
    // Heads of 16 of which three quarters rotate: 6 frequencies.
    let list = |x: f64| vec![x; 6];
    let lists = json!({ "type": "longrope", "short_factor": list(1.5), "long_factor": list(3.0) });
    let beside = with(json!({ "rope_scaling": lists, "original_max_position_embeddings": 1024,
        "partial_rotary_factor": 0.75 }))
    .unwrap();
    let mut inside = lists.clone();
    inside["original_max_position_embeddings"] = json!(1024);
    inside["partial_rotary_factor"] = json!(0.75);
    inside["type"] = json!("su");
    let inside = with(json!({ "rope_parameters": inside })).unwrap();
    assert_eq!(beside.rope, inside.rope);
    assert_eq!(beside.rope.dim, 12);
    let RopeScaling::LongRope { short, long, original_window, attention_factor } = beside.rope.scaling else {
        panic!("{:?}", beside.rope)
    };
    assert_eq!((short[0], long[5], original_window), (1.5, 3.0, 1024));
    assert!((attention_factor - (1.0 + 4f64.ln() / 1024f64.ln()).sqrt()).abs() < 1e-12);
    let short = with(json!({ "rope_scaling": lists })).unwrap_err().to_string();
    assert!(short.contains("short_factor` has 6 numbers; 16 rotated dimensions take 8"), "{short}");
}

/// Qwen2.5-1M: the window is that of the model before it, and dual chunk attention reaches the rest.
#[test]
fn dual_chunk_attention_leaves_the_window_as_it_was() {
    let dual = json!({ "chunk_size": 512, "local_size": 64, "original_max_position_embeddings": 512 });
    let config =
        with(json!({ "max_position_embeddings": 2020, "dual_chunk_attention_config": dual })).unwrap();
    assert_eq!(config.shape().window, 512);
    assert_eq!(config.dual_chunk, Some(reattention::DualChunk { size: 512, local: 64 }));
    let wrong = json!({ "chunk_size": 64, "local_size": 64 });
    let error = with(json!({ "dual_chunk_attention_config": wrong })).unwrap_err().to_string();
    assert!(error.contains("local_size 64"), "{error}");
}

#[test]
fn clex_is_read_as_every_published_checkpoint_has_it() {
    let clex = |v: Value, log_scale: Value| match with(json!({ "rope_scaling": v, "log_scale": log_scale }))
        .unwrap()
        .rope
        .scaling
    {
        RopeScaling::Clex(clex) => *clex.settings(),
        other => panic!("{other:?}"),
    };
    let first = ClexSettings {
        max_factor: 16,
        param_factor: 1,
        activation: Activation::Silu,
        time_dt: 0.01,
        log_scale: LogScale::Clipped,
    };
    // The first configurations name neither activation nor step.
    assert_eq!(
        clex(json!({ "type": "clex", "factor": 1, "max_factor": 16, "param_factor": 1 }), json!(true)),
        first
    );
    let mixtral = json!({ "type": "clex", "factor": 1.0, "max_factor": 10.0, "param_factor": 2, "act": "tanh", "time_dt": 0.01 });
    let want = ClexSettings {
        max_factor: 10,
        param_factor: 2,
        activation: Activation::Tanh,
        log_scale: LogScale::Off,
        ..first
    };
    assert_eq!(clex(mixtral.clone(), json!(false)), want);
    assert_eq!(clex(mixtral, Value::Null), want);
}

#[test]
fn generation_config_adds_its_end_tokens_and_lists_are_accepted() {
    let config = with(json!({ "eos_token_id": [2, 3, 5000] })).unwrap();
    assert_eq!(config.eos_ids, [2, 3]);
    let config =
        config.with_generation_config(r#"{"eos_token_id": [7, 8], "temperature": 0.6}"#, "g").unwrap();
    assert_eq!((config.bos_id, config.eos_ids), (Some(1), vec![2, 3, 7, 8]));
}

#[test]
fn what_cannot_be_served_is_refused_by_name() {
    let cases = [
        (json!({ "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2" }), "GPT2LMHeadModel"),
        (json!({ "architectures": ["LlamaForSequenceClassification"] }), "LlamaForSequenceClassification"),
        (json!({ "hidden_act": "gelu" }), "gelu"),
        (json!({ "partial_rotary_factor": 1.5 }), "partial_rotary_factor"),
        (json!({ "num_local_experts": 8 }), "mixture of experts"),
        (json!({ "quantization_config": { "bits": 4 } }), "GGUF"),
        (json!({ "rope_scaling": { "type": "longrope" } }), "short_factor"),
        (json!({ "rope_scaling": { "type": "spiral" } }), "`spiral`"),
        (json!({ "rope_scaling": { "type": "linear" } }), "factor"),
        (json!({ "rope_scaling": { "type": "linear", "factor": 0.1 } }), "rope factor"),
        (json!({ "rope_scaling": 4 }), "rope_scaling"),
        (json!({ "rope_scaling": { "type": "clex", "param_factor": 1 } }), "rope_scaling.max_factor"),
        (json!({ "rope_scaling": { "type": "clex", "max_factor": 0, "param_factor": 1 } }), "max_factor"),
        (
            json!({ "rope_scaling": { "type": "clex", "max_factor": 4, "param_factor": 1, "act": "gelu" } }),
            "gelu",
        ),
        (
            json!({ "rope_scaling": { "type": "clex", "max_factor": 4, "param_factor": 1, "time_dt": 0 } }),
            "time_dt",
        ),
        (
            json!({ "rope_scaling": { "type": "clex", "max_factor": 4, "param_factor": 1, "time_dt": 1e-9 } }),
            "time_dt",
        ),
        (json!({ "num_key_value_heads": 3 }), "num_key_value_heads"),
        (json!({ "head_dim": 15 }), "head_dim"),
        (json!({ "hidden_size": 66 }), "head_dim"),
        (json!({ "num_hidden_layers": 0 }), "num_hidden_layers"),
        (json!({ "num_hidden_layers": 1e18 }), "num_hidden_layers"),
        (json!({ "hidden_size": 18446744073709551615u64 }), "hidden_size"),
        (json!({ "hidden_size": -1 }), "hidden_size"),
        (json!({ "hidden_size": "big" }), "hidden_size"),
        (json!({ "vocab_size": null }), "vocab_size"),
        (json!({ "attention_bias": 1 }), "attention_bias"),
        (json!({ "rms_norm_eps": 0.0 }), "rms_norm_eps"),
        (json!({ "rope_theta": 0.0 }), "theta"),
        (json!({ "eos_token_id": "end" }), "eos_token_id"),
    ];
    for (change, culprit) in cases {
        let message = with(change.clone()).expect_err(&change.to_string()).to_string();
        assert!(message.contains(culprit), "{change}: {message}");
    }
    for text in ["", "[]", "{", "null", "{\"model_type\": 1}"] {
        assert!(Config::from_json(text, "config.json").is_err(), "{text}");
    }
}

#[test]
fn a_configuration_without_architectures_goes_by_its_model_type() {
    assert_eq!(with(json!({ "architectures": null, "model_type": "llama" })).unwrap().family.name, "llama");
    assert_eq!(with(json!({ "model_type": null })).unwrap().family.name, "llama");
}
