//! The loop that moves roll-outs on, and what people tell them.
//!
//! Every replica runs it over the same store. A pass reads, plans, checks and stores; a plan whose parent is no longer current is
//! dropped, and the next pass plans anew. So it may stop or start at any moment, and as often as it likes.

mod names;
mod orders;
mod pass;
mod read;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{sync::watch, time::Instant};
use tracing::{error, warn};

use crate::{
    config::RolloutsSection,
    domain::{
        GatewayId, Millis,
        rollout::{Plan, RolloutId, RolloutState},
    },
    fleet::Fleet,
    inventory::Inventory,
    store::{AssignmentChange, Store, StoreError},
};

use super::{
    Traffic,
    member::Member,
    plan::{self, Next, Situation, Step},
    snapshot::{Entry, Snapshot},
    spec::CheckedSpec,
    trace,
};
pub use orders::{Preview, RolloutError};
use read::Over;

/// How often a replica looks whether others have begun something while it knows of nothing to do.
const IDLE: Duration = Duration::from_secs(5);

/// Plans and stores. Clones are the same one.
#[derive(Clone)]
pub struct Reconciler {
    shared: Arc<Shared>,
}

struct Shared {
    store: Store,
    inventory: Inventory,
    fleet: Fleet,
    traffic: Arc<dyn Traffic>,
    settings: RolloutsSection,
    /// Since when this replica watches.
    started: Millis,
    /// When gateways were last seen that are not linked now.
    seen: Mutex<BTreeMap<GatewayId, Millis>>,
    /// Roll-outs that are over.
    over: tokio::sync::Mutex<Over>,
    /// What could not be done, by roll-out, so that it is logged once and not every second.
    troubles: Mutex<BTreeMap<RolloutId, String>>,
    /// Counts plans that were stored here.
    steps: watch::Sender<u64>,
}

/// A roll-out with all that is known of it now.
#[derive(Clone, Debug)]
pub struct Insight {
    /// It, with its current plan.
    pub entry: Arc<Entry>,
    /// The gateways as it sees them.
    pub members: Vec<Member>,
    /// What it waits for.
    pub waiting: Option<String>,
    /// When this was so.
    pub now: Millis,
    /// A gateway that has been away for less will be back in a moment.
    pub grace: Duration,
}

impl Reconciler {
    /// A reconciler that has not begun yet: [`Reconciler::run`] does. Traffic is what `fleet` sees of it.
    pub fn new(store: Store, inventory: Inventory, fleet: Fleet, settings: RolloutsSection) -> Self {
        let traffic = Arc::new(fleet.clone());
        Self::with_traffic(store, inventory, fleet, traffic, settings)
    }

