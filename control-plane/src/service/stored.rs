//! From the store's refusals to statuses, for every service that people call.

use prost_types::Timestamp;
use rookery_proto::{
    server::chain,
    status::{Reason, refuse},
};
use tonic::Status;
use tracing::error;

use crate::{domain::Millis, store::StoreError};

/// The status of a call that the store refused. Failures of the database are logged here, and not shown to callers.
pub(crate) fn status(error: &StoreError) -> Status {
    let reason = match error {
        StoreError::Conflict { .. } => Reason::Conflict,
        StoreError::Overlaps { .. } => Reason::RolloutOverlaps,
        StoreError::NotFound { .. } => Reason::ObjectNotFound,
        StoreError::Ambiguous { .. } => Reason::InvalidField,
        StoreError::InUse { .. } => Reason::VersionInUse,
        StoreError::Exists { .. } => Reason::VersionExists,
        StoreError::JoinToken(_) => Reason::Unauthenticated,
        StoreError::Invalid { .. }
        | StoreError::Newer { .. }
        | StoreError::Url { .. }
        | StoreError::File { .. }
        | StoreError::Corrupt { .. }
        | StoreError::Migrate(_)
        | StoreError::Database(_) => {
            error!(error = chain(error), "the store failed");
            return refuse(Reason::StorageFailed, "the control plane's database failed; its log says more");
        }
    };
    refuse(reason, error.to_string())
}

/// A moment on the wire.
pub(crate) fn timestamp(at: Millis) -> Timestamp {
    let nanos = at.0.rem_euclid(1000) as i32 * 1_000_000;
    Timestamp { seconds: at.0.div_euclid(1000), nanos }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_before_1970_are_moments_too() {
        assert_eq!(timestamp(Millis(1_500)), Timestamp { seconds: 1, nanos: 500_000_000 });
        assert_eq!(timestamp(Millis(-1)), Timestamp { seconds: -1, nanos: 999_000_000 });
    }
}
