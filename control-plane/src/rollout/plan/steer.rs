//! What people tell a roll-out.

use crate::domain::{
    GatewayId,
    rollout::{RolloutId, RolloutState},
};

use super::{Situation, Step, Tally, back, forward, names};

/// An order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Start nothing new.
    Pause,
    /// Go on.
    Resume,
    /// End it; gateways stay as they are.
    Abort,
    /// Take everything back.
    RollBack,
    /// Let the next wave begin.
    Approve,
}

/// Why an order makes no sense now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Nothing more comes.
    #[error("the roll-out is over ({0})")]
    Over(&'static str),
    /// It is paused already.
    #[error("the roll-out is paused already")]
    Paused,
    /// It is not paused.
    #[error("the roll-out is not paused: it is {0}")]
    NotPaused(&'static str),
    /// No wave waits for approval.
    #[error("no wave waits for approval: the roll-out is {0}")]
    NothingToApprove(&'static str),
    /// It goes back already.
    #[error("the roll-out is being rolled back already")]
    GoingBack,
    /// Gateways have been given something else since.
    #[error(
        "{} of its gateways now belong to other roll-outs{}: {gateways}; roll those back first",
        .count, .by.as_ref().map(|id| format!(" (such as {id})")).unwrap_or_default()
    )]
    Superseded {
        /// How many.
        count: usize,
        /// Some of them.
        gateways: String,
        /// One of those that have them.
        by: Option<RolloutId>,
    },
}

/// What people call a state.
pub fn name(state: RolloutState) -> &'static str {
    match state {
        RolloutState::Running => "running",
        RolloutState::Soaking => "soaking",
        RolloutState::AwaitingApproval => "awaiting approval",
        RolloutState::AwaitingWindow => "awaiting a window",
        RolloutState::Paused => "paused",
        RolloutState::RollingBack => "rolling back",
        RolloutState::Done => "done",
        RolloutState::RolledBack => "rolled back",
        RolloutState::Aborted => "aborted",
    }
}

/// The plan that carries out an order of `actor`, who gave `reason` (which may be empty).
///
/// # Errors
/// Says why the order makes no sense in this state.
pub fn steer(situation: &Situation<'_>, order: Order, actor: &str, reason: &str) -> Result<Step, Refusal> {
    let mut step = match order {
        Order::Pause => pause(situation)?,
        Order::Resume => resume(situation)?,
        Order::Abort => abort(situation)?,
        Order::RollBack => roll_back(situation)?,
        Order::Approve => approve(situation)?,
    };
    actor.clone_into(&mut step.plan.actor);
    if !reason.is_empty() {
        step.plan.reason = format!("{}: {reason}", step.plan.reason);
    }
    Ok(step)
}

fn pause(situation: &Situation<'_>) -> Result<Step, Refusal> {
    let state = situation.plan.state;
    match state {
        RolloutState::Paused => Err(Refusal::Paused),
        RolloutState::Done | RolloutState::RolledBack | RolloutState::Aborted => {
            Err(Refusal::Over(name(state)))
        }
        RolloutState::Running
        | RolloutState::Soaking
        | RolloutState::AwaitingApproval
        | RolloutState::AwaitingWindow
        | RolloutState::RollingBack => {
            let mut plan = situation.follow(RolloutState::Paused, "paused".to_owned());
            plan.resume = Some(state);
            Ok(Step { plan, changes: Vec::new() })
        }
    }
}

fn resume(situation: &Situation<'_>) -> Result<Step, Refusal> {
    match (situation.plan.state, situation.plan.resume) {
        // A soak begins again: while it was paused, nobody watched.
        (RolloutState::Paused, before) => {
            let state = before.unwrap_or(RolloutState::Running);
            Ok(Step { plan: situation.follow(state, "resumed".to_owned()), changes: Vec::new() })
        }
        (state, _) if state.is_over() => Err(Refusal::Over(name(state))),
        (state, _) => Err(Refusal::NotPaused(name(state))),
    }
}

fn abort(situation: &Situation<'_>) -> Result<Step, Refusal> {
    if situation.plan.state.is_over() {
        return Err(Refusal::Over(name(situation.plan.state)));
    }
    let plan = situation.follow(RolloutState::Aborted, "aborted; gateways stay as they are".to_owned());
    Ok(Step { plan, changes: Vec::new() })
}

fn roll_back(situation: &Situation<'_>) -> Result<Step, Refusal> {
    let state = situation.plan.state;
    match state {
        RolloutState::RolledBack => return Err(Refusal::Over(name(state))),
        RolloutState::RollingBack => return Err(Refusal::GoingBack),
        RolloutState::Paused if situation.plan.resume == Some(RolloutState::RollingBack) => {
            return Err(Refusal::GoingBack);
        }
        RolloutState::Done | RolloutState::Aborted => superseded(situation)?,
        RolloutState::Running
        | RolloutState::Soaking
        | RolloutState::AwaitingApproval
        | RolloutState::AwaitingWindow
        | RolloutState::Paused => {}
    }
    let (plan, changes) = back::turn(situation, &Tally::new(situation), "rolled back".to_owned());
    Ok(Step { plan, changes })
}

/// Refuses if a gateway has been given something else since the roll-out was over, or is about to be.
fn superseded(situation: &Situation<'_>) -> Result<(), Refusal> {
    let version = Some(situation.version());
    let has = |id: &GatewayId| {
        situation.plan.targets.get(id).is_some_and(|target| target.digest.as_ref() == version)
    };
    let others = situation.fleet.iter().filter(|member| has(&member.id));
    // One that joined anew holds nothing: nobody else has it.
    let others = others.filter(|member| {
        member.claimed_by.is_some() || (member.assigned.is_some() && !member.wants(version))
    });
    let others: Vec<_> = others.collect();
    if others.is_empty() {
        return Ok(());
    }
    Err(Refusal::Superseded {
        count: others.len(),
        gateways: names(others.iter().map(|member| &member.id)),
        by: others.iter().find_map(|member| member.claimed_by.clone()),
    })
}

fn approve(situation: &Situation<'_>) -> Result<Step, Refusal> {
    let state = situation.plan.state;
    if state.is_over() {
        return Err(Refusal::Over(name(state)));
    }
    if state != RolloutState::AwaitingApproval {
        return Err(Refusal::NothingToApprove(name(state)));
    }
    let tally = Tally::new(situation);
    // Those who would have come next may have gone meanwhile: the wave is entered all the same, and waits for them.
    let next = situation.plan.wave as usize + 1;
    let wave = forward::next_wave(situation, &tally).unwrap_or(next.min(situation.waves() - 1));
    let mut plan = forward::enter(situation, wave, "was approved");
    plan.approved = true;
    Ok(Step { plan, changes: Vec::new() })
}
