//! Runs the state machine on a gateway.
//!
//! ```text
//!  assign ──► mailbox ──┐                       ┌─► keep state (write, rename, fsync)
//!                       ├─► runner: Core::on ───┼─► begin and break off steps of the machine
//!  steps that ended ────┘      one task         └─► publish what is told
//! ```
//!
//! State is kept before anything follows from it and before anybody is told, so what the control plane has heard of was
//! never forgotten here.

mod runner;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use rookery_model::bundle::Digest;
use rookery_proto::{
    server::{OnPanic, Tasks},
    v1,
};
use tokio::sync::{mpsc, oneshot, watch};

use super::{
    core::Core,
    machine::{Kept, Machine, Progress},
    state::Assignment,
    wire,
};
use runner::{Command, Runner};

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

/// Assignments that wait to be taken. The control plane sends one at a time.
const MAILBOX: usize = 4;

/// What is told, without what changes all the time.
#[derive(Default)]
struct Told {
    report: Report,
    changes: u64,
}

/// What agent and runner share.
struct Shared<M> {
    machine: Arc<M>,
    told: watch::Sender<Told>,
    changes: watch::Sender<u64>,
    downloads: Mutex<BTreeMap<Digest, Progress>>,
}

impl<M> Shared<M> {
    /// How far the download of a version is, made when it is first asked for.
    fn progress(&self, digest: &Digest) -> Progress {
        let mut downloads = self.downloads.lock().unwrap_or_else(PoisonError::into_inner);
        downloads.entry(digest.clone()).or_default().clone()
    }

    fn forget_downloads(&self, kept: &Kept) {
        let mut downloads = self.downloads.lock().unwrap_or_else(PoisonError::into_inner);
        downloads.retain(|digest, _| kept.needed.contains(digest) || kept.previous.contains(digest));
    }
}

/// The versions of one gateway. Clones share everything; one task does the work of all of them, and ends when the last
/// clone is dropped or after [`Agent::stop`].
pub struct Agent<M: Machine> {
    shared: Arc<Shared<M>>,
    mailbox: mpsc::Sender<Command>,
}

impl<M: Machine> Clone for Agent<M> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), mailbox: self.mailbox.clone() }
    }
}

impl<M: Machine> Agent<M> {
    /// Loads what was kept and goes on with it in a task of its own.
    pub async fn start(machine: Arc<M>, tasks: &Tasks) -> Self {
        let saved = machine.load().await;
        let (mailbox, commands) = mpsc::channel(MAILBOX);
        let shared = Arc::new(Shared {
            told: watch::Sender::default(),
            changes: watch::Sender::default(),
            downloads: Mutex::default(),
            machine,
        });
        let core = Core::new(saved, runner::millis(shared.machine.now()));
        let mut runner = Runner::new(core, Arc::clone(&shared), commands);
        runner.publish();
        tasks.spawn("versions", OnPanic::StopNode, runner.run());
        Self { shared, mailbox }
    }

    /// Takes an assignment: checks it, keeps it, and goes there. Gives the generation that is held then.
    ///
    /// # Errors
    /// [`AssignError`] says why it is refused; nothing has changed then.
    pub async fn assign(&self, message: v1::Assignment) -> Result<u64, AssignError> {
        let acknowledged = message.acknowledged_sequence;
        let assignment = wire::assignment(message)?;
        self.ask(|reply| Command::Assign { assignment, acknowledged, reply }).await?
    }

    /// Breaks off what runs and ends the task. What serves goes on serving; the rest is taken up after the next start.
    pub async fn stop(&self) {
        // One that has ended already is stopped, too.
        let _ = self.ask(Command::Stop).await;
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, AssignError> {
        let (reply, answer) = oneshot::channel();
        self.mailbox.send(command(reply)).await.map_err(|_| AssignError::Stopped)?;
        answer.await.map_err(|_| AssignError::Stopped)
    }

    /// How things are now. Cheap.
    pub fn report(&self) -> Report {
        let mut report = self.shared.told.borrow().report.clone();
        let downloads = self.shared.downloads.lock().unwrap_or_else(PoisonError::into_inner);
        for status in &mut report.versions {
            let Ok(digest) = status.digest.parse::<Digest>() else { continue };
            let bytes = downloads.get(&digest).map(Progress::get).unwrap_or_default();
            wire::fill(status, self.shared.machine.numbers(&digest), bytes);
        }
        report
    }

    /// Changes whenever a report would say something new, downloaded bytes and requests aside.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    /// The machine.
    pub fn machine(&self) -> &Arc<M> {
        &self.shared.machine
    }
}

/// Where the answer to an assignment goes.
type Reply = oneshot::Sender<Result<u64, AssignError>>;

/// Checks and keeps an offered assignment.
async fn take<M: Machine>(core: &Core, machine: &M, offered: &Assignment) -> Result<(), AssignError> {
    core.check(offered)?;
    if offered != core.assignment() {
        machine.keep_assignment(offered).await.map_err(|why| AssignError::NotKept(why.to_string()))?;
    }
    Ok(())
}
