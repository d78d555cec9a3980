//! How layers differ in their attention: which see only the last tokens, and which do not rotate.

use super::Fields;
use crate::family::Sliding;
use crate::{Family, ModelError};
use reattention::LayerAttention;
use serde_json::Value;

/// Reads them; `trained` is the model's window, which a sliding layer only narrows if it is smaller.
pub(super) fn parse(
    fields: &Fields,
    family: &Family,
    n_layers: usize,
    trained: usize,
) -> Result<Vec<LayerAttention>, ModelError> {
    let rotates = rotating(fields, family, n_layers)?;
    let sliding = sliding(fields, family, n_layers, &rotates)?;
    let size = match sliding.contains(&true) {
        true => fields.optional_size("sliding_window", 1 << 40)?.filter(|&size| size < trained),
        false => None,
    };
    let kind = |(slides, rotates)| LayerAttention { window: size.filter(|_| slides), rotates };
    Ok(sliding.into_iter().zip(rotates).map(kind).collect())
}

/// `no_rope_layers`, in which 0 stands for a layer that does not rotate, or every so many.
fn rotating(fields: &Fields, family: &Family, n_layers: usize) -> Result<Vec<bool>, ModelError> {
    if family.sliding != Sliding::Unrotated {
        return Ok(vec![true; n_layers]);
    }
    let Some(list) = fields.list("no_rope_layers")? else {
        let every = fields.optional_size("no_rope_layer_interval", 1 << 12)?;
        let every = every.ok_or_else(|| fields.error("no_rope_layer_interval", "must be a whole number"))?;
        return Ok((1..=n_layers).map(|layer| !layer.is_multiple_of(every)).collect());
    };
    if list.len() < n_layers {
        let reason = format!("has {} entries for {n_layers} layers", list.len());
        return Err(fields.error("no_rope_layers", reason));
    }
    let one = |value: &Value| match value.as_u64() {
        Some(0) => Ok(false),
        Some(1) => Ok(true),
        _ => Err(fields.error("no_rope_layers", "must hold 0 and 1")),
    };
    list[..n_layers].iter().map(one).collect()
}

/// Which layers slide.
fn sliding(
    fields: &Fields,
    family: &Family,
    n_layers: usize,
    rotates: &[bool],
) -> Result<Vec<bool>, ModelError> {
    let (never, all) = (vec![false; n_layers], vec![true; n_layers]);
    let is_used = fields.boolean("use_sliding_window")? == Some(true);
    let below = || match fields.value("max_window_layers").map(Value::as_u64) {
        Some(Some(n)) => Ok(n.min(n_layers as u64) as usize),
        Some(None) => Err(fields.error("max_window_layers", "must be a whole number")),
        None => Err(fields.error("max_window_layers", "is missing, but use_sliding_window is true")),
    };
    match family.sliding {
        Sliding::Never => return Ok(never),
        Sliding::All => return Ok(all),
        Sliding::AllIfUsed => return Ok(if is_used { all } else { never }),
        // The switch turns the list off too.
        Sliding::FromLayer | Sliding::EveryOtherBelow if !is_used => return Ok(never),
        _ => {}
    }
    if let Some(types) = fields.list("layer_types")? {
        return listed(fields, types, n_layers);
    }
    Ok(match family.sliding {
        Sliding::FromLayer => {
            let from = below()?;
            (0..n_layers).map(|layer| layer >= from).collect()
        }
        Sliding::EveryOtherBelow => {
            let below = below()?;
            (0..n_layers).map(|layer| layer % 2 == 0 && layer < below).collect()
        }
        Sliding::Unrotated => rotates.iter().map(|rotates| is_used && !rotates).collect(),
        Sliding::AllBut(every) => {
            let every = fields.optional_size("sliding_window_pattern", 1 << 12)?.unwrap_or(every);
            (1..=n_layers).map(|layer| !layer.is_multiple_of(every)).collect()
        }
        Sliding::Never | Sliding::All | Sliding::AllIfUsed => never,
    })
}

fn listed(fields: &Fields, types: &[Value], n_layers: usize) -> Result<Vec<bool>, ModelError> {
    if types.len() != n_layers {
        let reason = format!("has {} entries for {n_layers} layers", types.len());
        return Err(fields.error("layer_types", reason));
    }
    let one = |value: &Value| match value.as_str() {
        Some("sliding_attention") => Ok(true),
        Some("full_attention") => Ok(false),
        Some(other) => {
            let other: String = other.chars().take(80).collect();
            let what = format!("a layer of type `{other}` (layer_types)");
            let help = "layers may be full_attention or sliding_attention";
            Err(ModelError::unsupported(fields.file, what, help))
        }
        None => Err(fields.error("layer_types", "must hold names")),
    };
    types.iter().map(one).collect()
}
