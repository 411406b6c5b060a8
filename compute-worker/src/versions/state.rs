//! What is remembered of versions: what was assigned, what serves, what is on its way, and what has been told.

use std::collections::{BTreeMap, VecDeque};

use rookery_model::bundle::Digest;
use serde::{Deserialize, Serialize};

/// Most transitions that wait to be acknowledged; the oldest give way.
pub const MAX_TRANSITIONS: usize = 1024;
/// Most transitions in one status.
pub const MAX_TOLD: usize = 64;
/// Most models of one assignment.
pub const MAX_MODELS: usize = 64;

/// Where a version is on its way; see the [module](super) for the arrows between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// It is to come, and nothing has been done yet.
    Assigned,
    /// Its blobs are being fetched.
    Downloading,
    /// Its digests are being checked.
    Verifying,
    /// It is whole, and lies beside what is served.
    Staged,
    /// Its probes are being replayed.
    Probing,
    /// Requests are being moved to it.
    Activating,
    /// It serves and is committed.
    Serving,
    /// It will not be served; the version before goes on serving.
    Failed,
    /// It was served and was taken back.
    RolledBack,
    /// It serves its last streams.
    Draining,
}

/// What decides whether a version may serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Gate {
    /// Somebody who is trusted has signed it.
    Signature,
    /// Every blob has the digest that names it.
    Digests,
    /// Its weights, cache and scratch fit.
    Memory,
    /// Its blobs fit.
    Disk,
    /// It answers as it did where it was packed.
    Probes,
    /// It decodes fast enough.
    Speed,
    /// The board stays cool enough.
    Temperature,
}

/// What a gate found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Which.
    pub gate: Gate,
    /// Whether the version may go on.
    pub passed: bool,
    /// In words and numbers.
    pub expected: String,
    /// In words and numbers.
    pub seen: String,
}

/// A detached signature of a version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DetachedSignature {
    /// Which key.
    pub key_id: String,
    /// 64 bytes of ed25519.
    pub signature: Vec<u8>,
}

/// A version that is to be served, with everything that is needed to decide whether it may be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Wanted {
    /// Name of the model in the control plane; requests use it.
    pub model: String,
    /// Name of the version, for people.
    pub version: String,
    /// Digest of the manifest: the version's identity.
    pub digest: Digest,
    /// The manifest, whose digest that is; checked when the assignment came.
    pub manifest: String,
    /// Detached signatures over the digest.
    pub signatures: Vec<DetachedSignature>,
    /// Public keys, one of which must have signed it; none: no signature is asked for.
    pub trusted_keys: Vec<Vec<u8>>,
    /// Least decode speed, in percent of the profile; 0: any.
    pub min_speed_percent: f64,
    /// Highest temperature after the probes, in degrees Celsius; 0: any.
    pub max_celsius: f64,
    /// Longest random wait before the download, in milliseconds.
    pub start_spread_ms: u64,
    /// Bytes a second that may be fetched; 0: no limit.
    pub bandwidth_limit: u64,
    /// It takes back a version that came after it.
    pub rolls_back: bool,
    /// W3C trace context of the roll-out; may be empty.
    pub traceparent: String,
}

/// Everything that the gateway is to serve.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Assignment {
    /// Grows with every change.
    pub generation: u64,
    /// By name of the model.
    pub versions: BTreeMap<String, Wanted>,
}

/// A version that was committed: it passed every gate here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Committed {
    /// The version.
    pub digest: Digest,
    /// Its name, for people.
    pub version: String,
    /// Milliseconds since 1970 by the gateway's clock.
    pub since_ms: u64,
    /// What gates found.
    pub verdicts: Vec<Verdict>,
}

/// A version on its way, or one that did not make it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// The version.
    pub digest: Digest,
    /// Its name, for people.
    pub version: String,
    /// How far it is.
    pub phase: Phase,
    /// Why, in words.
    pub reason: String,
    /// What gates found so far.
    pub verdicts: Vec<Verdict>,
    /// The assignment that it follows.
    pub generation: u64,
}

/// What is known of one model.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slots {
    /// What serves, also after a restart.
    pub committed: Option<Committed>,
    /// What served before that; kept on disk while there is room.
    pub previous: Option<Committed>,
    /// What is to come, or has failed.
    pub target: Option<Target>,
    /// A version that was taken away or back, until the next one comes.
    pub gone: Option<Target>,
}

/// A version has gone from one phase to another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransitionRecord {
    /// Grows by one with each.
    pub sequence: u64,
    /// Milliseconds since 1970 by the gateway's clock.
    pub at_ms: u64,
    /// Name of the model.
    pub model: String,
    /// The version.
    pub digest: Digest,
    /// Before.
    pub from: Phase,
    /// Since.
    pub to: Phase,
    /// In words.
    pub reason: String,
    /// Of the assignment.
    pub generation: u64,
    /// What gates found.
    pub verdicts: Vec<Verdict>,
}

/// What outlives the process. Everything else is worked out from this and the assignment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Generation of the assignment that `models` follow.
    pub generation: u64,
    /// By name.
    pub models: BTreeMap<String, Slots>,
    /// What the control plane has not acknowledged yet, oldest first.
    pub transitions: VecDeque<TransitionRecord>,
    /// Sequence of the last transition.
    pub sequence: u64,
}

/// What a gateway finds when it starts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Saved {
    /// As it was last kept.
    pub state: State,
    /// As it was last kept.
    pub assignment: Assignment,
}
