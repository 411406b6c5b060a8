//! What a gateway can do with versions. The state machine asks for it step by step and knows nothing of how.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};

use rookery_model::bundle::Digest;

use super::state::{Assignment, Saved, State, Verdict, Wanted};

/// What became of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Done; the next step may begin.
    Passed {
        /// What gates found.
        verdicts: Vec<Verdict>,
    },
    /// The version must not serve.
    Failed {
        /// In words.
        reason: String,
        /// What gates found.
        verdicts: Vec<Verdict>,
    },
    /// What lies on disk is not what it was; it was taken away and may be fetched again.
    Damaged {
        /// In words.
        reason: String,
        /// What gates found.
        verdicts: Vec<Verdict>,
    },
    /// Memory has no room for two engines at a time, and would have for one. Only from [`Machine::stage`] with
    /// [`Room::Beside`].
    NoRoom {
        /// In words and numbers.
        reason: String,
    },
}

impl Outcome {
    /// Done, and no gate had anything to say.
    pub fn passed() -> Self {
        Self::Passed { verdicts: Vec::new() }
    }

    /// The version must not serve, for a reason that is no gate's.
    pub fn failed(reason: impl Into<String>) -> Self {
        Self::Failed { reason: reason.into(), verdicts: Vec::new() }
    }
}

/// What memory is there for a version's engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Room {
    /// Another version of the model serves meanwhile.
    Beside,
    /// Nothing of the model serves.
    Alone,
}

/// Something could not be kept; in words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotKept(pub String);

/// Requests of a version since it serves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    /// All of them.
    pub requests: u64,
    /// Of those, how many failed.
    pub failures: u64,
    /// Their median time to the first token, in microseconds; 0 before the first.
    pub ttft_us: u64,
}

/// How far a download is. Clones share it; it is read whenever a status is made.
#[derive(Clone, Debug, Default)]
pub struct Progress(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    done: AtomicU64,
    total: AtomicU64,
}

impl Progress {
    /// Sets the bytes that are here and those of all blobs.
    pub fn set(&self, done: u64, total: u64) {
        self.0.total.store(total, Ordering::Relaxed);
        self.0.done.store(done, Ordering::Relaxed);
    }

    /// `bytes` more are here.
    pub fn advance(&self, bytes: u64) {
        self.0.done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// `bytes` were of no use.
    pub fn take_back(&self, bytes: u64) {
        // A wrapped count would be shown as a huge one.
        let less = |done: u64| Some(done.saturating_sub(bytes));
        let _ = self.0.done.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }

    /// Bytes that are here, and those of all blobs.
    pub fn get(&self) -> (u64, u64) {
        (self.0.done.load(Ordering::Relaxed), self.0.total.load(Ordering::Relaxed))
    }
}

/// What must stay on disk; whatever else is there may be removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// Committed, on their way, or failed in this assignment: never removed.
    pub needed: Vec<Digest>,
    /// What served before: removed once disk is short.
    pub previous: Vec<Digest>,
}

/// A gateway, or something that behaves like one.
///
/// Dropping the future of a step cancels it. No two steps of one model run at the same time, and of all models at most one
/// is being staged, probed, activated or restored. Steps are repeated after a restart, so each must be idempotent.
pub trait Machine: Send + Sync + 'static {
    /// What was kept. What cannot be read is as if it had never been there; the implementation says so in its log.
    fn load(&self) -> impl Future<Output = Saved> + Send;

    /// Keeps the assignment: after this has returned, a power cut does not lose it.
    fn keep_assignment(&self, assignment: &Assignment) -> impl Future<Output = Result<(), NotKept>> + Send;

    /// Keeps the state, likewise. All of it or nothing: this is the commit of a version.
    fn keep_state(&self, state: &State) -> impl Future<Output = Result<(), NotKept>> + Send;

    /// The gateway's clock.
    fn now(&self) -> SystemTime;

    /// Checks what can be checked before (signature, disk, memory) and fetches the blobs that are missing, resuming
    /// those that are here in part. Waits and tries again as long as it makes sense.
    fn download(&self, wanted: &Arc<Wanted>, progress: &Progress) -> impl Future<Output = Outcome> + Send;

    /// Checks every blob's digest.
    fn verify(&self, wanted: &Arc<Wanted>) -> impl Future<Output = Outcome> + Send;

    /// Loads the version's engine, which takes no requests yet.
    fn stage(&self, wanted: &Arc<Wanted>, room: Room) -> impl Future<Output = Outcome> + Send;

    /// Replays the probes on the staged engine and judges speed and temperature.
    fn probe(&self, wanted: &Arc<Wanted>) -> impl Future<Output = Outcome> + Send;

    /// New requests for the model go to the staged version from now on. Those of the version before go on.
    fn activate(&self, model: &str, digest: &Digest) -> impl Future<Output = Outcome> + Send;

    /// Serves a committed version: loads its engine unless that is still there, checks it, and lets requests in. After a
    /// start, and when a version after it did not make it.
    fn restore(&self, model: &str, digest: &Digest) -> impl Future<Output = Outcome> + Send;

    /// Lets the version's streams end, cuts those that take too long, and frees its engine. Requests do not reach it any
    /// more once another version is active; if it is the active one, they are refused from now on.
    fn drain(&self, model: &str, digest: &Digest) -> impl Future<Output = ()> + Send;

    /// Frees a staged engine that is not to serve, if there is one.
    fn discard(&self, model: &str, digest: &Digest) -> impl Future<Output = ()> + Send;

    /// Removes what need not be kept from disk.
    fn prune(&self, kept: &Kept) -> impl Future<Output = ()> + Send;

    /// Requests of a version since it serves. Called for every status, so it must be cheap.
    fn numbers(&self, digest: &Digest) -> Numbers;
}
