//! Everything that roll-outs depend on, read at one moment, and what it is for each of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{
    domain::{
        Digest, GatewayId, Millis, ModelName,
        rollout::{Plan, RolloutId},
    },
    inventory::{GatewayView, Phase, VersionStatus},
    store::{Admission, AssignmentRecord, Owner, RolloutRecord},
};

use super::{
    Traffic, TrafficCounts,
    gates::{self, Evidence},
    member::{Assigned, Member, Progress, Reported},
    plan,
    spec::{CheckedSpec, InvalidSpec},
};

/// A roll-out with its specification read.
#[derive(Clone, Debug)]
pub struct Entry {
    /// As it is stored.
    pub record: RolloutRecord,
    /// What was asked for.
    pub spec: CheckedSpec,
}

impl Entry {
    /// Reads the texts of a specification.
    ///
    /// # Errors
    /// If this program cannot.
    pub fn new(record: RolloutRecord) -> Result<Self, InvalidSpec> {
        Ok(Self { spec: CheckedSpec::new(record.spec.clone())?, record })
    }

    /// Whether a roll-out that is older than this one leaves a gateway alone for its sake.
    fn claims(&self, view: &GatewayView) -> bool {
        let plan = &self.record.plan;
        plan::claims(plan, &self.record.spec.digest, &view.record.id, || {
            self.spec.selector.matches(&view.labels)
        })
    }
}

/// What was read.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// When.
    pub now: Millis,
    /// Gateways by id.
    pub views: Vec<GatewayView>,
    /// All that are not over and the last of those that are, newest first.
    pub rollouts: Vec<Arc<Entry>>,
    assignments: BTreeMap<ModelName, BTreeMap<GatewayId, AssignmentRecord>>,
    owners: BTreeMap<ModelName, BTreeMap<GatewayId, RolloutId>>,
    /// When gateways that are not linked were last seen here.
    seen: BTreeMap<GatewayId, Millis>,
    /// Before this nobody knows who was linked.
    started: Millis,
}

impl Snapshot {
    /// Sorts what was read. `seen` says when gateways were last seen by this replica, which has watched since `started`.
    pub fn new(
        views: Vec<GatewayView>,
        rollouts: Vec<Arc<Entry>>,
        rows: (Vec<AssignmentRecord>, Vec<Owner>),
        seen: BTreeMap<GatewayId, Millis>,
        started: Millis,
        now: Millis,
    ) -> Self {
        let mut assignments: BTreeMap<_, BTreeMap<_, _>> = BTreeMap::new();
        for row in rows.0 {
            assignments.entry(row.model.clone()).or_default().insert(row.gateway.clone(), row);
        }
        let mut owners: BTreeMap<_, BTreeMap<_, _>> = BTreeMap::new();
        for Owner { gateway, model, rollout } in rows.1 {
            owners.entry(model).or_default().insert(gateway, rollout);
        }
        let mut rollouts = rollouts;
        rollouts.sort_by(|a, b| b.record.id.cmp(&a.record.id));
        Self { now, views, rollouts, assignments, owners, seen, started }
    }

    /// Whether every roll-out is over.
    pub fn is_idle(&self) -> bool {
        self.rollouts.iter().all(|entry| entry.record.plan.state.is_over())
    }

    /// A roll-out by its id.
    pub fn rollout(&self, id: &RolloutId) -> Option<&Arc<Entry>> {
        self.rollouts.iter().find(|entry| entry.record.id == *id)
    }

    /// Every version of a model that some gateway is to serve.
    pub fn assigned(&self, model: &ModelName) -> impl Iterator<Item = &Digest> {
        self.assignments.get(model).into_iter().flat_map(BTreeMap::values).map(|row| &row.digest)
    }

    /// Whether a gateway is to serve a version.
    pub fn wants(&self, model: &ModelName, gateway: &GatewayId, digest: &Digest) -> bool {
        let rows = self.assignments.get(model);
        rows.and_then(|rows| rows.get(gateway)).is_some_and(|row| row.digest == *digest)
    }

