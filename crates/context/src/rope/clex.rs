//! CLEX (arXiv 2310.16450): frequencies that a small trained neural ODE carries from one length to the next.
//!
//! `t` is the length in windows. Starting at the plain frequencies at `t = 1`, the logarithms `z` of the frequencies follow
//! `dz_k/dt = [act(u U) D]_k - 2 κ_k / ((dim - 2) α)` with `α = 2t - 1`, `κ_k = 2k` and
//! `u_k = z_k - κ_k/dim ln β - κ_k/(dim - 2) ln α`. Without the trained part (`D = 0`) that is NTK scaling by `α`.
//! `β` is 10,000 whatever the model's base: the published layer has an argument for it that nothing sets
//! (`clex_layer.py` of DAMO-NLP-SG/CLEX). Solved by Runge-Kutta in its 3/8 form, as torchdiffeq's `rk4` does, in f64.

use super::{RopeConfig, RopeError, RopeScaling};
use std::fmt;
use std::sync::Arc;

/// The base inside the ODE.
const BETA: f64 = 10_000.0;

/// Most multiply-adds a solution may take: published models need up to 0.4 billion.
const MOST_WORK: f64 = 4e9;

/// What a checkpoint's configuration says of its CLEX layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ClexSettings {
    /// Windows the frequencies reach to.
    pub max_factor: usize,
    /// Hidden units of the ODE per rotated dimension.
    pub param_factor: usize,
    /// Its activation.
    pub activation: Activation,
    /// Step of the solver, in windows.
    pub time_dt: f64,
    /// Whether logits grow with the length.
    pub log_scale: LogScale,
}

/// Activation of the ODE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x / (1 + exp(-x))`, of the first checkpoints.
    Silu,
    /// Hyperbolic tangent.
    Tanh,
}

/// A factor on the logits of a context of `n` tokens, where `w` is the base window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogScale {
    /// None.
    Off,
    /// `max(1, ln n / ln w)`.
    Clipped,
    /// `ln n / ln w`, which flattens the attention of contexts shorter than the window.
    Published,
}

impl LogScale {
    /// The factor.
    pub(super) fn factor(self, n: usize, window: usize) -> f32 {
        let ratio = (n as f64).ln() / (window as f64).ln();
        match self {
            // A window of one token has no logarithm to divide by.
            _ if n == 0 || window < 2 => 1.0,
            Self::Off => 1.0,
            Self::Clipped => ratio.max(1.0) as f32,
            Self::Published => ratio as f32,
        }
    }
}

/// CLEX's frequencies of one model.
#[derive(Clone, PartialEq)]
pub struct Clex {
    settings: ClexSettings,
    /// Frequencies `[dim / 2]` at `t = 1, 2, ..., max_factor`; none until the trained weights are known.
    by_t: Arc<[Vec<f32>]>,
}

impl fmt::Debug for Clex {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        // The settings say it all; hundreds of frequencies would bury them.
        self.settings.fmt(f)
    }
}

impl Clex {
    /// A layer whose trained weights are not known yet: [`RopeConfig::with_clex_weights`] solves it.
    pub fn unsolved(settings: ClexSettings) -> Self {
        Self { settings, by_t: Arc::new([]) }
    }

    /// What the configuration says.
    pub fn settings(&self) -> &ClexSettings {
        &self.settings
    }

    /// The same with another scale of logits, which needs no training.
    pub(super) fn with_log_scale(&self, log_scale: LogScale) -> Self {
        Self { settings: ClexSettings { log_scale, ..self.settings }, by_t: Arc::clone(&self.by_t) }
    }

    /// Length in windows, rounded up, of `n` positions: what their frequencies are solved for.
    ///
    /// # Errors
    /// When the solution does not reach that far.
    pub fn t(&self, n: usize, window: usize) -> Result<usize, RopeError> {
        let t = n.div_ceil(window).max(1);
        if t > self.settings.max_factor {
            let max_factor = self.settings.max_factor;
            return Err(RopeError::TooLong { positions: n, reach: window * max_factor, window, max_factor });
        }
        Ok(t)
    }

    /// Frequencies `[dim / 2]` at `t`, from 1.
    ///
    /// # Errors
    /// When the trained weights are not known.
    pub fn at(&self, t: usize) -> Result<&[f32], RopeError> {
        t.checked_sub(1).and_then(|i| self.by_t.get(i)).map(Vec::as_slice).ok_or(RopeError::Unsolved)
    }

