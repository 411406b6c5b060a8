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
    /// Time until a device that was set aside is tried again; doubles up to sixteenfold. Default 1 min.
    pub probation_interval: Duration,
    /// Good calls after which earlier failures are forgotten. Default 256, one or two decode steps.
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
    /// The last fault, until the device has settled.
    last: Option<FaultKind>,
}

/// Doublings of the probation interval.
const MOST_DOUBLINGS: u32 = 4;

impl FaultState {
    /// A device that works.
    pub fn new(limits: FaultLimits) -> Self {
        Self { limits, state: State::Working, failures: 0, good: 0, set_aside: 0, last: None }
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

    /// A call was computed by the device, and its result was right.
    pub fn succeeded(&mut self) {
        self.good = self.good.saturating_add(1);
        if self.good >= self.limits.settle_calls {
            (self.failures, self.set_aside, self.last) = (0, 0, None);
        }
    }

    /// A reset succeeded: the device may be used again.
    pub fn reset_succeeded(&mut self) {
        self.state = State::Working;
    }

    /// A call or a reset failed.
    pub fn failed(&mut self, kind: FaultKind, now: Instant) {
        let on_probation = self.set_aside > 0;
        self.last = Some(kind);
        self.good = 0;
        self.failures = self.failures.saturating_add(1);
        let gone = kind == FaultKind::DeviceGone;
        if on_probation || gone || self.failures >= self.limits.max_failures {
            let doublings = self.set_aside.min(MOST_DOUBLINGS);
            self.set_aside = self.set_aside.saturating_add(1);
            self.state = State::SetAside { until: now + self.limits.probation_interval * (1 << doublings) };
            return;
        }
        // The first reset follows at once, the second after the pause, the third after twice the pause.
        let pause = match self.failures {
            0 | 1 => Duration::ZERO,
            more => self.limits.reset_backoff.saturating_mul(1 << (more - 2).min(16)),
        };
        self.state = State::Recovering { at: now + pause };
    }

    /// The fault that keeps the device from being trusted: from a failure until the device has settled again.
    pub fn degraded(&self) -> Option<FaultKind> {
        self.last
    }

    /// Whether the device is out of use until its probation.
    pub fn is_set_aside(&self) -> bool {
        matches!(self.state, State::SetAside { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: FaultLimits = FaultLimits {
        max_failures: 3,
        reset_backoff: Duration::from_millis(100),
        probation_interval: Duration::from_secs(60),
        settle_calls: 4,
    };

    #[test]
    fn a_single_fault_costs_one_reset_and_is_forgotten_after_some_good_calls() {
        let now = Instant::now();
        let mut state = FaultState::new(LIMITS);
        assert_eq!(state.permit(now), Permit::Use);
        state.failed(FaultKind::Timeout, now);
        assert_eq!((state.permit(now), state.degraded()), (Permit::Reset, Some(FaultKind::Timeout)));
        state.reset_succeeded();
        for _ in 0..4 {
            assert_eq!((state.permit(now), state.degraded()), (Permit::Use, Some(FaultKind::Timeout)));
            state.succeeded();
        }
        assert_eq!(state.degraded(), None);
    }

    #[test]
    fn a_device_that_keeps_failing_is_set_aside_and_tried_at_growing_intervals() {
        let mut now = Instant::now();
        let mut state = FaultState::new(LIMITS);
        state.failed(FaultKind::Job, now);
        state.failed(FaultKind::Reset, now);
        assert_eq!(state.permit(now), Permit::Cpu);
        now += LIMITS.reset_backoff;
        assert_eq!(state.permit(now), Permit::Reset);
        state.failed(FaultKind::Reset, now);
        assert!(state.is_set_aside());
        for factor in [1, 2, 4, 8, 16, 16] {
            now += LIMITS.probation_interval * factor - Duration::from_millis(1);
            assert_eq!(state.permit(now), Permit::Cpu);
            now += Duration::from_millis(1);
            assert_eq!(state.permit(now), Permit::Reset);
            state.failed(FaultKind::Reset, now);
        }
    }

    #[derive(Debug, Clone, Copy)]
    enum Operation {
        Pass(u64),
        Call { good: bool },
    }

    proptest! {
        /// Against a shadow that knows only whether a reset followed the last failure: a device that failed is never used
        /// without one, and whatever happened, good calls in the end make it whole.
        #[test]
        fn a_failed_device_is_reset_first_and_recovery_is_always_possible(
            operations in proptest::collection::vec(
                prop_oneof![
                    (0u64..200).prop_map(Operation::Pass),
                    any::<bool>().prop_map(|good| Operation::Call { good }),
                ],
                0..400,
            ),
            kinds in proptest::collection::vec(0..FaultKind::ALL.len(), 1..20),
        ) {
            let mut now = Instant::now();
            let mut state = FaultState::new(LIMITS);
            let mut needs_reset = false;
            let mut kinds = kinds.iter().cycle();
            for operation in operations {
                let good = match operation {
                    Operation::Pass(seconds) => {
                        now += Duration::from_secs(seconds);
                        continue;
                    }
                    Operation::Call { good } => good,
                };
                match state.permit(now) {
                    Permit::Cpu => {
                        prop_assert!(needs_reset && state.degraded().is_some());
                        continue;
                    }
                    Permit::Use => prop_assert!(!needs_reset, "used without a reset"),
                    Permit::Reset => prop_assert!(needs_reset, "reset for nothing"),
                }
                if good {
                    if needs_reset {
                        state.reset_succeeded();
                        needs_reset = false;
                    }
                    state.succeeded();
                } else {
                    let kind = kinds.next().map_or(FaultKind::Job, |&kind| FaultKind::ALL[kind]);
                    state.failed(kind, now);
                    prop_assert_eq!(state.degraded(), Some(kind));
                    needs_reset = true;
                }
            }
            now += LIMITS.probation_interval * 32;
            if state.permit(now) == Permit::Reset {
                state.reset_succeeded();
            }
            for _ in 0..LIMITS.settle_calls {
                prop_assert_eq!(state.permit(now), Permit::Use);
                state.succeeded();
            }
            prop_assert_eq!(state.degraded(), None);
        }

        /// A device that fails at every touch is touched a bounded number of times in any span of time.
        #[test]
        fn a_dead_device_is_touched_rarely(gaps in proptest::collection::vec(0u64..2_000, 1..2_000)) {
            let start = Instant::now();
            let mut now = start;
            let mut state = FaultState::new(LIMITS);
            let mut touches = 0u64;
            for gap in gaps {
                now += Duration::from_millis(gap);
                if state.permit(now) != Permit::Cpu {
                    touches += 1;
                    state.failed(FaultKind::Timeout, now);
                }
            }
            let intervals = (now - start).as_secs() / LIMITS.probation_interval.as_secs();
            prop_assert!(touches <= u64::from(LIMITS.max_failures) + intervals + 1, "{} touches", touches);
        }
    }
}
