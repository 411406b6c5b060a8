//! When a failing NPU is used again: a state machine without clock or I/O.
//!
//! ```text
//!            fault                    next call: reset at once          settled
//! Working ───────────► Recovering ─────────────────────────► Working ───────────► failures = 0
//!    ▲                  │   ▲  reset fails, or a fault before
//!    │                  │   └─ it settled: pause doubles
//!    │                  │ max_failures in a row
//!    │                  ▼
//!    └──────────── SetAside ── probation interval over: one reset; a failure sets it aside again, for twice as long
//! ```
//! Settled is a device after `settle_calls` good calls and a probation interval without a failure, so that one which
//! fails rarely but again and again is set aside too; or, where no call comes its way, after a checked product.
//!
//! A call that may not use the NPU is computed on the CPU; nothing waits for a pause to end. The time between two
//! resets is bounded below by the pauses, so a device that fails at every call costs a bounded share of time.

use std::fmt;
use std::time::{Duration, Instant};

/// What went wrong with a device or its result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FaultKind {
    /// A job did not end in time.
    Timeout,
    /// A job ended with another status than it should, or the kernel refused it.
    Job,
    /// Device memory could not be had, or not be brought in step with the processor.
    Memory,
    /// A result failed its checksum.
    WrongResult,
    /// The device node does not answer any more.
    DeviceGone,
    /// A reset failed.
    Reset,
}

impl FaultKind {
    /// All kinds.
    pub const ALL: [FaultKind; 6] =
        [Self::Timeout, Self::Job, Self::Memory, Self::WrongResult, Self::DeviceGone, Self::Reset];

    /// Name on metrics and spans.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Job => "job",
            Self::Memory => "memory",
            Self::WrongResult => "wrong_result",
            Self::DeviceGone => "device_gone",
            Self::Reset => "reset",
        }
    }
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Timeout => "a job did not end in time",
            Self::Job => "a job failed",
            Self::Memory => "device memory could not be had or synchronised",
            Self::WrongResult => "a result failed its checksum",
            Self::DeviceGone => "the device is gone",
            Self::Reset => "a reset failed",
        })
    }
}

/// When a failing device is reset, set aside and tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FaultLimits {
    /// Failures in a row, resets included, after which the device is set aside. Default 3.
    pub max_failures: u32,
    /// Pause before the second reset in a row; doubles with each further one. Default 100 ms.
    pub reset_backoff: Duration,
    /// Time until a device that was set aside is tried again; doubles up to sixteenfold. Also the time without a failure
    /// that must pass until earlier ones are forgotten. Default 1 min.
    pub probation_interval: Duration,
    /// Good calls that must have passed besides. Default 256, one or two decode steps.
    pub settle_calls: u32,
}

impl Default for FaultLimits {
    fn default() -> Self {
        Self {
            max_failures: 3,
            reset_backoff: Duration::from_millis(100),
            probation_interval: Duration::from_secs(60),
            settle_calls: 256,
        }
    }
}

/// What a call may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Permit {
    /// Use the device.
    Use,
    /// Reset the device first, and say how that went.
    Reset,
    /// Compute on the CPU.
    Cpu,
}

/// Where the device stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Working,
    /// To be reset at the first call from `at` on.
    Recovering {
        at: Instant,
    },
    /// Out of use until `until`.
    SetAside {
        until: Instant,
    },
}

/// The state machine of one device; see the module's head.
#[derive(Debug, Clone)]
pub struct FaultState {
    limits: FaultLimits,
    state: State,
    /// Failures since the device last settled.
    failures: u32,
    /// Good calls since the last failure.
    good: u32,
    /// Times in a row that the device was set aside.
    set_aside: u32,
    /// The last fault, and when it or the reset after it happened, until the device has settled.
    last: Option<(FaultKind, Instant)>,
    /// When a product was last checked because no call came the device's way.
    checked: Option<Instant>,
}

/// Doublings of the probation interval.
const MOST_DOUBLINGS: u32 = 4;
/// No pause is longer, whatever the limits say.
const LONGEST_PAUSE: Duration = Duration::from_secs(16 * 24 * 3600);

