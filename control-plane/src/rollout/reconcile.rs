//! The loop that moves roll-outs on, and what people tell them.
//!
//! Every replica runs it over the same store. A pass reads, plans, checks and stores; a plan whose parent is no longer current is
//! dropped, and the next pass plans anew. So it may stop or start at any moment, and as often as it likes.

mod names;
mod pass;
mod read;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{sync::watch, time::Instant};
use tracing::{error, info, warn};

use crate::{
    config::RolloutsSection,
    domain::{
        GatewayId, Millis,
        rollout::{Plan, RolloutId, RolloutState},
    },
    fleet::Fleet,
    inventory::Inventory,
    store::{AssignmentChange, NewRollout, Store, StoreError},
};

use super::{
    Traffic,
    check::{Violation, check},
    member::Member,
    plan::{self, Next, Order, Refusal, Situation, Step},
    snapshot::{Entry, Snapshot},
    spec::{CheckedSpec, InvalidSpec, Wish},
    trace,
};
use read::Over;

/// How often a replica looks whether others have begun something while it knows of nothing to do.
const IDLE: Duration = Duration::from_secs(5);

/// How often an order is tried that others overtake.
const TRIES: usize = 8;

/// Gateways named in a message.
const MOST_NAMED: usize = 5;

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

/// Why a roll-out was not begun or did not take an order.
#[derive(Debug, thiserror::Error)]
pub enum RolloutError {
    /// The store refused or failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The order makes no sense now.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Another roll-out that is not over has some of the gateways.
    #[error(
        "roll-out {} of {version} is not over and has {gateways}: wait for it, or abort it, or select other gateways",
        .other
    )]
    Overlaps {
        /// The other.
        other: RolloutId,
        /// What it rolls out.
        version: String,
        /// Which of the gateways.
        gateways: String,
    },
    /// The selector matches nothing.
    #[error("selector {selector:?} matches none of the {gateways} gateways that have joined")]
    NoGateways {
        /// The selector.
        selector: String,
        /// How many there are.
        gateways: usize,
    },
    /// A stored specification cannot be read.
    #[error("the roll-out was made by another version of this program")]
    Spec(#[from] InvalidSpec),
    /// The checker found something: a fault of the program.
    #[error("the plan was not taken: {0}")]
    Violations(String),
    /// Others changed the roll-out each time.
    #[error("the roll-out changes faster than orders can be given; try again")]
    Overtaken,
}

/// A roll-out as it would begin.
#[derive(Clone, Debug)]
pub struct Preview {
    /// It, with its first plan.
    pub entry: Entry,
    /// What the first plan assigns.
    pub step: Step,
    /// The gateways as it would see them.
    pub members: Vec<Member>,
    /// A gateway that has been away for less will be back in a moment.
    pub grace: Duration,
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
        let mut changed = self.shared.inventory.changed();
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
            // An error would mean that the inventory is gone, and it is held here.
            let _ = tokio::time::timeout(rest, changed.changed()).await;
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

