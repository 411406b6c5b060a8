//! The checker: what is wrong with a plan, before it becomes the current one.
//!
//! It knows the promises and not how the planner keeps them, so that a defect there stops at a log line here.

use std::{collections::BTreeMap, fmt};

use crate::domain::{
    Digest, GatewayId,
    rollout::{Plan, RolloutState, Target},
};

use super::{
    member::{Away, Member, Standing},
    plan::{Change, Situation, Step},
    waves,
};

/// A promise that a plan would break.
#[derive(Clone, Debug, PartialEq)]
pub enum Violation {
    /// It does not follow the plan that it was made from.
    Lineage,
    /// No such way from state to state.
    State {
        /// From here.
        from: RolloutState,
        /// To there.
        to: RolloutState,
    },
    /// A soak was cut short.
    Soak,
    /// A wave began that nobody approved.
    Approval,
    /// A wave was left out that would have reached gateways, or one was gone back to.
    Wave {
        /// The wave before.
        from: u32,
        /// The wave of the plan.
        to: u32,
    },
    /// More gateways than the wave may reach.
    Quota {
        /// So many would be.
        reached: usize,
        /// So many may be.
        quota: usize,
    },
    /// More gateways would be unavailable at a time than may be.
    Unavailable {
        /// So many would be.
        gateways: usize,
        /// So many may be.
        most: usize,
    },
    /// A gateway that the selector does not match, or that is not there.
    NotSelected(GatewayId),
    /// A gateway that another roll-out has.
    Claimed(GatewayId),
    /// A gateway that cannot hear it.
    NotReachable(GatewayId),
    /// Something begins outside of every window.
    Window(GatewayId),
    /// A gateway is given a version that is neither the roll-out's nor the one before.
    Foreign(GatewayId),
    /// What a gateway goes back to has been changed, or the gateway has been forgotten.
    History(GatewayId),
    /// A gateway is changed in a state in which nothing is, or the wrong way.
    Direction(GatewayId),
    /// What the plan says and what it changes are not the same.
    Changes(GatewayId),
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lineage => write!(f, "it does not follow its parent"),
            Self::State { from, to } => write!(f, "{from:?} never leads to {to:?}"),
            Self::Soak => write!(f, "the soak is not over"),
            Self::Approval => write!(f, "the wave was not approved"),
            Self::Wave { from, to } => write!(f, "wave {to} does not follow wave {from}"),
            Self::Quota { reached, quota } => write!(f, "{reached} gateways reached, the wave has {quota}"),
            Self::Unavailable { gateways, most } => {
                write!(f, "{gateways} gateways would be unavailable, {most} may be")
            }
            Self::NotSelected(id) => write!(f, "{id} is not selected"),
            Self::Claimed(id) => write!(f, "{id} belongs to another roll-out"),
            Self::NotReachable(id) => write!(f, "{id} cannot be reached"),
            Self::Window(id) => write!(f, "{id} would be switched outside of the windows"),
            Self::Foreign(id) => write!(f, "{id} would get a version of another roll-out"),
            Self::History(id) => write!(f, "what {id} goes back to would change"),
            Self::Direction(id) => write!(f, "{id} would change in a state in which it must not"),
            Self::Changes(id) => write!(f, "what {id} gets is not what the plan says"),
        }
    }
}

/// Everything that is wrong with `step`, which follows the plan of `situation`.
pub fn check(situation: &Situation<'_>, step: &Step) -> Vec<Violation> {
    let mut wrong = Vec::new();
    lineage(situation, &step.plan, &mut wrong);
    let fleet: BTreeMap<_, _> = situation.fleet.iter().map(|member| (&member.id, member)).collect();
    let checker = Checker { situation, plan: &step.plan, fleet: &fleet };
    checker.targets(&step.changes, &mut wrong);
    checker.numbers(&mut wrong);
    wrong
}

