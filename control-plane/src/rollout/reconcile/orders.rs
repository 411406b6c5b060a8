//! What people ask for: roll-outs, and orders to them.

use std::{sync::Arc, time::Duration};

use tracing::{error, info};

use crate::{
    domain::rollout::RolloutId,
    store::{NewRollout, StoreError},
};

use super::{
    super::{
        check::{Violation, check},
        member::Member,
        plan::{self, Order, Refusal, Situation, Step},
        snapshot::{Entry, Snapshot},
        spec::{CheckedSpec, InvalidSpec, Wish},
        trace,
    },
    Insight, Reconciler, stored,
};

/// How often an order is tried that others overtake.
const TRIES: usize = 8;

/// Gateways named in a message.
const MOST_NAMED: usize = 5;

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

impl Reconciler {
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
