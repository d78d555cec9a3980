//! LongBench's tasks (THUDM/LongBench `LongBench/eval.py`, `metrics.py`): metric by task, best over the references.

use super::{Sample, Score, ScoreError, classification, code_sim, retrieval, rouge_pltrdy, token_f1};

/// What a task is scored by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// [`token_f1::english`].
    F1,
    /// [`token_f1::chinese`].
    F1Chinese,
    /// [`rouge_pltrdy::english`].
    Rouge,
    /// [`rouge_pltrdy::chinese`].
    RougeChinese,
    /// [`classification::classification`].
    Classification,
    /// [`retrieval::english`].
    Retrieval,
    /// [`retrieval::chinese`].
    RetrievalChinese,
    /// [`retrieval::count`].
    Count,
    /// [`code_sim::code_similarity`].
    Code,
}

/// All tasks.
pub const TASKS: [(&str, Metric); 21] = [
    ("narrativeqa", Metric::F1),
    ("qasper", Metric::F1),
    ("multifieldqa_en", Metric::F1),
    ("multifieldqa_zh", Metric::F1Chinese),
    ("hotpotqa", Metric::F1),
    ("2wikimqa", Metric::F1),
    ("musique", Metric::F1),
    ("dureader", Metric::RougeChinese),
    ("gov_report", Metric::Rouge),
    ("qmsum", Metric::Rouge),
    ("multi_news", Metric::Rouge),
    ("vcsum", Metric::RougeChinese),
    ("trec", Metric::Classification),
    ("triviaqa", Metric::F1),
    ("samsum", Metric::Rouge),
    ("lsht", Metric::Classification),
    ("passage_retrieval_en", Metric::Retrieval),
    ("passage_count", Metric::Count),
    ("passage_retrieval_zh", Metric::RetrievalChinese),
    ("lcc", Metric::Code),
    ("repobench-p", Metric::Code),
];

/// Scores a sample of `task`. Of `trec`, `triviaqa`, `samsum` and `lsht` the first line after leading newlines counts.
///
/// # Errors
/// When the references are no texts, classes are missing, or the texts are too long.
pub fn score(metric: Metric, task: &str, sample: &Sample) -> Result<Score, ScoreError> {
    let mut prediction = sample.prediction.as_str();
    if matches!(task.strip_suffix("_e").unwrap_or(task), "trec" | "triviaqa" | "samsum" | "lsht") {
        prediction = prediction.trim_start_matches('\n');
        prediction = prediction.split('\n').next().unwrap_or("");
    }
    let mut best: Option<Score> = None;
    for reference in sample.references()? {
        let score = match metric {
            Metric::F1 => Score::of(token_f1::english(prediction, reference)),
            Metric::F1Chinese => Score::of(token_f1::chinese(prediction, reference)),
            Metric::Rouge => Score::of(rouge_pltrdy::english(prediction, reference)?),
            Metric::RougeChinese => Score::of(rouge_pltrdy::chinese(prediction, reference)?),
            Metric::Classification => {
                Score::of(classification::classification(prediction, reference, sample.classes()?))
            }
            Metric::Retrieval => retrieval::english(prediction, reference),
            Metric::RetrievalChinese => retrieval::chinese(prediction, reference),
            Metric::Count => Score::of(retrieval::count(prediction, reference)),
            Metric::Code => code_sim::code_similarity(prediction, reference)?,
        };
        if score.note.is_some() {
            return Ok(score);
        }
        best = Some(best.map_or(score.clone(), |b| better(b, score)));
    }
    Ok(best.unwrap_or_default())
}

/// The better of two scores, part by part, since each part stands for an evaluation of its own.
pub(super) fn better(mut one: Score, other: Score) -> Score {
    one.value = one.value.max(other.value);
    for (part, (_, value)) in one.parts.iter_mut().zip(&other.parts) {
        part.1 = part.1.max(*value);
    }
    one
}

#[cfg(test)]
mod tests {
    use super::super::{Scorer, Suite};
    use super::*;
    use serde_json::{Value, json};

    fn value(task: &str, prediction: &str, references: Value) -> f64 {
        let sample =
            Sample { classes: Some(vec!["Sea".into(), "Sky".into()]), ..Sample::new(prediction, references) };
        Scorer::new(Suite::LongBench, task).and_then(|s| s.score(&sample)).map_or(-1.0, |s| s.value)
    }

    #[test]
    fn the_best_reference_counts() {
        assert_eq!(value("narrativeqa", "blue", json!(["red", "blue"])), 1.0);
        assert_eq!(value("narrativeqa", "blue", json!([])), 0.0);
        assert_eq!(value("lcc", "let a;", json!(["xyz", "let a;"])), 1.0);
    }

    #[test]
    fn few_shot_tasks_are_cut_at_the_first_line() {
        assert_eq!(value("triviaqa", "\n\nRome\nQuestion: who", json!(["Rome"])), 1.0);
        assert_eq!(value("hotpotqa", "\nRome\nor Oslo", json!(["Rome Oslo"])), 0.8);
        assert_eq!(value("trec_e", "Sky\nSea", json!(["Sky"])), 1.0);
        assert_eq!(value("samsum", "\n", json!(["x"])), 0.0);
    }

    #[test]
    fn one_raising_reference_zeroes_the_sample() {
        assert_eq!(value("passage_retrieval_en", "3", json!(["Paragraph 3"])), 1.0);
        assert_eq!(value("passage_retrieval_en", "3", json!(["Paragraph 3", "page 3"])), 0.0);
    }

    #[test]
    fn what_is_missing_is_named() {
        let error =
            Scorer::new(Suite::LongBench, "trec").and_then(|s| s.score(&Sample::new("Sea", json!(["Sea"]))));
        assert_eq!(error, Err(ScoreError::Missing { field: "all_classes" }));
        assert_eq!(value("narrativeqa", "3", json!([3])), -1.0);
        assert!(Scorer::new(Suite::LongBench, "trivia").is_err());
    }
}
