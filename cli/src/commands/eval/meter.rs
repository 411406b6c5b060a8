//! How far an evaluation is and how long it still takes: a bar on a terminal, a line now and then elsewhere.

use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use rookery_quantizer::eval::EvalProgress;

use crate::output;

/// How often something is said where there is no terminal.
const QUIET_INTERVAL: Duration = Duration::from_secs(10);
/// Steps of the bar.
const STEPS: u64 = 1000;

/// Shows one piece of work on standard error.
pub(super) struct EvalMeter {
    what: &'static str,
    started: Instant,
    bar: Option<ProgressBar>,
    last: Mutex<Instant>,
}

impl EvalMeter {
    pub(super) fn new(what: &'static str) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(Some(STEPS), ProgressDrawTarget::stderr_with_hz(10));
            if let Ok(style) = ProgressStyle::with_template("{msg:28} {bar:32} {percent:>3} % {eta:>6} left")
            {
                bar.set_style(style.progress_chars("=> "));
            }
            bar.set_message(what);
            bar
        });
        let started = Instant::now();
        Self { what, started, bar, last: Mutex::new(started) }
    }

    /// The work is done.
    pub(super) fn finish(&self) {
        match &self.bar {
            Some(bar) => bar.finish_and_clear(),
            None => {
                let seconds = self.started.elapsed().as_secs_f64();
                output::note(format_args!("{}: done in {seconds:.1} s", self.what));
            }
        }
    }
}

impl EvalProgress for EvalMeter {
    fn at(&self, share: f64) {
        if let Some(bar) = &self.bar {
            return bar.set_position((share * STEPS as f64) as u64);
        }
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.elapsed() >= QUIET_INTERVAL && share > 0.0 {
            *last = Instant::now();
            let left = self.started.elapsed().as_secs_f64() * (1.0 - share) / share;
            output::note(format_args!("{}: {:.0} %, {left:.0} s left", self.what, 100.0 * share));
        }
    }
}
