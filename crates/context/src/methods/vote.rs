//! From the best keys of many queries and heads to spans of tokens: vote, clip, expand.

use super::Selection;
use reattention_kernels::{ListedRequest, TopK, VoteRule};
use std::ops::Range;
use std::sync::Arc;

/// Which offsets around a centre a span covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SpanRule {
    /// Exactly `span` tokens: `-span / 2 ..` around the centre.
    Centred(usize),
    /// The published code's `floor(-span / 2) ..= floor((span + 1) / 2) - 1`: an odd span covers one token more.
    Published(usize),
}

impl SpanRule {
    /// From the first token covered, counted from the centre, to the one behind the last.
    pub(super) fn offsets(self) -> Range<i64> {
        match self {
            Self::Centred(span) => {
                let before = span as i64 / 2;
                -before..span as i64 - before
            }
            Self::Published(span) => {
                let half = (span as i64 + 1) / 2;
                -half..half
            }
        }
    }
}

/// A token voted for, and what the vote weighs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Vote {
    pub(super) token: u32,
    pub(super) weight: f32,
}

/// The votes of query `token` and head `head`; `scale` turns scores into logits.
pub(super) fn votes(
    rule: VoteRule,
    best: &TopK,
    token: usize,
    head: usize,
    scale: f32,
) -> impl Iterator<Item = Vote> {
    let start = (token * best.n_heads + head) * best.k;
    let (tokens, scores) = (&best.indices[start..][..best.k], &best.scores[start..][..best.k]);
    let found = tokens.iter().position(|&t| t == ListedRequest::NONE).unwrap_or(best.k);
    let (tokens, scores) = (&tokens[..found], &scores[..found]);
    let (first, last) = (scores.first().copied().unwrap_or(0.0), scores.last().copied().unwrap_or(0.0));
    let total: f32 = match rule {
        VoteRule::Softmax => scores.iter().map(|s| ((s - first) * scale).exp()).sum(),
        VoteRule::Count | VoteRule::Margin => 1.0,
    };
    tokens.iter().zip(scores).map(move |(&token, score)| {
        let weight = match rule {
            VoteRule::Count => 1.0,
            VoteRule::Margin => (score - last) * scale,
            VoteRule::Softmax => ((score - first) * scale).exp() / total,
        };
        Vote { token, weight }
    })
}

/// Adds up the votes of each token; the `clip` tokens with the heaviest votes stay (ties to the lower token), and each becomes
/// a span cut off at the ends of `middle`.
pub(super) fn select(
    mut voted: Vec<Vote>,
    clip: Option<usize>,
    span: SpanRule,
    middle: Range<usize>,
) -> Selection {
    // Stable, so that the weights of a token are added in the same order always.
    voted.sort_by_key(|vote| vote.token);
    let (mut candidates, mut votes, mut weights) = (Vec::new(), Vec::new(), Vec::new());
    for of_token in voted.chunk_by(|a, b| a.token == b.token) {
        candidates.push(of_token[0].token);
        votes.push(of_token.len() as u32);
        weights.push(of_token.iter().map(|vote| f64::from(vote.weight)).sum::<f64>());
    }
    let centres = match clip {
        Some(clip) if candidates.len() > clip => {
            let mut order: Vec<usize> = (0..candidates.len()).collect();
            // Candidates ascend, so a tie between equal votes goes to the lower token.
            order.sort_by(|&a, &b| weights[b].total_cmp(&weights[a]).then(a.cmp(&b)));
            order.truncate(clip);
            order.sort_unstable();
            order.into_iter().map(|i| candidates[i]).collect()
        }
        _ => candidates.clone(),
    };
    let tokens = expand(&centres, span, middle);
    Selection { candidates, votes, centres, tokens }
}

