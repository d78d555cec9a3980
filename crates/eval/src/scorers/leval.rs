//! L-Eval's scores (OpenLMLab/LEval `Evaluation/auto_eval.py`, `em.py`, `f1.py`, `rouge.py`), with the extraction of answers
//! each exam task has.

use super::longbench::better;
use super::python::{is_digit, is_space, parse_float, split, strip};
use super::{Sample, Score, ScoreError, normalize, rouge_google, token_f1};
use std::collections::BTreeSet;

/// A task's way of scoring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// `quality`, `tpo`: one letter.
    Choice,
    /// `coursera`: one letter or several.
    Choices,
    /// `gsm100`: a number.
    Math,
    /// `codeU`: the output of a program.
    Code,
    /// `topic_retrieval_longchat`: a title.
    Topics,
    /// `sci_fi`: true or false, by the story and in fact.
    Judge,
    /// Questions: F1 of words.
    F1,
    /// Summaries: Google's ROUGE.
    Rouge,
}

/// All tasks but those only a model or a person judges.
pub const TASKS: [(&str, Task); 20] = [
    ("coursera", Task::Choices),
    ("quality", Task::Choice),
    ("tpo", Task::Choice),
    ("gsm100", Task::Math),
    ("codeU", Task::Code),
    ("topic_retrieval_longchat", Task::Topics),
    ("sci_fi", Task::Judge),
    ("financial_qa", Task::F1),
    ("legal_contract_qa", Task::F1),
    ("multidoc_qa", Task::F1),
    ("narrative_qa", Task::F1),
    ("natural_question", Task::F1),
    ("scientific_qa", Task::F1),
    ("gov_report_summ", Task::Rouge),
    ("meeting_summ", Task::Rouge),
    ("news_summ", Task::Rouge),
    ("paper_assistant", Task::Rouge),
    ("patent_summ", Task::Rouge),
    ("review_summ", Task::Rouge),
    ("tv_show_summ", Task::Rouge),
];

/// Scores a sample; the best reference counts. ROUGE-1, 2 and L and the two halves of `sci_fi` are parts; the value is ROUGE-L,
/// and the mean of the halves.
///
/// # Errors
/// When the references are no texts, or the texts are too long.
pub fn score(task: Task, sample: &Sample) -> Result<Score, ScoreError> {
    let prediction = sample.prediction.as_str();
    let mut best: Option<Score> = None;
    for reference in sample.references()? {
        let score = match task {
            Task::F1 => Score::of(token_f1::english(prediction, reference)),
            Task::Rouge => rouge(prediction, reference)?,
            Task::Judge => judge(prediction, reference),
            _ => match extract(task, prediction, reference) {
                Some((prediction, reference)) => Score::of(exact_match(&prediction, &reference)),
                None => Score::raised("IndexError: the reference is blank"),
            },
        };
        if score.note.is_some() {
            return Ok(score);
        }
        best = Some(best.map_or(score.clone(), |b| better(b, score)));
    }
    Ok(best.unwrap_or_else(|| Score::raised("ValueError: there is no reference")))
}

fn rouge(prediction: &str, reference: &str) -> Result<Score, ScoreError> {
    let l = rouge_google::rouge_l(prediction, reference)?;
    Ok(Score::of(l)
        .with("rouge1", rouge_google::rouge_n(prediction, reference, 1)?)
        .with("rouge2", rouge_google::rouge_n(prediction, reference, 2)?)
        .with("rougeL", l))
}

fn judge(prediction: &str, reference: &str) -> Score {
    let (Some(said), Some(wanted)) = (verdicts(prediction), halves(reference)) else {
        return Score::raised("IndexError: there is no `[fact:` part");
    };
    let loyalty = exact_match(said.0, &wanted.0);
    let fact = exact_match(said.1, &wanted.1);
    Score::of((loyalty + fact) / 2.0).with("loyalty", loyalty).with("fact", fact)
}

/// Prediction and reference as they are compared, after the task's extraction. `None` where the official code raises.
pub fn extract(task: Task, prediction: &str, reference: &str) -> Option<(String, String)> {
    Some(match task {
        Task::Choice => (letters(prediction, true), reference_letters(reference)?),
        Task::Choices => (letters(prediction, false), reference_letters(reference)?),
        Task::Math => (number(prediction), number(reference)),
        Task::Code => (output(prediction, reference), code(reference)),
        Task::Topics | Task::Judge | Task::F1 | Task::Rouge => {
            (prediction.to_string(), reference.to_string())
        }
    })
}

