//! Runs the state machine on a gateway.

use std::sync::Arc;

use rookery_proto::{server::Tasks, v1};
use tokio::sync::watch;

use super::machine::Machine;

/// What the control plane is told of versions; to be put into a [`v1::GatewayStatus`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// Generation of the assignment; 0 if there is none.
    pub generation: u64,
    /// Versions that are assigned or still here.
    pub versions: Vec<v1::VersionStatus>,
    /// The oldest ones that are not acknowledged.
    pub transitions: Vec<v1::Transition>,
}

/// An assignment was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AssignError {
    /// A field is wrong.
    #[error("{field} {rule}")]
    Invalid {
        /// Which.
        field: String,
        /// What holds for it.
        rule: String,
    },
    /// It is older than the one held.
    #[error("generation {offered} is older than {held}, which this gateway holds")]
    Stale {
        /// Of the refused one.
        offered: u64,
        /// Of the one held.
        held: u64,
    },
    /// It has the generation of the one held, and other versions.
    #[error("this gateway holds another assignment of generation {0}")]
    Conflict(u64),
    /// It could not be kept.
    #[error("the assignment could not be kept: {0}")]
    NotKept(String),
    /// The gateway stops.
    #[error("the gateway is shutting down")]
    Stopped,
}

/// The versions of one gateway. Clones share everything; one task does the work of all of them, and ends when the last
/// clone is dropped.
pub struct Agent<M: Machine> {
    machine: Arc<M>,
}

impl<M: Machine> Clone for Agent<M> {
    fn clone(&self) -> Self {
        Self { machine: Arc::clone(&self.machine) }
    }
}

impl<M: Machine> Agent<M> {
    /// Loads what was kept and goes on with it in a task of its own.
    pub async fn start(_machine: Arc<M>, _tasks: &Tasks) -> Self {
        unimplemented!()
    }

    /// Takes an assignment: checks it, keeps it, and goes there. Gives the generation that is held then.
    ///
    /// # Errors
    /// [`AssignError`] says why it is refused; nothing has changed then.
    pub async fn assign(&self, _assignment: v1::Assignment) -> Result<u64, AssignError> {
        unimplemented!()
    }

    /// How things are now. Cheap.
    pub fn report(&self) -> Report {
        unimplemented!()
    }

    /// Changes whenever a report would say something new, downloaded bytes and requests aside.
    pub fn changes(&self) -> watch::Receiver<u64> {
        unimplemented!()
    }

    /// The machine.
    pub fn machine(&self) -> &Arc<M> {
        &self.machine
    }
}