    /// Checks the settings for `dim` rotated dimensions.
    pub(super) fn validate(&self, dim: usize) -> Result<(), RopeError> {
        let ClexSettings { max_factor, param_factor, time_dt, .. } = self.settings;
        let check = |name, value: f64, ok: bool, expected| {
            if ok { Ok(()) } else { Err(RopeError::OutOfRange { name, value, expected }) }
        };
        check("dim", dim as f64, dim > 2, "above 2 for CLEX")?;
        check("max_factor", max_factor as f64, (1..=1 << 20).contains(&max_factor), "from 1 to 1048576")?;
        check("param_factor", param_factor as f64, (1..=1 << 10).contains(&param_factor), "from 1 to 1024")?;
        check("time_dt", time_dt, time_dt > 0.0 && time_dt <= 1.0, "above 0 and at most 1")?;
        let steps = (max_factor - 1) as f64 / time_dt;
        let work = 4.0 * steps * (dim * dim * param_factor) as f64;
        check(
            "time_dt",
            time_dt,
            work <= MOST_WORK,
            "large enough to solve the ODE up to max_factor in seconds",
        )
    }
}

impl RopeConfig {
    /// The same with its CLEX layer solved: `up: [dim / 2, param_factor · dim]` and `down: [param_factor · dim, dim / 2]` are
    /// the trained weights (`ode_up_proj`, `ode_down_proj`). Other scalings are left as they are.
    ///
    /// # Errors
    /// When the weights have another size, are no numbers, or lead to frequencies that are none.
    pub fn with_clex_weights(&self, up: &[f32], down: &[f32]) -> Result<Self, RopeError> {
        self.validate()?;
        let RopeScaling::Clex(clex) = &self.scaling else { return Ok(self.clone()) };
        let settings = clex.settings;
        let elements = self.dim / 2 * self.dim * settings.param_factor;
        for (name, weights) in [("ode_up_proj", up), ("ode_down_proj", down)] {
            if weights.len() != elements {
                let expected = "[dim / 2, param_factor · dim] or its reverse";
                return Err(RopeError::OutOfRange { name, value: weights.len() as f64, expected });
            }
            if let Some(bad) = weights.iter().find(|w| !w.is_finite()) {
                return Err(RopeError::OutOfRange {
                    name,
                    value: f64::from(*bad),
                    expected: "made of numbers",
                });
            }
        }
        let wide = |weights: &[f32]| weights.iter().map(|&w| f64::from(w)).collect();
        let ode = Ode { dim: self.dim, activation: settings.activation, up: wide(up), down: wide(down) };
        let plain: Vec<f64> =
            (0..self.dim / 2).map(|k| -2.0 * k as f64 / self.dim as f64 * self.theta.ln()).collect();
        let by_t: Arc<[Vec<f32>]> = solve(&ode, plain, settings.max_factor, settings.time_dt)
            .into_iter()
            .map(|z| z.into_iter().map(|z| z.exp() as f32).collect())
            .collect();
        if let Some(bad) = by_t.iter().flatten().find(|f| !(f.is_finite() && **f > 0.0)) {
            let expected = "a positive number; the trained weights of its ODE are damaged";
            return Err(RopeError::OutOfRange { name: "CLEX frequency", value: f64::from(*bad), expected });
        }
        Ok(Self { scaling: RopeScaling::Clex(Clex { settings, by_t }), ..self.clone() })
    }
}

/// The right-hand side.
struct Ode {
    dim: usize,
    activation: Activation,
    /// `[dim / 2, hidden]`
    up: Vec<f64>,
    /// `[hidden, dim / 2]`
    down: Vec<f64>,
}

impl Ode {
    /// `dz/dt` at `t` and `z: [dim / 2]`.
    fn slope(&self, t: f64, z: &[f64]) -> Vec<f64> {
        let (pairs, dim, alpha) = (z.len(), self.dim as f64, (2.0 * t - 1.0).max(1.0));
        let mut hidden = vec![0.0; self.up.len() / pairs];
        for (k, (z, row)) in z.iter().zip(self.up.chunks_exact(hidden.len())).enumerate() {
            let kappa = 2.0 * k as f64;
            let u = z - kappa / dim * BETA.ln() - kappa / (dim - 2.0) * alpha.ln();
            hidden.iter_mut().zip(row).for_each(|(h, w)| *h += u * w);
        }
        for h in &mut hidden {
            *h = match self.activation {
                Activation::Silu => *h / (1.0 + (-*h).exp()),
                Activation::Tanh => h.tanh(),
            };
        }
        let mut slope: Vec<f64> = (0..pairs).map(|k| -4.0 * k as f64 / ((dim - 2.0) * alpha)).collect();
        for (h, row) in hidden.iter().zip(self.down.chunks_exact(pairs)) {
            slope.iter_mut().zip(row).for_each(|(s, w)| *s += h * w);
        }
        slope
    }

