use super::{Clex, LogScale};
use std::f64::consts::PI;
use std::sync::Arc;

/// Rotary embedding of a model: base, rotated dimensions, trained window and scaling.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// Base θ; frequency `i` is `θ^(-2i / dim)`.
    pub theta: f64,
    /// Rotated dimensions of a head; even.
    pub dim: usize,
    /// Positions the model is configured for (`max_position_embeddings`).
    pub window: usize,
    /// How the frequencies are changed.
    pub scaling: RopeScaling,
}

/// Changes to the plain frequencies.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// None: plain RoPE.
    None,
    /// Position interpolation: every frequency divided by `factor`.
    Linear {
        /// Stretch.
        factor: f64,
    },
    /// NTK-aware: the base grows by `factor^(dim / (dim - 2))`, at every length.
    Ntk {
        /// Stretch.
        factor: f64,
    },
    /// NTK whose base follows the current length once it exceeds the window.
    DynamicNtk {
        /// Stretch per window.
        factor: f64,
    },
    /// YaRN (arXiv 2309.00071): high frequencies kept, low ones interpolated, and cosine and sine scaled.
    Yarn {
        /// Stretch.
        factor: f64,
        /// Window before stretching.
        original_window: usize,
        /// Rotations within the original window above which a frequency is kept (32).
        beta_fast: f64,
        /// Rotations below which it is fully interpolated (1).
        beta_slow: f64,
        /// Factor on cosine and sine; `None` is `0.1 ln(factor) + 1`.
        attention_factor: Option<f64>,
        /// Both ends of the ramp between kept and interpolated frequencies are whole numbers; gpt-oss has `truncate: false`.
        truncate: bool,
    },
    /// LongRoPE (arXiv 2402.13753): every frequency divided by a number of its own, of one list up to the original window
    /// and of another beyond it.
    LongRope {
        /// Divisors up to `original_window` positions, `[dim / 2]`.
        short: Arc<[f32]>,
        /// Divisors beyond, `[dim / 2]`.
        long: Arc<[f32]>,
        /// Window before stretching.
        original_window: usize,
        /// Factor on cosine and sine.
        attention_factor: f64,
    },
    /// Llama 3.1's smoothed interpolation.
    Llama3 {
        /// Stretch of the low frequencies.
        factor: f64,
        /// Wavelengths above `original_window / low_freq_factor` are fully stretched.
        low_freq_factor: f64,
        /// Wavelengths below `original_window / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Window before stretching.
        original_window: usize,
    },
    /// Every frequency divided by its own number, `[dim / 2]`: Llama 3.1's scaling as GGUF files store it.
    Divisors(Arc<[f32]>),
    /// CLEX (arXiv 2310.16450): the trained ODE of the checkpoint gives frequencies for every whole number of windows.
    Clex(Clex),
}

/// A rotary configuration that makes no sense.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RopeError {
    /// A number is out of range.
    #[error("rope {name} is {value}; it must be {expected}")]
    OutOfRange {
        /// The field.
        name: &'static str,
        /// Its value.
        value: f64,
        /// What is allowed.
        expected: &'static str,
    },
    /// The name of the scaling is not known.
    #[error("unknown rope scaling `{0}`; known are none, linear, ntk, dynamic, yarn, llama3, longrope, clex")]
    Unknown(String),
    /// A `name:key=value,...` specification could not be read.
    #[error("rope `{spec}`: {reason}")]
    Spec {
        /// The specification.
        spec: String,
        /// What is wrong with it.
        reason: String,
    },
    /// More positions than CLEX's solution covers.
    #[error(
        "{positions} positions are more than the {reach} that this model's CLEX frequencies reach ({max_factor} windows of {window}); shorten the text, or choose a method that needs fewer positions, such as reattention"
    )]
    TooLong {
        /// Positions asked for.
        positions: usize,
        /// Positions there are frequencies for.
        reach: usize,
        /// The base window.
        window: usize,
        /// Windows reached.
        max_factor: usize,
    },
    /// A CLEX layer whose trained weights nobody has given.
    #[error("the trained weights of this model's CLEX layer were not read, so its frequencies are not known")]
    Unsolved,
}

