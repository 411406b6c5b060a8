//! Every error of models and artifacts, as a status with a reason.

use std::time::Duration;

use rookery_proto::{
    signing::SignatureError,
    status::{Reason, invalid_field, refuse, refuse_with},
};
use tonic::Status;
use tracing::error;

use crate::{artifacts::ArtifactError, service::stored, store::StoreError};

/// When it is worth trying again what somebody else is busy with.
const SOON: Duration = Duration::from_secs(1);

/// A call failed.
#[derive(Debug, thiserror::Error)]
pub(in crate::service) enum Failure {
    /// Artifacts failed, or what was sent is refused.
    #[error(transparent)]
    Artifacts(#[from] ArtifactError),
    /// The database failed or refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A signature by a trusted key is none.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// A status that says it all.
    #[error("{0}")]
    Status(#[source] Box<Status>),
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self::Status(Box::new(status))
    }
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Status {
        match failure {
            Failure::Artifacts(error) => artifacts(error),
            Failure::Store(error) => stored::status(&error),
            Failure::Signature(error) => invalid_field("signatures", &error.to_string()),
            Failure::Status(status) => *status,
        }
    }
}

/// Beyond the limit of uploads.
pub(super) fn too_many_uploads(most: usize) -> Status {
    let message = format!("{most} uploads run already, which is the limit");
    refuse_with(Reason::QueueFull, message, &[], Some(SOON))
}

/// The sender of an upload has fallen silent.
pub(super) fn stalled(after: Duration) -> Status {
    let message = format!("no piece of the blob came for {} s; what came is kept", after.as_secs());
    refuse(Reason::DeadlineExceeded, message)
}

/// A status for an error of artifacts.
pub(in crate::service) fn artifacts(error: ArtifactError) -> Status {
    let message = error.to_string();
    match error {
        ArtifactError::Busy { offset, .. } => {
            refuse_with(Reason::Conflict, message, &[("offset", offset.to_string())], Some(SOON))
        }
        ArtifactError::Offset { offset, .. } => {
            refuse_with(Reason::Conflict, message, &[("offset", offset.to_string())], None)
        }
        ArtifactError::NotAwaited { .. } | ArtifactError::NotBegun(_) | ArtifactError::Incomplete { .. } => {
            refuse(Reason::Conflict, message)
        }
        ArtifactError::TooManyPushes(_) => refuse_with(Reason::QueueFull, message, &[], Some(SOON)),
        ArtifactError::Collecting => refuse_with(Reason::Conflict, message, &[], Some(SOON)),
        ArtifactError::TooLong { .. } => invalid_field("data", &message),
        ArtifactError::Range { .. } => invalid_field("offset", &message),
        ArtifactError::Digest { .. } => refuse(Reason::DigestMismatch, message),
        ArtifactError::Missing(_) => refuse(Reason::ObjectNotFound, message),
        ArtifactError::Bundle(fault) => invalid_field("manifest", &format!("{message}: {fault}")),
        ArtifactError::Manifest(_) => invalid_field("manifest", &message),
        ArtifactError::Stopping => refuse_with(Reason::Draining, message, &[], Some(SOON)),
        ArtifactError::Url { .. } | ArtifactError::Store { .. } | ArtifactError::Io { .. } => {
            error!(error = &error as &dyn std::error::Error, "the artifact store failed");
            refuse_with(Reason::StorageFailed, message, &[], Some(SOON))
        }
    }
}
