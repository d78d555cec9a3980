//! A cache made up for measurements: as deep as wanted, without the hours a model would take to read that far.

use crate::draws::Draws;
use crate::session::{Session, SessionError};
use reattention::MethodError;
use reattention::methods::{Step, StepKind};
use reattention_kernels::{DeviceError, DeviceType};
use std::f64::consts::TAU;
use std::sync::Arc;

/// Tokens that are imitated: the last ones read.
const IMITATED: usize = 1024;

impl Session {
    /// Makes the context `ids.len()` tokens longer without reading them, to measure speed at a depth. What it answers
    /// afterwards means nothing.
    ///
    /// Keys and values are drawn around those of the last 1,024 tokens, with the same mean and covariance in every layer
    /// and head: `mean + cos(a) (x - mean) + sin(a) (y - mean)` for two of them and an angle, drawn for each token. The
    /// method sees the tokens in the steps of its own schedule, as if they were read, but is asked for no view.
    ///
    /// # Errors
    /// When `ids` holds unknown tokens, nothing was read that could be imitated, or the method would distil its cache.
    pub fn fill(&mut self, ids: &[u32], seed: u64) -> Result<(), SessionError> {
        self.check(ids)?;
        self.check_numbers()?;
        self.feed_pending()?;
        let start = self.ids.len();
        if start == 0 || self.context.kept() < start {
            return Err(SessionError::NothingToImitate);
        }
        let whole = Step { tokens: start..start + ids.len(), kind: StepKind::Prefill };
        if !matches!(self.context.catalyst(&whole), Ok(None)) {
            return Err(SessionError::CannotFill(self.method().spec().name));
        }
        let imitated = start.saturating_sub(IMITATED)..start;
        let width = self.model.shape().n_kv_heads * self.model.shape().head_dim;
        let models = (0..self.model.shape().n_layers)
            .map(|layer| {
                let sides = self.context.cached_rows(layer, imitated.clone())?;
                Ok(sides.map(|rows| Imitated::new(rows, width)))
            })
            .collect::<Result<Vec<_>, SessionError>>()?;
        let mut draws = Draws::new(seed);
        let steps = self.context.schedule(start..start + ids.len(), None);
        let mut mixtures = |step: &Step| -> Vec<Mixture> {
            step.tokens.clone().map(|_| Mixture::draw(&mut draws, imitated.len())).collect()
        };
        self.logits.clear();
        let filled = if self.context.device().is_some() {
            self.fill_on_device(ids, &models, &steps, &mut mixtures).map_err(MethodError::from)
        } else {
            self.fill_on_host(ids, &models, &steps, &mut mixtures)
        };
        // The steps that were finished stay: the session knows them as read.
        if let Err(error) = filled {
            self.context.abort();
            return Err(error.into());
        }
        Ok(())
    }

    /// Takes note of a step that was made up of `ids`, which begin at token `start`.
    fn note_filled(&mut self, ids: &[u32], start: usize, step: &Step) {
        let tokens = &ids[step.tokens.start - start..step.tokens.end - start];
        self.note(tokens, std::iter::repeat_n(None, tokens.len()));
    }
}

impl Session {
    fn fill_on_host(
        &mut self,
        ids: &[u32],
        models: &[[Imitated; 2]],
        steps: &[Step],
        mixtures: &mut dyn FnMut(&Step) -> Vec<Mixture>,
    ) -> Result<(), MethodError> {
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        let start = steps.first().map_or(0, |step| step.tokens.start);
        for step in steps {
            let mixtures = mixtures(step);
            self.context.begin(step);
            for (layer, [key, value]) in models.iter().enumerate() {
                key.mix(&mixtures, &mut keys);
                value.mix(&mixtures, &mut values);
                self.context.append(layer, &keys, &values)?;
            }
            self.context.finish();
            self.note_filled(ids, start, step);
        }
        Ok(())
    }