    /// The same with other eyes on traffic.
    pub fn with_traffic(
        store: Store,
        inventory: Inventory,
        fleet: Fleet,
        traffic: Arc<dyn Traffic>,
        settings: RolloutsSection,
    ) -> Self {
        let shared = Shared {
            store,
            inventory,
            fleet,
            traffic,
            settings,
            started: Millis::now(),
            seen: Mutex::default(),
            over: tokio::sync::Mutex::default(),
            troubles: Mutex::default(),
            steps: watch::Sender::new(0),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Moves roll-outs on until it is dropped: spawn it once, with `OnPanic::StopNode`.
    pub async fn run(self) {
        let (mut changed, mut steps) = (self.shared.inventory.changed(), self.steps());
        let mut tracer = trace::Tracer::new(self.shared.inventory.replica().to_owned());
        loop {
            let began = Instant::now();
            let snapshot = self.pass().await;
            let idle = snapshot.as_ref().is_some_and(Snapshot::is_idle);
            if let Some(snapshot) = snapshot {
                tracer.follow(&self.shared.store, &snapshot.views).await;
            }
            // Under constant change a pass takes at most a tenth of the time.
            let pause = (began.elapsed() * 10).min(self.shared.settings.interval);
            tokio::time::sleep(pause).await;
            let rest = if idle { IDLE } else { self.shared.settings.interval };
            let news = async {
                // An error would mean that inventory or reconciler are gone, and both are held here.
                tokio::select! {
                    _ = changed.changed() => {}
                    _ = steps.changed() => {}
                }
            };
            let _ = tokio::time::timeout(rest, news).await;
            steps.mark_unchanged();
            changed.mark_unchanged();
        }
    }

    /// One pass over everything: names, roll-outs, late gateways. Does what it can and gives what it went by; what it cannot
    /// do is logged.
    pub async fn pass(&self) -> Option<Snapshot> {
        let snapshot = match self.snapshot().await {
            Ok(snapshot) => snapshot,
            Err(error) => {
                self.trouble(None, &error);
                return None;
            }
        };
        match self.refresh_names(&snapshot).await {
            Ok(()) => self.no_trouble(&RolloutId(String::new())),
            Err(error) => self.trouble(None, &error),
        }
        self.advance_all(&snapshot).await;
        Some(snapshot)
    }

    /// A roll-out by its id or the beginning of it, with its gateways.
    ///
    /// # Errors
    /// [`RolloutError`].
    pub async fn insight(&self, prefix: &str) -> Result<Insight, RolloutError> {
        let record = self.shared.store.rollout(prefix).await?;
        let snapshot = self.snapshot().await?;
        self.look(&snapshot, Arc::new(Entry::new(record)?))
    }

    /// The last `limit` roll-outs, newest first.
    ///
    /// # Errors
    /// [`RolloutError`].
    pub async fn list(&self, unfinished: bool, limit: u32) -> Result<Vec<Insight>, RolloutError> {
        let records = self.shared.store.rollouts(unfinished, limit).await?;
        let snapshot = self.snapshot().await?;
        records.into_iter().map(|record| self.look(&snapshot, Arc::new(Entry::new(record)?))).collect()
    }

    /// Every plan of a roll-out, oldest first.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], or if the store fails.
    pub async fn plans(&self, prefix: &str) -> Result<Vec<Plan>, StoreError> {
        let record = self.shared.store.rollout(prefix).await?;
        self.shared.store.plans(&record.id).await
    }

    /// Changes when a plan was stored here.
    pub fn steps(&self) -> watch::Receiver<u64> {
        self.shared.steps.subscribe()
    }

    /// The inventory that plans are made from.
    pub fn inventory(&self) -> &Inventory {
        &self.shared.inventory
    }

    fn look(&self, snapshot: &Snapshot, entry: Arc<Entry>) -> Result<Insight, RolloutError> {
        let members = snapshot.members(&entry.record.id, &entry.spec);
        let traffic = &*self.shared.traffic;
        let evidence = snapshot.evidence(&entry.spec, &entry.record.plan, &members, traffic);
        let situation = self.situation(snapshot, &entry, &members, &evidence);
        let waiting = match plan::next(&situation) {
            Next::Wait(plan::Waiting::Nothing) | Next::Step(_) => None,
            Next::Wait(waiting) => Some(waiting.to_string()),
        };
        let (now, grace) = (snapshot.now, self.shared.settings.grace);
        Ok(Insight { entry, members, waiting, now, grace })
    }

    fn situation<'a>(
        &self,
        snapshot: &Snapshot,
        entry: &'a Entry,
        members: &'a [Member],
        evidence: &'a [super::gates::Evidence],
    ) -> Situation<'a> {
        Situation {
            spec: &entry.spec,
            plan: &entry.record.plan,
            fleet: members,
            evidence,
            grace: self.shared.settings.grace,
            now: snapshot.now,
        }
    }

    fn stepped(&self) {
        self.shared.steps.send_modify(|count| *count = count.wrapping_add(1));
        self.shared.inventory.poke();
    }

    /// Logs what went wrong, unless it went wrong in the same way the last time.
    fn trouble(&self, rollout: Option<&RolloutId>, error: &(dyn std::error::Error + 'static)) {
        // The checker only ever finds defects of the planner.
        let defect = matches!(error.downcast_ref(), Some(RolloutError::Violations(_)));
        let causes = std::iter::successors(error.source(), |error| error.source());
        let text = causes.fold(error.to_string(), |text, source| format!("{text}: {source}"));
        let key = rollout.cloned().unwrap_or(RolloutId(String::new()));
        let mut troubles = self.shared.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        if troubles.insert(key, text.clone()).as_ref() != Some(&text) {
            match rollout {
                Some(rollout) if defect => error!(%rollout, error = text, "the checker refuses a plan"),
                Some(rollout) => warn!(%rollout, error = text, "a roll-out cannot be moved on"),
                None => warn!(error = text, "roll-outs cannot be moved on"),
            }
        }
    }

    fn no_trouble(&self, rollout: &RolloutId) {
        let mut troubles = self.shared.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        troubles.remove(rollout);
    }
}

/// A plan's changes as the store takes them.
fn stored(spec: &CheckedSpec, step: &Step) -> Vec<AssignmentChange> {
    let change = |change: &plan::Change| AssignmentChange {
        gateway: change.gateway.clone(),
        model: spec.spec.model.clone(),
        digest: change.digest.clone(),
        rolls_back: change.rolls_back,
    };
    step.changes.iter().map(change).collect()
}

/// Whether gateways may still be given the version by a roll-out in this state after its waves.
fn catches_up(state: RolloutState) -> bool {
    match state {
        RolloutState::Done => true,
        RolloutState::Running
        | RolloutState::Soaking
        | RolloutState::AwaitingApproval
        | RolloutState::AwaitingWindow
        | RolloutState::Paused
        | RolloutState::RollingBack
        | RolloutState::RolledBack
        | RolloutState::Aborted => false,
    }
}

#[cfg(test)]
mod tests;
