//! What a roll-out is: its specification and the immutable plans that it goes through.
//!
//! ```text
//!             ┌────────────── next wave ───────────────┐
//!             ▼                                        │
//!  create ─► Running ─► Soaking ─► AwaitingApproval | AwaitingWindow
//!             │  ▲         │ │            last wave soaked ─► Done
//!             ▼  │         │ └─ gate fails, too many failures, `rollback` ─► RollingBack ─► RolledBack
//!            Paused ◄──────┘
//!                 any unfinished state ─ `abort` ─► Aborted (gateways stay as they are)
//! ```
//!
//! A plan says which gateways are to serve what. It is never changed, only followed by another one whose `parent` it is; the
//! store makes a plan current only while its parent is.

use std::{collections::BTreeMap, fmt, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    GatewayId,
    time::Millis,
    version::{Digest, ModelName, VersionName},
};

/// Id of a roll-out: a version 7 UUID in 32 hexadecimal digits, which sorts by time of creation.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RolloutId(pub String);

impl fmt::Display for RolloutId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How many gateways a wave reaches, counted from the start of the roll-out.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WaveSize {
    /// So many.
    Count(u32),
    /// Percent of the selected gateways, rounded up.
    Percent(f64),
}

/// What a version must show on a gateway and in traffic.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct GateLimits {
    /// Least decode speed, in percent of what the bundle's profile promises.
    pub min_speed_percent: f64,
    /// Highest temperature at the end of the probes, degrees Celsius.
    pub max_celsius: f64,
    /// Percentage points more requests that may fail than with the version before.
    pub max_extra_error_percent: f64,
    /// Percent that the median time to first token may be longer than with the version before.
    pub max_extra_ttft_percent: f64,
}

impl Default for GateLimits {
    fn default() -> Self {
        Self {
            min_speed_percent: 80.0,
            max_celsius: 90.0,
            max_extra_error_percent: 1.0,
            max_extra_ttft_percent: 50.0,
        }
    }
}

/// What was asked for. Texts (`selector`, `windows`) are checked when the roll-out is created.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RolloutSpec {
    /// The model.
    pub model: ModelName,
    /// The version's name, for people; aliases are resolved.
    pub version: VersionName,
    /// The version.
    pub digest: Digest,
    /// Which gateways; see [`super::Selector`].
    pub selector: String,
    /// Not empty; the last reaches all.
    pub waves: Vec<WaveSize>,
    /// How long a wave serves before the next begins.
    pub soak: Duration,
    /// Percent of the gateways reached so far that may fail.
    pub max_failed_percent: f64,
    /// Percent of the selected gateways that may be switching at a time; at least one may.
    pub max_unavailable_percent: f64,
    /// When gateways may be switched; none: always.
    pub windows: Vec<String>,
    /// Whether each wave after the first waits for a person.
    pub manual_approval: bool,
    /// How long a gateway may take.
    pub gateway_timeout: Duration,
    /// What the version must show.
    pub gates: GateLimits,
}

/// Where a roll-out stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RolloutState {
    /// A wave is under way.
    Running,
    /// A wave serves and is watched.
    Soaking,
    /// The next wave waits for a person.
    AwaitingApproval,
    /// The next wave waits for a maintenance window.
    AwaitingWindow,
    /// A person has paused it.
    Paused,
    /// Gateways go back to what they served.
    RollingBack,
    /// Every reachable gateway serves the version.
    Done,
    /// Every reachable gateway serves what it served before.
    RolledBack,
    /// Ended where it was.
    Aborted,
}

impl RolloutState {
    /// Whether nothing more comes.
    pub fn is_over(self) -> bool {
        match self {
            Self::Done | Self::RolledBack | Self::Aborted => true,
            Self::Running
            | Self::Soaking
            | Self::AwaitingApproval
            | Self::AwaitingWindow
            | Self::Paused
            | Self::RollingBack => false,
        }
    }
}

/// What a plan wants of a gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Target {
    /// What it is to serve; `None`: nothing of this model (what it served before there was a version).
    pub digest: Option<Digest>,
    /// What it served before the roll-out reached it.
    pub previous: Option<Digest>,
    /// The wave that reached it, from 0.
    pub wave: u32,
    /// When it was assigned.
    pub since: Millis,
    /// Whether it was caught up after the waves: how it fares is not held against the version.
    #[serde(default)]
    pub late: bool,
}

/// One immutable plan of a roll-out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Plan {
    /// The roll-out.
    pub rollout: RolloutId,
    /// From 1; one more than the parent's.
    pub generation: u64,
    /// Generation of the plan that this one follows; 0 for the first.
    pub parent: u64,
    /// Where the roll-out stands with it.
    pub state: RolloutState,
    /// The state to return to from [`RolloutState::Paused`].
    pub resume: Option<RolloutState>,
    /// The current wave, from 0.
    pub wave: u32,
    /// When it was made. In [`RolloutState::Soaking`] that is when the soak began.
    pub since: Millis,
    /// Whether a person has approved the next wave.
    pub approved: bool,
    /// Who or what made it.
    pub actor: String,
    /// Why.
    pub reason: String,
    /// Every gateway that a wave has reached. Those not in here are waiting.
    pub targets: BTreeMap<GatewayId, Target>,
}
