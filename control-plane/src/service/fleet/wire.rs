//! The fleet as clients see it.

use std::collections::{BTreeMap, HashMap};

use rookery_proto::v1;

use crate::{
    domain::{Digest, GatewayId, Millis, ModelName},
    inventory::{GatewayView, Phase, Verdict},
    service::stored::timestamp,
    store::{
        Admission, AssignmentRecord, AuditEntry, GatewayTransition, Store, StoreError, TokenRecord,
        TransitionRecord,
    },
};

/// Requests in flight by gateway.
pub(super) type InFlight = HashMap<GatewayId, u64>;

/// Assignments by gateway, and what versions are called.
pub(super) struct VersionNames {
    assignments: BTreeMap<GatewayId, Vec<AssignmentRecord>>,
    names: BTreeMap<(ModelName, Digest), String>,
}

impl VersionNames {
    /// Of all gateways.
    pub(super) async fn read(store: &Store) -> Result<Self, StoreError> {
        Self::new(store, store.assignments().await?).await
    }

    /// Of one.
    pub(super) async fn of(store: &Store, id: &GatewayId) -> Result<Self, StoreError> {
        Self::new(store, store.assignments_of(id).await?.1).await
    }

    async fn new(store: &Store, records: Vec<AssignmentRecord>) -> Result<Self, StoreError> {
        let mut assignments: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for record in records {
            assignments.entry(record.gateway.clone()).or_default().push(record);
        }
        let versions = if assignments.is_empty() { Vec::new() } else { store.versions(None).await? };
        let mut names = BTreeMap::new();
        for version in versions {
            // Newest first: of several names of the same digest, the oldest is left.
            names.insert((version.model, version.digest), version.version.to_string());
        }
        Ok(Self { assignments, names })
    }

    fn assigned(&self, id: &GatewayId) -> Vec<v1::AssignedVersion> {
        let records = self.assignments.get(id).map_or(&[][..], Vec::as_slice);
        let assigned = records.iter().map(|record| v1::AssignedVersion {
            model: record.model.to_string(),
            version: self.name(&record.model, &record.digest),
            digest: record.digest.to_string(),
            rollout: record.rollout.as_ref().map(ToString::to_string).unwrap_or_default(),
            generation: record.generation,
        });
        assigned.collect()
    }

    fn name(&self, model: &ModelName, digest: &Digest) -> String {
        self.names.get(&(model.clone(), digest.clone())).cloned().unwrap_or_default()
    }
}

pub(super) fn gateway(view: GatewayView, names: &VersionNames, in_flight: &InFlight) -> v1::Gateway {
    let GatewayView { record, online, versions, facts, labels } = view;
    v1::Gateway {
        labels: labels.into_iter().filter(|(name, _)| name != "id").collect(),
        admission: admission(record.admission).into(),
        online,
        // The row tells to the minute, and what is linked is seen now.
        last_seen: if online { Some(timestamp(Millis::now())) } else { record.last_seen.map(timestamp) },
        joined: Some(timestamp(record.joined)),
        facts: Some(facts.into()),
        versions: versions.iter().cloned().map(Into::into).collect(),
        assigned: names.assigned(&record.id),
        in_flight: in_flight.get(&record.id).copied().unwrap_or(0),
        certificate_ends: (!record.serial.is_empty()).then(|| timestamp(record.not_after)),
        id: record.id.clone().into(),
    }
}

fn admission(admission: Admission) -> v1::Admission {
    match admission {
        Admission::Open => v1::Admission::Open,
        Admission::Cordoned => v1::Admission::Cordoned,
        Admission::Drained => v1::Admission::Drained,
    }
}

pub(super) fn transition(kept: GatewayTransition) -> v1::GatewayTransition {
    let GatewayTransition { gateway, rollout, received: _, transition } = kept;
    let TransitionRecord { sequence, at, model, digest, from, to, reason, generation, verdicts_json } =
        transition;
    let phase =
        |text: &str| text.parse().map_or(v1::Phase::Unspecified, |phase: Phase| phase.to_wire()).into();
    let verdicts: Vec<Verdict> = serde_json::from_str(&verdicts_json).unwrap_or_default();
    let transition = v1::Transition {
        sequence,
        at: Some(timestamp(at)),
        model: model.into(),
        digest: digest.into(),
        from: phase(&from),
        to: phase(&to),
        reason,
        generation,
        verdicts: verdicts.into_iter().map(Into::into).collect(),
    };
    v1::GatewayTransition {
        gateway: gateway.into(),
        rollout: rollout.map(|rollout| rollout.0).unwrap_or_default(),
        transition: Some(transition),
    }
}

pub(super) fn access_token(token: TokenRecord) -> v1::AccessToken {
    let role = match token.role.as_str() {
        "inference" => v1::Role::Inference,
        "deployer" => v1::Role::Deployer,
        "admin" => v1::Role::Admin,
        _ => v1::Role::Unspecified,
    };
    v1::AccessToken {
        name: token.name,
        role: role.into(),
        created: Some(timestamp(token.created)),
        ends: token.ends.map(timestamp),
    }
}

pub(super) fn audit_entry(entry: AuditEntry) -> v1::AuditEntry {
    let AuditEntry { id: _, at, actor, action, object, detail } = entry;
    v1::AuditEntry { at: Some(timestamp(at)), actor, action, object, detail }
}