/// The union of the spans around ascending `centres`, ascending.
fn expand(centres: &[u32], span: SpanRule, middle: Range<usize>) -> Arc<[u32]> {
    let offsets = span.offsets();
    let span = (offsets.end - offsets.start) as usize;
    // Spans may be far longer than what there is to cover.
    let most = centres.len().saturating_mul(span).min(middle.len());
    let mut tokens: Vec<u32> = Vec::with_capacity(most);
    let mut next = middle.start as i64;
    for &centre in centres {
        let from = (i64::from(centre) + offsets.start).max(next);
        let to = (i64::from(centre) + offsets.end).min(middle.end as i64);
        tokens.extend((from..to).map(|t| t as u32));
        next = next.max(to);
    }
    tokens.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(tokens: &[u32]) -> Vec<Vote> {
        tokens.iter().map(|&token| Vote { token, weight: 1.0 }).collect()
    }

    #[test]
    fn counts_clips_with_ties_to_the_lower_token_and_expands() {
        let s = select(counted(&[70, 20, 90, 20, 50, 90, 30]), Some(3), SpanRule::Centred(4), 16..100);
        assert_eq!(s.candidates, [20, 30, 50, 70, 90]);
        assert_eq!(s.votes, [2, 1, 1, 1, 2]);
        assert_eq!(s.centres, [20, 30, 90]);
        assert_eq!(s.tokens[..], [18, 19, 20, 21, 28, 29, 30, 31, 88, 89, 90, 91]);
    }

    #[test]
    fn spans_merge_and_stop_at_the_ends() {
        let spans = |centres: &[u32], span| select(counted(centres), None, span, 10..20).tokens.to_vec();
        assert_eq!(spans(&[10, 12, 19], SpanRule::Centred(6)), [10, 11, 12, 13, 14, 16, 17, 18, 19]);
        assert_eq!(spans(&[15], SpanRule::Centred(5)), [13, 14, 15, 16, 17]);
        assert_eq!(spans(&[15], SpanRule::Published(5)), [12, 13, 14, 15, 16, 17]);
        assert_eq!(spans(&[15], SpanRule::Published(1)), [14, 15]);
        assert_eq!(spans(&[15], SpanRule::Centred(1)), [15]);
    }

    #[test]
    fn spans_beyond_any_context_take_no_more_than_the_middle() {
        let centres: Vec<u32> = (0..4096).collect();
        for span in [1 << 20, 1 << 30] {
            let s = select(counted(&centres), None, SpanRule::Centred(span), 10..5000);
            assert_eq!(s.tokens[..], (10..5000).collect::<Vec<u32>>());
            assert!(select(counted(&[]), None, SpanRule::Published(span), 0..0).tokens.is_empty());
        }
    }

    #[test]
    fn a_sure_head_outweighs_indifferent_ones_unless_votes_are_counted() {
        // Three heads that hardly tell tokens 1, 2 and 3 apart, and one that wants token 9.
        let (indifferent, sure) = ([(1, 2.0), (2, 1.99), (3, 1.98)], [(9, 8.0), (4, 1.0), (5, 1.0)]);
        let rows = [indifferent, indifferent, indifferent, sure];
        let best = TopK {
            q_len: 1,
            n_heads: 4,
            k: 3,
            indices: rows.iter().flatten().map(|r| r.0).collect(),
            scores: rows.iter().flatten().map(|r| r.1).collect(),
        };
        let centre = |rule: VoteRule| {
            let cast = (0..4).flat_map(|head| votes(rule, &best, 0, head, 1.0)).collect();
            select(cast, Some(1), SpanRule::Centred(1), 0..10).centres[0]
        };
        assert_eq!(centre(VoteRule::Count), 1);
        assert_eq!(centre(VoteRule::Margin), 9);
        // The three give a third each to token 1, together just more than the one vote of the sure head.
        let weight =
            |head| votes(VoteRule::Softmax, &best, 0, head, 1.0).map(|v| v.weight).collect::<Vec<_>>();
        assert!(
            (weight(0).iter().sum::<f32>() - 1.0).abs() < 1e-6 && weight(0)[0] < 0.34 && weight(3)[0] > 0.99
        );
    }

    #[test]
    fn a_head_that_found_too_few_keys_votes_for_those() {
        let none = ListedRequest::NONE;
        let best = TopK {
            q_len: 1,
            n_heads: 2,
            k: 3,
            indices: vec![7, none, none, none, none, none],
            scores: vec![
                1.5,
                f32::NEG_INFINITY,
                f32::NEG_INFINITY,
                f32::NEG_INFINITY,
                f32::NEG_INFINITY,
                f32::NEG_INFINITY,
            ],
        };
        for (rule, weight) in [(VoteRule::Count, 1.0), (VoteRule::Margin, 0.0), (VoteRule::Softmax, 1.0)] {
            assert_eq!(votes(rule, &best, 0, 0, 0.5).collect::<Vec<_>>(), [Vote { token: 7, weight }]);
            assert_eq!(votes(rule, &best, 0, 1, 0.5).count(), 0);
        }
    }
}
