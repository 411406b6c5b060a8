//! The way forward: waves, soak, approval, windows, and when to turn back.

use crate::domain::rollout::{Plan, RolloutState};

use super::{
    super::{gates, waves},
    Next, Situation, Tally, Waiting, back, count, names, step,
};

/// Of the gateways that may be unavailable, the least part worth a plan of its own while others are on the way: each plan
/// is kept, so a large fleet should not make one for every gateway.
const PART: usize = 4;

/// Why the version is to be taken back, if it is.
pub(super) fn verdict(situation: &Situation<'_>, tally: &Tally<'_>) -> Option<String> {
    let spec = &situation.spec.spec;
    // Of those that the wave has reached and can still reach: the first one's failure may be one of many, but those that
    // nobody can reach must not speak for the version.
    let missing = tally.quota.saturating_sub(tally.counted());
    let of = tally.counted() + missing.min(tally.candidates.len() + tally.returning);
    let failed = tally.failed.len();
    let percent = 100.0 * failed as f64 / of.max(1) as f64;
    if percent > spec.max_failed_percent {
        let causes = tally.failed.iter().take(3).map(|(id, reason)| format!("{id}: {reason}"));
        let causes = causes.collect::<Vec<_>>().join("; ");
        return Some(format!(
            "{failed} of {} failed ({percent:.1} %, {} % may): {causes}",
            count(of),
            spec.max_failed_percent
        ));
    }
    gates::judge(&spec.gates, situation.evidence)
}

pub(super) fn running(situation: &Situation<'_>, tally: &Tally<'_>) -> Next {
    if let Some(why) = verdict(situation, tally) {
        return back::begin(situation, tally, why);
    }
    let missing = tally.quota.saturating_sub(tally.counted()).min(tally.candidates.len());
    if missing > 0 {
        return reach(situation, tally, missing);
    }
    if tally.switching > 0 {
        return Next::Wait(Waiting::Switching { gateways: tally.switching });
    }
    if tally.counted() < tally.quota && tally.returning > 0 {
        return Next::Wait(Waiting::Returning { gateways: tally.returning });
    }
    if tally.counted() > 0 {
        let reason =
            format!("wave {} of {} serves: {}", number(situation), situation.waves(), state_of(tally));
        return step(situation.follow(RolloutState::Soaking, reason), Vec::new());
    }
    if tally.all == 0 && tally.selected > 0 {
        let reason = format!("all of {} selected have the version already", count(tally.selected));
        return step(situation.follow(RolloutState::Done, reason), Vec::new());
    }
    Next::Wait(Waiting::Nobody { selected: tally.selected })
}

/// Gives the version to up to `missing` more gateways.
fn reach(situation: &Situation<'_>, tally: &Tally<'_>, missing: usize) -> Next {
    if !situation.spec.windows.open(situation.now) {
        if tally.switching > 0 {
            return Next::Wait(Waiting::Switching { gateways: tally.switching });
        }
        let wave = number(situation);
        let reason = format!("wave {wave} of {} waits for a maintenance window", situation.waves());
        return step(situation.follow(RolloutState::AwaitingWindow, reason), Vec::new());
    }
    let now = missing.min(tally.room());
    if now == 0 && tally.on_the_way == 0 {
        // Waiting would not help: what is broken stays so until the version is taken back.
        let names = names(tally.failed.iter().map(|(id, _)| *id));
        let why = format!(
            "the version failed on {} that now serve nothing, and no more than {} may be unavailable: {names}",
            count(tally.unavailable),
            tally.most_unavailable
        );
        return back::begin(situation, tally, why);
    }
    if now == 0 {
        return Next::Wait(Waiting::Unavailable {
            gateways: tally.unavailable,
            most: tally.most_unavailable,
        });
    }
    if now < missing && now * PART < tally.most_unavailable && tally.switching > 0 {
        return Next::Wait(Waiting::Switching { gateways: tally.switching });
    }
    let chosen = &tally.candidates[..now];
    let reason = format!(
        "wave {} of {} reaches {}: {}",
        number(situation),
        situation.waves(),
        count(now),
        names(chosen.iter().map(|member| &member.id))
    );
    let mut plan = situation.follow(RolloutState::Running, reason);
    let changes = situation.assign(&mut plan, chosen, false);
    step(plan, changes)
}