    /// Begins a roll-out.
    ///
    /// # Errors
    /// [`RolloutError`]; nothing has happened then.
    pub async fn create(&self, wish: Wish, actor: &str) -> Result<Insight, RolloutError> {
        let mut conflict = None;
        for _ in 0..TRIES {
            let preview = self.preview(wish.clone(), actor).await?;
            let Preview { entry, step, members, .. } = preview;
            let new = NewRollout {
                id: entry.record.id.clone(),
                spec: entry.record.spec.clone(),
                created: entry.record.created,
                created_by: actor.to_owned(),
                traceparent: trace::begin(&entry.record),
                gateways: members
                    .into_iter()
                    .filter(|member| member.selected && member.claimed_by.is_none())
                    .map(|member| member.id)
                    .collect(),
                changes: stored(&entry.spec, &step),
                plan: step.plan,
            };
            match self.shared.store.create_rollout(&new).await {
                Ok(()) => {
                    info!(rollout = %new.id, model = %new.spec.model, version = %new.spec.version, actor,
                        gateways = new.gateways.len(), reason = new.plan.reason, "a roll-out begins");
                    self.stepped();
                    return self.insight(&new.id.0).await;
                }
                // A gateway went, or was given to another roll-out, since they were read.
                Err(error @ (StoreError::Conflict { .. } | StoreError::Overlaps { .. })) => {
                    conflict = Some(error)
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(conflict.map_or(RolloutError::Overtaken, RolloutError::Store))
    }

    /// What [`Reconciler::create`] would do now.
    ///
    /// # Errors
    /// As there.
    pub async fn preview(&self, wish: Wish, actor: &str) -> Result<Preview, RolloutError> {
        let spec = self.resolve(wish).await?;
        let snapshot = self.snapshot().await?;
        let id = RolloutId(uuid::Uuid::now_v7().simple().to_string());
        let members = snapshot.members(&id, &spec);
        let selected: Vec<_> = members.iter().filter(|member| member.selected).collect();
        if selected.is_empty() {
            let selector = spec.spec.selector;
            return Err(RolloutError::NoGateways { selector, gateways: members.len() });
        }
        overlaps(&snapshot, &spec, &selected)?;
        let now = snapshot.now;
        let parent = plan::first(id.clone(), actor, now);
        let situation = Situation {
            spec: &spec,
            plan: &parent,
            fleet: &members,
            evidence: &[],
            grace: self.shared.settings.grace,
            now,
        };
        let step = plan::begin(&situation);
        refuse_violations(&check(&situation, &step))?;
        let record = crate::store::RolloutRecord {
            id,
            spec: spec.spec.clone(),
            created: now,
            created_by: actor.to_owned(),
            traceparent: String::new(),
            plan: step.plan.clone(),
        };
        let grace = self.shared.settings.grace;
        Ok(Preview { entry: Entry { record, spec }, step, members, grace })
    }

    /// Gives a roll-out an order.
    ///
    /// # Errors
    /// [`RolloutError`]; nothing has happened then.
    pub async fn steer(
        &self,
        prefix: &str,
        order: Order,
        actor: &str,
        reason: &str,
    ) -> Result<Insight, RolloutError> {
        for _ in 0..TRIES {
            let record = self.shared.store.rollout(prefix).await?;
            let entry = Arc::new(Entry::new(record)?);
            let snapshot = self.snapshot().await?;
            let members = snapshot.members(&entry.record.id, &entry.spec);
            let situation = self.situation(&snapshot, &entry, &members, &[]);
            let step = plan::steer(&situation, order, actor, reason)?;
            refuse_violations(&check(&situation, &step))?;
            match self.store_step(&entry, &step).await {
                Ok(()) => return self.insight(&entry.record.id.0).await,
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(RolloutError::Overtaken)
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

    /// Finds the version, by its name or by an alias.
    async fn resolve(&self, wish: Wish) -> Result<CheckedSpec, RolloutError> {
        let versions = self.shared.store.versions(Some(&wish.model)).await?;
        let alias = |version: &&crate::store::Version| {
            version.aliases.iter().any(|alias| alias.as_str() == wish.version)
        };
        let named = |version: &&crate::store::Version| version.version.as_str() == wish.version;
        let found = versions.iter().find(alias).or_else(|| versions.iter().find(named));
        let what = || format!("version {}@{}", wish.model, wish.version);
        let found = found.ok_or_else(|| StoreError::NotFound { what: what() })?;
        let (name, digest) = (found.version.clone(), found.digest.clone());
        Ok(wish.resolve(name, digest))
    }

    fn stepped(&self) {
        self.shared.steps.send_modify(|count| *count = count.wrapping_add(1));
        self.shared.inventory.poke();
    }

    /// Logs what went wrong, unless it went wrong in the same way the last time.
    fn trouble(&self, rollout: Option<&RolloutId>, error: &dyn std::error::Error) {
        let causes = std::iter::successors(error.source(), |error| error.source());
        let text = causes.fold(error.to_string(), |text, source| format!("{text}: {source}"));
        let key = rollout.cloned().unwrap_or(RolloutId(String::new()));
        let mut troubles = self.shared.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        if troubles.insert(key, text.clone()).as_ref() != Some(&text) {
            match rollout {
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

/// Refuses gateways that an unfinished roll-out of the same model has or selects.
fn overlaps(snapshot: &Snapshot, spec: &CheckedSpec, selected: &[&Member]) -> Result<(), RolloutError> {
    let unfinished = snapshot
        .rollouts
        .iter()
        .filter(|entry| entry.record.spec.model == spec.spec.model && !entry.record.plan.state.is_over());
    for other in unfinished {
        let theirs = snapshot.members(&other.record.id, &other.spec);
        let has = |member: &&&Member| {
            let found = theirs.binary_search_by(|their| their.id.cmp(&member.id)).ok();
            found.is_some_and(|at| theirs[at].selected && theirs[at].claimed_by.is_none())
                || other.record.plan.targets.contains_key(&member.id)
                || member.claimed_by.as_ref() == Some(&other.record.id)
        };
        let common: Vec<_> = selected.iter().filter(has).map(|member| member.id.as_str()).collect();
        if common.is_empty() {
            continue;
        }
        let more = match common.len().saturating_sub(MOST_NAMED) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        return Err(RolloutError::Overlaps {
            other: other.record.id.clone(),
            version: format!("{}@{}", other.record.spec.model, other.record.spec.version),
            gateways: format!("{}{more}", common[..common.len().min(MOST_NAMED)].join(", ")),
        });
    }
    Ok(())
}

fn refuse_violations(violations: &[Violation]) -> Result<(), RolloutError> {
    if violations.is_empty() {
        return Ok(());
    }
    let text = violations.iter().take(MOST_NAMED).map(ToString::to_string).collect::<Vec<_>>().join("; ");
    error!(violations = text, "the checker refuses a plan");
    Err(RolloutError::Violations(text))
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
