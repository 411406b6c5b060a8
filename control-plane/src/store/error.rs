//! What a store refuses.

use crate::domain::{GatewayId, ModelName, rollout::RolloutId};

/// Why the store did not do something. Nothing of the call has been kept then.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Someone else was first: what the call rests on is no longer current. Read again and decide anew.
    #[error("{what} is no longer current; read it again")]
    Conflict {
        /// What has changed.
        what: String,
    },
    /// Another unfinished roll-out of the model owns a gateway.
    #[error("gateway {gateway} belongs to roll-out {rollout} of {model}, which is not over")]
    Overlaps {
        /// The other roll-out.
        rollout: RolloutId,
        /// The first gateway of both.
        gateway: GatewayId,
        /// The model.
        model: ModelName,
    },
    /// There is no such thing.
    #[error("there is no {what}")]
    NotFound {
        /// What was asked for, with its name.
        what: String,
    },
    /// More than one thing has that beginning.
    #[error("{what} is ambiguous; give more of it")]
    Ambiguous {
        /// What was asked for.
        what: String,
    },
    /// It cannot be deleted while something refers to it.
    #[error("{what} is in use by {by}")]
    InUse {
        /// What was to be deleted.
        what: String,
        /// What refers to it.
        by: String,
    },
    /// The name is taken by something else.
    #[error("{what} exists already")]
    Exists {
        /// What has the name.
        what: String,
    },
    /// A join token was not taken.
    #[error(transparent)]
    JoinToken(#[from] JoinTokenRefusal),
    /// The call contradicts itself: a fault of the program.
    #[error("{what}")]
    Invalid {
        /// What is wrong.
        what: String,
    },
    /// The database was written by a newer program.
    #[error(
        "the database has schema {found}, and this program knows up to {known}: run the newer program, or restore a backup"
    )]
    Newer {
        /// Step of the database.
        found: i64,
        /// Last step that this program knows.
        known: i64,
    },
    /// The address of the database makes no sense.
    #[error("state.url {url:?} must be \"sqlite:PATH\" or \"postgres://…\"")]
    Url {
        /// Without a password.
        url: String,
    },
    /// The file of the database cannot be made.
    #[error("cannot create the database {path:?}")]
    File {
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A row is not what this program writes.
    #[error("the database holds {what} that cannot be read")]
    Corrupt {
        /// Which value.
        what: &'static str,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The schema could not be brought up to date.
    #[error("cannot bring the database's schema up to date")]
    Migrate(#[source] sqlx::migrate::MigrateError),
    /// The database failed, or did not answer within the bounds.
    #[error("the database failed")]
    Database(#[from] sqlx::Error),
}

/// Why a join token was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JoinTokenRefusal {
    /// Nobody made it.
    #[error("the join token is unknown")]
    Unknown,
    /// Its time is over.
    #[error("the join token has expired")]
    Expired,
    /// As many gateways as it allows have joined with it.
    #[error("the join token has been used up")]
    UsedUp,
    /// This gateway has joined with it before.
    #[error("the gateway has joined with this token before")]
    Replayed,
}
