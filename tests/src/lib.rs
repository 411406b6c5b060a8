//! The harness for scenarios: fleets of a control plane and workers in one process, on port 0, over tiny models.
//!
//! - [`fleet`] starts and stops them; [`bundles`] packs the models; [`hold`] stops an engine in the middle of a step.
//! - [`client`] is a client as users would write one; [`scripted`] is a worker that misbehaves on cue; [`relay`] breaks
//!   the links of real ones.
//! - [`postgres`] is a real PostgreSQL.
//! - [`prefixes`] is traffic whose prompts share their beginnings.
//! - [`rollouts`] is a fleet of processes that versions are rolled out to.
//! - [`processes`] runs the real binary; [`otlp`] is a collector to send spans to.
//!
//! Waits are bounded and for a value; nothing sleeps. [`within`] ends a scenario that hangs.

use std::{future::Future, time::Duration};

pub mod bundles;
pub mod client;
pub mod fleet;
pub mod hold;
pub mod otlp;
pub mod postgres;
pub mod prefixes;
pub mod processes;
pub mod relay;
pub mod rollouts;
pub mod scripted;

/// Longest time that any wait of a scenario may take. Far more than any needs, for slow machines.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Runs `work`, which must end within [`PATIENCE`].
///
/// # Panics
/// Says what was waited for if it does not.
pub async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, work).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: not within {PATIENCE:?}"),
    }
}
