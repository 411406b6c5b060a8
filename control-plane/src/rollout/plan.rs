//! The planner: from what is wanted, what is planned and what gateways report to the next plan.
//!
//! ```text
//!  Running ──── wave reached, nobody on the way ────► Soaking ── soaked ──► next wave: Running
//!     ▲                                                  │                  not approved: AwaitingApproval
//!     └── window opens ── AwaitingWindow ◄── closed ─────┤                  closed: AwaitingWindow
//!                                                        └── nobody left ──► Done ─► Done: late gateways caught up
//!  any of these ── too many failed, or a gate of traffic does not hold ──► RollingBack ──► RolledBack
//! ```
//!
//! Pure: no clock, no store. The same input gives the same plan, on every replica.

mod back;
mod forward;
mod late;
mod steer;
mod tally;

use std::{fmt, time::Duration};

use crate::domain::{
    Digest, GatewayId, Millis,
    rollout::{Plan, RolloutId, RolloutState, Target},
};

use super::{
    gates::Evidence,
    member::{Member, Patience, words},
    spec::CheckedSpec,
};
pub use steer::{Order, Refusal, name, steer};
pub use tally::Tally;

/// Who makes plans that no person asks for.
pub const CONTROL_PLANE: &str = "control plane";

/// Most gateways that a reason names.
const MOST_NAMED: usize = 5;

/// All that a plan depends on.
#[derive(Clone, Copy, Debug)]
pub struct Situation<'a> {
    /// What was asked for.
    pub spec: &'a CheckedSpec,
    /// The current plan.
    pub plan: &'a Plan,
    /// All gateways that have joined, by id.
    pub fleet: &'a [Member],
    /// What was seen of requests.
    pub evidence: &'a [Evidence],
    /// A gateway that has been away for less will be back in a moment.
    pub grace: Duration,
    /// What time it is.
    pub now: Millis,
}

/// What a plan changes for a gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The gateway.
    pub gateway: GatewayId,
    /// What it is to serve; `None`: nothing of the model.
    pub digest: Option<Digest>,
    /// Whether that takes a version back.
    pub rolls_back: bool,
}

/// A plan that follows, and what it changes.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// The plan.
    pub plan: Plan,
    /// By gateway.
    pub changes: Vec<Change>,
}

/// What the planner says.
#[derive(Clone, Debug, PartialEq)]
pub enum Next {
    /// There is nothing to do yet.
    Wait(Waiting),
    /// This is to be done.
    Step(Box<Step>),
}

/// What a roll-out waits for.
#[derive(Clone, Debug, PartialEq)]
pub enum Waiting {
    /// Nothing: it is over, and every gateway that can be reached has what it is to have.
    Nothing,
    /// A person to resume it; what will happen then if it is not obvious.
    Resume(Option<String>),
    /// Gateways that are on the way.
    Switching {
        /// How many.
        gateways: usize,
    },
    /// Gateways that are unavailable, before more may become so.
    Unavailable {
        /// How many are.
        gateways: usize,
        /// How many may be.
        most: usize,
    },
    /// Gateways that have only just gone.
    Returning {
        /// How many.
        gateways: usize,
    },
    /// A gateway that can be reached.
    Nobody {
        /// How many are selected.
        selected: usize,
    },
    /// The end of the soak.
    Soak {
        /// How long it still takes.
        left: Duration,
        /// Whether there were requests enough to compare the versions.
        judged: bool,
    },
    /// A person to approve the next wave.
    Approval,
    /// A maintenance window.
    Window {
        /// When the next one opens.
        opens: Option<Millis>,
    },
    /// More late gateways, or a little time, so that not each makes a plan.
    Late {
        /// How many wait.
        gateways: usize,
    },
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => write!(f, "every gateway that can be reached has what it is to have"),
            Self::Resume(None) => write!(f, "paused: waits for `resume`"),
            Self::Resume(Some(then)) => write!(f, "paused: waits for `resume`; then {then}"),
            Self::Switching { gateways } => write!(f, "waits for {} on the way", count(*gateways)),
            Self::Unavailable { gateways, most } => {
                write!(f, "{} unavailable, of which there may be {most}", are(*gateways))
            }
            Self::Returning { gateways } => {
                write!(f, "waits a moment for {} that just left", count(*gateways))
            }
            Self::Nobody { selected } => {
                write!(f, "none of {} selected can be reached", count(*selected))
            }
            Self::Soak { left, judged: true } => write!(f, "soaks for another {}", words(*left)),
            Self::Soak { left, judged: false } => {
                write!(f, "soaks for another {}; too few requests yet to compare versions", words(*left))
            }
            Self::Approval => write!(f, "the next wave waits for `approve`"),
            Self::Window { opens: None } => write!(f, "no maintenance window opens within two weeks"),
            Self::Window { opens: Some(opens) } => {
                write!(f, "waits for the maintenance window that opens at {}", moment(*opens))
            }
            Self::Late { gateways } => write!(f, "{} came back and will be caught up", count(*gateways)),
        }
    }
}

