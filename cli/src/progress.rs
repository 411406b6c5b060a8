//! Progress for people: a bar on a terminal, a line now and then elsewhere.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use rookery_model::bundle::Progress;

use crate::output;

/// How often something is said where there is no terminal.
const QUIET_INTERVAL: Duration = Duration::from_secs(10);

/// Shows one piece of work after the other on standard error.
pub struct TerminalProgress {
    state: Mutex<Option<Shown>>,
}

enum Shown {
    Bar(ProgressBar),
    Lines { what: String, total: u64, done: u64, started: Instant, last: Instant },
}

impl TerminalProgress {
    /// Bars if standard error is a terminal, lines otherwise.
    #[expect(clippy::new_without_default, reason = "what it does depends on the terminal")]
    pub fn new() -> Self {
        TerminalProgress { state: Mutex::new(None) }
    }

    fn with(&self, f: impl FnOnce(&mut Option<Shown>)) {
        // A panic elsewhere must not take the progress display with it.
        f(&mut self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    }
}

fn bar(what: &str, total: u64) -> ProgressBar {
    let template = "{msg:28} {bar:32} {bytes:>10} of {total_bytes:10} {bytes_per_sec:>12} {eta:>4}";
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(10));
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_message(what.to_owned());
    bar
}

impl Progress for TerminalProgress {
    fn start(&self, what: &str, total_bytes: u64) {
        self.with(|state| {
            *state = Some(if std::io::stderr().is_terminal() {
                Shown::Bar(bar(what, total_bytes))
            } else {
                output::note(format_args!("{what}: {}", output::bytes(total_bytes)));
                let now = Instant::now();
                Shown::Lines { what: what.to_owned(), total: total_bytes, done: 0, started: now, last: now }
            });
        });
    }

    fn advance(&self, bytes: u64) {
        self.with(|state| match state {
            Some(Shown::Bar(bar)) => bar.inc(bytes),
            Some(Shown::Lines { what, total, done, last, .. }) => {
                *done += bytes;
                if last.elapsed() >= QUIET_INTERVAL {
                    *last = Instant::now();
                    let percent = 100 * *done / (*total).max(1);
                    output::note(format_args!("{what}: {percent} % ({})", output::bytes(*done)));
                }
            }
            None => {}
        });
    }

    fn finish(&self) {
        self.with(|state| match state.take() {
            Some(Shown::Bar(bar)) => bar.finish(),
            Some(Shown::Lines { what, started, .. }) => {
                output::note(format_args!("{what}: done in {:.1} s", started.elapsed().as_secs_f64()));
            }
            None => {}
        });
    }
}
