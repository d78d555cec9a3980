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
        self.at_time(Instant::now(), done)
    }

    fn at_time(&mut self, now: Instant, done: usize) -> Progress {
        // Chunks grow dearer as the context grows, so an average over the whole prefill would promise too much.
        let stretch = now.saturating_duration_since(self.mark.0).as_secs_f64();
        if self.rate == 0.0 || stretch > 1.0 {
            self.rate = (done - self.mark.1) as f64 / stretch.max(1e-9);
            if stretch > 1.0 {
                self.mark = (now, done);
            }
        }
        let left = (self.total - done) as f64 / self.rate.max(1e-9);
        let remaining = Duration::try_from_secs_f64(left).unwrap_or(Duration::MAX);
        Progress {
            done,
            total: self.total,
            elapsed: now.saturating_duration_since(self.start),
            rate: self.rate,
            remaining,
        }
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
        let start = meter.start;
        let mut at = |seconds: f64, done| meter.at_time(start + Duration::from_secs_f64(seconds), done);
        let p = at(0.5, 250);
        assert!((p.rate - 500.0).abs() < 0.01 && (p.remaining.as_secs_f64() - 1.5).abs() < 0.01, "{p:?}");
        // The rate is that of the last second or more.
        let p = at(2.0, 500);
        assert!((p.rate - 250.0).abs() < 0.01 && (p.remaining.as_secs_f64() - 2.0).abs() < 0.01, "{p:?}");
        let p = at(2.5, 900);
        assert!((p.rate - 250.0).abs() < 0.01, "{p:?}");
        let p = at(4.0, 1000);
        assert!((p.rate - 250.0).abs() < 0.01 && p.remaining.is_zero() && p.elapsed.as_secs() == 4, "{p:?}");
    }

    #[test]
    fn clones_share_the_switch() {
        let cancel = Cancel::default();
        cancel.clone().cancel();
        assert!(cancel.is_cancelled());
    }
}
