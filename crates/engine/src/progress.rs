//! Progress of a prefill, and the wish to end it early.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How far a prefill has come.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Progress {
    /// Tokens fed.
    pub done: usize,
    /// Tokens to feed.
    pub total: usize,
    /// Time since the start.
    pub elapsed: Duration,
    /// Tokens per second over the last few seconds.
    pub rate: f64,
    /// Time left at that rate.
    pub remaining: Duration,
}

impl Progress {
    /// Progress at the average rate since `start`.
    pub fn since(start: Instant, done: usize, total: usize) -> Self {
        let elapsed = start.elapsed();
        let rate = done as f64 / elapsed.as_secs_f64().max(1e-9);
        let left = (total - done) as f64 / rate.max(1e-9);
        Self {
            done,
            total,
            elapsed,
            rate,
            remaining: Duration::try_from_secs_f64(left).unwrap_or(Duration::MAX),
        }
    }
}

/// Measures progress.
#[derive(Debug)]
pub(crate) struct Meter {
    total: usize,
    start: Instant,
    /// Start of the stretch the rate is taken over, and what was done then.
    mark: (Instant, usize),
    rate: f64,
}

impl Meter {
    pub(crate) fn new(total: usize) -> Self {
        let now = Instant::now();
        Self { total, start: now, mark: (now, 0), rate: 0.0 }
    }

    pub(crate) fn at(&mut self, done: usize) -> Progress {
        // Chunks grow dearer as the context grows, so an average over the whole prefill would promise too much.
        let stretch = self.mark.0.elapsed().as_secs_f64();
        if self.rate == 0.0 || stretch > 1.0 {
            self.rate = (done - self.mark.1) as f64 / stretch.max(1e-9);
            if stretch > 1.0 {
                self.mark = (Instant::now(), done);
            }
        }
        let left = (self.total - done) as f64 / self.rate.max(1e-9);
        let remaining = Duration::try_from_secs_f64(left).unwrap_or(Duration::MAX);
        Progress { done, total: self.total, elapsed: self.start.elapsed(), rate: self.rate, remaining }
    }
}

/// A switch that ends a running prefill or generation after its current step. Clones share the switch.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Asks to end.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether ending was asked for.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_and_time_left_agree() {
        let mut meter = Meter::new(1000);
        std::thread::sleep(Duration::from_millis(20));
        let p = meter.at(250);
        assert!(p.rate > 0.0 && p.rate < 250.0 / 0.02 + 1.0);
        assert!((p.remaining.as_secs_f64() * p.rate - 750.0).abs() < 1.0);
    }

    #[test]
    fn clones_share_the_switch() {
        let cancel = Cancel::default();
        cancel.clone().cancel();
        assert!(cancel.is_cancelled());
    }
}
