//! The progress of a transfer, on stderr, if and only if that is a terminal.

use std::io::{IsTerminal, stderr};
use std::sync::Once;
use std::time::Duration;

use console::Term;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Most redraws of a line per second.
const DRAWN_PER_SECOND: u8 = 10;
/// Interval at which a line is redrawn while nothing moves, so that the stall is visible.
const REDRAW_INTERVAL: Duration = Duration::from_millis(250);

const SHARE: &str =
    "{msg} {bar:24} {percent:>3}%  {bytes} of {total_bytes}  {bytes_per_sec}  {eta} left";
const RUNNING: &str = "{msg} {bytes} in {elapsed}  {bytes_per_sec}";

/// Draws the progress lines of one transfer.
pub(crate) struct Progress {
    lines: MultiProgress,
}

impl Progress {
    pub(crate) fn new(quiet: bool) -> Self {
        let target = if !quiet && stderr().is_terminal() {
            // Not `ProgressDrawTarget::stderr`, which draws nothing where TERM is not set.
            let term = Box::new(Term::buffered_stderr());
            ProgressDrawTarget::term_like_with_hz(term, DRAWN_PER_SECOND)
        } else {
            ProgressDrawTarget::hidden()
        };
        Self {
            lines: MultiProgress::with_draw_target(target),
        }
    }

    /// A line that appears with the first byte; with the share that is done, if the total is
    /// known.
    pub(crate) fn meter(&self, what: &'static str, total: Option<u64>) -> Meter {
        let bar = match total {
            Some(total) => ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::hidden()),
            None => ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden()),
        }
        .with_message(what);
        set_style(&bar, if total.is_some() { SHARE } else { RUNNING });
        Meter {
            lines: self.lines.clone(),
            begun: Once::new(),
            bar,
        }
    }
}

/// One direction of a transfer.
pub(crate) struct Meter {
    lines: MultiProgress,
    begun: Once,
    bar: ProgressBar,
}

impl Meter {
    /// Counts `bytes` more.
    pub(crate) fn add(&self, bytes: usize) {
        self.begun.call_once(|| {
            if !self.lines.is_hidden() {
                self.lines.add(self.bar.clone());
                self.bar.reset();
                self.bar.enable_steady_tick(REDRAW_INTERVAL);
            }
        });
        self.bar.inc(bytes as u64);
    }

    /// Leaves a line with the total.
    pub(crate) fn done(&self) {
        if self.begun.is_completed() && !self.bar.is_finished() {
            set_style(&self.bar, RUNNING);
            self.bar.finish();
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.done();
    }
}

fn set_style(bar: &ProgressBar, template: &str) {
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
}
