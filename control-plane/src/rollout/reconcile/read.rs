//! Reading what plans depend on.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    domain::{GatewayId, Millis, rollout::RolloutId},
    store::StoreError,
};

use super::{
    super::snapshot::{Entry, Snapshot},
    Reconciler,
};

/// Unfinished roll-outs at the same time.
const MOST_UNFINISHED: u32 = 1000;

/// Of the roll-outs that are over, so many are looked at for late gateways, the newest first.
const MOST_OVER: u32 = 200;

/// What is over changes seldom, and mostly under these eyes; other replicas are looked after at this interval.
const READ_AGAIN: Duration = Duration::from_secs(300);

/// Roll-outs that are over, as last read.
#[derive(Debug, Default)]
pub(super) struct Over {
    entries: BTreeMap<RolloutId, Arc<Entry>>,
    /// Those that were not over.
    unfinished: BTreeSet<RolloutId>,
    /// When all were read.
    read: Option<Instant>,
}

impl Reconciler {
    /// Reads everything. Plans come first, and what they changed after them, so that no plan is newer than what is known
    /// of its effects.
    pub(super) async fn snapshot(&self) -> Result<Snapshot, StoreError> {
        let shared = &self.shared;
        let rollouts = self.rollouts().await?;
        let assignments = shared.store.assignments().await?;
        let owners = shared.store.owners().await?;
        let views = shared.inventory.views().await?;
        let now = Millis::now();
        let seen = {
            let mut seen = shared.seen.lock().unwrap_or_else(PoisonError::into_inner);
            let known: BTreeSet<&GatewayId> = views.iter().map(|view| &view.record.id).collect();
            seen.retain(|id, _| known.contains(id));
            for view in views.iter().filter(|view| view.online) {
                seen.insert(view.record.id.clone(), now);
            }
            seen.clone()
        };
        Ok(Snapshot::new(views, rollouts, (assignments, owners), seen, shared.started, now))
    }

    async fn rollouts(&self) -> Result<Vec<Arc<Entry>>, StoreError> {
        let store = &self.shared.store;
        let mut over = self.shared.over.lock().await;
        let unfinished = store.rollouts(true, MOST_UNFINISHED).await?;
        let ids: BTreeSet<_> = unfinished.iter().map(|record| record.id.clone()).collect();
        if over.read.is_none_or(|read| read.elapsed() >= READ_AGAIN) {
            let read = store.rollouts(false, MOST_OVER).await?;
            let read = read.into_iter().filter(|record| record.plan.state.is_over());
            over.entries = read.filter_map(|record| self.entry(record)).map(keyed).collect();
            over.read = Some(Instant::now());
        } else {
            for id in over.unfinished.difference(&ids).cloned().collect::<Vec<_>>() {
                let record = store.rollout(&id.0).await?;
                over.entries.extend(self.entry(record).map(keyed));
            }
        }
        over.entries.retain(|id, _| !ids.contains(id));
        while over.entries.len() > MOST_OVER as usize {
            over.entries.pop_first();
        }
        over.unfinished = ids;
        let mut all: Vec<_> = unfinished.into_iter().filter_map(|record| self.entry(record)).collect();
        all.extend(over.entries.values().cloned());
        Ok(all)
    }

    /// A roll-out that this program can read. Another's is left to the program that wrote it.
    fn entry(&self, record: crate::store::RolloutRecord) -> Option<Arc<Entry>> {
        let id = record.id.clone();
        match Entry::new(record) {
            Ok(entry) => Some(Arc::new(entry)),
            Err(error) => {
                self.trouble(Some(&id), &error);
                None
            }
        }
    }

    /// What is known of roll-outs that are over is wrong: it is read again by the next pass.
    pub(super) async fn forget_over(&self) {
        self.shared.over.lock().await.read = None;
    }
}

fn keyed(entry: Arc<Entry>) -> (RolloutId, Arc<Entry>) {
    (entry.record.id.clone(), entry)
}
