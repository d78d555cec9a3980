//! The rotary embedding of a config.json: `rope_theta` and `rope_scaling`, or newer files' `rope_parameters`.

use super::Fields;
use crate::ModelError;
use reattention::rope::{Activation, Clex, ClexSettings, LogScale, RopeConfig, RopeScaling};

/// Reads the rotary embedding. Range checks are left to [`RopeConfig::validate`].
pub(super) fn parse(fields: &Fields, dim: usize, window: usize) -> Result<RopeConfig, ModelError> {
    let parameters = fields.object("rope_parameters")?;
    let theta = match &parameters {
        Some(p) => p.number("rope_theta")?.or(fields.number("rope_theta")?),
        None => fields.number("rope_theta")?,
    };
    let scaling = match (fields.object("rope_scaling")?, parameters) {
        (Some(s), _) | (None, Some(s)) => scaling(fields, &s, window)?,
        (None, None) => RopeScaling::None,
    };
    Ok(RopeConfig { theta: theta.unwrap_or(1e4), dim, window, scaling })
}

fn scaling(fields: &Fields, s: &Fields, window: usize) -> Result<RopeScaling, ModelError> {
    let refuse = |what: String, help: &str| Err(ModelError::unsupported(s.file, what, help));
    if s.has("full_attention") || s.has("sliding_attention") {
        return refuse("a rotary embedding that differs between layers (rope_parameters)".into(), "");
    }
    if s.number("partial_rotary_factor")?.is_some_and(|f| f != 1.0) {
        return refuse("partial rotary embedding (partial_rotary_factor)".into(), "");
    }
    if s.has("mrope_section") {
        return refuse("multimodal rotary embedding (mrope_section)".into(), "use the text model");
    }
    let number = |key: &str| s.number(key);
    let factor = || number("factor")?.ok_or_else(|| s.error("rope_scaling.factor", "is missing"));
    let original = || s.optional_size("original_max_position_embeddings", 1 << 32);
    let name = s.text("rope_type").or(s.text("type")).unwrap_or("default");
    Ok(match name {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: factor()? },
        "dynamic" => RopeScaling::DynamicNtk { factor: factor()? },
        "yarn" => {
            if s.boolean("truncate")? == Some(false) {
                return refuse("YaRN without truncation (truncate: false)".into(), "");
            }
            let original_window = original()?;
            let ratio = original_window.map(|o| window as f64 / o as f64).filter(|&r| r > 1.0);
            let factor = match ratio {
                Some(r) => r,
                None => factor()?,
            };
            RopeScaling::Yarn {
                factor,
                original_window: original_window.unwrap_or(window),
                beta_fast: number("beta_fast")?.unwrap_or(32.0),
                beta_slow: number("beta_slow")?.unwrap_or(1.0),
                attention_factor: match (
                    number("attention_factor")?,
                    number("mscale")?,
                    number("mscale_all_dim")?,
                ) {
                    (Some(a), _, _) => Some(a),
                    (None, Some(m), Some(all)) if m != 0.0 && all != 0.0 => {
                        let scale = |m: f64| if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
                        Some(scale(m) / scale(all))
                    }
                    _ => None,
                },
            }
        }
        "llama3" => RopeScaling::Llama3 {
            factor: factor()?,
            low_freq_factor: number("low_freq_factor")?.unwrap_or(1.0),
            high_freq_factor: number("high_freq_factor")?.unwrap_or(4.0),
            original_window: original()?
                .ok_or_else(|| s.error("rope_scaling.original_max_position_embeddings", "is missing"))?,
        },
        "clex" => RopeScaling::Clex(Clex::unsolved(clex(fields, s)?)),
        other => {
            let other: String = other.chars().take(80).collect();
            return refuse(
                format!("rope scaling `{other}`"),
                "supported are default, linear, dynamic, yarn, llama3, clex",
            );
        }
    })
}

/// CLEX's settings; its trained weights are tensors. Configurations of the first checkpoints name neither activation nor step,
/// which the code of that time had fixed. `log_scale` stands beside `rope_scaling`.
fn clex(fields: &Fields, s: &Fields) -> Result<ClexSettings, ModelError> {
    let size = |key: &str, max| match s.optional_size(key, max)? {
        Some(n) => Ok(n),
        None => Err(s.error(&format!("rope_scaling.{key}"), "is missing")),
    };
    let activation = match s.text("act") {
        None if s.has("act") => return Err(s.error("rope_scaling.act", "must be a text")),
        None | Some("silu") => Activation::Silu,
        Some("tanh") => Activation::Tanh,
        Some(other) => {
            let other: String = other.chars().take(80).collect();
            return Err(s.error("rope_scaling.act", format!("is `{other}`; it must be silu or tanh")));
        }
    };
    let log_scale = match s.boolean("log_scale")?.or(fields.boolean("log_scale")?) {
        Some(true) => LogScale::Clipped,
        Some(false) | None => LogScale::Off,
    };
    Ok(ClexSettings {
        max_factor: size("max_factor", 1 << 20)?,
        param_factor: size("param_factor", 1 << 10)?,
        activation,
        time_dt: s.number("time_dt")?.unwrap_or(0.01),
        log_scale,
    })
}