    /// `z` after a step of `dt` from `t`, by the 3/8 rule.
    fn step(&self, t: f64, dt: f64, z: &[f64]) -> Vec<f64> {
        let add = |slope: &dyn Fn(usize) -> f64| -> Vec<f64> {
            (0..z.len()).map(|i| z[i] + dt * slope(i)).collect()
        };
        let a = self.slope(t, z);
        let b = self.slope(t + dt / 3.0, &add(&|i| a[i] / 3.0));
        let c = self.slope(t + dt * 2.0 / 3.0, &add(&|i| b[i] - a[i] / 3.0));
        let d = self.slope(t + dt, &add(&|i| a[i] - b[i] + c[i]));
        add(&|i| (a[i] + 3.0 * (b[i] + c[i]) + d[i]) / 8.0)
    }
}

/// The solution at `t = 1, 2, ..., last`, by steps of `dt` from 1 on; where a step leaps over a whole `t`, by a straight line
/// between its ends, as torchdiffeq has it.
fn solve(ode: &Ode, mut z: Vec<f64>, last: usize, dt: f64) -> Vec<Vec<f64>> {
    let end = last as f64;
    let mut solution = vec![z.clone()];
    let (mut i, mut t) = (0usize, 1.0);
    while solution.len() < last {
        i += 1;
        // Sums of a rounded step would drift; a grid point that should be whole must not miss it by rounding.
        let grid = 1.0 + i as f64 * dt;
        let next = if (grid - grid.round()).abs() < 1e-9 { grid.round() } else { grid }.min(end);
        let after = ode.step(t, next - t, &z);
        while solution.len() < last && next >= (solution.len() + 1) as f64 {
            let part = ((solution.len() + 1) as f64 - t) / (next - t);
            solution.push(z.iter().zip(&after).map(|(a, b)| a + part * (b - a)).collect());
        }
        (t, z) = (next, after);
    }
    solution
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(theta: f64, dim: usize, settings: ClexSettings) -> RopeConfig {
        RopeConfig { theta, dim, window: 100, scaling: RopeScaling::Clex(Clex::unsolved(settings)) }
    }

    fn settings(activation: Activation) -> ClexSettings {
        ClexSettings { max_factor: 4, param_factor: 1, activation, time_dt: 0.01, log_scale: LogScale::Off }
    }

    fn assert_close(got: &[f32], want: &[f64]) {
        for (got, want) in got.iter().zip(want) {
            assert!((f64::from(*got) - want).abs() <= 1e-6 * want, "{got} instead of {want}");
        }
        assert_eq!(got.len(), want.len());
    }

    /// Without a trained part CLEX is NTK scaling by `2t - 1`, and so dynamic NTK of factor 2 at whole windows.
    #[test]
    fn without_its_trained_part_it_is_dynamic_ntk() {
        let clex =
            config(1e4, 8, settings(Activation::Tanh)).with_clex_weights(&[0.3; 32], &[0.0; 32]).unwrap();
        let ntk = RopeConfig { scaling: RopeScaling::DynamicNtk { factor: 2.0 }, ..clex.clone() };
        for n in [1, 100, 200, 300, 400] {
            let want: Vec<f64> = ntk.frequencies(n).unwrap().0.into_iter().map(f64::from).collect();
            assert_close(&clex.frequencies(n).unwrap().0, &want);
        }
        assert_close(&clex.frequencies(151).unwrap().0, &[1.0, 0.0693361274, 0.00480749857, 0.000333333333]);
        assert_close(&clex.frequencies(400).unwrap().0, &[1.0, 0.0522757959, 0.00273275883, 0.000142857143]);
    }

    /// Computed by hand from the formulas (f64, steps of 0.01).
    #[test]
    fn the_ode_gives_the_frequencies_computed_by_hand() {
        let up: Vec<f32> = (0..32).map(|i| 0.01 * (i % 7 - 3) as f32).collect();
        let down: Vec<f32> = (0..32).map(|i| 0.02 * (i % 5 - 2) as f32).collect();
        let at = |theta, activation, n| {
            let solved = config(theta, 8, settings(activation)).with_clex_weights(&up, &down).unwrap();
            solved.frequencies(n).unwrap().0
        };
        use Activation::{Silu, Tanh};
        assert_close(&at(1e4, Tanh, 200), &[0.985167488, 0.0661838233, 0.00469668514, 0.000347756752]);
        assert_close(&at(1e4, Tanh, 400), &[0.953207222, 0.0450560433, 0.00253676751, 0.000163452164]);
        assert_close(&at(1e4, Silu, 200), &[0.993648619, 0.0676179093, 0.00474951027, 0.000339762271]);
        assert_close(&at(1e6, Tanh, 200), &[0.981872055, 0.0207600305, 0.000468058703, 1.10771485e-05]);
        assert_eq!(
            at(1e4, Tanh, 100),
            RopeConfig { scaling: RopeScaling::None, ..config(1e4, 8, settings(Tanh)) }
                .frequencies(1)
                .unwrap()
                .0
        );
    }

    /// A step that does not divide 1 leaps over whole `t`: straight lines between its ends, and a last step cut short.
    #[test]
    fn steps_that_leap_over_whole_lengths_are_interpolated() {
        let ode = Ode { dim: 8, activation: Activation::Tanh, up: vec![0.0; 32], down: vec![0.0; 32] };
        let log_ntk = |t: f64, k: usize| -2.0 * k as f64 / 6.0 * (2.0 * t - 1.0).ln();
        let solution = solve(&ode, vec![0.0; 4], 3, 0.3);
        for (k, z) in solution[1].iter().enumerate() {
            let line = log_ntk(1.9, k) + (log_ntk(2.2, k) - log_ntk(1.9, k)) / 3.0;
            assert!((z - line).abs() < 1e-3, "frequency {k}: {z} instead of {line}");
            assert!((solution[2][k] - log_ntk(3.0, k)).abs() < 1e-3);
        }
        // One step over the whole way.
        assert_eq!(solve(&ode, vec![0.0; 4], 2, 1.0).len(), 2);
        assert_eq!(solve(&ode, vec![0.0; 4], 1, 0.1).len(), 1);
    }

    #[test]
    fn beyond_its_reach_and_before_it_is_solved_it_is_refused() {
        let unsolved = config(1e4, 8, settings(Activation::Silu));
        assert_eq!(unsolved.frequencies(1), Err(RopeError::Unsolved));
        let solved = unsolved.with_clex_weights(&[0.1; 32], &[0.01; 32]).unwrap();
        assert!(solved.frequencies(400).is_ok());
        let error = solved.frequencies(401).unwrap_err();
        assert!(error.to_string().contains("400") && error.to_string().contains("401"), "{error}");
        assert_eq!((solved.reach(), unsolved.window), (400, 100));
    }

    #[test]
    fn damaged_weights_and_absurd_settings_are_refused() {
        let good = settings(Activation::Silu);
        let refused = |settings, up: &[f32], down: &[f32], culprit: &str| {
            let error = config(1e4, 8, settings).with_clex_weights(up, down).unwrap_err().to_string();
            assert!(error.contains(culprit), "{error}");
        };
        refused(good, &[0.1; 31], &[0.1; 32], "ode_up_proj");
        refused(good, &[0.1; 32], &[f32::NAN; 32], "ode_down_proj");
        refused(good, &[0.1; 32], &[f32::INFINITY; 32], "ode_down_proj");
        refused(good, &[-1e30; 32], &[1e30; 32], "CLEX frequency");
        refused(ClexSettings { max_factor: 0, ..good }, &[0.1; 32], &[0.1; 32], "max_factor");
        refused(
            ClexSettings { max_factor: 1 << 20, time_dt: 1e-9, ..good },
            &[0.1; 32],
            &[0.1; 32],
            "time_dt",
        );
        refused(ClexSettings { time_dt: f64::NAN, ..good }, &[0.1; 32], &[0.1; 32], "time_dt");
        refused(ClexSettings { param_factor: 0, ..good }, &[], &[], "param_factor");
    }

    #[test]
    fn logits_grow_with_the_logarithm_of_the_length() {
        let factor = |scale: LogScale, n| scale.factor(n, 64);
        assert_eq!(
            [factor(LogScale::Off, 300), factor(LogScale::Clipped, 64), factor(LogScale::Clipped, 8)],
            [1.0; 3]
        );
        assert!((factor(LogScale::Clipped, 4096) - 2.0).abs() < 1e-6);
        assert!((factor(LogScale::Published, 8) - 0.5).abs() < 1e-6);
        assert_eq!(LogScale::Published.factor(5, 1), 1.0);
    }
}
