//! What gateways report about themselves and their versions, checked, as the planner and people see it.

use std::{fmt, str::FromStr};

use rookery_proto::v1;
use serde::{Deserialize, Serialize};

use crate::domain::{Digest, Labels, Millis, ModelName};

/// Versions that one gateway may report; more are not read.
const MOST_VERSIONS: usize = 256;

/// Verdicts of one version or transition that are read.
const MOST_VERDICTS: usize = 16;

/// Transitions of one status that are read. As many as a gateway may send.
pub(super) const MOST_TRANSITIONS: usize = 64;

/// Bytes of a text that a gateway chose.
const MOST_BYTES: usize = 512;

/// Where a version is on its way to serving on a gateway. Drawn in `gateway.proto`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
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

/// The text or number is no [`Phase`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no phase of a version")]
pub struct UnknownPhase(String);

impl Phase {
    /// Every phase, in the order of a version's life.
    pub const ALL: [Phase; 10] = [
        Phase::Assigned,
        Phase::Downloading,
        Phase::Verifying,
        Phase::Staged,
        Phase::Probing,
        Phase::Activating,
        Phase::Serving,
        Phase::Failed,
        Phase::RolledBack,
        Phase::Draining,
    ];

    /// The name as text, for people and the store.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Assigned => "assigned",
            Self::Downloading => "downloading",
            Self::Verifying => "verifying",
            Self::Staged => "staged",
            Self::Probing => "probing",
            Self::Activating => "activating",
            Self::Serving => "serving",
            Self::Failed => "failed",
            Self::RolledBack => "rolled-back",
            Self::Draining => "draining",
        }
    }

    /// On the wire.
    pub fn to_wire(self) -> v1::Phase {
        match self {
            Self::Assigned => v1::Phase::Assigned,
            Self::Downloading => v1::Phase::Downloading,
            Self::Verifying => v1::Phase::Verifying,
            Self::Staged => v1::Phase::Staged,
            Self::Probing => v1::Phase::Probing,
            Self::Activating => v1::Phase::Activating,
            Self::Serving => v1::Phase::Serving,
            Self::Failed => v1::Phase::Failed,
            Self::RolledBack => v1::Phase::RolledBack,
            Self::Draining => v1::Phase::Draining,
        }
    }

    /// From the wire; `None` for a number that this program does not know.
    pub fn from_wire(phase: i32) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.to_wire() as i32 == phase)
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Phase {
    type Err = UnknownPhase;

    fn from_str(text: &str) -> Result<Self, UnknownPhase> {
        let unknown = || UnknownPhase(text.chars().take(32).collect());
        Self::ALL.into_iter().find(|phase| phase.as_str() == text).ok_or_else(unknown)
    }
}

/// What a gate on a gateway found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Verdict {
    /// Name of the gate.
    pub gate: String,
    /// Whether it let the version pass.
    pub passed: bool,
    /// What it wanted, in words and numbers.
    pub expected: String,
    /// What it saw.
    pub seen: String,
}

/// A version on a gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct VersionStatus {
    /// The model.
    pub model: ModelName,
    /// The version.
    pub digest: Digest,
    /// Where it is.
    pub phase: Phase,
    /// Why, in the gateway's words.
    pub reason: String,
    /// Bytes that are there.
    pub downloaded_bytes: u64,
    /// Bytes of all its blobs.
    pub total_bytes: u64,
    /// What gates found.
    pub verdicts: Vec<Verdict>,
    /// Generation of the assignment that it follows.
    pub generation: u64,
    /// Requests since it serves.
    pub requests: u64,
    /// Of those, how many failed.
    pub failures: u64,
    /// Their median time to the first token, microseconds.
    pub ttft_us: u64,
}

/// What a gateway is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct GatewayFacts {
    /// Of the device tree; empty if it does not say.
    pub board: String,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Of that, what could be used when it reported.
    pub available_memory_bytes: u64,
    /// Of the file system that holds versions.
    pub free_disk_bytes: u64,
    /// The NPU's driver; empty if there is none.
    pub driver: String,
    /// Hottest thermal zone, degrees Celsius.
    pub celsius: Option<f64>,
    /// Its processor.
    pub processor: String,
    /// Microseconds since 1970 by its own clock.
    pub clock_us: u64,
}

/// A version of a gateway has gone from one phase to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transition {
    /// Grows with each of this gateway.
    pub sequence: u64,
    /// By the gateway's clock.
    pub at: Millis,
    /// The model.
    pub model: ModelName,
    /// The version.
    pub digest: Digest,
    /// The phase before; `None`: it was not there.
    pub from: Option<Phase>,
    /// The phase since.
    pub to: Phase,
    /// Why, in the gateway's words.
    pub reason: String,
    /// Generation of the assignment that it followed.
    pub generation: u64,
    /// What gates found.
    pub verdicts: Vec<Verdict>,
}