    /// The same on the device that keeps the cache: mixing is a product with two weights and a one in each row.
    fn fill_on_device(
        &mut self,
        ids: &[u32],
        models: &[[Imitated; 2]],
        steps: &[Step],
        mixtures: &mut dyn FnMut(&Step) -> Vec<Mixture>,
    ) -> Result<(), DeviceError> {
        let backend = Arc::clone(self.context.backend());
        let Some(device) = backend.device() else { return Ok(()) };
        let Some(model) = models.first().map(|sides| &sides[0]) else { return Ok(()) };
        let (width, n) = (model.mean.len(), model.departures.len() / model.mean.len());
        let matrix = |side: &Imitated| {
            device.matrix(width, n + 1, DeviceType::F32, &|column, out| {
                let departures = side.departures.iter().skip(column).step_by(width);
                out.iter_mut().zip(departures).for_each(|(o, x)| *o = *x);
                out[n] = side.mean[column];
            })
        };
        let matrices = models
            .iter()
            .map(|[key, value]| Ok([matrix(key)?, matrix(value)?]))
            .collect::<Result<Vec<_>, DeviceError>>()?;
        let start = steps.first().map_or(0, |step| step.tokens.start);
        let longest = steps.iter().map(|s| s.tokens.len()).max().unwrap_or(0);
        let mut weights = device.tensor(longest * (n + 1))?;
        let (mut keys, mut values) = (device.tensor(longest * width)?, device.tensor(longest * width)?);
        for step in steps {
            let mut rows = vec![0.0; step.tokens.len() * (n + 1)];
            for (row, mixture) in rows.chunks_exact_mut(n + 1).zip(mixtures(step)) {
                row[mixture.first] += mixture.weights[0];
                row[mixture.second] += mixture.weights[1];
                row[n] = 1.0;
            }
            device.write(&mut weights, &rows)?;
            self.context.begin(step);
            let filled = matrices.iter().enumerate().try_for_each(|(layer, [key, value])| {
                device.linear(&weights, step.tokens.len(), key, None, &mut keys)?;
                device.linear(&weights, step.tokens.len(), value, None, &mut values)?;
                self.context.append_on_device(layer, &keys, &values)
            });
            if let Err(error) = filled {
                self.context.abort();
                return Err(error);
            }
            self.context.finish();
            self.note_filled(ids, start, step);
        }
        Ok(())
    }
}

/// Two of the imitated tokens and the weights of their departures from the mean.
struct Mixture {
    first: usize,
    second: usize,
    weights: [f32; 2],
}

impl Mixture {
    fn draw(draws: &mut Draws, n: usize) -> Self {
        let mut token = || ((draws.uniform() * n as f64) as usize).min(n - 1);
        let (first, second) = (token(), token());
        let (sin, cos) = (draws.uniform() * TAU).sin_cos();
        Self { first, second, weights: [cos as f32, sin as f32] }
    }
}

/// Keys or values of one layer: their mean `[width]` and departures from it `[n, width]`.
struct Imitated {
    mean: Vec<f32>,
    departures: Vec<f32>,
}

impl Imitated {
    fn new(mut rows: Vec<f32>, width: usize) -> Self {
        let n = rows.len() / width;
        let mut mean = vec![0.0; width];
        for row in rows.chunks_exact(width) {
            mean.iter_mut().zip(row).for_each(|(m, x)| *m += x / n as f32);
        }
        for row in rows.chunks_exact_mut(width) {
            row.iter_mut().zip(&mean).for_each(|(x, m)| *x -= m);
        }
        Self { mean, departures: rows }
    }

    /// Writes one row for each mixture into `out`.
    fn mix(&self, mixtures: &[Mixture], out: &mut Vec<f32>) {
        out.clear();
        let width = self.mean.len();
        let row = |token: usize| &self.departures[token * width..(token + 1) * width];
        for Mixture { first, second, weights: [a, b] } in mixtures {
            let pairs = row(*first).iter().zip(row(*second));
            out.extend(self.mean.iter().zip(pairs).map(|(m, (x, y))| m + a * x + b * y));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_up_rows_keep_mean_and_covariance_and_do_not_repeat() {
        let mut draws = Draws::new(3);
        // Two dimensions that go together: y = x / 2 + noise.
        let rows: Vec<f32> = (0..1000)
            .flat_map(|_| {
                let x = draws.uniform() as f32 * 4.0 + 1.0;
                [x, x / 2.0 + draws.uniform() as f32]
            })
            .collect();
        let moments = |rows: &[f32]| {
            let n = (rows.len() / 2) as f64;
            let mean = |f: &dyn Fn(f64, f64) -> f64| {
                rows.chunks_exact(2).map(|r| f(f64::from(r[0]), f64::from(r[1]))).sum::<f64>() / n
            };
            let (x, y) = (mean(&|x, _| x), mean(&|_, y| y));
            [x, y, mean(&|x, _| x * x) - x * x, mean(&|x, y| x * y) - x * y, mean(&|_, y| y * y) - y * y]
        };
        let mixtures: Vec<Mixture> = (0..50_000).map(|_| Mixture::draw(&mut draws, 1000)).collect();
        let mut made_up = Vec::new();
        Imitated::new(rows.clone(), 2).mix(&mixtures, &mut made_up);
        for (real, made_up) in moments(&rows).into_iter().zip(moments(&made_up)) {
            assert!((real - made_up).abs() < 0.03 * real.abs(), "{real} became {made_up}");
        }
        let distinct: std::collections::HashSet<u32> =
            made_up.iter().step_by(2).map(|x| x.to_bits()).collect();
        assert!(distinct.len() > 45_000, "{} distinct rows of 50,000", distinct.len());
    }
}
