use super::RopeConfig;
use reattention_kernels::RopeTable;
use std::sync::Arc;

/// The rotation tables of a session, made when a length first needs them.
#[derive(Debug)]
pub struct Ropes {
    config: RopeConfig,
    /// Stands in for the factor on cosine and sine that the configuration gives.
    multiplier: Option<f32>,
    /// The last table made, and the length its frequencies are for.
    table: Option<(usize, Arc<RopeTable>)>,
}

impl Ropes {
    /// Tables of one configuration.
    pub fn new(config: RopeConfig) -> Self {
        Self { config, multiplier: None, table: None }
    }

    /// The configuration.
    pub fn config(&self) -> &RopeConfig {
        &self.config
    }

    /// Lets every table from now on have this factor on cosine and sine, in place of the configuration's own.
    pub fn set_multiplier(&mut self, multiplier: f32) {
        if self.multiplier.replace(multiplier) != Some(multiplier) {
            self.table = None;
        }
    }

    /// The table for `n` positions in use (0 to `n - 1`).
    pub fn for_positions(&mut self, n: usize) -> Arc<RopeTable> {
        // Lengths within the window share their frequencies under every source.
        let length = if self.config.changes_with_length() { n.max(self.config.window) } else { 0 };
        match &self.table {
            Some((of, table)) if *of == length && table.positions() >= n => Arc::clone(table),
            _ => {
                let (inv_freq, multiplier) = self.config.frequencies(length);
                // Doubling keeps a growing context from rebuilding the table at every step.
                let table = Arc::new(RopeTable::new(
                    inv_freq,
                    self.multiplier.unwrap_or(multiplier),
                    (2 * n).max(4096),
                ));
                self.table = Some((length, Arc::clone(&table)));
                table
            }
        }
    }
}
