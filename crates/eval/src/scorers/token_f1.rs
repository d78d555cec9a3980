//! F1 of the words (or characters) an answer shares with a reference.

use super::normalize;
use super::python::split;
use super::segment;
use super::sequence::{counts, shared};

/// Words, normalised as in SQuAD: LongBench, L-Eval and InfiniteBench's `longbook_qa_eng`.
pub fn english(prediction: &str, reference: &str) -> f64 {
    let (prediction, reference) = (normalize::english(prediction), normalize::english(reference));
    of_tokens(&split(&prediction).collect::<Vec<_>>(), &split(&reference).collect::<Vec<_>>())
}

/// Words cut by jieba and then normalised, the empty ones dropped: LongBench's `multifieldqa_zh`.
pub fn chinese(prediction: &str, reference: &str) -> f64 {
    let words = |text| {
        let words = segment::cut(text).into_iter().map(normalize::chinese);
        words.filter(|w| !w.is_empty()).collect::<Vec<String>>()
    };
    of_tokens(&words(prediction), &words(reference))
}

/// Characters of the normalised text: InfiniteBench's `longbook_qa_chn`.
pub fn chinese_characters(prediction: &str, reference: &str) -> f64 {
    let characters = |text| normalize::chinese(text).chars().collect::<Vec<char>>();
    of_tokens(&characters(prediction), &characters(reference))
}

/// F1 over multisets; 0 where nothing is shared, also when both are empty.
fn of_tokens<T: std::hash::Hash + Eq>(prediction: &[T], reference: &[T]) -> f64 {
    let same = shared(&counts(prediction), &counts(reference));
    if same == 0 {
        return 0.0;
    }
    let precision = same as f64 / prediction.len() as f64;
    let recall = same as f64 / reference.len() as f64;
    2.0 * precision * recall / (precision + recall)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_count_as_often_as_both_have_them() {
        assert_eq!(english("Cat cat cat", "the cat"), 0.5);
        assert_eq!(english("a blue whale!", "blue whale"), 1.0);
    }

    #[test]
    fn nothing_shared_is_zero_even_if_both_are_empty() {
        assert_eq!(english("", ""), 0.0);
        assert_eq!(english("the a an", "the"), 0.0);
        assert_eq!(chinese("。，！", "。"), 0.0);
    }

    #[test]
    fn python_splits_and_cases() {
        assert_eq!(english("x\u{1c}y", "y"), 2.0 / 3.0);
        assert_eq!(english("İzmir", "izmir"), 0.0);
    }

    #[test]
    fn chinese_by_word_and_by_character() {
        assert_eq!(chinese("北京\n大学\t。", "北京 大学"), 1.0);
        assert_eq!(chinese("ABC公司", "abc公司"), 1.0);
        assert_eq!(chinese_characters("明月几时有？", "明月 几时"), 2.0 * (4.0 / 5.0) / (9.0 / 5.0));
    }
}