/// `process_output_mc`: the letters a prediction chooses. What says nothing is taken for `A`, and a blank one for `None`.
fn letters(prediction: &str, one: bool) -> String {
    if strip(prediction).is_empty() {
        return "None".to_string();
    }
    if "ABCD".contains(prediction) {
        return prediction.to_string();
    }
    if let Some(first) = prediction.chars().find(is_option).filter(|_| one) {
        return first.to_string();
    }
    let leading: String = prediction.chars().take_while(is_option).collect();
    let mut chosen: BTreeSet<char> = leading.chars().collect();
    if leading.len() > 1 {
        return chosen.into_iter().collect();
    }
    let rest = prediction[leading.len()..].split("Question").next().unwrap_or("");
    // `\s*[A-Z](?=[\s.)])`, of which A to D are kept.
    let ended = rest
        .chars()
        .zip(rest.chars().skip(1))
        .filter(|(_, next)| is_space(*next) || ['.', ')'].contains(next));
    chosen.extend(ended.map(|(c, _)| c).filter(is_option));
    if chosen.is_empty() {
        let run: String = rest.chars().skip_while(|c| !is_option(c)).take_while(is_option).collect();
        return if run.is_empty() { "A".to_string() } else { run };
    }
    chosen.into_iter().collect()
}

fn is_option(c: &char) -> bool {
    ('A'..='D').contains(c)
}

/// `process_gt_mc`: the letters of the first word.
fn reference_letters(reference: &str) -> Option<String> {
    let letters: String = split(reference).next()?.chars().filter(is_option).collect();
    Some(if letters.is_empty() { "A".to_string() } else { letters })
}

/// `process_math`: the digits, up to a dot, of the word after `The answer is `, else of the last word with a digit in the first
/// paragraph. A superscript is a digit here.
fn number(text: &str) -> String {
    const PHRASE: &str = "The answer is ";
    let said = text.match_indices(PHRASE).find_map(|(at, _)| {
        let after = &text[at + PHRASE.len()..];
        let end = after.find(is_space).unwrap_or(after.len());
        (end > 0).then_some(&after[..end])
    });
    let word = said.unwrap_or_else(|| {
        let paragraph = text.split("\n\n").next().unwrap_or("");
        paragraph.rsplit(' ').find(|word| word.contains(is_digit)).unwrap_or("")
    });
    word.chars().take_while(|c| *c != '.').filter(|c| is_digit(*c)).collect()
}

/// `process_gt_code`: spaces made one, and what printing adds left out.
fn code(text: &str) -> String {
    let mut one_space = String::with_capacity(text.len());
    for c in text.chars() {
        match is_space(c) {
            true if one_space.ends_with(' ') => {}
            true => one_space.push(' '),
            false => one_space.push(c),
        }
    }
    let bare = one_space.replace([',', '\'', '\\'], "");
    bare.replace(".0", "").replace("] [", "][").replace("[ [", "[[").replace("] ]", "]]")
}

/// `process_output_code`: three words more than the reference has, after the last `the final output` or else from the end.
fn output(prediction: &str, reference: &str) -> String {
    let most = split(reference).count() + 3;
    let mut said = code(prediction);
    for phrase in ["will be", "of the code", "is", "would be", "the value of", "the result of", "printed"] {
        said = said.replace(phrase, "");
    }
    let (tail, first) = match said.rsplit_once("the final output") {
        Some((_, tail)) => (tail, true),
        None => (said.as_str(), false),
    };
    let words = spaced_words(tail);
    let kept =
        if first { &words[..most.min(words.len())] } else { &words[words.len().saturating_sub(most)..] };
    kept.join(" ")
}

/// `re.split(r"\s+", text)`: unlike `split()`, spaces at the ends leave an empty word.
fn spaced_words(text: &str) -> Vec<&str> {
    let mut words: Vec<&str> = split(text).collect();
    if text.is_empty() || text.starts_with(is_space) {
        words.insert(0, "");
    }
    if text.ends_with(is_space) {
        words.push("");
    }
    words
}

/// `process_gt_judge`: what stands before and after the first `[fact:`, the last character left out.
fn halves(text: &str) -> Option<(String, String)> {
    let lower = text.to_lowercase();
    let mut parts = lower.split("[fact:");
    let (loyalty, fact) = (parts.next()?, parts.next()?);
    let fact = fact.char_indices().next_back().map_or("", |(last, _)| &fact[..last]);
    Some((strip(loyalty).to_string(), strip(fact).to_string()))
}

/// `process_output_judge`: the verdict of each half is that of the first word with one in it; `untrue` says true.
fn verdicts(prediction: &str) -> Option<(&'static str, &'static str)> {
    let verdict = |half: &str| {
        split(half)
            .find_map(|word| match word {
                word if word.contains("true") => Some("true"),
                word if word.contains("false") => Some("false"),
                _ => None,
            })
            .unwrap_or("<error>")
    };
    halves(prediction).map(|(loyalty, fact)| (verdict(&loyalty), verdict(&fact)))
}

/// `exact_match_score`: options are equal, or a quarter if all chosen are right; anything else is equal as a number, or contained
/// whatever its case and blanks.
fn exact_match(prediction: &str, reference: &str) -> f64 {
    let wanted = normalize::keep_case(reference);
    if wanted.chars().all(|c| is_option(&c)) {
        let said = normalize::keep_case(prediction);
        return match said == wanted {
            true => 1.0,
            false if said.chars().all(|c| wanted.contains(c)) => 0.25,
            false => 0.0,
        };
    }
    if let (Some(said), Some(wanted)) = (parse_float(prediction), parse_float(reference)) {
        return f64::from(u8::from(said == wanted));
    }
    let bare = |text: &str| text.to_lowercase().replace(' ', "");
    f64::from(u8::from(bare(prediction).contains(&bare(reference))))
}