impl FaultState {
    /// A device that works.
    pub fn new(limits: FaultLimits) -> Self {
        Self { limits, state: State::Working, failures: 0, good: 0, set_aside: 0, last: None, checked: None }
    }

    /// What a call at `now` may do.
    pub fn permit(&self, now: Instant) -> Permit {
        match self.state {
            State::Working => Permit::Use,
            State::Recovering { at } if now >= at => Permit::Reset,
            State::SetAside { until } if now >= until => Permit::Reset,
            State::Recovering { .. } | State::SetAside { .. } => Permit::Cpu,
        }
    }

    /// A call was computed by the device at `now`, and its result was right.
    pub fn succeeded(&mut self, now: Instant) {
        self.good = self.good.saturating_add(1);
        if self.good >= self.limits.settle_calls && self.is_quiet(now) {
            self.settle();
        }
    }

    /// Whether to check one product at `now` although no call needs the device: it works, has not settled, and neither a
    /// failure nor a check was less than a probation interval ago. Counts as that check.
    pub fn take_check(&mut self, now: Instant) -> bool {
        let interval = self.limits.probation_interval;
        let rested = self.checked.is_none_or(|at| now.saturating_duration_since(at) >= interval);
        let due = self.state == State::Working && self.last.is_some() && self.is_quiet(now) && rested;
        if due {
            self.checked = Some(now);
        }
        due
    }

    /// The product of [`FaultState::take_check`] was right.
    pub fn settle(&mut self) {
        (self.failures, self.set_aside, self.last, self.checked) = (0, 0, None, None);
    }

    /// Whether the device has worked for a probation interval without a failure.
    fn is_quiet(&self, now: Instant) -> bool {
        let interval = self.limits.probation_interval;
        self.last.is_none_or(|(_, at)| now.saturating_duration_since(at) >= interval)
    }

    /// A reset succeeded: the device may be used again.
    pub fn reset_succeeded(&mut self, now: Instant) {
        self.state = State::Working;
        // Time out of use says nothing about the device.
        self.last = self.last.map(|(kind, _)| (kind, now));
    }

    /// A call or a reset failed.
    pub fn failed(&mut self, kind: FaultKind, now: Instant) {
        let on_probation = self.set_aside > 0;
        // A reset that fails follows from something: that is what a person wants to know.
        let cause = if kind == FaultKind::Reset { self.degraded().unwrap_or(kind) } else { kind };
        self.last = Some((cause, now));
        self.good = 0;
        self.failures = self.failures.saturating_add(1);
        // A node that went away may answer as soon as it is opened again; that is tried once before the wait.
        let gone = kind == FaultKind::DeviceGone && self.failures > 1;
        if on_probation || gone || self.failures >= self.limits.max_failures {
            let doublings = self.set_aside.min(MOST_DOUBLINGS);
            self.set_aside = self.set_aside.saturating_add(1);
            let pause = self.limits.probation_interval.saturating_mul(1 << doublings);
            self.state = State::SetAside { until: after(now, pause) };
            return;
        }
        // The first reset follows at once, the second after the pause, the third after twice the pause.
        let pause = match self.failures {
            0 | 1 => Duration::ZERO,
            more => self.limits.reset_backoff.saturating_mul(1 << (more - 2).min(16)),
        };
        self.state = State::Recovering { at: after(now, pause) };
    }

    /// The fault that keeps the device from being trusted: from a failure until the device has settled again.
    pub fn degraded(&self) -> Option<FaultKind> {
        self.last.map(|(kind, _)| kind)
    }

    /// Whether the device is out of use until its probation.
    pub fn is_set_aside(&self) -> bool {
        matches!(self.state, State::SetAside { .. })
    }
}

/// A pause later, however long the configured one is.
fn after(now: Instant, pause: Duration) -> Instant {
    now.checked_add(pause.min(LONGEST_PAUSE)).unwrap_or(now)
}

#[cfg(test)]
mod tests;
