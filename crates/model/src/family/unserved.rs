//! Architectures that people have files of and that are not served, with the reason.

/// Model types of config.json and architectures of GGUF, the name people know, and what stands in the way.
type Unserved = (&'static [&'static str], &'static str, &'static str);

const RECURRENT: &str = "some of its layers keep a recurrent state instead of keys and values";
const MLA: &str = "it keeps compressed latents instead of keys and values (multi-head latent attention)";
const LAYER_NORM: &str = "it centres its hidden states (LayerNorm), which this decoder does not";
const NOT_A_DECODER: &str = "it is no decoder of text from left to right";

const UNSERVED: &[Unserved] = &[
    (&["qwen3_next", "qwen3next"], "Qwen3-Next", RECURRENT),
    (
        &["qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text", "qwen35", "qwen35moe"],
        "Qwen3.5",
        RECURRENT,
    ),
    (&["mamba", "mamba2", "falcon_mamba"], "Mamba", RECURRENT),
    (&["jamba"], "Jamba", RECURRENT),
    (&["bamba"], "Bamba", RECURRENT),
    (&["zamba", "zamba2"], "Zamba", RECURRENT),
    (&["falcon_h1", "falcon-h1"], "Falcon-H1", RECURRENT),
    (&["nemotron_h", "nemotron_h_moe"], "Nemotron-H", RECURRENT),
    (&["granitemoehybrid", "granitehybrid"], "Granite 4 (hybrid)", RECURRENT),
    (&["lfm2", "lfm2_moe", "lfm2moe"], "LFM2", RECURRENT),
    (&["plamo2", "plamo3"], "PLaMo 2", RECURRENT),
    (&["recurrent_gemma"], "RecurrentGemma", RECURRENT),
    (&["rwkv", "rwkv6", "rwkv7", "rwkv6qwen2", "arwkv7"], "RWKV", RECURRENT),
    (&["minimax", "minimax_text_01"], "MiniMax-01", RECURRENT),
    (&["kimi_linear", "kimi-linear"], "Kimi Linear", RECURRENT),
    (&["deepseek_v2", "deepseek_v3", "deepseek_v32", "deepseek2"], "DeepSeek V2 and V3", MLA),
    (&["kimi_k2"], "Kimi K2", MLA),
    (&["minicpm3"], "MiniCPM3", MLA),
    (&["longcat_flash"], "LongCat-Flash", MLA),
    (&["glm_moe_dsa", "glm-dsa"], "GLM-5", MLA),
    (&["gpt2"], "GPT-2", LAYER_NORM),
    (&["gpt_neox", "gptneox"], "GPT-NeoX", LAYER_NORM),
    (&["gptj"], "GPT-J", LAYER_NORM),
    (&["bloom"], "BLOOM", LAYER_NORM),
    (&["mpt"], "MPT", LAYER_NORM),
    (&["opt"], "OPT", LAYER_NORM),
    (&["falcon"], "Falcon", LAYER_NORM),
    (&["phi", "phi2"], "Phi-1 and Phi-2", LAYER_NORM),
    (&["phimoe"], "Phi-3.5-MoE", LAYER_NORM),
    (&["starcoder", "starcoder2"], "StarCoder", LAYER_NORM),
    (&["stablelm"], "StableLM", LAYER_NORM),
    (&["cohere", "cohere2", "command-r"], "Command R", LAYER_NORM),
    (&["nemotron"], "Nemotron 4", LAYER_NORM),
    (&["olmo"], "OLMo 1", LAYER_NORM),
    (&["bert", "roberta", "modernbert", "nomic-bert", "jina-bert-v2", "xlm-roberta"], "BERT", NOT_A_DECODER),
    (&["t5", "mt5", "t5encoder", "umt5"], "T5", NOT_A_DECODER),
    (&["whisper"], "Whisper", NOT_A_DECODER),
    (&["bart", "mbart"], "BART", NOT_A_DECODER),
    (&["clip", "siglip"], "CLIP", NOT_A_DECODER),
    (&["llama4", "llama4_text"], "Llama 4", "its layers attend in chunks and tune their queries by position"),
    (&["ministral3", "mistral4"], "Ministral 3", "its queries grow with their position (llama_4_scaling)"),
    (
        &["gemma3n", "gemma3n_text", "gemma4", "gemma4_text"],
        "Gemma 3n and 4",
        "its layers share keys and take embeddings of their own",
    ),
    (
        &["qwen2_vl", "qwen2vl", "qwen2_5_vl", "qwen3_vl", "qwen3vl", "qwen3_vl_moe", "qwen3vlmoe"],
        "Qwen-VL",
        "its positions have several parts, for images",
    ),
];

/// The name people know the architecture `found` by and why it is not served, if it is such a one.
pub(crate) fn reason(found: &str) -> Option<(&'static str, &'static str)> {
    UNSERVED.iter().find(|(names, ..)| names.contains(&found)).map(|&(_, name, reason)| (name, reason))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Family;

    #[test]
    fn no_architecture_is_both_served_and_refused() {
        for family in Family::all() {
            for name in [family.name, family.gguf_architecture].iter().chain(family.aliases) {
                assert_eq!(reason(name), None, "{name}");
            }
        }
    }
}