    /// The gateways as a roll-out sees them. `id` need not be one that is stored.
    pub fn members(&self, id: &RolloutId, spec: &CheckedSpec) -> Vec<Member> {
        let model = &spec.spec.model;
        let (assignments, owners) = (self.assignments.get(model), self.owners.get(model));
        let newer = |other: &&Arc<Entry>| other.record.spec.model == *model && other.record.id > *id;
        let newer: Vec<_> = self.rollouts.iter().filter(newer).collect();
        let member = |view: &GatewayView| {
            let gateway = &view.record.id;
            let claimed_by = match owners.and_then(|owners| owners.get(gateway)) {
                Some(owner) if owner == id => None,
                Some(owner) => Some(owner.clone()),
                None => newer.iter().find(|other| other.claims(view)).map(|other| other.record.id.clone()),
            };
            let assigned = assignments.and_then(|assignments| assignments.get(gateway));
            let online_since = view.record.link.as_ref().map_or(self.now, |link| link.since);
            let stored = view.record.last_seen.unwrap_or(self.started).max(self.started);
            Member {
                id: gateway.clone(),
                selected: spec.selector.matches(&view.labels),
                claimed_by,
                open: match view.record.admission {
                    Admission::Open => true,
                    Admission::Cordoned | Admission::Drained => false,
                },
                online: view.online,
                online_since,
                seen: self.seen.get(gateway).map_or(stored, |here| stored.max(*here)),
                assigned: assigned
                    .map(|row| Assigned { digest: row.digest.clone(), generation: row.generation }),
                versions: view
                    .versions
                    .iter()
                    .filter(|version| version.model == *model)
                    .map(reported)
                    .collect(),
            }
        };
        self.views.iter().map(member).collect()
    }

    /// What was seen of requests to a roll-out's version and to those that gateways have or had instead.
    pub fn evidence(
        &self,
        spec: &CheckedSpec,
        plan: &Plan,
        members: &[Member],
        traffic: &dyn Traffic,
    ) -> Vec<Evidence> {
        let new = &spec.spec.digest;
        let previous = plan.targets.values().filter_map(|target| target.previous.as_ref());
        let others = members.iter().filter(|member| member.selected).filter_map(Member::serves);
        let before: BTreeSet<_> = previous.chain(others).filter(|digest| *digest != new).collect();
        let of = |wanted: &dyn Fn(&Digest) -> bool| {
            let versions = self.views.iter().flat_map(|view| view.versions.iter());
            let versions = versions.filter(|version| {
                version.model == spec.spec.model && version.phase == Phase::Serving && wanted(&version.digest)
            });
            gates::add(&versions.map(counts).collect::<Vec<_>>())
        };
        let router = Evidence {
            source: "as the control plane saw it",
            new: traffic.of(new),
            old: gates::add(&before.iter().map(|digest| traffic.of(digest)).collect::<Vec<_>>()),
        };
        let gateways = Evidence {
            source: "as gateways report it",
            new: of(&|digest| digest == new),
            old: of(&|digest| before.contains(digest)),
        };
        vec![router, gateways]
    }
}

fn counts(version: &VersionStatus) -> TrafficCounts {
    TrafficCounts {
        requests: version.requests,
        failures: version.failures,
        ttft_us: (version.ttft_us > 0).then_some(version.ttft_us),
    }
}

fn reported(version: &VersionStatus) -> Reported {
    let progress = match version.phase {
        Phase::Assigned | Phase::Downloading | Phase::Verifying | Phase::Staged => Progress::Coming,
        Phase::Probing | Phase::Activating => Progress::Trying,
        Phase::Serving => Progress::Serving,
        Phase::Failed | Phase::RolledBack => Progress::Failed,
        Phase::Draining => Progress::Leaving,
    };
    let mut reason = version.reason.clone();
    for verdict in version.verdicts.iter().filter(|verdict| !verdict.passed) {
        let said = format!("{}: expected {}, saw {}", verdict.gate, verdict.expected, verdict.seen);
        // Gateways may have put the verdict into the reason already.
        if !reason.contains(&said) {
            reason = if reason.is_empty() { said } else { format!("{reason} ({said})") };
        }
    }
    if reason.is_empty() {
        reason = "gave no reason".to_owned();
    }
    Reported {
        digest: version.digest.clone(),
        progress,
        phase: version.phase.as_str(),
        reason,
        generation: version.generation,
    }
}
