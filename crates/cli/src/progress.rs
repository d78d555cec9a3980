//! A progress bar on stderr, for people.

use crate::terminal::plain;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use reattention_engine::Progress;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Shows progress: a bar in a terminal, a line every few seconds elsewhere, nothing when quiet.
pub(crate) struct Bar {
    bar: ProgressBar,
    label: String,
    lines: bool,
    last: Instant,
}

/// Time between lines where there is no terminal.
const PAUSE: Duration = Duration::from_secs(10);

impl Bar {
    pub(crate) fn new(quiet: bool) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let bar = ProgressBar::with_draw_target(
            None,
            match terminal && !quiet {
                true => ProgressDrawTarget::stderr(),
                false => ProgressDrawTarget::hidden(),
            },
        );
        if let Ok(style) = ProgressStyle::with_template("{msg} [{bar:30}] {pos}/{len}") {
            bar.set_style(style.progress_chars("=> "));
        }
        Self { bar, label: String::new(), lines: !terminal && !quiet, last: Instant::now() }
    }

    /// Shows how far `label` has come.
    pub(crate) fn show(&mut self, label: &str, p: Progress) {
        if self.label != label {
            self.label = label.to_string();
            self.last = Instant::now();
        }
        let left = format!("{:.0} tokens/s, {} left", p.rate, seconds(p.remaining));
        self.bar.set_length(p.total as u64);
        self.bar.set_position(p.done as u64);
        self.bar.set_message(plain(&format!("{label}: {left}")));
        if self.lines && self.last.elapsed() > PAUSE {
            crate::common::complain(format_args!("{label}: {} of {} tokens, {left}", p.done, p.total));
            self.last = Instant::now();
        }
    }

    /// Shows how far a run of many rows has come, and what it reads just now.
    pub(crate) fn overall(
        &mut self,
        rows: usize,
        total: usize,
        left: Option<Duration>,
        label: &str,
        p: Progress,
    ) {
        let left = left.map_or(String::new(), |left| format!(", {} left", seconds(left)));
        self.bar.set_length(total as u64);
        self.bar.set_position(rows as u64);
        self.bar.set_message(plain(&format!("{label}: {} of {} tokens{left}", p.done, p.total)));
        if self.lines && self.last.elapsed() > PAUSE {
            crate::common::complain(format_args!(
                "{rows} of {total} rows{left}; {label}: {:.0} tokens/s",
                p.rate
            ));
            self.last = Instant::now();
        }
    }

    /// Removes the bar.
    pub(crate) fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

fn seconds(d: Duration) -> String {
    match d.as_secs() {
        s if s < 60 => format!("{s} s"),
        s if s < 3600 => format!("{} min {} s", s / 60, s % 60),
        s => format!("{} h {} min", s / 3600, s % 3600 / 60),
    }
}
