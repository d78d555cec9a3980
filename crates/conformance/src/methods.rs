//! From the parameters of the published implementations to the settings of ours.

use crate::Case;
use anyhow::{Context, bail, ensure};
use reattention::Settings;
use reattention::rope::{RopeConfig, RopeScaling};
use serde_json::Value;

/// The method and settings that reproduce a case, or `None` if the method does not exist here.
///
/// # Errors
/// When the manifest asks for something the method does not have, or lacks a parameter.
pub(crate) fn settings(case: &Case) -> anyhow::Result<Option<(&'static str, Settings)>> {
    let number = |key: &str| {
        let value = case.param(key)?;
        value.as_i64().with_context(|| format!("parameter `{key}` is {value}, not an integer"))
    };
    let only = |key: &str, allowed: Value| match case.param(key)? {
        value if *value == allowed => Ok(()),
        value => bail!("{key}={value} is not supported, only {allowed}"),
    };
    Ok(match case.text("method")? {
        // CLEX changes frequencies only, which the configuration holds.
        "full_attention" | "clex" => {
            let prompt = case.ids("input_ids")?.len();
            Some(("full", Settings::new().set("chunk", prompt).set("reference", true)))
        }
        "reattention" => {
            only("recall_type", "qk".into())?;
            only("recall_option", "default".into())?;
            only("q_cache_len", 0.into())?;
            only("rope_scaling", Value::Null)?;
            let exact = case.text("prefill_topk")?.starts_with("exact");
            let own_positions = case.param("pe_original")? == &Value::Bool(true);
            let mut settings = Settings::new()
                .set("reference", if exact { "published-exact" } else { "published" })
                .set("positions", if own_positions { "original" } else { "contiguous" });
            for (ours, theirs) in [
                ("global", "global_size"),
                ("local", "local_size"),
                ("top_k", "mid_size"),
                ("span", "span_size"),
                ("chunk", "chunk_size"),
                ("clip", "recall_clip"),
            ] {
                settings = settings.set(ours, number(theirs)?);
            }
            Some(("reattention", settings))
        }
        "ms_poe" => {
            let layers: Vec<String> = apply_layers(case)?.iter().map(usize::to_string).collect();
            let text = |key: &str| match case.param(key)? {
                Value::String(text) => anyhow::Ok(text.clone()),
                value => Ok(value.to_string()),
            };
            let settings = Settings::new()
                .set("ratio_min", text("compress_ratio_min")?)
                .set("ratio_max", text("compress_ratio_max")?)
                .set("head_type", text("head_type")?)
                .set("layers", layers.join(","))
                .set("reference", true);
            Some(("ms-poe", settings))
        }
        "inf-llm" => {
            let scale = case.param("distance_scale")?;
            ensure!(scale.as_f64() == Some(1.0), "distance_scale={scale} is not supported, only 1");
            let mut settings = Settings::new().set("reference", true);
            for (ours, theirs) in [
                ("global", "n_init"),
                ("local", "n_local"),
                ("top_k", "topk"),
                ("block", "block_size"),
                ("repr", "repr_topk"),
                ("exc_block", "exc_block_size"),
                ("chunk", "chunk_size"),
            ] {
                settings = settings.set(ours, number(theirs)?);
            }
            Some(("infllm", settings))
        }
        "stream-llm" => {
            let settings = Settings::new()
                .set("global", number("n_init")?)
                .set("local", number("n_local")?)
                .set("chunk", number("chunk_size")?)
                .set("reference", true);
            Some(("streaming-llm", settings))
        }
        "infinite-lm" => {
            only("distance_scale", 1.0.into())?;
            let settings = Settings::new()
                .set("global", number("n_init")?)
                .set("local", number("n_local")?)
                .set("chunk", number("chunk_size")?)
                .set("reference", true);
            Some(("lm-infinite", settings))
        }
        "string" => {
            let settings = Settings::new()
                .set("shift", number("shifted_offset")?)
                .set("small_local", number("small_local_value")?)
                .set("chunk", case.ids("input_ids")?.len())
                .set("reference", true);
            Some(("string", settings))
        }
        "mesa_extrapolation" => {
            let mut settings =
                Settings::new().set("chunk", case.ids("input_ids")?.len()).set("reference", true);
            for (ours, theirs) in [
                ("train_length", "train_length"),
                ("global", "first_chunk"),
                ("global_room", "first_chunk_cache"),
                ("last", "last_context"),
                ("reserve", "max_token_len"),
                ("stair", "push_width"),
                ("width", "context_window_length"),
            ] {
                settings = settings.set(ours, number(theirs)?);
            }
            Some(("mesa", settings))
        }
        _ => None,
    })
}

/// The frequencies that a case asks for beside its model's own, `own`.
///
/// # Errors
/// When the manifest's numbers make no sense.
pub(crate) fn rope(case: &Case, own: &RopeConfig) -> anyhow::Result<Option<RopeConfig>> {
    let factor = match case.param("yarn_factor") {
        Ok(value) if !value.is_null() => value.as_f64().context("yarn_factor is no number")?,
        _ => return Ok(None),
    };
    // STRING's code for Qwen2 has the original window fixed, and a factor on cosine and sine that is the method's.
    let scaling = RopeScaling::Yarn {
        factor,
        original_window: 32_768,
        beta_fast: 32.0,
        beta_slow: 1.0,
        attention_factor: None,
        truncate: true,
    };
    let rope = RopeConfig { scaling, ..own.clone() };
    rope.validate()?;
    Ok(Some(rope))
}

/// The layers that a case of Ms-PoE concerns.
///
/// # Errors
/// When the manifest does not list them.
pub(crate) fn apply_layers(case: &Case) -> anyhow::Result<Vec<usize>> {
    let listed = case.param("apply_layers")?.as_array().context("`apply_layers` is no list")?;
    let number = |layer: &Value| usize::try_from(layer.as_u64()?).ok();
    listed
        .iter()
        .map(number)
        .collect::<Option<_>>()
        .context("`apply_layers` holds something else than layers")
}
