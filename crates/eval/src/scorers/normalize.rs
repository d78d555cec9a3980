//! Answers brought to a common form, as the SQuAD script does and every suite after it.

use super::python::{is_space, is_word, split};

/// Lower case, without ASCII punctuation and articles, words one space apart.
pub fn english(text: &str) -> String {
    keep_case(&text.to_lowercase())
}

/// As [`english`], with case kept: what L-Eval compares options by.
pub fn keep_case(text: &str) -> String {
    let bare: String = text.chars().filter(|c| !c.is_ascii_punctuation()).collect();
    split(&without_articles(&bare)).collect::<Vec<_>>().join(" ")
}

/// Lower case, without ASCII and Chinese punctuation and without any space.
pub fn chinese(text: &str) -> String {
    let drop = |c: &char| c.is_ascii_punctuation() || CHINESE_PUNCTUATION.contains(*c) || is_space(*c);
    text.to_lowercase().chars().filter(|c| !drop(c)).collect()
}

/// `re.sub(r"\b(a|an|the)\b", " ", text)`. A combining mark is no part of a word there, so `the` ends before it.
fn without_articles(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let word = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        match &rest[..word] {
            "" => {
                out.push(c);
                rest = &rest[c.len_utf8()..];
                continue;
            }
            "a" | "an" | "the" => out.push(' '),
            other => out.push_str(other),
        }
        rest = &rest[word..];
    }
    out
}

/// What the Chinese variants drop beyond ASCII (THUDM/LongBench `metrics.py`, OpenBMB/InfiniteBench
/// `compute_scores.py`). `《` is missing there too.
const CHINESE_PUNCTUATION: &str = "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏.";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn articles_go_after_punctuation() {
        assert_eq!(english("The cat, a dog & an  emu."), "cat dog emu");
        assert_eq!(english("x_y the-z another"), "xy thez another");
        assert_eq!(keep_case("A B the C"), "A B C");
    }

    #[test]
    fn a_combining_mark_ends_a_word() {
        assert_eq!(english("the\u{301}"), "\u{301}");
        assert_eq!(english("thé"), "thé");
    }

    #[test]
    fn chinese_loses_its_punctuation_but_one_bracket() {
        assert_eq!(chinese("《ABC》 胡斐，\u{1c}福康安。"), "《abc胡斐福康安");
        assert_eq!(english("a–b"), "–b");
    }
}
