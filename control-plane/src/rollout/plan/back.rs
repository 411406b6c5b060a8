//! The way back: by planning forward, to what gateways served before.

use crate::domain::{
    GatewayId,
    rollout::{Plan, RolloutState, Target},
};

use super::{super::member::Standing, Change, Next, Situation, Tally, Waiting, count, names, step};

/// Turns back, for a reason that the planner has found.
pub(super) fn begin(situation: &Situation<'_>, tally: &Tally<'_>, why: String) -> Next {
    let (plan, changes) = turn(situation, tally, why);
    step(plan, changes)
}

/// The first plan of the way back.
pub(super) fn turn(situation: &Situation<'_>, tally: &Tally<'_>, why: String) -> (Plan, Vec<Change>) {
    let mut plan = situation.follow(RolloutState::RollingBack, why);
    let changes = take_back(situation, tally, &mut plan, 0);
    (plan, changes)
}

pub(super) fn going_back(situation: &Situation<'_>, tally: &Tally<'_>) -> Next {
    let version = situation.version();
    let targets = &situation.plan.targets;
    let on_the_way = targets.iter().filter(|(id, target)| {
        let standing = tally.standings.get(id);
        target.digest.as_ref() != Some(version) && matches!(standing, Some(Standing::Switching))
    });
    let on_the_way = on_the_way.count();
    let mut plan = situation.follow(RolloutState::RollingBack, String::new());
    let changes = take_back(situation, tally, &mut plan, on_the_way);
    if !changes.is_empty() || plan.targets != *targets {
        plan.reason =
            format!("{}{BUT}{} more go back: {}", cause(situation), count(changes.len()), gateways(&changes));
        return step(plan, changes);
    }
    if on_the_way > 0 || targets.values().any(|target| target.digest.as_ref() == Some(version)) {
        return Next::Wait(Waiting::Switching { gateways: on_the_way });
    }
    let failed: Vec<_> = tally.failed.iter().map(|(id, reason)| format!("{id}: {reason}")).take(3).collect();
    let but = match failed.len() {
        0 => String::new(),
        _ => format!(", but {} did not get there: {}", count(tally.failed.len()), failed.join("; ")),
    };
    let cause = cause(situation);
    let reason = format!("{cause}{BUT}every gateway that can be reached serves what it served before{but}");
    step(situation.follow(RolloutState::RolledBack, reason), Vec::new())
}

/// Between why a roll-out goes back and what is done about it.
const BUT: &str = " — ";

/// Why it goes back: the first part of every reason on the way.
fn cause<'a>(situation: &Situation<'a>) -> &'a str {
    let reason = situation.plan.reason.as_str();
    reason.split_once(BUT).map_or(reason, |(cause, _)| cause)
}

/// Gives gateways back what they served before the roll-out: all that do not serve the version (they are on the way, failed,
/// or cannot be reached now), and of those that do as many as may be unavailable beside the `on_the_way`.
fn take_back(
    situation: &Situation<'_>,
    tally: &Tally<'_>,
    plan: &mut Plan,
    on_the_way: usize,
) -> Vec<Change> {
    let version = situation.version();
    let stays = |standing: Option<&Standing>| matches!(standing, Some(Standing::There));
    let still = |id: &GatewayId, target: &Target| {
        target.digest.as_ref() == Some(version) && stays(tally.standings.get(id))
    };
    let unsettled = plan
        .targets
        .iter()
        .filter(|(id, target)| target.digest.as_ref() == Some(version) && !still(id, target));
    let mut room = tally.most_unavailable.saturating_sub(on_the_way + unsettled.count());
    let mut changes = Vec::new();
    for (id, target) in &mut plan.targets {
        if target.digest.as_ref() != Some(version) {
            continue;
        }
        if still(id, target) {
            let Some(left) = room.checked_sub(1) else { continue };
            room = left;
        }
        target.digest = target.previous.clone();
        target.since = situation.now;
        // A gateway that has been removed, or has joined anew, has nothing to be taken back.
        let known = situation.fleet.binary_search_by(|member| member.id.cmp(id)).ok();
        let member = known.map(|index| &situation.fleet[index]);
        if member
            .is_some_and(|member| member.wants(Some(version)) && target.previous.as_ref() != Some(version))
        {
            changes.push(Change { gateway: id.clone(), digest: target.digest.clone(), rolls_back: true });
        }
    }
    changes
}

fn gateways(changes: &[Change]) -> String {
    names(changes.iter().map(|change| &change.gateway))
}