#[cfg(test)]
mod tests {
    use super::super::{Scorer, Suite};
    use super::*;
    use serde_json::json;

    fn of(task: &str, prediction: &str, reference: &str) -> Score {
        let scorer = Scorer::new(Suite::LEval, task);
        scorer
            .and_then(|s| s.score(&Sample::new(prediction, json!([reference]))))
            .unwrap_or_else(|_| Score::of(-1.0))
    }

    fn extracted(task: Task, prediction: &str, reference: &str) -> String {
        extract(task, prediction, reference).map_or_else(String::new, |e| e.0)
    }

    #[test]
    fn one_letter_is_the_first_anywhere() {
        assert_eq!(extracted(Task::Choice, "It is (B), surely", "B"), "B");
        assert_eq!(extracted(Task::Choice, "Choose D", "D"), "C");
        assert_eq!(extracted(Task::Choice, "BCD", "B"), "BCD");
        assert_eq!(extracted(Task::Choice, "who knows", "B"), "A");
        assert_eq!(extracted(Task::Choice, " \u{1d}", "B"), "None");
        assert!(of("tpo", "A", " ").note.is_some());
    }

    #[test]
    fn several_letters_lead_or_end_in_a_mark() {
        assert_eq!(extracted(Task::Choices, "DBB - yes", "BD"), "BD");
        assert_eq!(extracted(Task::Choices, "they are B) and D. Question: A.", "BD"), "BD");
        assert_eq!(extracted(Task::Choices, "C and A", "AC"), "C");
        assert_eq!(extracted(Task::Choices, "it'sCAC!", "AC"), "CAC");
        assert_eq!(extracted(Task::Choices, "I do", "AC"), "A");
        assert_eq!(of("coursera", "C and more", "AC").value, 0.25);
        assert_eq!(of("coursera", "CA", "AC").value, 1.0);
        assert_eq!(of("coursera", "BC", "AC").value, 0.0);
        assert_eq!(of("coursera", "", "AC").value, 0.0);
    }

    #[test]
    fn numbers_are_said_or_come_last() {
        assert_eq!(extracted(Task::Math, "2+2. The answer is $1,204.50.", ""), "1204");
        assert_eq!(extracted(Task::Math, "7 and 8 make 15 eggs\n\nSo 99", ""), "15");
        assert_eq!(extracted(Task::Math, "The answer is  3", ""), "3");
        assert_eq!(extracted(Task::Math, "The answer is  x The answer is 4", ""), "4");
        assert_eq!(extracted(Task::Math, "The answer is The answer is 4", ""), "");
        assert_eq!(extracted(Task::Math, "no", ""), "");
        assert_eq!(extracted(Task::Math, "4² m", ""), "4²");
        assert_eq!(of("gsm100", "The answer is 012", "12").value, 1.0);
        assert_eq!(of("gsm100", "4² m", "4").value, 1.0);
        assert_eq!(of("gsm100", "none", "4").value, 0.0);
    }

    #[test]
    fn code_is_cut_to_the_length_of_the_reference() {
        assert_eq!(
            extracted(Task::Code, "Hence the final output is [ 1, 2 ] and so on and on", "[1 2]"),
            " [ 1 2 ]"
        );
        assert_eq!(extracted(Task::Code, "one two three four five 7.0", "7"), "three four five 7");
        assert_eq!(of("codeU", "prints [ [1,  2], [3] ]", "[[1, 2], [3]]").value, 1.0);
        assert_eq!(of("codeU", "It gives 'xy'", "xy").value, 1.0);
        assert_eq!(of("codeU", "7 8 9 10 11 12", "7").value, 0.0);
    }

    #[test]
    fn science_fiction_has_two_halves() {
        let halves = |p, r| {
            let score = of("sci_fi", p, r);
            (score.part("loyalty"), score.part("fact"))
        };
        assert_eq!(halves("It's TRUE! [Fact: false]", "True [fact: False]"), (Some(1.0), Some(1.0)));
        assert_eq!(halves("untrue [fact: dunno]", "False [fact: False]"), (Some(0.0), Some(0.0)));
        assert!(of("sci_fi", "true", "True [fact: True]").note.is_some());
    }

    #[test]
    fn titles_are_contained() {
        assert_eq!(of("topic_retrieval_longchat", "It was \"The  Deep Sea\".", "the deep sea").value, 1.0);
        assert_eq!(of("topic_retrieval_longchat", "It was the sea.", "the deep sea").value, 0.0);
    }

    #[test]
    fn questions_and_summaries() {
        assert_eq!(of("financial_qa", "The profit fell", "profit rose").value, 0.5);
        let rouge = of("tv_show_summ", "a b c", "a c b");
        assert_eq!(rouge.parts, [("rouge1", 1.0), ("rouge2", 0.0), ("rougeL", 2.0 / 3.0)]);
    }
}
