use crate::settings::ParamSpec;

/// A source of frequencies as `reattn methods` shows it.
#[derive(Debug)]
pub struct RopeSpec {
    /// Its name for `--rope`.
    pub name: &'static str,
    /// Where it comes from.
    pub paper: &'static str,
    /// What it does, in one line.
    pub summary: &'static str,
    /// Models and lengths it suits.
    pub suits: &'static str,
    /// Its parameters.
    pub params: &'static [ParamSpec],
}

/// Every source.
pub fn specs() -> impl Iterator<Item = &'static RopeSpec> {
    SPECS.iter()
}

const fn factor(default: &'static str) -> ParamSpec {
    ParamSpec {
        name: "factor",
        default,
        range: "a number of at least 1",
        doc: "how far the window is stretched",
    }
}

const ORIGINAL: ParamSpec = ParamSpec {
    name: "original",
    default: "the model's window",
    range: "an integer of at least 1",
    doc: "positions before the stretch",
};

const SPECS: &[RopeSpec] = &[
    RopeSpec {
        name: "none",
        paper: "RoFormer (arXiv 2104.09864)",
        summary: "plain frequencies, whatever the model's configuration says",
        suits: "models without a scaling of their own",
        params: &[],
    },
    RopeSpec {
        name: "linear",
        paper: "Position Interpolation (arXiv 2306.15595)",
        summary: "every position divided by the factor",
        suits: "models fine-tuned with it; blurs neighbours in others",
        params: &[factor("4")],
    },
    RopeSpec {
        name: "ntk",
        paper: "NTK-aware scaling (as in arXiv 2309.00071, section 3.1)",
        summary: "a larger base, the same at every length: low frequencies stretched, high ones nearly kept",
        suits: "all models, one length known in advance",
        params: &[factor("4")],
    },
    RopeSpec {
        name: "dynamic",
        paper: "dynamic NTK scaling (as in arXiv 2309.00071, section 3.3)",
        summary: "plain up to the window, beyond it NTK-aware scaling that follows the positions in use",
        suits: "all models, lengths not known in advance",
        params: &[factor("4")],
    },
    RopeSpec {
        name: "yarn",
        paper: "YaRN (arXiv 2309.00071)",
        summary: "high frequencies kept, low ones divided by the factor, attention sharpened",
        suits: "all models, two to four times their window; those trained with it further",
        params: &[
            factor("4"),
            ORIGINAL,
            ParamSpec {
                name: "beta_fast",
                default: "32",
                range: "a number above beta_slow",
                doc: "turns within the original window above which a frequency is kept",
            },
            ParamSpec {
                name: "beta_slow",
                default: "1",
                range: "a number above 0",
                doc: "turns below which it is divided by the whole factor",
            },
            ParamSpec {
                name: "attention_factor",
                default: "0.1 ln(factor) + 1",
                range: "a number above 0",
                doc: "factor on cosine and sine",
            },
        ],
    },
    RopeSpec {
        name: "llama3",
        paper: "The Llama 3 Herd of Models (arXiv 2407.21783)",
        summary: "short wavelengths kept, long ones stretched by the factor, smoothly between",
        suits: "Llama 3.1 and later, whose configurations bring it",
        params: &[
            factor("8"),
            ORIGINAL,
            ParamSpec {
                name: "low_freq_factor",
                default: "1",
                range: "a number above 0",
                doc: "wavelengths above original / low_freq_factor are stretched by the whole factor",
            },
            ParamSpec {
                name: "high_freq_factor",
                default: "4",
                range: "a number above low_freq_factor",
                doc: "wavelengths below original / high_freq_factor are kept",
            },
        ],
    },
    RopeSpec {
        name: "longrope",
        paper: "LongRoPE (arXiv 2402.13753)",
        summary: "every frequency divided by a number of its own, of one list within the original window and of another beyond",
        suits: "LongRoPE checkpoints (Phi-3 and Phi-4-mini), whose configurations bring both lists",
        params: &[],
    },
    RopeSpec {
        name: "clex",
        paper: "CLEX: Continuous Length Extrapolation for Large Language Models (arXiv 2310.16450)",
        summary: "a trained ODE gives frequencies for every whole number of windows",
        suits: "CLEX checkpoints, which take no other",
        params: &[ParamSpec {
            name: "log_scale",
            default: "as the checkpoint says",
            range: "off, clipped or published",
            doc: "logits times ln n / ln window: not at all, at least 1, or as it comes out",
        }],
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rope::{RopeConfig, RopeScaling};

    /// What is listed is what `--rope` understands, parameters included, and nothing else is.
    #[test]
    fn the_list_is_what_is_understood() {
        let config = RopeConfig { theta: 1e4, dim: 64, window: 4096, scaling: RopeScaling::None };
        let unknown = config.with_spec("warp").unwrap_err().to_string();
        for spec in specs() {
            assert!(unknown.contains(spec.name), "{}: {unknown}", spec.name);
            if ["clex", "longrope"].contains(&spec.name) {
                continue;
            }
            for param in spec.params {
                let value = match param.name {
                    "original" => "2048",
                    "beta_slow" | "low_freq_factor" => "0.5",
                    _ => "7",
                };
                let text = format!("{}:{}={value}", spec.name, param.name);
                assert_ne!(config.with_spec(&text).unwrap(), config.with_spec(spec.name).unwrap(), "{text}");
            }
        }
    }
}