fn lineage(situation: &Situation<'_>, plan: &Plan, wrong: &mut Vec<Violation>) {
    let parent = situation.plan;
    if plan.parent != parent.generation
        || plan.generation != parent.generation + 1
        || plan.rollout != parent.rollout
    {
        wrong.push(Violation::Lineage);
    }
    let (from, to) = (parent.state, plan.state);
    if !follows(parent, to) {
        wrong.push(Violation::State { from, to });
    }
    if (plan.resume.is_some()) != (to == RolloutState::Paused) {
        wrong.push(Violation::State { from, to });
    }
    let soaked = situation.now.since(parent.since) >= situation.spec.spec.soak;
    let on = match to {
        RolloutState::Paused | RolloutState::RollingBack | RolloutState::Aborted => false,
        RolloutState::Running
        | RolloutState::Soaking
        | RolloutState::AwaitingApproval
        | RolloutState::AwaitingWindow
        | RolloutState::Done
        | RolloutState::RolledBack => true,
    };
    if from == RolloutState::Soaking && on && !soaked {
        wrong.push(Violation::Soak);
    }
    let manual = situation.spec.spec.manual_approval;
    if manual && plan.wave > parent.wave && !(from == RolloutState::AwaitingApproval && plan.approved) {
        wrong.push(Violation::Approval);
    }
}

/// Whether a state may follow.
fn follows(parent: &Plan, to: RolloutState) -> bool {
    use RolloutState::{
        Aborted, AwaitingApproval, AwaitingWindow, Done, Paused, RolledBack, RollingBack, Running, Soaking,
    };
    match parent.state {
        Running => {
            matches!(to, Running | Soaking | AwaitingWindow | Paused | RollingBack | Aborted)
                || (to == Done && parent.targets.is_empty())
        }
        Soaking => {
            matches!(to, Running | AwaitingApproval | AwaitingWindow | Done | Paused | RollingBack | Aborted)
        }
        AwaitingApproval => matches!(to, Running | AwaitingWindow | Paused | RollingBack | Aborted),
        AwaitingWindow => matches!(to, Running | Paused | RollingBack | Aborted),
        Paused => Some(to) == parent.resume || matches!(to, RollingBack | Aborted),
        RollingBack => matches!(to, RollingBack | RolledBack | Paused | Aborted),
        Done => matches!(to, Done | RollingBack),
        Aborted => to == RollingBack,
        RolledBack => false,
    }
}

struct Checker<'a> {
    situation: &'a Situation<'a>,
    plan: &'a Plan,
    fleet: &'a BTreeMap<&'a GatewayId, &'a Member>,
}