pub(super) fn soaking(situation: &Situation<'_>, tally: &Tally<'_>) -> Next {
    if let Some(why) = verdict(situation, tally) {
        return back::begin(situation, tally, why);
    }
    let soaked = situation.now.since(situation.plan.since);
    if soaked < situation.spec.spec.soak {
        let judged = situation.evidence.iter().any(gates::Evidence::judges);
        return Next::Wait(Waiting::Soak { left: situation.spec.spec.soak - soaked, judged });
    }
    if tally.switching > 0 {
        return Next::Wait(Waiting::Switching { gateways: tally.switching });
    }
    let Some(wave) = next_wave(situation, tally) else {
        let late = match tally.unreachable + tally.broken.len() + tally.away {
            0 => String::new(),
            late => format!("; {} will follow when they can", count(late)),
        };
        let reason = format!("the last wave has soaked: {}{late}", state_of(tally));
        return step(situation.follow(RolloutState::Done, reason), Vec::new());
    };
    if situation.spec.spec.manual_approval {
        let reason =
            format!("wave {} of {} has soaked: {}", number(situation), situation.waves(), state_of(tally));
        return step(situation.follow(RolloutState::AwaitingApproval, reason), Vec::new());
    }
    step(enter(situation, wave, "has soaked"), Vec::new())
}

/// The next wave that would reach somebody.
pub(super) fn next_wave(situation: &Situation<'_>, tally: &Tally<'_>) -> Option<usize> {
    if tally.candidates.is_empty() && tally.returning == 0 {
        return None;
    }
    let now = situation.plan.wave as usize;
    (now + 1..situation.waves()).find(|wave| tally.quota_of(situation, *wave) > tally.counted())
}

/// Goes on to another wave, now or as soon as a window opens.
pub(super) fn enter(situation: &Situation<'_>, wave: usize, because: &str) -> Plan {
    let (state, then) = if situation.spec.windows.open(situation.now) {
        (RolloutState::Running, "begins")
    } else {
        (RolloutState::AwaitingWindow, "waits for a maintenance window")
    };
    let size = situation.spec.spec.waves.get(wave).map_or_else(String::new, |wave| waves::text(*wave));
    let reason = format!(
        "wave {} {because}; wave {} of {} ({size}) {then}",
        number(situation),
        wave + 1,
        situation.waves()
    );
    let mut plan = situation.follow(state, reason);
    plan.wave = u32::try_from(wave).unwrap_or(u32::MAX);
    plan
}

pub(super) fn awaiting_approval(situation: &Situation<'_>, tally: &Tally<'_>) -> Next {
    match verdict(situation, tally) {
        Some(why) => back::begin(situation, tally, why),
        None => Next::Wait(Waiting::Approval),
    }
}

pub(super) fn awaiting_window(situation: &Situation<'_>, tally: &Tally<'_>) -> Next {
    if let Some(why) = verdict(situation, tally) {
        return back::begin(situation, tally, why);
    }
    if !situation.spec.windows.open(situation.now) {
        return Next::Wait(Waiting::Window { opens: situation.spec.windows.next_open(situation.now) });
    }
    let reason = format!(
        "a maintenance window has opened: wave {} of {} goes on",
        number(situation),
        situation.waves()
    );
    step(situation.follow(RolloutState::Running, reason), Vec::new())
}

/// The current wave as people count.
pub(super) fn number(situation: &Situation<'_>) -> u32 {
    situation.plan.wave.saturating_add(1)
}

fn state_of(tally: &Tally<'_>) -> String {
    let mut text = format!("{} there", count(tally.there));
    if !tally.failed.is_empty() {
        let names = names(tally.failed.iter().map(|(id, _)| *id));
        text.push_str(&format!(", {} failed ({names})", tally.failed.len()));
    }
    text
}
