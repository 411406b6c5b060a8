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
    state.reset_succeeded(now);
    for _ in 0..4 {
        assert_eq!((state.permit(now), state.degraded()), (Permit::Use, Some(FaultKind::Timeout)));
        state.succeeded(now);
    }
    assert_eq!(state.degraded(), Some(FaultKind::Timeout), "too early to tell");
    state.succeeded(now + LIMITS.probation_interval);
    assert_eq!(state.degraded(), None);
}

#[test]
fn a_device_that_fails_rarely_but_again_and_again_is_set_aside() {
    let start = Instant::now();
    let mut state = FaultState::new(FaultLimits { settle_calls: 256, ..LIMITS });
    let (mut failures, mut calls) = (0, 0u32);
    for millisecond in 0..3_600_000 {
        let now = start + Duration::from_millis(millisecond);
        match state.permit(now) {
            Permit::Cpu => continue,
            Permit::Reset => state.reset_succeeded(now),
            Permit::Use => {}
        }
        calls += 1;
        if calls.is_multiple_of(300) {
            state.failed(FaultKind::Timeout, now);
            failures += 1;
        } else {
            state.succeeded(now);
        }
        assert!(failures == 0 || state.degraded().is_some(), "no longer degraded for a moment");
    }
    assert!((3..12).contains(&failures), "{failures} failures in an hour");
}

#[test]
fn intervals_of_any_length_are_survived() {
    let forever = FaultLimits { reset_backoff: Duration::MAX, probation_interval: Duration::MAX, ..LIMITS };
    let now = Instant::now();
    let mut state = FaultState::new(forever);
    for _ in 0..40 {
        state.failed(FaultKind::Reset, now);
        assert!(state.degraded().is_some());
    }
    assert_eq!(state.permit(now), Permit::Cpu);
}

#[test]
fn a_device_that_is_gone_is_opened_again_once_before_it_is_set_aside() {
    let now = Instant::now();
    let mut state = FaultState::new(LIMITS);
    state.failed(FaultKind::DeviceGone, now);
    assert_eq!(state.permit(now), Permit::Reset);
    state.reset_succeeded(now);
    state.failed(FaultKind::DeviceGone, now);
    assert!(state.is_set_aside());
}

#[test]
fn a_device_that_gets_no_calls_settles_by_a_checked_product() {
    let mut now = Instant::now();
    let mut state = FaultState::new(LIMITS);
    assert!(!state.take_check(now), "nothing has failed");
    state.failed(FaultKind::Timeout, now);
    state.reset_succeeded(now);
    assert!(!state.take_check(now), "too early");
    now += LIMITS.probation_interval;
    assert!(state.take_check(now) && !state.take_check(now), "once an interval");
    state.settle();
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
    /// Against a shadow that knows whether a reset followed the last failure, when that was, and how many good calls
    /// came after: a device that failed is never used without a reset, it is degraded until enough calls and enough
    /// time have passed, and whatever happened, good calls in the end make it whole.
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
        let mut trouble: Option<(Instant, u32)> = None;
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
                    state.reset_succeeded(now);
                    trouble = trouble.map(|(_, good)| (now, good));
                    needs_reset = false;
                }
                state.succeeded(now);
                trouble = trouble.map(|(at, good)| (at, good + 1)).filter(|&(at, good)| {
                    good < LIMITS.settle_calls || now - at < LIMITS.probation_interval
                });
                prop_assert_eq!(state.degraded().is_some(), trouble.is_some());
            } else {
                let kind = kinds.next().map_or(FaultKind::Job, |&kind| FaultKind::ALL[kind]);
                // What a failed reset follows from stays the reason.
                let cause = state.degraded().filter(|_| kind == FaultKind::Reset).unwrap_or(kind);
                state.failed(kind, now);
                prop_assert_eq!(state.degraded(), Some(cause));
                needs_reset = true;
                trouble = Some((now, 0));
            }
        }
        now += LIMITS.probation_interval * 32;
        if state.permit(now) == Permit::Reset {
            state.reset_succeeded(now);
        }
        now += LIMITS.probation_interval;
        for _ in 0..LIMITS.settle_calls {
            prop_assert_eq!(state.permit(now), Permit::Use);
            state.succeeded(now);
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