impl Checker<'_> {
    fn version(&self) -> &Digest {
        &self.situation.spec.spec.digest
    }

    /// Whether a target is new, or other than before.
    fn changed(&self, id: &GatewayId, target: &Target) -> bool {
        self.situation.plan.targets.get(id) != Some(target)
    }

    fn targets(&self, changes: &[Change], wrong: &mut Vec<Violation>) {
        let before = &self.situation.plan.targets;
        wrong.extend(
            before.keys().filter(|id| !self.plan.targets.contains_key(id)).cloned().map(Violation::History),
        );
        let changes: BTreeMap<_, _> = changes.iter().map(|change| (&change.gateway, change)).collect();
        let unplanned = changes.keys().filter(|id| !self.plan.targets.contains_key(id));
        wrong.extend(unplanned.map(|id| Violation::Changes((*id).clone())));
        for (id, target) in &self.plan.targets {
            let change = changes.get(id).copied();
            if !self.changed(id, target) {
                wrong.extend(change.map(|_| Violation::Changes(id.clone())));
            } else if target.digest.as_ref() == Some(self.version()) && !self.plan_goes_back() {
                self.given(id, target, change, wrong);
            } else {
                self.taken(id, target, change, wrong);
            }
        }
    }

    fn plan_goes_back(&self) -> bool {
        self.plan.state == RolloutState::RollingBack
    }

    /// A gateway gets the version.
    fn given(&self, id: &GatewayId, target: &Target, change: Option<&Change>, wrong: &mut Vec<Violation>) {
        let Some(member) = self.fleet.get(id) else {
            wrong.push(Violation::NotSelected(id.clone()));
            return;
        };
        if self.situation.plan.targets.contains_key(id) && member.wants(target.digest.as_ref()) {
            wrong.push(Violation::History(id.clone()));
        }
        if !member.selected {
            wrong.push(Violation::NotSelected(id.clone()));
        }
        if member.claimed_by.is_some() {
            wrong.push(Violation::Claimed(id.clone()));
        }
        if !change.is_some_and(|change| change.digest == target.digest && !change.rolls_back) {
            wrong.push(Violation::Changes(id.clone()));
        }
        if target.previous.as_ref() == Some(self.version()) || target.wave != self.plan.wave {
            wrong.push(Violation::History(id.clone()));
        }
        match self.plan.state {
            RolloutState::Running if !target.late => {}
            RolloutState::Done if target.late => {}
            RolloutState::Running
            | RolloutState::Done
            | RolloutState::Soaking
            | RolloutState::AwaitingApproval
            | RolloutState::AwaitingWindow
            | RolloutState::Paused
            | RolloutState::RollingBack
            | RolloutState::RolledBack
            | RolloutState::Aborted => wrong.push(Violation::Direction(id.clone())),
        }
        // One that is away and was to switch anyway is only told another version.
        let redirected = target.late && member.open && !member.online && member.assigned.is_some();
        if !redirected {
            if !member.reachable() {
                wrong.push(Violation::NotReachable(id.clone()));
            }
            if !self.situation.spec.windows.open(self.situation.now) {
                wrong.push(Violation::Window(id.clone()));
            }
        }
    }

    /// A gateway goes back.
    fn taken(&self, id: &GatewayId, target: &Target, change: Option<&Change>, wrong: &mut Vec<Violation>) {
        if !self.plan_goes_back() {
            wrong.push(Violation::Direction(id.clone()));
        }
        if target.digest != target.previous {
            wrong.push(Violation::Foreign(id.clone()));
        }
        let before = self.situation.plan.targets.get(id);
        if !before.is_some_and(|before| before.previous == target.previous && before.wave == target.wave) {
            wrong.push(Violation::History(id.clone()));
        }
        if !change.is_none_or(|change| change.digest == target.digest && change.rolls_back) {
            wrong.push(Violation::Changes(id.clone()));
        }
    }

    /// Shares and waves. Only plans that reach more gateways can break them; what was reached before may have changed since.
    fn numbers(&self, wrong: &mut Vec<Violation>) {
        let parent = self.situation.plan;
        let (mut selected, mut all, mut reached, mut unavailable, mut given) = (0, 0, 0, 0, 0);
        for member in self.fleet.values() {
            let target = self.plan.targets.get(&member.id);
            let new = target.is_some_and(|target| {
                self.changed(&member.id, target) && target.digest.as_ref() == Some(self.version())
            });
            let ours = member.selected && member.claimed_by.is_none();
            if target.is_none() && !ours {
                continue;
            }
            selected += 1;
            let Some(target) = target else {
                all += usize::from(!member.wants(Some(self.version())) || self.refused(member));
                continue;
            };
            all += 1;
            // A late one that is away does not become unavailable by being told something.
            let counts = new && (member.online || !target.late);
            given += usize::from(counts);
            let standing = if new {
                if counts { Standing::Switching } else { Standing::Away(Away::Offline) }
            } else {
                let patience = self.situation_patience();
                member.standing(target, self.version(), patience, self.situation.now)
            };
            let broken = matches!(standing, Standing::Failed(_))
                && member.online
                && target.previous.is_some()
                && member.serves().is_none();
            unavailable += usize::from(
                (broken && !target.late && self.plan.state == RolloutState::Running)
                    || matches!(standing, Standing::Switching | Standing::Away(Away::Interrupted)),
            );
            reached += usize::from(!target.late && !matches!(standing, Standing::Away(_)));
        }
        let spec = &self.situation.spec.spec;
        let quota = |wave: u32| spec.waves.get(wave as usize).map_or(all, |wave| waves::quota(*wave, all));
        if given > 0 && self.plan.state == RolloutState::Running && reached > quota(self.plan.wave) {
            wrong.push(Violation::Quota { reached, quota: quota(self.plan.wave) });
        }
        let most = waves::most_unavailable(spec.max_unavailable_percent, selected);
        if given > 0 && unavailable > most {
            wrong.push(Violation::Unavailable { gateways: unavailable, most });
        }
        let left_out = parent.wave + 1 < self.plan.wave
            && (parent.wave + 1..self.plan.wave).any(|wave| quota(wave) > reached);
        if self.plan.wave < parent.wave || self.plan.wave as usize >= spec.waves.len() || left_out {
            wrong.push(Violation::Wave { from: parent.wave, to: self.plan.wave });
        }
    }

    fn refused(&self, member: &Member) -> bool {
        use super::member::Progress;
        member
            .versions
            .iter()
            .any(|known| known.digest == *self.version() && known.progress == Progress::Failed)
    }

    fn situation_patience(&self) -> super::member::Patience {
        super::member::Patience {
            timeout: self.situation.spec.spec.gateway_timeout,
            grace: self.situation.grace,
        }
    }
}

#[cfg(test)]
mod tests;
