//! From the best keys of many queries and heads to spans of tokens: count, clip, expand.

use super::Selection;
use reattention_kernels::ListedRequest;
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
    fn offsets(self) -> Range<i64> {
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

/// One vote per entry of `voted`: distinct tokens are counted, the `clip` most voted ones stay (ties to the lower token),
/// and each becomes a span cut off at the ends of `middle`.
pub(super) fn select(
    mut voted: Vec<u32>,
    clip: Option<usize>,
    span: SpanRule,
    middle: Range<usize>,
) -> Selection {
    voted.retain(|&token| token != ListedRequest::NONE);
    voted.sort_unstable();
    let (mut candidates, mut votes) = (Vec::new(), Vec::new());
    for token in voted {
        if candidates.last() == Some(&token) {
            *votes.last_mut().expect("as long as candidates") += 1;
        } else {
            candidates.push(token);
            votes.push(1u32);
        }
    }
    let centres = match clip {
        Some(clip) if candidates.len() > clip => {
            let mut order: Vec<usize> = (0..candidates.len()).collect();
            // Candidates ascend, so a tie between equal votes goes to the lower token.
            order.sort_by_key(|&i| (std::cmp::Reverse(votes[i]), i));
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
    let mut tokens: Vec<u32> = Vec::with_capacity(centres.len() * (offsets.end - offsets.start) as usize);
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

    #[test]
    fn counts_clips_with_ties_to_the_lower_token_and_expands() {
        let voted = vec![70, 20, 90, 20, 50, 90, 30];
        let s = select(voted, Some(3), SpanRule::Centred(4), 16..100);
        assert_eq!(s.candidates, [20, 30, 50, 70, 90]);
        assert_eq!(s.votes, [2, 1, 1, 1, 2]);
        assert_eq!(s.centres, [20, 30, 90]);
        assert_eq!(s.tokens[..], [18, 19, 20, 21, 28, 29, 30, 31, 88, 89, 90, 91]);
    }

    #[test]
    fn spans_merge_and_stop_at_the_ends() {
        let s = select(vec![10, 12, 19], None, SpanRule::Centred(6), 10..20);
        assert_eq!(s.tokens[..], [10, 11, 12, 13, 14, 16, 17, 18, 19]);
        assert_eq!(select(vec![15], None, SpanRule::Centred(5), 10..20).tokens[..], [13, 14, 15, 16, 17]);
        assert_eq!(
            select(vec![15], None, SpanRule::Published(5), 10..20).tokens[..],
            [12, 13, 14, 15, 16, 17]
        );
        assert_eq!(select(vec![15], None, SpanRule::Published(1), 10..20).tokens[..], [14, 15]);
        assert_eq!(select(vec![15], None, SpanRule::Centred(1), 10..20).tokens[..], [15]);
    }
}
