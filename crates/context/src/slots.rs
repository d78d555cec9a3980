//! Which tokens the slots of a store hold, once it was compacted, and what was noted of them.

/// Tokens by slot. Before the first compaction slots are tokens; after it the first `kept` slots hold, in every layer and
/// KV head, tokens of its own choice, and the slots behind them the tokens from `read` on, one by one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Slots {
    kept: usize,
    read: usize,
    /// `[n_layers][n_kv_heads][kept]`; empty before the first compaction.
    tokens: Vec<Vec<Vec<u32>>>,
    /// Losses of those tokens, alike.
    losses: Vec<Vec<Vec<f32>>>,
    /// Losses of the tokens from `read` on; empty where nobody wants them.
    fresh: Vec<f32>,
}

/// The loss of a token that nothing predicted: less than that of any other.
const UNKNOWN: f32 = f32::NEG_INFINITY;

impl Slots {
    /// Tokens read when `slots` slots are filled.
    pub(crate) fn tokens(&self, slots: usize) -> usize {
        self.read + slots - self.kept
    }

    /// Slots filled when `n` tokens were read; `None` if the store was compacted since.
    pub(crate) fn slots(&self, n: usize) -> Option<usize> {
        Some(n.checked_sub(self.read)? + self.kept)
    }

    /// Tokens read when the store was last compacted; 0 if it never was.
    pub(crate) fn read(&self) -> usize {
        self.read
    }

    /// Whether the store was compacted.
    pub(crate) fn is_compacted(&self) -> bool {
        !self.tokens.is_empty()
    }

    /// The token in a slot of a layer and KV head.
    pub(crate) fn token(&self, layer: usize, head: usize, slot: usize) -> usize {
        match slot.checked_sub(self.kept) {
            Some(behind) => self.read + behind,
            None => self.tokens[layer][head][slot] as usize,
        }
    }

    /// Notes the losses of the tokens in the slots from `first` on; what is not known of slots before it stays unknown.
    pub(crate) fn note(&mut self, first: usize, losses: &[f32]) {
        self.fresh.resize(first - self.kept, UNKNOWN);
        self.fresh.extend(losses);
    }

    /// Losses of the first `n` slots of a layer and KV head.
    pub(crate) fn losses(&self, layer: usize, head: usize, n: usize) -> Vec<f32> {
        let kept = self.losses.get(layer).map_or(&[][..], |l| &l[head]);
        kept.iter().chain(&self.fresh).copied().take(n).collect()
    }

    /// Forgets the slots from `slots` on, which is not below the kept ones.
    pub(crate) fn truncate(&mut self, slots: usize) {
        self.fresh.truncate(slots - self.kept);
    }

    /// Follows the compaction of a store of `slots` slots ([`crate::Store::compact`]).
    pub(crate) fn compact(&mut self, kept: &[Vec<Vec<u32>>], slots: usize) {
        let tokens = by_head(kept, |layer, head, list| {
            list.iter().map(|&s| self.token(layer, head, s as usize) as u32).collect()
        });
        let losses = by_head(kept, |layer, head, list| {
            let all = self.losses(layer, head, slots);
            list.iter().filter_map(|&s| all.get(s as usize).copied()).collect()
        });
        *self = Self { kept: kept[0][0].len(), read: self.tokens(slots), tokens, losses, fresh: Vec::new() };
    }
}

/// What `make` makes of the list of each layer and KV head.
fn by_head<T>(lists: &[Vec<Vec<u32>>], make: impl Fn(usize, usize, &[u32]) -> Vec<T>) -> Vec<Vec<Vec<T>>> {
    let of_layer = |(layer, lists): (usize, &Vec<Vec<u32>>)| {
        lists.iter().enumerate().map(|(head, list)| make(layer, head, list)).collect()
    };
    lists.iter().enumerate().map(of_layer).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_follow_their_tokens_through_two_compactions() {
        let mut slots = Slots::default();
        slots.note(1, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]);
        assert_eq!((slots.tokens(10), slots.slots(7), slots.token(0, 0, 7)), (10, Some(7), 7));
        // Two layers of one head.
        slots.compact(&[vec![vec![0, 4, 9]], vec![vec![1, 2, 8]]], 10);
        assert!(slots.is_compacted());
        assert_eq!((slots.tokens(3), slots.slots(9), slots.slots(12)), (10, None, Some(5)));
        slots.note(3, &[10.0, 11.0]);
        assert_eq!((0..5).map(|s| slots.token(1, 0, s)).collect::<Vec<_>>(), [1, 2, 8, 10, 11]);
        assert_eq!(slots.losses(0, 0, 4), [UNKNOWN, 4.0, 9.0, 10.0]);
        slots.compact(&[vec![vec![1, 2, 4]], vec![vec![0, 3, 4]]], 5);
        assert_eq!((slots.read(), slots.tokens(4)), (12, 13));
        assert_eq!((0..4).map(|s| slots.token(0, 0, s)).collect::<Vec<_>>(), [4, 9, 11, 12]);
        assert_eq!(slots.losses(1, 0, 3), [1.0, 10.0, 11.0]);
        slots.note(3, &[12.0, 13.0]);
        slots.truncate(4);
        assert_eq!(slots.losses(1, 0, 9), [1.0, 10.0, 11.0, 12.0]);
    }
}