/// What is to be done next.
pub fn next(situation: &Situation<'_>) -> Next {
    let tally = Tally::new(situation);
    match situation.plan.state {
        RolloutState::Running => forward::running(situation, &tally),
        RolloutState::Soaking => forward::soaking(situation, &tally),
        RolloutState::AwaitingApproval => forward::awaiting_approval(situation, &tally),
        RolloutState::AwaitingWindow => forward::awaiting_window(situation, &tally),
        RolloutState::Paused => Next::Wait(Waiting::Resume(forward::verdict(situation, &tally))),
        RolloutState::RollingBack => back::going_back(situation, &tally),
        RolloutState::Done => late::catch_up(situation, &tally),
        RolloutState::RolledBack | RolloutState::Aborted => Next::Wait(Waiting::Nothing),
    }
}

/// Whether roll-outs that are older leave a gateway alone for the sake of one whose current plan this is. `selected` says whether
/// its selector matches.
pub fn claims(plan: &Plan, version: &Digest, gateway: &GatewayId, selected: impl FnOnce() -> bool) -> bool {
    let has = || plan.targets.get(gateway).is_some_and(|target| target.digest.as_ref() == Some(version));
    match plan.state {
        RolloutState::Running
        | RolloutState::Soaking
        | RolloutState::AwaitingApproval
        | RolloutState::AwaitingWindow
        | RolloutState::Paused
        | RolloutState::RollingBack => has() || selected(),
        RolloutState::Done => selected(),
        // Gateways stay as they are: those that it reached are its own, the others are not.
        RolloutState::Aborted => has(),
        RolloutState::RolledBack => false,
    }
}

/// The plan before the first of a roll-out.
pub fn first(rollout: RolloutId, actor: &str, now: Millis) -> Plan {
    Plan {
        rollout,
        generation: 0,
        parent: 0,
        state: RolloutState::Running,
        resume: None,
        wave: 0,
        since: now,
        approved: false,
        actor: actor.to_owned(),
        reason: "created".to_owned(),
        targets: std::collections::BTreeMap::new(),
    }
}

/// The first plan to store: what [`first`] leads to, as generation 1.
pub fn begin(situation: &Situation<'_>) -> Step {
    let mut step = match next(situation) {
        Next::Step(step) => *step,
        Next::Wait(waiting) => {
            let plan = Plan { reason: format!("created; {waiting}"), ..situation.plan.clone() };
            Step { plan, changes: Vec::new() }
        }
    };
    (step.plan.generation, step.plan.parent) = (1, 0);
    step.plan.actor.clone_from(&situation.plan.actor);
    step
}

impl Situation<'_> {
    fn version(&self) -> &Digest {
        &self.spec.spec.digest
    }

    fn patience(&self) -> Patience {
        Patience { timeout: self.spec.spec.gateway_timeout, grace: self.grace }
    }

    fn waves(&self) -> usize {
        self.spec.spec.waves.len()
    }

    /// A plan that follows, with `change` made to it.
    fn follow(&self, state: RolloutState, reason: String) -> Plan {
        Plan {
            generation: self.plan.generation + 1,
            parent: self.plan.generation,
            state,
            resume: None,
            since: self.now,
            approved: false,
            actor: CONTROL_PLANE.to_owned(),
            reason,
            ..self.plan.clone()
        }
    }

    /// Puts the version on gateways.
    fn assign(&self, plan: &mut Plan, gateways: &[&Member], late: bool) -> Vec<Change> {
        let version = self.version();
        let change = |member: &&Member| {
            let target = Target {
                digest: Some(version.clone()),
                previous: member.before(version),
                wave: plan.wave,
                since: self.now,
                late,
            };
            plan.targets.insert(member.id.clone(), target);
            Change { gateway: member.id.clone(), digest: Some(version.clone()), rolls_back: false }
        };
        let mut changes: Vec<_> = gateways.iter().map(change).collect();
        changes.sort_by(|a, b| a.gateway.cmp(&b.gateway));
        changes
    }
}

fn step(plan: Plan, changes: Vec<Change>) -> Next {
    Next::Step(Box::new(Step { plan, changes }))
}

fn count(gateways: usize) -> String {
    format!("{gateways} gateway{}", if gateways == 1 { "" } else { "s" })
}

fn are(gateways: usize) -> String {
    format!("{} {}", count(gateways), if gateways == 1 { "is" } else { "are" })
}

/// A few names, and how many more there are.
fn names<'a>(gateways: impl ExactSizeIterator<Item = &'a GatewayId>) -> String {
    let more = gateways.len().saturating_sub(MOST_NAMED);
    let named: Vec<_> = gateways.take(MOST_NAMED).map(GatewayId::as_str).collect();
    match more {
        0 => named.join(", "),
        more => format!("{} and {more} more", named.join(", ")),
    }
}

/// A moment as people read it.
fn moment(at: Millis) -> String {
    jiff::Timestamp::from_millisecond(at.0).map_or_else(|_| at.to_string(), |at| at.to_string())
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
