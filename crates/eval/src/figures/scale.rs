//! Axes: from values to places, and the numbers that stand beside them.

/// An axis from `low` to `high` with marks.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Scale {
    low: f64,
    high: f64,
    logarithmic: bool,
    /// Values that are named.
    pub(super) ticks: Vec<f64>,
}

/// What a range begins with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum From {
    /// Nothing: lengths of lines are compared.
    Zero,
    /// The smallest value: differences are.
    Least,
}

impl Scale {
    /// Per cent: up to 100, or less where all values are small but not all nothing.
    pub(super) fn percent(values: impl Iterator<Item = f64>) -> Self {
        let most = values.fold(0.0, f64::max);
        let high = [10.0, 20.0, 50.0].into_iter().find(|h| most > 0.0 && most <= *h).unwrap_or(100.0);
        Self {
            low: 0.0,
            high,
            logarithmic: false,
            ticks: (0..=4).map(|i| high / 4.0 * f64::from(i)).collect(),
        }
    }

    /// For values above zero: linear, or logarithmic where the largest is many times the smallest.
    pub(super) fn of(values: impl Iterator<Item = f64>, from: From) -> Self {
        let (low, high) = values.fold((f64::INFINITY, 0.0_f64), |(l, h), v| (l.min(v), h.max(v)));
        if !(low > 0.0 && high.is_finite() && low <= high) {
            return Self { low: 0.0, high: 1.0, logarithmic: false, ticks: vec![0.0, 1.0] };
        }
        if high / low > 8.0 {
            return Self::logarithmic(low, high);
        }
        let low = if from == From::Zero { 0.0 } else { low };
        let step = nice((high - low).max(high * 1e-3) / 4.0);
        let (first, last) = ((low / step).floor(), (high / step).ceil());
        let last = last.max(first + 1.0);
        let ticks: Vec<f64> = (0..=(last - first) as usize).map(|i| (first + i as f64) * step).collect();
        Self { low: first * step, high: last * step, logarithmic: false, ticks }
    }

    fn logarithmic(low: f64, high: f64) -> Self {
        let marks = |of: &'static [f64]| {
            let (first, last) = (low.log10().floor() as i32, high.log10().ceil() as i32);
            let all: Vec<f64> =
                (first..=last).flat_map(|e| of.iter().map(move |m| m * 10f64.powi(e))).collect();
            let begin = all.iter().rposition(|t| *t <= low * (1.0 + 1e-9)).unwrap_or(0);
            let end = all.iter().position(|t| *t >= high * (1.0 - 1e-9)).unwrap_or(all.len() - 1);
            all[begin..=end].to_vec()
        };
        let (bounds, fine) = (marks(&[1.0, 2.0, 5.0]), marks(&[1.0, 2.0, 5.0]));
        let ticks = if fine.len() > 9 { marks(&[1.0]) } else { fine };
        let within = |t: &f64| *t >= bounds[0] * 0.999 && *t <= bounds[bounds.len() - 1] * 1.001;
        Self {
            low: bounds[0],
            high: bounds[bounds.len() - 1],
            logarithmic: true,
            ticks: ticks.into_iter().filter(within).collect(),
        }
    }

    /// Where a value lies, from 0 at the bottom to 1.
    pub(super) fn at(&self, value: f64) -> f64 {
        let place = |v: f64| if self.logarithmic { v.log10() } else { v };
        (place(value) - place(self.low)) / (place(self.high) - place(self.low))
    }
}

/// The number of 1, 2, 2.5 and 5 times a power of ten next above.
fn nice(x: f64) -> f64 {
    let ten = 10f64.powf(x.log10().floor());
    [1.0, 2.0, 2.5, 5.0].into_iter().map(|m| m * ten).find(|n| *n >= x * (1.0 - 1e-9)).unwrap_or(10.0 * ten)
}

/// A number of an axis: no more digits than it has, thousands set apart.
pub(super) fn plain(x: f64) -> String {
    if x != 0.0 && (x.abs() >= 1e7 || x.abs() < 1e-4) {
        return format!("{x:.0e}");
    }
    if x.abs() >= 1000.0 { grouped(x.round() as u64) } else { ((x * 1e6).round() / 1e6).to_string() }
}

/// A whole number with its thousands set apart.
pub(crate) fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_hold_their_values_and_name_round_numbers() {
        let scale = |v: &[f64], from| Scale::of(v.iter().copied(), from);
        assert_eq!(scale(&[0.4, 1.7], From::Zero).ticks, [0.0, 0.5, 1.0, 1.5, 2.0]);
        assert_eq!(scale(&[5.2, 6.1], From::Least).ticks, [5.0, 5.25, 5.5, 5.75, 6.0, 6.25]);
        assert_eq!(scale(&[0.3, 4.0], From::Zero).ticks, [0.2, 0.5, 1.0, 2.0, 5.0]);
        assert_eq!(scale(&[3.0, 9e4], From::Zero).ticks, [10.0, 100.0, 1e3, 1e4, 1e5]);
        assert_eq!(scale(&[], From::Zero).ticks, [0.0, 1.0]);
        assert_eq!(scale(&[7.0], From::Least).ticks.len(), 2);
        assert_eq!(Scale::percent([3.0, 18.0].into_iter()).ticks, [0.0, 5.0, 10.0, 15.0, 20.0]);
        assert_eq!(Scale::percent([0.0].into_iter()).ticks[4], 100.0);
        for values in [vec![0.3, 4.0], vec![3.0, 9e4], vec![5.2, 6.1], vec![2.0, 2.0]] {
            let scale = scale(&values, From::Least);
            for v in values {
                assert!((-1e-9..=1.0 + 1e-9).contains(&scale.at(v)), "{v} outside {scale:?}");
            }
        }
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!(
            ["0", "0.25", "1,000", "12,345", "1e9"],
            [0.0, 0.25, 1e3, 12345.0, 1e9].map(plain).each_ref().map(String::as_str)
        );
        assert_eq!(grouped(1_234_567), "1,234,567");
    }
}
