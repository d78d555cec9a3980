//! From the parameters of the published implementations to the settings of ours.

use crate::Case;
use anyhow::{Context, bail};
use reattention::Settings;
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
        "full_attention" => {
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
        "stream-llm" => {
            let settings = Settings::new()
                .set("global", number("n_init")?)
                .set("local", number("n_local")?)
                .set("chunk", number("chunk_size")?)
                .set("reference", true);
            Some(("streaming-llm", settings))
        }
        _ => None,
    })
}
