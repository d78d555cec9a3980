use super::{RopeConfig, RopeError};
use reattention_kernels::RopeTable;
use std::sync::Arc;

/// The rotation tables of a session, made when a length first needs them.
#[derive(Debug)]
pub struct Ropes {
    config: RopeConfig,
    /// Pairs of a head's dimensions, those that are not rotated included.
    pairs: usize,
    /// Whether no pair is rotated.
    still: bool,
    /// Stands in for the factor on cosine and sine that the configuration gives.
    multiplier: Option<f32>,
    /// The frequencies that the tables have, as a length they are for; see [`RopeConfig::stage`].
    stage: usize,
    /// Tables made for it: how far positions are compressed, and the table.
    tables: Vec<(f32, Arc<RopeTable>)>,
    /// Tokens there will be once the prompt that is being read has been read to its end.
    planned: usize,
    /// The most positions that the running view has asked for.
    in_use: usize,
}

impl Ropes {
    /// Tables of one configuration for heads of `head_dim` dimensions. Where the configuration rotates fewer, the pairs
    /// behind those it rotates stand still.
    pub fn new(config: RopeConfig, head_dim: usize) -> Self {
        let pairs = head_dim / 2;
        Self {
            config,
            pairs,
            still: false,
            multiplier: None,
            stage: 0,
            tables: Vec::new(),
            planned: 0,
            in_use: 0,
        }
    }

    /// Tables that rotate nothing, for layers without positions.
    pub fn still(config: RopeConfig, head_dim: usize) -> Self {
        Self { still: true, ..Self::new(config, head_dim) }
    }

    /// The configuration.
    pub fn config(&self) -> &RopeConfig {
        &self.config
    }

    /// Lets every table from now on have this factor on cosine and sine, in place of the configuration's own.
    pub fn set_multiplier(&mut self, multiplier: f32) {
        if self.multiplier.replace(multiplier) != Some(multiplier) {
            self.tables.clear();
        }
    }

    /// The table for `n` positions in use (0 to `n - 1`).
    ///
    /// # Errors
    /// When there are no frequencies for so many positions.
    pub fn for_positions(&mut self, n: usize) -> Result<Arc<RopeTable>, RopeError> {
        self.table(n, n, 1.0)
    }

    /// The table for a method whose queries and keys are less than `distances` apart, although they stand at positions up to
    /// `positions - 1`: what frequencies are made for are distances.
    ///
    /// # Errors
    /// When there are no frequencies for such distances.
    pub fn for_distances(&mut self, distances: usize, positions: usize) -> Result<Arc<RopeTable>, RopeError> {
        self.table(distances, positions, 1.0)
    }

    /// The table for `n` positions in use, each divided by `ratio`.
    ///
    /// # Errors
    /// As [`Ropes::for_positions`].
    pub fn compressed(&mut self, n: usize, ratio: f32) -> Result<Arc<RopeTable>, RopeError> {
        self.table(n, n, ratio)
    }

    fn table(&mut self, distances: usize, positions: usize, ratio: f32) -> Result<Arc<RopeTable>, RopeError> {
        self.in_use = self.in_use.max(distances);
        let stage = self.config.stage(distances)?;
        if stage != self.stage {
            (self.stage, self.tables) = (stage, Vec::new());
        }
        let held = self.tables.iter().position(|(of, _)| *of == ratio);
        if let Some((_, table)) = held.map(|i| &self.tables[i]).filter(|(_, t)| t.positions() >= positions) {
            return Ok(Arc::clone(table));
        }
        let (mut inv_freq, multiplier) = self.config.frequencies(distances)?;
        inv_freq.iter_mut().for_each(|f| *f /= ratio);
        if self.still {
            inv_freq.fill(0.0);
        }
        inv_freq.resize(self.pairs, 0.0);
        let multiplier = self.multiplier.unwrap_or(multiplier);
        // Doubling keeps a growing context from rebuilding the table at every step.
        let table = Arc::new(RopeTable::new(inv_freq, multiplier, (2 * positions).max(4096)));
        match held {
            Some(i) => self.tables[i].1 = Arc::clone(&table),
            None => self.tables.push((ratio, Arc::clone(&table))),
        }
        Ok(table)
    }