impl RopeConfig {
    /// Checks every number.
    ///
    /// # Errors
    /// Names the first field out of range.
    pub fn validate(&self) -> Result<(), RopeError> {
        let check = |name, value: f64, ok: bool, expected| {
            if ok && value.is_finite() {
                Ok(())
            } else {
                Err(RopeError::OutOfRange { name, value, expected })
            }
        };
        check("theta", self.theta, self.theta > 1.0, "above 1")?;
        check("dim", self.dim as f64, self.dim >= 2 && self.dim.is_multiple_of(2), "even and at least 2")?;
        check("window", self.window as f64, self.window > 0, "at least 1")?;
        let factor = |f: f64| check("factor", f, f >= 1.0, "at least 1");
        match self.scaling {
            RopeScaling::None => Ok(()),
            RopeScaling::Linear { factor: f } => factor(f),
            RopeScaling::Ntk { factor: f } | RopeScaling::DynamicNtk { factor: f } => {
                check("dim", self.dim as f64, self.dim > 2, "above 2 for NTK scaling")?;
                factor(f)
            }
            RopeScaling::Yarn {
                factor: f, original_window, beta_fast, beta_slow, attention_factor, ..
            } => {
                factor(f)?;
                check("original window", original_window as f64, original_window > 0, "at least 1")?;
                check("beta_fast", beta_fast, beta_fast > beta_slow, "above beta_slow")?;
                check("beta_slow", beta_slow, beta_slow > 0.0, "above 0")?;
                let a = attention_factor.unwrap_or(1.0);
                check("attention_factor", a, a > 0.0, "above 0")
            }
            RopeScaling::Llama3 {
                factor: f,
                low_freq_factor: low,
                high_freq_factor: high,
                original_window,
            } => {
                factor(f)?;
                check("low_freq_factor", low, low > 0.0, "above 0")?;
                check("high_freq_factor", high, high > low, "above low_freq_factor")?;
                check("original window", original_window as f64, original_window > 0, "at least 1")
            }
            RopeScaling::LongRope { ref short, ref long, original_window, attention_factor } => {
                for (name, divisors) in [("short_factor", short), ("long_factor", long)] {
                    let n = divisors.len();
                    check(name, n as f64, n == self.dim / 2, "a list of one number a frequency")?;
                    divisors.iter().try_for_each(|&d| check(name, d.into(), d > 0.0, "above 0"))?;
                }
                check("original window", original_window as f64, original_window > 0, "at least 1")?;
                check("attention_factor", attention_factor, attention_factor > 0.0, "above 0")
            }
            RopeScaling::Divisors(ref divisors) => {
                check("divisors", divisors.len() as f64, divisors.len() == self.dim / 2, "one a frequency")?;
                divisors.iter().try_for_each(|&d| check("divisor", d.into(), d > 0.0, "above 0"))
            }
            RopeScaling::Clex(ref clex) => clex.validate(self.dim),
        }
    }

    /// Whether the frequencies depend on the length of the context.
    pub fn changes_with_length(&self) -> bool {
        matches!(
            self.scaling,
            RopeScaling::DynamicNtk { .. } | RopeScaling::LongRope { .. } | RopeScaling::Clex(_)
        )
    }

    /// Positions the model was trained to use: its window, or what CLEX's solution covers.
    pub fn reach(&self) -> usize {
        match &self.scaling {
            RopeScaling::Clex(clex) => self.window.saturating_mul(clex.settings().max_factor),
            _ => self.window,
        }
    }

    /// A number that `n` positions share with all others that have the same frequencies.
    ///
    /// # Errors
    /// As [`RopeConfig::frequencies`].
    pub(super) fn stage(&self, n: usize) -> Result<usize, RopeError> {
        match &self.scaling {
            RopeScaling::DynamicNtk { .. } => Ok(n.max(self.window)),
            RopeScaling::LongRope { original_window, .. } => Ok(usize::from(n > *original_window)),
            RopeScaling::Clex(clex) => clex.t(n, self.window),
            _ => Ok(0),
        }
    }

    /// The factor on the logits of a context of `n` tokens: 1 but for CLEX's logarithmic scale.
    pub fn logit_factor(&self, n: usize) -> f32 {
        match &self.scaling {
            RopeScaling::Clex(clex) => clex.settings().log_scale.factor(n, self.window),
            _ => 1.0,
        }
    }

