//! Time for checking certificates, on machines whose clock may be wrong.

use std::time::Duration;

use rustls::{
    pki_types::UnixTime,
    time_provider::{DefaultTimeProvider, TimeProvider},
};

/// The system's time, but never earlier than a moment that is known to have passed: a board without a battery starts in
/// 1970, and would refuse every certificate until somebody set its clock.
#[derive(Clone, Copy, Debug)]
pub struct AtLeast {
    /// Seconds since 1970.
    pub seconds: u64,
}

impl TimeProvider for AtLeast {
    fn current_time(&self) -> Option<UnixTime> {
        let known = UnixTime::since_unix_epoch(Duration::from_secs(self.seconds));
        // Without a clock at all, what is known has to do.
        Some(DefaultTimeProvider.current_time().map_or(known, |now| now.max(known)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_does_not_run_before_what_is_known() {
        let now = DefaultTimeProvider.current_time().unwrap();
        assert!(AtLeast { seconds: 0 }.current_time().unwrap() >= now);
        let later = now.as_secs() + 1_000_000;
        assert_eq!(AtLeast { seconds: later }.current_time().unwrap().as_secs(), later);
    }
}