    /// Tokens that a method which places tokens at their own indices should take the frequencies for, when a step ends at token
    /// `end`: those of the whole prompt that is being read. So frequencies that follow the length do not depend on how the
    /// prompt is cut.
    pub fn reading(&self, end: usize) -> usize {
        end.max(self.planned)
    }

    /// Announces that a prompt will be read up to token `end`, or that no token from `end` on is known any more.
    pub(crate) fn plan(&mut self, end: usize) {
        self.planned = end;
    }

    /// Forgets tokens from `n` on.
    pub(crate) fn truncate(&mut self, n: usize) {
        self.planned = self.planned.min(n);
    }

    /// A new view begins, which has asked for nothing yet.
    pub(crate) fn begin_view(&mut self) {
        self.in_use = 0;
    }

    /// The factor on the logits of the running view.
    pub(crate) fn logit_factor(&self) -> f32 {
        self.config.logit_factor(self.in_use)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rope::RopeScaling;

    fn ropes(scaling: RopeScaling) -> Ropes {
        Ropes::new(RopeConfig { theta: 1e4, dim: 8, window: 100, scaling }, 8)
    }

    #[test]
    fn tables_are_kept_while_their_frequencies_hold() {
        let mut ropes = ropes(RopeScaling::DynamicNtk { factor: 2.0 });
        let short = ropes.for_positions(10).unwrap();
        assert!(Arc::ptr_eq(&short, &ropes.for_positions(100).unwrap()));
        let compressed = ropes.compressed(100, 1.5).unwrap();
        assert!(Arc::ptr_eq(&short, &ropes.for_positions(50).unwrap()));
        assert!(Arc::ptr_eq(&compressed, &ropes.compressed(50, 1.5).unwrap()));
        assert_eq!(compressed.inv_freq()[1], short.inv_freq()[1] / 1.5);
        let long = ropes.for_positions(101).unwrap();
        assert!(long.inv_freq()[1] < short.inv_freq()[1]);
        assert_eq!(ropes.for_positions(100).unwrap().inv_freq(), short.inv_freq());
        // Distances choose the frequencies, positions the size.
        let near = ropes.for_distances(60, 9000).unwrap();
        assert!(near.inv_freq() == short.inv_freq() && near.positions() >= 9000);
    }

    #[test]
    fn dimensions_that_are_not_rotated_stand_still() {
        let scaling = RopeScaling::Yarn {
            factor: 4.0,
            original_window: 100,
            beta_fast: 32.0,
            beta_slow: 1.0,
            attention_factor: Some(1.5),
            truncate: true,
        };
        let config = RopeConfig { theta: 1e4, dim: 4, window: 100, scaling };
        let row = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0];
        let mut partial = row;
        Ropes::new(config.clone(), 8).for_positions(10).unwrap().rotate(7, &mut partial);
        // Pairs are (0, 4), (1, 5) and, at rest, (2, 6), (3, 7): those keep their length, too.
        assert_eq!([partial[2], partial[3], partial[6], partial[7]], [3.0, 4.0, 7.0, 8.0]);
        assert!((partial[0].hypot(partial[4]) - 1.5 * 1f32.hypot(5.0)).abs() < 1e-4 && partial[0] != 1.5);
        let mut still = row;
        Ropes::still(config, 8).for_positions(10).unwrap().rotate(7, &mut still);
        assert_eq!(still, row);
    }

    #[test]
    fn a_table_grows_with_the_positions() {
        let mut ropes = ropes(RopeScaling::None);
        for n in [10, 5000, 9000, 40_000] {
            assert!(ropes.for_positions(n).unwrap().positions() >= n);
        }
        assert_eq!(ropes.tables.len(), 1);
    }

    #[test]
    fn the_length_of_a_prompt_is_known_before_its_end() {
        let mut ropes = ropes(RopeScaling::None);
        ropes.plan(300);
        assert_eq!((ropes.reading(10), ropes.reading(301)), (300, 301));
        ropes.truncate(200);
        assert_eq!(ropes.reading(10), 200);
    }
}
