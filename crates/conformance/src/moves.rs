//! Whether near ties explain how votes differ: a flow of votes from keys that have too many to keys that have too few.

use crate::probe::NearTie;
use std::collections::{BTreeMap, VecDeque};

/// Moves votes along `ties` until no key of `missing` lacks or has too many, as far as that goes, and says how many moved. A query
/// and head has one vote for a key: it gives each away once, and gives none twice.
pub(crate) fn settle(missing: &mut BTreeMap<usize, i64>, ties: &[NearTie]) -> usize {
    let surplus: Vec<usize> = missing.iter().filter(|m| *m.1 < 0).map(|m| *m.0).collect();
    if surplus.is_empty() || ties.is_empty() {
        return 0;
    }
    let mut network = Network::default();
    for tie in ties {
        let (row, from, to) = (tie.row, tie.chosen as usize, tie.rejected as usize);
        network.edge(Node::Key(from), Node::Gives(row, from));
        network.edge(Node::Gives(row, from), Node::Takes(row, to));
        network.edge(Node::Takes(row, to), Node::Key(to));
    }
    let mut moved = 0;
    for from in surplus {
        while missing[&from] < 0 {
            let wanted = |node| matches!(node, Node::Key(key) if missing.get(&key).is_some_and(|m| *m > 0));
            let Some(Node::Key(to)) = network.push(Node::Key(from), wanted) else { break };
            *missing.entry(from).or_default() += 1;
            *missing.entry(to).or_default() -= 1;
            moved += 1;
        }
    }
    moved
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Node {
    /// All votes for a key.
    Key(usize),
    /// The vote of a query and head that leaves a key.
    Gives(u32, usize),
    /// The vote of a query and head that comes to a key.
    Takes(u32, usize),
}

/// How many votes may still go from one node to another.
#[derive(Default)]
struct Network(BTreeMap<Node, BTreeMap<Node, u32>>);

impl Network {
    /// Lets one vote pass, however often this is said.
    fn edge(&mut self, from: Node, to: Node) {
        self.0.entry(from).or_default().insert(to, 1);
        self.0.entry(to).or_default().entry(from).or_insert(0);
    }

    /// Sends one vote the shortest way to a node that is wanted (Edmonds and Karp); earlier votes make way where they can.
    fn push(&mut self, from: Node, wanted: impl Fn(Node) -> bool) -> Option<Node> {
        let mut came_from = BTreeMap::from([(from, from)]);
        let mut queue = VecDeque::from([from]);
        while let Some(node) = queue.pop_front() {
            if wanted(node) {
                let mut to = node;
                while to != from {
                    let before = came_from[&to];
                    *self.0.entry(before).or_default().entry(to).or_default() -= 1;
                    *self.0.entry(to).or_default().entry(before).or_default() += 1;
                    to = before;
                }
                return Some(node);
            }
            for (&next, _) in self.0.get(&node).into_iter().flatten().filter(|(_, votes)| **votes > 0) {
                came_from.entry(next).or_insert_with(|| {
                    queue.push_back(next);
                    node
                });
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tie(row: u32, chosen: u32, rejected: u32) -> NearTie {
        NearTie { row, chosen, rejected }
    }

    fn left(missing: &[(usize, i64)], ties: &[NearTie]) -> Vec<(usize, i64)> {
        let mut missing = missing.iter().copied().collect();
        settle(&mut missing, ties);
        missing.into_iter().filter(|m| m.1 != 0).collect()
    }

    #[test]
    fn a_vote_may_go_over_several_keys() {
        assert!(left(&[(1, -1), (3, 1)], &[tie(0, 1, 2), tie(1, 2, 3)]).is_empty());
        // Not backwards.
        assert_eq!(left(&[(3, -1), (1, 1)], &[tie(0, 1, 2), tie(1, 2, 3)]), [(1, 1), (3, -1)]);
    }

    #[test]
    fn a_query_gives_away_a_vote_once() {
        assert_eq!(left(&[(1, -2), (2, 1), (3, 1)], &[tie(0, 1, 2), tie(0, 1, 3)]).len(), 2);
        assert!(left(&[(1, -2), (2, 1), (3, 1)], &[tie(0, 1, 2), tie(1, 1, 3)]).is_empty());
        // Two of its keys do not both become the same.
        assert_eq!(left(&[(1, -1), (2, -1), (3, 2)], &[tie(0, 1, 3), tie(0, 2, 3)]).len(), 2);
    }

    #[test]
    fn an_earlier_move_makes_way() {
        // The only way of 2 is to 4, which 1 could take as well.
        let ties = [tie(0, 1, 4), tie(1, 1, 5), tie(2, 2, 4)];
        assert!(left(&[(1, -1), (2, -1), (4, 1), (5, 1)], &ties).is_empty());
    }
}