impl GatewayFacts {
    /// Labels that a gateway has by what it is, in the form that selectors can name.
    pub(super) fn labels(&self, labels: &mut Labels) {
        for (name, value) in
            [("board", &self.board), ("driver", &self.driver), ("processor", &self.processor)]
        {
            if let Some(value) = label_text(value) {
                labels.insert(name.to_owned(), value);
            }
        }
    }

    /// Equal but for what changes all the time.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        let steady = |facts: &Self| Self {
            available_memory_bytes: 0,
            free_disk_bytes: 0,
            celsius: None,
            clock_us: 0,
            ..facts.clone()
        };
        steady(self) == steady(other)
    }
}

impl VersionStatus {
    /// Equal but for what changes all the time.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        self.digest == other.digest
            && self.phase == other.phase
            && self.model == other.model
            && self.generation == other.generation
            && self.reason == other.reason
            && self.verdicts == other.verdicts
    }
}

/// "Radxa ROCK 5B" as a selector can name it: `Radxa-ROCK-5B`.
fn label_text(text: &str) -> Option<String> {
    let plain = |letter: char| {
        if letter.is_ascii_alphanumeric() || matches!(letter, '.' | '_' | '-' | '/') { letter } else { '-' }
    };
    let text: String = text.trim().chars().take(63).map(plain).collect();
    (!text.is_empty()).then_some(text)
}

/// What a gateway wrote, fit for logs, terminals and the store.
fn words(text: &str) -> String {
    let plain = |letter: char| if letter.is_control() { ' ' } else { letter };
    let mut text: String = text.chars().map(plain).take(MOST_BYTES).collect();
    text.truncate(text.floor_char_boundary(MOST_BYTES));
    text
}

pub(super) fn facts(facts: &v1::GatewayFacts) -> GatewayFacts {
    GatewayFacts {
        board: words(&facts.board),
        memory_bytes: facts.memory_bytes,
        available_memory_bytes: facts.available_memory_bytes,
        free_disk_bytes: facts.free_disk_bytes,
        driver: words(&facts.driver),
        celsius: facts.celsius.filter(|celsius| celsius.is_finite()),
        processor: words(&facts.processor),
        clock_us: facts.clock_us,
    }
}

/// The usable ones of the versions that a gateway reports.
pub(super) fn versions(versions: &[v1::VersionStatus]) -> Vec<VersionStatus> {
    let read = versions.iter().take(MOST_VERSIONS).filter_map(|version| {
        Some(VersionStatus {
            model: version.model.parse().ok()?,
            digest: version.digest.parse().ok()?,
            phase: Phase::from_wire(version.phase)?,
            reason: words(&version.reason),
            downloaded_bytes: version.downloaded_bytes,
            total_bytes: version.total_bytes,
            verdicts: verdicts(&version.verdicts),
            generation: version.generation,
            requests: version.requests,
            failures: version.failures,
            ttft_us: version.ttft_us,
        })
    });
    read.collect()
}

/// One transition; `None` if it makes no sense.
pub(super) fn transition(transition: &v1::Transition) -> Option<Transition> {
    let at = transition.at.unwrap_or_default();
    let millis = at.seconds.saturating_mul(1000).saturating_add(i64::from(at.nanos / 1_000_000));
    Some(Transition {
        sequence: transition.sequence,
        at: Millis(millis),
        model: transition.model.parse().ok()?,
        digest: transition.digest.parse().ok()?,
        from: Phase::from_wire(transition.from),
        to: Phase::from_wire(transition.to)?,
        reason: words(&transition.reason),
        generation: transition.generation,
        verdicts: verdicts(&transition.verdicts),
    })
}

fn verdicts(verdicts: &[v1::Verdict]) -> Vec<Verdict> {
    let read = verdicts.iter().take(MOST_VERDICTS).map(|verdict| Verdict {
        gate: words(&verdict.gate),
        passed: verdict.passed,
        expected: words(&verdict.expected),
        seen: words(&verdict.seen),
    });
    read.collect()
}

impl From<Verdict> for v1::Verdict {
    fn from(verdict: Verdict) -> Self {
        let Verdict { gate, passed, expected, seen } = verdict;
        Self { gate, passed, expected, seen }
    }
}

impl From<VersionStatus> for v1::VersionStatus {
    fn from(status: VersionStatus) -> Self {
        Self {
            model: status.model.into(),
            digest: status.digest.into(),
            phase: status.phase.to_wire().into(),
            reason: status.reason,
            downloaded_bytes: status.downloaded_bytes,
            total_bytes: status.total_bytes,
            verdicts: status.verdicts.into_iter().map(Into::into).collect(),
            generation: status.generation,
            requests: status.requests,
            failures: status.failures,
            ttft_us: status.ttft_us,
        }
    }
}

impl From<GatewayFacts> for v1::GatewayFacts {
    fn from(facts: GatewayFacts) -> Self {
        Self {
            board: facts.board,
            memory_bytes: facts.memory_bytes,
            available_memory_bytes: facts.available_memory_bytes,
            free_disk_bytes: facts.free_disk_bytes,
            driver: facts.driver,
            celsius: facts.celsius,
            processor: facts.processor,
            clock_us: facts.clock_us,
        }
    }
}
