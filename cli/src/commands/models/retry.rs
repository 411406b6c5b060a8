//! When a push tries again, and when it gives up.

use std::time::{Duration, Instant};

use rookery_proto::status::{Reason, reason_of, retry_after};
use tonic::{Code, Status};

/// First and longest wait before another round.
const FIRST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(10);

/// Waits longer from round to round until something arrives.
pub(super) struct Patience {
    limit: Duration,
    since: Instant,
    delay: Duration,
}

impl Patience {
    /// Gives up when nothing has arrived for `limit`.
    pub(super) fn new(limit: Duration) -> Self {
        Self { limit, since: Instant::now(), delay: FIRST }
    }

    pub(super) fn limit(&self) -> Duration {
        self.limit
    }

    /// Something has arrived.
    pub(super) fn renew(&mut self) {
        self.since = Instant::now();
        self.delay = FIRST;
    }

    /// How long to wait after `status`, or `None` to give up.
    pub(super) fn next(&mut self, status: &Status) -> Option<Duration> {
        let delay = retry_after(status).unwrap_or(self.delay).clamp(self.delay, LONGEST);
        self.delay = (2 * self.delay).min(LONGEST);
        (self.since.elapsed() + delay < self.limit).then_some(delay)
    }
}

/// Whether trying again is of no use: the request itself is refused, and would be again.
pub(super) fn is_final(status: &Status) -> bool {
    match status.code() {
        Code::Unavailable
        | Code::Aborted
        | Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::ResourceExhausted
        | Code::DataLoss => false,
        // A connection that breaks in the middle of an answer looks like this; an endpoint's own has a reason.
        Code::Internal => reason_of(status).is_some_and(|reason| reason == Reason::Internal),
        Code::Ok
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::Unauthenticated => true,
    }
}

#[cfg(test)]
mod tests {
    use rookery_proto::status::{refuse, refuse_with};

    use super::*;

    #[test]
    fn waits_grow_until_something_arrives_and_end() {
        let mut patience = Patience::new(Duration::from_secs(60));
        let lost = Status::unavailable("");
        let waits: Vec<_> =
            (0..8).filter_map(|_| patience.next(&lost)).map(|wait| wait.as_millis()).collect();
        assert_eq!(waits, [200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
        patience.renew();
        assert_eq!(patience.next(&lost), Some(FIRST));
        let told = refuse_with(Reason::QueueFull, "", &[], Some(Duration::from_secs(3)));
        assert_eq!(patience.next(&told), Some(Duration::from_secs(3)));
        let absurd = refuse_with(Reason::QueueFull, "", &[], Some(Duration::from_secs(3000)));
        assert_eq!(patience.next(&absurd), Some(LONGEST));
        assert_eq!(Patience::new(Duration::ZERO).next(&lost), None);
    }

    #[test]
    fn what_would_be_refused_again_is_final() {
        for reason in
            [Reason::VersionExists, Reason::InvalidField, Reason::RoleTooLow, Reason::Unauthenticated]
        {
            assert!(is_final(&refuse(reason, "")), "{reason}");
        }
        for reason in [Reason::Conflict, Reason::StorageFailed, Reason::Draining, Reason::DigestMismatch] {
            assert!(!is_final(&refuse(reason, "")), "{reason}");
        }
        assert!(!is_final(&Status::internal("h2 protocol error")));
    }
}