    /// Distances these frequencies are made for: the window, stretched by the factor. A longer text needs a method that keeps
    /// its distances below this.
    pub fn stretched_window(&self) -> usize {
        let by = |window: usize, factor: f64| self.window.max((window as f64 * factor) as usize);
        match self.scaling {
            RopeScaling::Linear { factor } | RopeScaling::Ntk { factor } => by(self.window, factor),
            RopeScaling::Yarn { factor, original_window, .. } => by(original_window, factor),
            // Its frequencies follow the length.
            RopeScaling::DynamicNtk { .. } => usize::MAX,
            RopeScaling::Clex(_) => self.reach(),
            // Configurations count the stretch of these in their window.
            RopeScaling::None
            | RopeScaling::Llama3 { .. }
            | RopeScaling::LongRope { .. }
            | RopeScaling::Divisors(_) => self.window,
        }
    }

    /// Frequencies `[dim / 2]` and the factor on cosine and sine for a context of `n` tokens.
    ///
    /// # Errors
    /// Under CLEX, when `n` is beyond its reach or its trained weights are not known.
    pub fn frequencies(&self, n: usize) -> Result<(Vec<f32>, f32), RopeError> {
        let plain =
            |theta: f64| (0..self.dim / 2).map(move |i| theta.powf(-2.0 * i as f64 / self.dim as f64));
        let dim = self.dim as f64;
        let stretched = |by: f64| self.theta * by.powf(dim / (dim - 2.0));
        let narrow = |f: &mut dyn Iterator<Item = f64>| f.map(|x| x as f32).collect::<Vec<f32>>();
        Ok(match self.scaling {
            RopeScaling::None => (narrow(&mut plain(self.theta)), 1.0),
            RopeScaling::Linear { factor } => (narrow(&mut plain(self.theta).map(|f| f / factor)), 1.0),
            RopeScaling::Ntk { factor } => (narrow(&mut plain(stretched(factor))), 1.0),
            RopeScaling::DynamicNtk { factor } => {
                let ratio = n.max(self.window) as f64 / self.window as f64;
                (narrow(&mut plain(stretched(factor * ratio - (factor - 1.0)))), 1.0)
            }
            RopeScaling::Yarn {
                factor,
                original_window,
                beta_fast,
                beta_slow,
                attention_factor,
                truncate,
            } => {
                let turns =
                    |t: f64| dim * (original_window as f64 / (t * 2.0 * PI)).ln() / (2.0 * self.theta.ln());
                let (low, high) = (turns(beta_fast), turns(beta_slow));
                let (low, high) = if truncate { (low.floor(), high.ceil()) } else { (low, high) };
                let (low, mut high) = (low.max(0.0), high.min(dim - 1.0));
                if high == low {
                    high += 0.001;
                }
                let mut frequencies = plain(self.theta).enumerate().map(|(i, f)| {
                    let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                    f * (1.0 - ramp) + f / factor * ramp
                });
                let attention = attention_factor.unwrap_or(0.1 * factor.ln() + 1.0);
                (narrow(&mut frequencies), attention as f32)
            }
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_window } => {
                let old = original_window as f64;
                let mut frequencies = plain(self.theta).map(|f| {
                    let wavelength = 2.0 * PI / f;
                    if wavelength < old / high_freq_factor {
                        f
                    } else if wavelength > old / low_freq_factor {
                        f / factor
                    } else {
                        let smooth =
                            (old / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                        (1.0 - smooth) * f / factor + smooth * f
                    }
                });
                (narrow(&mut frequencies), 1.0)
            }
            RopeScaling::LongRope { ref short, ref long, original_window, attention_factor } => {
                let divisors = if n > original_window { long } else { short };
                let mut frequencies = plain(self.theta).zip(divisors.iter()).map(|(f, &d)| f / f64::from(d));
                (narrow(&mut frequencies), attention_factor as f32)
            }
            RopeScaling::Divisors(ref divisors) => {
                let mut frequencies = plain(self.theta).zip(divisors.iter()).map(|(f, &d)| f / f64::from(d));
                (narrow(&mut frequencies), 1.0)
            }
            RopeScaling::Clex(ref clex) => (clex.at(clex.t(n, self.window)?)?.to_vec(), 1.0),
        })
    }

