//! Roll-outs as clients see them.

use rookery_proto::v1;

use crate::{
    domain::{
        Digest,
        rollout::{Plan, RolloutState, Target},
    },
    rollout::{
        Insight, Preview,
        member::{Away, Member, Patience, Progress, Standing},
        plan::{self, Next, Situation, Tally},
        spec,
    },
    service::stored::timestamp,
};

/// Longest reason of one gateway, characters: there may be thousands of them in a message.
const MOST_REASON: usize = 400;

/// Whether a message lists gateways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gateways {
    All,
    None,
}

fn state(state: RolloutState) -> v1::RolloutState {
    match state {
        RolloutState::Running => v1::RolloutState::Running,
        RolloutState::Soaking => v1::RolloutState::Soaking,
        RolloutState::AwaitingApproval => v1::RolloutState::AwaitingApproval,
        RolloutState::AwaitingWindow => v1::RolloutState::AwaitingWindow,
        RolloutState::Paused => v1::RolloutState::Paused,
        RolloutState::RollingBack => v1::RolloutState::RollingBack,
        RolloutState::Done => v1::RolloutState::Done,
        RolloutState::RolledBack => v1::RolloutState::RolledBack,
        RolloutState::Aborted => v1::RolloutState::Aborted,
    }
}

pub(super) fn rollout(insight: &Insight, listed: Gateways) -> v1::Rollout {
    let record = &insight.entry.record;
    let plan = &record.plan;
    let gateways: Vec<_> = insight.members.iter().filter_map(|member| seen(insight, member)).collect();
    let reason = match (plan.state, &insight.waiting) {
        // Why it is so says more than what is still to be done.
        (RolloutState::RollingBack | RolloutState::RolledBack | RolloutState::Aborted, _) | (_, None) => {
            plan.reason.clone()
        }
        (_, Some(waiting)) => waiting.clone(),
    };
    v1::Rollout {
        id: record.id.to_string(),
        spec: Some(spec::to_wire(&record.spec)),
        digest: record.spec.digest.to_string(),
        state: state(plan.state).into(),
        reason,
        wave: plan.wave,
        generation: plan.generation,
        created: Some(timestamp(record.created)),
        created_by: record.created_by.clone(),
        updated: Some(timestamp(plan.since)),
        counts: Some(counts(gateways.iter().map(|(place, _)| *place))),
        gateways: match listed {
            Gateways::All => gateways.into_iter().map(|(_, gateway)| gateway).collect(),
            Gateways::None => Vec::new(),
        },
    }
}

/// Where a gateway is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Waiting,
    Switching,
    Serving,
    Failed,
    Offline,
}

fn counts(places: impl Iterator<Item = Place>) -> v1::RolloutCounts {
    let mut counts = v1::RolloutCounts::default();
    for place in places {
        counts.selected += 1;
        *match place {
            Place::Waiting => &mut counts.waiting,
            Place::Switching => &mut counts.switching,
            Place::Serving => &mut counts.serving,
            Place::Failed => &mut counts.failed,
            Place::Offline => &mut counts.offline,
        } += 1;
    }
    counts
}

/// A gateway of the roll-out and where it is counted; `None` for those that are not of it.
fn seen(insight: &Insight, member: &Member) -> Option<(Place, v1::RolloutGateway)> {
    let record = &insight.entry.record;
    let (spec, target) = (&record.spec, record.plan.targets.get(&member.id));
    if target.is_none() && !(member.selected && (member.claimed_by.is_none() || record.plan.state.is_over()))
    {
        return None;
    }
    let reported = member.versions.iter().find(|version| version.digest == spec.digest);
    let standing = target.map(|target| {
        let patience = Patience { timeout: spec.gateway_timeout, grace: insight.grace };
        member.standing(target, &spec.digest, patience, insight.now)
    });
    let refused = reported.is_some_and(|version| version.progress == Progress::Failed);
    let place = match &standing {
        _ if !member.online => Place::Offline,
        _ if member.serves() == Some(&spec.digest) => Place::Serving,
        Some(Standing::Failed(_)) => Place::Failed,
        Some(Standing::Switching | Standing::Away(Away::Interrupted)) => Place::Switching,
        Some(Standing::There | Standing::Away(Away::Offline | Away::Closed | Away::Lost)) if refused => {
            Place::Failed
        }
        Some(Standing::There | Standing::Away(Away::Offline | Away::Closed | Away::Lost)) | None => {
            Place::Waiting
        }
    };
    let phase = match (target, reported) {
        (_, Some(version)) => version.phase,
        (Some(_), None) => "assigned",
        (None, None) => "waiting",
    };
    let reason = why(standing.as_ref(), member, reported.map(|version| version.reason.as_str()), refused);
    Some((place, gateway(member, target, phase, reason)))
}

