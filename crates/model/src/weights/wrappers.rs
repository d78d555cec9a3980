//! Tensor names as a model's own class writes them, whatever saved them: without what wrappers put before them.

use std::borrow::Cow;

/// Path segments that wrappers of PyTorch put into names: torch.compile, FSDP, checkpointed activations.
const SEGMENTS: [&str; 3] = ["_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module."];

/// What wrappers put before whole names: DataParallel, DeepSpeed and Lightning; peft's merged adapters.
const PREFIXES: [&str; 2] = ["module.", "base_model.model."];

/// What the names of a base model's tensors begin with, which a class with an output head puts under `model.`.
const BASE: [&str; 5] = ["embed_tokens.", "layers.", "norm.", "tok_embeddings.", "clex_layer."];

/// The name under which a class with an output head has the tensor `stored`: wrappers' segments are left out, the language model
/// of a checkpoint for several media stands for itself, and names of a base model get their `model.`.
pub(super) fn own_name(stored: &str) -> Cow<'_, str> {
    let mut name = Cow::Borrowed(stored);
    for segment in SEGMENTS {
        if name.starts_with(segment) || name.contains(&format!(".{segment}")) {
            name = Cow::Owned(name.replace(segment, ""));
        }
    }
    while let Some(rest) = PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix)) {
        name = Cow::Owned(rest.to_string());
    }
    // `language_model.model.layers...` and `language_model.lm_head...`, or since transformers 4.52 `model.language_model.layers...`.
    if let Some(rest) = name.strip_prefix("language_model.").or(name.strip_prefix("model.language_model.")) {
        name = Cow::Owned(rest.to_string());
    }
    match BASE.iter().any(|begin| name.starts_with(begin)) {
        true => Cow::Owned(format!("model.{name}")),
        false => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_whatever_is_put_around_them() {
        for (stored, own) in [
            ("model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
            ("layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
            ("embed_tokens.weight", "model.embed_tokens.weight"),
            ("norm.weight", "model.norm.weight"),
            ("tok_embeddings.weight", "model.tok_embeddings.weight"),
            ("_orig_mod.model.norm.weight", "model.norm.weight"),
            ("module._orig_mod.lm_head.weight", "lm_head.weight"),
            ("model.layers.1._orig_mod.self_attn.q_proj.weight", "model.layers.1.self_attn.q_proj.weight"),
            (
                "_fsdp_wrapped_module.model.layers.1._fsdp_wrapped_module.mlp.up_proj.bias",
                "model.layers.1.mlp.up_proj.bias",
            ),
            ("base_model.model.model.norm.weight", "model.norm.weight"),
            ("base_model.model.lm_head.weight", "lm_head.weight"),
            ("language_model.model.layers.0.input_layernorm.weight", "model.layers.0.input_layernorm.weight"),
            ("language_model.lm_head.weight", "lm_head.weight"),
            ("model.language_model.embed_tokens.weight", "model.embed_tokens.weight"),
            ("vision_tower.layers.0.norm.weight", "vision_tower.layers.0.norm.weight"),
            ("output.weight", "output.weight"),
        ] {
            assert_eq!(own_name(stored), own, "{stored}");
        }
    }
}