    /// The same model with another scaling, from `NAME[:key=value,...]` as the command line has it, for instance
    /// `yarn:factor=4` or `linear:factor=2`. `factor` defaults to 4 (8 for `llama3`), `original` to the model's window.
    ///
    /// `clex` needs trained weights: only a CLEX model has it, and no other frequencies suit such a model. There it may set
    /// `log_scale=off`, `clipped` or `published`.
    ///
    /// # Errors
    /// When the name or a key is not known, a number is out of range, or the source does not suit the model.
    pub fn with_spec(&self, spec: &str) -> Result<Self, RopeError> {
        let (name, rest) = spec.split_once(':').unwrap_or((spec, ""));
        if name == "clex" || matches!(self.scaling, RopeScaling::Clex(_)) {
            return self.with_clex_spec(spec, name, rest);
        }
        let mut numbers = Numbers { spec, pairs: Vec::new() };
        for pair in rest.split(',').filter(|p| !p.is_empty()) {
            let (key, value) =
                pair.split_once('=').ok_or_else(|| numbers.error(format!("`{pair}` is not key=value")))?;
            let value = value.parse().map_err(|_| numbers.error(format!("`{value}` is not a number")))?;
            numbers.pairs.push((key.to_string(), value));
        }
        let mut take = |key: &str, default: f64| numbers.take(key, default);
        let window = self.window as f64;
        let scaling = match name {
            "none" | "plain" | "default" => RopeScaling::None,
            "linear" => RopeScaling::Linear { factor: take("factor", 4.0) },
            "ntk" => RopeScaling::Ntk { factor: take("factor", 4.0) },
            "dynamic" => RopeScaling::DynamicNtk { factor: take("factor", 4.0) },
            "yarn" => RopeScaling::Yarn {
                factor: take("factor", 4.0),
                original_window: take("original", window) as usize,
                beta_fast: take("beta_fast", 32.0),
                beta_slow: take("beta_slow", 1.0),
                attention_factor: Some(take("attention_factor", f64::NAN)).filter(|a| !a.is_nan()),
                truncate: true,
            },
            "llama3" => RopeScaling::Llama3 {
                factor: take("factor", 8.0),
                low_freq_factor: take("low_freq_factor", 1.0),
                high_freq_factor: take("high_freq_factor", 4.0),
                original_window: take("original", window) as usize,
            },
            "longrope" => match &self.scaling {
                own @ RopeScaling::LongRope { .. } => own.clone(),
                _ => {
                    let reason = "LongRoPE needs the searched factors of a LongRoPE checkpoint, which this model does not have; yarn:factor=4 needs none";
                    return Err(numbers.error(reason.into()));
                }
            },
            other => return Err(RopeError::Unknown(other.to_string())),
        };
        if let Some((key, _)) = numbers.pairs.first() {
            return Err(numbers.error(format!("`{name}` has no parameter `{key}`")));
        }
        let config = Self { scaling, ..self.clone() };
        config.validate()?;
        Ok(config)
    }

    fn with_clex_spec(&self, spec: &str, name: &str, rest: &str) -> Result<Self, RopeError> {
        let refuse =
            |reason: &str| Err(RopeError::Spec { spec: spec.to_string(), reason: reason.to_string() });
        let RopeScaling::Clex(clex) = &self.scaling else {
            return refuse(
                "CLEX needs the trained weights of a CLEX checkpoint (model.clex_layer), which this model does not have; dynamic:factor=2 is what it is without them",
            );
        };
        if name != "clex" {
            return refuse(
                "this model was trained with the frequencies of its own CLEX layer and reads nothing with others; leave --rope out",
            );
        }
        let mut clex = clex.clone();
        for pair in rest.split(',').filter(|p| !p.is_empty()) {
            clex = clex.with_log_scale(match pair {
                "log_scale=off" => LogScale::Off,
                "log_scale=clipped" => LogScale::Clipped,
                "log_scale=published" => LogScale::Published,
                _ => return refuse("clex has one parameter, log_scale: off, clipped or published"),
            });
        }
        Ok(Self { scaling: RopeScaling::Clex(clex), ..self.clone() })
    }
}

struct Numbers<'a> {
    spec: &'a str,
    pairs: Vec<(String, f64)>,
}