fn gateway(member: &Member, target: Option<&Target>, phase: &str, reason: String) -> v1::RolloutGateway {
    let previous = target.and_then(|target| target.previous.as_ref());
    v1::RolloutGateway {
        gateway: member.id.to_string(),
        wave: target.map_or(0, |target| target.wave),
        phase: phase.to_owned(),
        reason: reason.chars().take(MOST_REASON).collect(),
        previous_digest: previous.map(Digest::to_string).unwrap_or_default(),
    }
}

fn why(standing: Option<&Standing>, member: &Member, reported: Option<&str>, refused: bool) -> String {
    if let Some(Standing::Failed(reason)) = standing {
        return reason.clone();
    }
    if refused {
        return reported.unwrap_or_default().to_owned();
    }
    let mut notes = Vec::new();
    if !member.online {
        notes.push("not linked".to_owned());
    }
    if !member.open {
        notes.push("cordoned or drained".to_owned());
    }
    if let (None, Some(other)) = (standing, &member.claimed_by) {
        notes.push(format!("belongs to roll-out {other}"));
    }
    if matches!(standing, Some(Standing::Away(Away::Interrupted))) {
        notes.push("its link was interrupted too often".to_owned());
    }
    notes.join(", ")
}

/// What a roll-out would do: its gateways with the waves that would reach them.
pub(super) fn preview(preview: &Preview) -> v1::Rollout {
    let members = &preview.members;
    let entry = &preview.entry;
    let (record, spec) = (&entry.record, &entry.record.spec);
    let parent = plan::first(record.id.clone(), &record.created_by, record.created);
    let situation = Situation {
        spec: &entry.spec,
        plan: &parent,
        fleet: members,
        evidence: &[],
        grace: preview.grace,
        now: record.created,
    };
    let tally = Tally::new(&situation);
    let mut gateways = Vec::new();
    for (place, member) in tally.candidates.iter().enumerate() {
        let wave = (0..spec.waves.len()).find(|wave| place < tally.quota_of(&situation, *wave));
        let wave = wave.unwrap_or(spec.waves.len().saturating_sub(1));
        let previous = member.before(&spec.digest);
        gateways.push(v1::RolloutGateway {
            gateway: member.id.to_string(),
            wave: u32::try_from(wave).unwrap_or(u32::MAX),
            phase: "waiting".to_owned(),
            reason: String::new(),
            previous_digest: previous.map(|digest| digest.to_string()).unwrap_or_default(),
        });
    }
    let reached: std::collections::BTreeSet<_> = tally.candidates.iter().map(|member| &member.id).collect();
    let others = members.iter().filter(|member| member.selected && !reached.contains(&member.id));
    for member in others {
        let (phase, reason) = if member.wants(Some(&spec.digest)) {
            ("serving", "has the version already".to_owned())
        } else {
            ("late", late(member))
        };
        gateways.push(gateway(member, None, phase, reason));
    }
    let places = gateways.iter().map(|gateway| match gateway.phase.as_str() {
        "serving" => Place::Serving,
        "late" if gateway.reason == NOT_LINKED => Place::Offline,
        _ => Place::Waiting,
    });
    let reason = match plan::next(&situation) {
        Next::Step(step) => step.plan.reason,
        Next::Wait(waiting) => waiting.to_string(),
    };
    v1::Rollout {
        id: String::new(),
        spec: Some(spec::to_wire(spec)),
        digest: spec.digest.to_string(),
        state: state(preview.step.plan.state).into(),
        reason: format!("nothing was done; {reason}"),
        wave: 0,
        generation: 0,
        created: None,
        created_by: record.created_by.clone(),
        updated: None,
        counts: Some(counts(places)),
        gateways,
    }
}

const NOT_LINKED: &str = "not linked: follows when it comes back";

fn late(member: &Member) -> String {
    if let Some(other) = &member.claimed_by {
        return format!("belongs to roll-out {other}");
    }
    match (member.online, member.open) {
        (false, _) => NOT_LINKED.to_owned(),
        (true, false) => "cordoned or drained: follows when it is open".to_owned(),
        (true, true) => {
            "serves nothing of the model although it should: follows when all others are there".to_owned()
        }
    }
}

/// The history: each plan with what it changed.
pub(super) fn plans(plans: &[Plan]) -> Vec<v1::Plan> {
    let mut before: Option<&Plan> = None;
    let mut shown = Vec::with_capacity(plans.len());
    for plan in plans {
        let old = before.map(|before| &before.targets);
        let changed = plan.targets.iter().filter(|(id, target)| {
            old.and_then(|old| old.get(*id))
                .is_none_or(|old| old.digest != target.digest || old.since != target.since)
        });
        shown.push(v1::Plan {
            generation: plan.generation,
            parent: plan.parent,
            state: state(plan.state).into(),
            wave: plan.wave,
            at: Some(timestamp(plan.since)),
            actor: plan.actor.clone(),
            reason: plan.reason.clone(),
            changed: changed.map(|(id, _)| id.to_string()).collect(),
        });
        before = Some(plan);
    }
    shown
}
