//! Question answering among distractors (RULER `qa.py`): SQuAD 2.0 and HotpotQA from the user's copies.

use super::material::Documents;
use super::{Drawn, Prompt};
use crate::text::Rng;

/// `units` documents in random order, those of question `index` among them; first come others on its subject, then any. Where there
/// are not enough, all are there, and again from the first.
pub(super) fn draw(prompt: &Prompt, from: &Documents, rng: &mut Rng, index: usize, units: usize) -> Drawn {
    let asked = &from.questions[index % from.questions.len()];
    let total = from.documents.len();
    let mut chosen = asked.gold.clone();
    if units < total {
        let wanted = units.saturating_sub(chosen.len());
        if wanted > asked.more.len() {
            chosen.extend(&asked.more);
            let others: Vec<usize> = (0..total).filter(|d| !chosen.contains(d)).collect();
            let drawn = rng.sample(others.len(), wanted - asked.more.len());
            chosen.extend(drawn.into_iter().map(|i| others[i]));
        } else {
            let drawn = rng.sample(asked.more.len(), wanted);
            chosen.extend(drawn.into_iter().map(|i| asked.more[i]));
        }
    } else {
        chosen = (0..units).map(|d| d % total).collect();
    }
    rng.shuffle(&mut chosen);
    let documents: Vec<String> = chosen
        .into_iter()
        .enumerate()
        .map(|(i, d)| format!("Document {}:\n{}", i + 1, from.documents[d]))
        .collect();
    let (before, after) = prompt.around();
    Drawn {
        before: before.to_string(),
        context: documents.join("\n\n"),
        after: after.replace("{query}", &asked.question),
        prefix: prompt.answer_prefix.clone(),
        answers: asked.answers.clone(),
    }
}
