//! The rotary embedding of a config.json: `rope_theta` and `rope_scaling`, or newer files' `rope_parameters`.

use super::Fields;
use crate::ModelError;
use reattention::rope::{Activation, Clex, ClexSettings, LogScale, RopeConfig, RopeScaling};

/// The frequencies of a model.
pub(super) struct Rotary {
    /// Those of layers that see everything.
    pub(super) full: RopeConfig,
    /// Those of layers with a sliding window, where they differ.
    pub(super) sliding: Option<RopeConfig>,
}

/// Reads the rotary embedding for heads of `head_dim` in a model configured for `window` positions. Transformers 4 writes
/// `rope_theta` and `rope_scaling`, transformers 5 both in `rope_parameters`, or one such object a kind of layer; either may
/// stand inside the other. `scales_sliding` says whether layers with a sliding window take the scaling of the others where
/// nothing is said of them. Range checks are left to [`RopeConfig::validate`].
pub(super) fn parse(
    fields: &Fields,
    head_dim: usize,
    window: usize,
    scales_sliding: bool,
) -> Result<Rotary, ModelError> {
    let (parameters, own) = (fields.object("rope_parameters")?, fields.object("rope_scaling")?);
    let both = own.or(parameters);
    let kinds = match &both {
        Some(s) => (s.object("full_attention")?, s.object("sliding_attention")?),
        None => (None, None),
    };
    let full = match &kinds.0 {
        Some(of_kind) => one(fields, Some(of_kind), head_dim, window)?,
        None => one(fields, both.as_ref().filter(|_| kinds.1.is_none()), head_dim, window)?,
    };
    let sliding = match (&kinds.1, fields.number("rope_local_base_freq")?) {
        (Some(of_kind), _) => Some(one(fields, Some(of_kind), head_dim, window)?),
        (None, Some(theta)) => Some(RopeConfig { theta, scaling: RopeScaling::None, ..full.clone() }),
        (None, None) if !scales_sliding => Some(RopeConfig { scaling: RopeScaling::None, ..full.clone() }),
        (None, None) => None,
    };
    let sliding = sliding.filter(|sliding| *sliding != full);
    Ok(Rotary { full, sliding })
}

/// The frequencies that `s` describes, with what stands beside it in `fields`.
fn one(
    fields: &Fields,
    s: Option<&Fields>,
    head_dim: usize,
    window: usize,
) -> Result<RopeConfig, ModelError> {
    let number = |key: &str| match s {
        Some(s) => Ok(s.number(key)?.or(fields.number(key)?)),
        None => fields.number(key),
    };
    let theta = number("rope_theta")?.unwrap_or(1e4);
    // As published: a fraction of a dimension is no dimension.
    let dim = match number("partial_rotary_factor")? {
        Some(part) if part > 0.0 && part <= 1.0 => (head_dim as f64 * part) as usize,
        Some(part) => {
            let reason = format!("is {part}; it must be above 0 and at most 1");
            return Err(fields.error("partial_rotary_factor", reason));
        }
        None => head_dim,
    };
    let scaling = match s {
        Some(s) => scaling(fields, s, dim, window)?,
        None => RopeScaling::None,
    };
    Ok(RopeConfig { theta, dim, window, scaling })
}

fn scaling(fields: &Fields, s: &Fields, dim: usize, window: usize) -> Result<RopeScaling, ModelError> {
    let refuse = |what: String, help: &str| Err(ModelError::unsupported(s.file, what, help));
    if s.has("mrope_section") {
        return refuse("multimodal rotary embedding (mrope_section)".into(), "use the text model");
    }
    let number = |key: &str| s.number(key);
    let given = number("factor")?;
    let factor = || given.ok_or_else(|| s.error("rope_scaling.factor", "is missing"));
    let original = || match s.optional_size("original_max_position_embeddings", 1 << 32)? {
        Some(n) => Ok(Some(n)),
        None => fields.optional_size("original_max_position_embeddings", 1 << 32),
    };
    let name = s.text("rope_type").or(s.text("type")).unwrap_or("default");
    Ok(match name {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: factor()? },
        "dynamic" => RopeScaling::DynamicNtk { factor: factor()? },
        "yarn" => {
            let original_window = original()?;
            // What the file says goes before the ratio of windows, which need not be a factor.
            let ratio = original_window.map(|o| window as f64 / o as f64).filter(|&r| r > 1.0);
            let factor = match given.or(ratio) {
                Some(f) => f,
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
                truncate: s.boolean("truncate")?.unwrap_or(true),
            }
        }
        "longrope" | "su" => {
            let divisors = |key: &str| -> Result<std::sync::Arc<[f32]>, ModelError> {
                let name = format!("rope_scaling.{key}");
                let list = s.value(key).and_then(serde_json::Value::as_array);
                let list = list.ok_or_else(|| s.error(&name, "must be a list of numbers"))?;
                if list.len() != dim / 2 {
                    let (found, pairs) = (list.len(), dim / 2);
                    return Err(s.error(
                        &name,
                        format!("has {found} numbers; {dim} rotated dimensions take {pairs}"),
                    ));
                }
                let number = |v: &serde_json::Value| v.as_f64().map(|x| x as f32);
                let numbers: Option<Vec<f32>> = list.iter().map(number).collect();
                Ok(numbers.ok_or_else(|| s.error(&name, "must be a list of numbers"))?.into())
            };
            let given_original = original()?;
            let original_window = given_original.unwrap_or(window);
            // Beside an original window, the published code takes the ratio of windows and not the file's factor.
            let factor = match given_original {
                Some(o) => window as f64 / o as f64,
                None => given.unwrap_or(1.0),
            };
            let stretched = || (1.0 + factor.ln() / (original_window as f64).ln()).sqrt();
            RopeScaling::LongRope {
                short: divisors("short_factor")?,
                long: divisors("long_factor")?,
                original_window,
                attention_factor: match number("attention_factor")? {
                    Some(a) => a,
                    None if factor <= 1.0 => 1.0,
                    None => stretched(),
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
                "supported are default, linear, dynamic, yarn, llama3, longrope, clex",
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
