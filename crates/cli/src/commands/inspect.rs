//! `reattn inspect`: what a model is and needs, from its headers alone.

use crate::common::{OutputArgs, print, print_json};
use crate::failure::{Blame, Failure};
use reattention::{KvDtype, Store};
use reattention_engine::{Package, available, human};
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;

/// Show what a model is and what it needs.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Hugging Face folder, GGUF file (of a model in parts the first), ORG/NAME or ORG/NAME:FILE in the Hugging Face cache; the built-in
    /// model if left out.
    #[arg(value_name = "MODEL")]
    model: Option<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode, Failure> {
    args.output.start();
    let package = match &args.model {
        Some(path) => Package::open(path).input()?,
        None => Package::built_in().input()?,
    };
    let (config, shape, weights) = (package.config(), package.shape(), package.weights());
    let per_token = |kv| Store::bytes_per_token(&shape, kv);
    let template = package.template().input()?.is_some();
    let fits =
        available().map(|a| a.saturating_sub(weights.bytes_resident as usize) / per_token(KvDtype::Bf16));
    if args.output.json {
        print_json(&json!({
            "model": package.name(),
            "family": shape.family,
            "layers": shape.n_layers,
            "hidden": config.hidden,
            "intermediate": config.intermediate,
            "heads": shape.n_heads,
            "kv_heads": shape.n_kv_heads,
            "head_dim": shape.head_dim,
            "vocab_size": config.vocab_size,
            "window": shape.window,
            "sliding_window": shape.widest_window(),
            "sliding_layers": shape.n_layers - shape.full_layers(),
            "rope": { "theta": shape.rope.theta, "scaling": format!("{:?}", shape.rope.scaling) },
            "tied_embeddings": config.tie_embeddings,
            "chat_template": template,
            "params": weights.params,
            "active_params": weights.active_params,
            "experts": config.experts.as_ref().map(|experts| json!({
                "count": experts.count,
                "per_token": experts.per_token,
                "intermediate": experts.intermediate,
                "shared_intermediate": experts.shared,
                "sparse_layers": experts.sparse.iter().filter(|sparse| **sparse).count(),
            })),
            "weight_bytes": weights.bytes_resident,
            "weight_bytes_by_type": weights.bytes_by_type,
            "kv_bytes_per_token": { "bf16": per_token(KvDtype::Bf16), "f32": per_token(KvDtype::F32) },
            "tokens_that_fit": fits,
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let types: Vec<String> =
        weights.bytes_by_type.iter().map(|(t, b)| format!("{t} {}", human(*b as usize))).collect();
    print(format_args!("{}", package.name()))?;
    print(format_args!(
        "  architecture   {}: {} layers, hidden {}, MLP {}",
        shape.family, shape.n_layers, config.hidden, config.intermediate
    ))?;
    print(format_args!(
        "  attention      {} query heads, {} KV heads, head_dim {}",
        shape.n_heads, shape.n_kv_heads, shape.head_dim
    ))?;
    print(format_args!(
        "  window         {} positions, rope theta {}, scaling {:?}",
        shape.window, shape.rope.theta, shape.rope.scaling
    ))?;
    if let Some(experts) = &config.experts {
        let shared =
            experts.shared.map_or(String::new(), |width| format!(", one of {width} for every token"));
        print(format_args!(
            "  experts        {} of {} a token, {} wide, in {} layers{shared}",
            experts.per_token,
            experts.count,
            experts.intermediate,
            experts.sparse.iter().filter(|sparse| **sparse).count()
        ))?;
    }
    if let Some(window) = shape.widest_window() {
        let sliding = shape.n_layers - shape.full_layers();
        print(format_args!("  sliding window {window} tokens in {sliding} of {} layers", shape.n_layers))?;
    }
    print(format_args!(
        "  vocabulary     {} tokens, {}",
        config.vocab_size,
        if template { "with chat template" } else { "no chat template" }
    ))?;
    print(format_args!(
        "  weights        {} parameters, {} ({})",
        match weights.active_params == weights.params {
            true => weights.params.to_string(),
            false => format!("{} ({} a token)", weights.params, weights.active_params),
        },
        human(weights.bytes_resident as usize),
        types.join(", ")
    ))?;
    print(format_args!(
        "  KV a token     {} in bf16, {} in f32",
        human(per_token(KvDtype::Bf16)),
        human(per_token(KvDtype::F32))
    ))?;
    if let (Some(fits), Some(available)) = (fits, available()) {
        print(format_args!(
            "  context        about {fits} tokens fit the {} available here (bf16)",
            human(available)
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}