impl Numbers<'_> {
    fn take(&mut self, key: &str, default: f64) -> f64 {
        match self.pairs.iter().position(|p| p.0 == key) {
            Some(i) => self.pairs.remove(i).1,
            None => default,
        }
    }

    fn error(&self, reason: String) -> RopeError {
        RopeError::Spec { spec: self.spec.to_string(), reason }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(dim: usize, theta: f64, window: usize, scaling: RopeScaling) -> RopeConfig {
        RopeConfig { theta, dim, window, scaling }
    }

    /// Spec `methods.md`, section 9: hand-computed YaRN frequencies.
    #[test]
    fn yarn_gives_the_published_frequencies() {
        let scaling = RopeScaling::Yarn {
            factor: 8.0,
            original_window: 4096,
            beta_fast: 32.0,
            beta_slow: 1.0,
            attention_factor: None,
            truncate: true,
        };
        let (f, multiplier) = config(128, 1e4, 32768, scaling).frequencies(1).unwrap();
        assert!((multiplier - 1.2079442).abs() < 1e-6);
        for (i, want) in [(0, 1.0), (20, 0.0562341), (30, 0.0088474), (40, 0.00103382), (63, 1.44348e-5)] {
            assert!((f[i] - want).abs() <= 1e-4 * want, "frequency {i}: {} instead of {want}", f[i]);
        }
    }

    /// The ends of the ramp as they are: at 20.9 and 46.1 instead of 20 and 47.
    #[test]
    fn yarn_without_truncation_rounds_no_end() {
        let yarn = |truncate| {
            let scaling = RopeScaling::Yarn {
                factor: 8.0,
                original_window: 4096,
                beta_fast: 32.0,
                beta_slow: 1.0,
                attention_factor: None,
                truncate,
            };
            config(128, 1e4, 32768, scaling).frequencies(1).unwrap().0
        };
        let (rounded, exact) = (yarn(true), yarn(false));
        let turns = |t: f64| 128.0 * (4096.0 / (t * 2.0 * PI)).ln() / (2.0 * 1e4f64.ln());
        let ramp = (30.0 - turns(32.0)) / (turns(1.0) - turns(32.0));
        let plain = 1e4f64.powf(-60.0 / 128.0);
        let want = plain * (1.0 - ramp) + plain / 8.0 * ramp;
        assert!((f64::from(exact[30]) - want).abs() < 1e-6 * want && exact[30] != rounded[30]);
    }

    #[test]
    fn longrope_changes_its_divisors_beyond_the_original_window() {
        let scaling = RopeScaling::LongRope {
            short: [1.0, 2.0].into(),
            long: [4.0, 8.0].into(),
            original_window: 100,
            attention_factor: 1.25,
        };
        let c = config(4, 1e4, 400, scaling);
        c.validate().unwrap();
        assert_eq!(c.frequencies(100).unwrap(), (vec![1.0, 0.005], 1.25));
        assert_eq!(c.frequencies(101).unwrap(), (vec![0.25, 0.00125], 1.25));
        assert!(c.changes_with_length() && c.stage(100).unwrap() != c.stage(101).unwrap());
        assert!(c.with_spec("longrope").unwrap() == c);
        assert!(config(4, 1e4, 400, RopeScaling::None).with_spec("longrope").is_err());
        assert!(config(6, 1e4, 400, c.scaling).validate().unwrap_err().to_string().contains("short_factor"));
    }

    /// Dynamic NTK is plain within the window and equals CLEX's `D = 0` solution beyond it (same section).
    #[test]
    fn dynamic_ntk_follows_the_length() {
        let c = config(8, 1e4, 100, RopeScaling::DynamicNtk { factor: 2.0 });
        assert_eq!(c.frequencies(100), config(8, 1e4, 100, RopeScaling::None).frequencies(1));
        let want = [1.0, 0.069_336_13, 0.004_807_499, 0.000_333_333_34];
        for (got, want) in c.frequencies(200).unwrap().0.iter().zip(want) {
            assert!((got - want).abs() < 1e-6 * want.max(1e-3), "{got} instead of {want}");
        }
        assert!(c.changes_with_length());
    }

    #[test]
    fn a_stretched_window_follows_the_factor() {
        let stretched =
            |spec: &str| config(8, 1e4, 1000, RopeScaling::None).with_spec(spec).unwrap().stretched_window();
        assert_eq!(stretched("none"), 1000);
        assert_eq!(stretched("linear:factor=2.5"), 2500);
        assert_eq!(stretched("yarn:factor=4"), 4000);
        assert_eq!(stretched("yarn:factor=4,original=200"), 1000);
        assert_eq!(stretched("dynamic"), usize::MAX);
    }

    #[test]
    fn specifications_are_read_and_refused() {
        let c = config(64, 1e4, 4096, RopeScaling::None);
        assert_eq!(c.with_spec("linear:factor=2").unwrap().scaling, RopeScaling::Linear { factor: 2.0 });
        assert!(matches!(
            c.with_spec("yarn").unwrap().scaling,
            RopeScaling::Yarn { original_window: 4096, .. }
        ));
        for bad in
            ["warp", "linear:factor=0.5", "linear:speed=2", "yarn:factor", "yarn:factor=x", "ntk:factor=nan"]
        {
            assert!(c.with_spec(bad).is_err(), "{bad} was accepted");
        }
    }
}
