//! Averages over the samples of a task, as the suite's papers print them.

use super::{Kind, Sample, Score, Scorer, leval};
use serde::Serialize;

/// Average of a task.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Summary {
    /// Samples scored.
    pub rows: usize,
    /// The task's score in per cent, unrounded.
    pub percent: f64,
    /// Averages of the scores that are reported apart, in per cent.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<Group>,
    /// Averages of groups of samples: LongBench-E's lengths, LongBench v2's difficulties and lengths, L-Eval's first, second and third topic.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<Group>,
}

/// Average of a part or a group.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Group {
    /// Its name.
    pub name: &'static str,
    /// Samples in it.
    pub rows: usize,
    /// In per cent.
    pub percent: f64,
}

impl Scorer {
    /// Averages scored samples: their mean, but in L-Eval's topic retrieval the mean of the means of first, second and third
    /// topics, and for its ROUGE the geometric mean of the means of ROUGE-1, 2 and L.
    pub fn summary(&self, scored: &[(Sample, Score)]) -> Summary {
        let mut summary = Summary {
            rows: scored.len(),
            percent: mean(scored.iter().map(|s| s.1.value)),
            ..Summary::default()
        };
        let parts: Vec<&'static str> =
            scored.first().map_or_else(Vec::new, |s| s.1.parts.iter().map(|p| p.0).collect());
        for name in parts {
            let values: Vec<f64> = scored.iter().filter_map(|s| s.1.part(name)).collect();
            summary.parts.push(Group { name, rows: values.len(), percent: mean(values.into_iter()) });
        }
        if matches!(self.kind, Kind::LongBench(_)) && scored.iter().any(|s| s.0.length.is_some()) {
            summary.groups = groups(scored, &["0-4k", "4-8k", "8k+"], |s| {
                s.length.map(|n| usize::from(n >= 4000) + usize::from(n >= 8000))
            });
        }
        if let Kind::LongBenchV2 = self.kind {
            for name in ["easy", "hard", "short", "medium", "long"] {
                let values: Vec<f64> = scored
                    .iter()
                    .filter(|s| s.0.groups.iter().any(|g| g == name))
                    .map(|s| s.1.value)
                    .collect();
                if !values.is_empty() {
                    summary.groups.push(Group {
                        name,
                        rows: values.len(),
                        percent: mean(values.into_iter()),
                    });
                }
            }
        }
        if let Kind::LEval(leval::Task::Topics) = self.kind {
            summary.groups =
                groups(scored, &["first topic", "second topic", "third topic"], |s| Some(s.index % 3));
            let of = summary.groups.iter().map(|g| g.percent / 100.0);
            summary.percent = mean(of);
        }
        if let Kind::LEval(leval::Task::Rouge) = self.kind {
            summary.percent = summary.parts.iter().map(|p| p.percent).product::<f64>().cbrt();
        }
        summary
    }
}

fn groups(
    scored: &[(Sample, Score)],
    names: &[&'static str],
    of: impl Fn(&Sample) -> Option<usize>,
) -> Vec<Group> {
    let group = |(at, name): (usize, &&'static str)| {
        let values: Vec<f64> = scored.iter().filter(|s| of(&s.0) == Some(at)).map(|s| s.1.value).collect();
        Group { name, rows: values.len(), percent: mean(values.into_iter()) }
    };
    names.iter().enumerate().map(group).filter(|g| g.rows > 0).collect()
}

/// Mean in per cent; 0 of nothing.
fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let n = values.len();
    if n == 0 { 0.0 } else { 100.0 * values.sum::<f64>() / n as f64 }
}

#[cfg(test)]
mod tests {
    use super::super::Suite;
    use super::*;
    use serde_json::json;

    fn summary(suite: Suite, task: &str, samples: Vec<Sample>) -> Summary {
        let Ok(scorer) = Scorer::new(suite, task) else { return Summary::default() };
        let scored: Vec<_> =
            samples.into_iter().filter_map(|s| scorer.score(&s).ok().map(|score| (s, score))).collect();
        scorer.summary(&scored)
    }

    #[test]
    fn long_bench_e_by_length() {
        let row = |length, answer| Sample { length: Some(length), ..Sample::new("x", json!([answer])) };
        let found = summary(
            Suite::LongBench,
            "hotpotqa_e",
            vec![row(3999, "x"), row(4000, "y"), row(7999, "x"), row(12_000, "x")],
        );
        assert_eq!(found.percent, 75.0);
        let groups: Vec<_> = found.groups.iter().map(|g| (g.name, g.rows, g.percent)).collect();
        assert_eq!(groups, [("0-4k", 1, 100.0), ("4-8k", 2, 50.0), ("8k+", 1, 100.0)]);
    }

    #[test]
    fn topics_are_balanced() {
        let row = |index, answer| Sample { index, ..Sample::new("sea", json!([answer])) };
        let rows = vec![row(0, "sea"), row(3, "sea"), row(1, "sea"), row(2, "sky")];
        let found = summary(Suite::LEval, "topic_retrieval_longchat", rows);
        assert!((found.percent - 200.0 / 3.0).abs() < 1e-9, "{found:?}");
        assert_eq!(found.groups.iter().map(|g| g.rows).collect::<Vec<_>>(), [2, 1, 1]);
    }

    #[test]
    fn leval_rouge_is_the_geometric_mean_of_means() {
        let row = |prediction: &str| Sample::new(prediction, json!(["a b c d"]));
        let found = summary(Suite::LEval, "news_summ", vec![row("a b c d"), row("d c b a")]);
        let parts: Vec<_> = found.parts.iter().map(|p| p.percent).collect();
        assert_eq!(parts, [100.0, 50.0, 62.5]);
        assert!((found.percent - (100.0_f64 * 50.0 * 62.5).cbrt()).abs() < 1e-9);
    }

    #[test]
    fn of_nothing() {
        assert_eq!(summary(Suite::Ruler, "vt", Vec::new()), Summary::default());
    }
}
