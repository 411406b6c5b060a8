//! After the waves: the version stays what every gateway is to have that the selector matches, until a later roll-out of the
//! model says otherwise. Gateways that were away, were broken or have just joined are caught up, straight to this version.

use std::time::Duration;

use crate::domain::rollout::RolloutState;

use super::{super::member::Member, Next, Situation, Tally, Waiting, count, names, step};

/// Late gateways come one by one; a plan for each would fill the store.
const EVERY: Duration = Duration::from_secs(10);

/// As many are worth a plan at once.
const MANY: usize = 16;

pub(super) fn catch_up(situation: &Situation<'_>, tally: &Tally<'_>) -> Next {
    let stale = stale(situation);
    let waiting = tally.candidates.len() + tally.broken.len();
    if waiting + stale.len() == 0 {
        return Next::Wait(Waiting::Nothing);
    }
    let mut chosen = stale;
    if waiting > 0 {
        if !situation.spec.windows.open(situation.now) {
            let opens = situation.spec.windows.next_open(situation.now);
            if chosen.is_empty() {
                return Next::Wait(Waiting::Window { opens });
            }
        } else {
            // What is broken after the waves stays so whoever else is caught up.
            let room = tally.most_unavailable.saturating_sub(tally.on_the_way);
            chosen.extend(tally.candidates.iter().chain(&tally.broken).take(room));
        }
    }
    if chosen.is_empty() {
        return Next::Wait(Waiting::Unavailable { gateways: tally.on_the_way, most: tally.most_unavailable });
    }
    if situation.now.since(situation.plan.since) < EVERY && chosen.len() < MANY {
        return Next::Wait(Waiting::Late { gateways: waiting });
    }
    let names = names(chosen.iter().map(|member| &member.id));
    let reason = format!("{} caught up: {names}", count(chosen.len()));
    let mut plan = situation.follow(RolloutState::Done, reason);
    let changes = situation.assign(&mut plan, &chosen, true);
    step(plan, changes)
}

/// Gateways that are not there and were told to take an older version that they did not take before they went: told anew, so
/// that they do not begin with that one when they come back. They would have switched anyway, so this is not held back.
fn stale<'a>(situation: &Situation<'a>) -> Vec<&'a Member> {
    let version = situation.version();
    let pending = |member: &&Member| {
        let assigned = member.assigned.as_ref().map(|assigned| &assigned.digest);
        assigned.is_some_and(|assigned| assigned != version && member.serves() != Some(assigned))
    };
    let gone =
        |member: &&Member| member.selected && member.claimed_by.is_none() && member.open && !member.online;
    situation.fleet.iter().filter(gone).filter(pending).collect()
}
