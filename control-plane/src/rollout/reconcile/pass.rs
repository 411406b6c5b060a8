//! Moving roll-outs on.

use std::collections::BTreeSet;

use tracing::{debug, info, warn};

use crate::{domain::rollout::RolloutState, store::StoreError};

use super::{
    super::{
        check::check,
        plan::{self, Next, Step},
        snapshot::{Entry, Snapshot},
        trace,
    },
    Reconciler, RolloutError, catches_up, stored,
};

impl Reconciler {
    /// One step of each roll-out that has one to make.
    pub(super) async fn advance_all(&self, snapshot: &Snapshot) {
        let late = with_late(snapshot);
        for entry in &snapshot.rollouts {
            let id = &entry.record.id;
            if entry.record.plan.state.is_over() && !late.contains(id) {
                continue;
            }
            match self.advance(snapshot, entry).await {
                Ok(()) => self.no_trouble(id),
                Err(RolloutError::Store(StoreError::Conflict { what })) => {
                    debug!(rollout = %id, what, "another replica was first");
                    if entry.record.plan.state.is_over() {
                        self.forget_over().await;
                    }
                }
                Err(error) => self.trouble(Some(id), &error),
            }
        }
    }

    async fn advance(&self, snapshot: &Snapshot, entry: &Entry) -> Result<(), RolloutError> {
        let members = snapshot.members(&entry.record.id, &entry.spec);
        let traffic = &*self.shared.traffic;
        let evidence = snapshot.evidence(&entry.spec, &entry.record.plan, &members, traffic);
        let situation = self.situation(snapshot, entry, &members, &evidence);
        let step = match plan::next(&situation) {
            Next::Wait(_) => return Ok(()),
            Next::Step(step) => step,
        };
        let violations = check(&situation, &step);
        if !violations.is_empty() {
            let text = violations.iter().map(ToString::to_string).take(5).collect::<Vec<_>>().join("; ");
            return Err(RolloutError::Violations(text));
        }
        self.store_step(entry, &step).await?;
        Ok(())
    }

    /// Makes a plan current, and tells of it.
    pub(super) async fn store_step(&self, entry: &Entry, step: &Step) -> Result<(), StoreError> {
        let parent = &entry.record.plan;
        self.shared.store.advance(&step.plan, parent.generation, &stored(&entry.spec, step)).await?;
        let id = &entry.record.id;
        let (state, reason) = (plan::name(step.plan.state), &step.plan.reason);
        let (generation, actor, gateways) = (step.plan.generation, &step.plan.actor, step.changes.len());
        if parent.state != RolloutState::RollingBack
            && step.plan.state == RolloutState::RollingBack
            && actor == plan::CONTROL_PLANE
        {
            // It is dealt with; that the version is bad, or the fleet, is for people to find out.
            warn!(rollout = %id, generation, gateways, reason, "a roll-out is rolled back");
        } else {
            info!(rollout = %id, generation, actor, gateways, reason, state, "a roll-out has a new plan");
        }
        trace::stepped(&entry.record, &step.plan);
        if parent.state.is_over() {
            self.forget_over().await;
        }
        self.stepped();
        Ok(())
    }
}

/// Roll-outs that are done and whose version some gateway lacks that no later one has. Cheap, so that nothing is planned in
/// vain for every roll-out there ever was.
fn with_late(snapshot: &Snapshot) -> BTreeSet<crate::domain::rollout::RolloutId> {
    let done = snapshot.rollouts.iter().filter(|entry| catches_up(entry.record.plan.state));
    let lacks = |entry: &&std::sync::Arc<Entry>| {
        snapshot.views.iter().any(|view| {
            entry.spec.selector.matches(&view.labels)
                && !snapshot.wants(&entry.record.spec.model, &view.record.id, &entry.record.spec.digest)
        })
    };
    done.filter(lacks).map(|entry| entry.record.id.clone()).collect()
}
