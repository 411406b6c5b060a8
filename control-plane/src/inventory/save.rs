//! The one task that tells the store what gateways report, and notices what the store wants of them.

use std::time::Duration;

use rookery_proto::server::chain;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{info, warn};

use super::{
    Inventory, Unknown,
    live::{Saved, Work},
    report::Transition,
};
use crate::{
    domain::{GatewayId, Millis},
    store::{LinkUp, NewGateway, Report, StoreError, TransitionRecord},
};

/// Gateways whose reports are saved in one transaction.
const BATCH: usize = 256;

/// How often rows are looked at. Most of the time that costs nothing: see [`super::rows`].
const LOOK: Duration = Duration::from_secs(1);

/// Least time between two looks that this replica's own writes cause.
const SETTLE: Duration = Duration::from_millis(250);

/// Pause after the store has failed.
const PAUSE: Duration = Duration::from_secs(1);

/// Ended links that are remembered while the store fails.
const MOST_ENDED: usize = 10_000;

impl Inventory {
    /// Saves what gateways report, for as long as it is polled: one task that the control plane cannot do without.
    pub async fn run(self) {
        let mut written = self.shared.store.written();
        let mut failing = false;
        loop {
            let looked = Instant::now();
            match self.round().await {
                Ok(()) if failing => {
                    failing = false;
                    info!("the store works again");
                }
                Ok(()) => {}
                Err(error) => {
                    if !failing {
                        warn!(error = chain(&error), "the store fails: reports of gateways wait");
                    }
                    failing = true;
                    sleep(PAUSE).await;
                }
            }
            let wait = async {
                // Both arms are cancel safe: a notification is kept, and a watch compares versions.
                tokio::select! {
                    () = self.shared.work.notified() => {}
                    _ = written.changed() => {
                        // A roll-out writes often, and one look serves many writes.
                        tokio::time::sleep_until(looked + SETTLE).await;
                    }
                }
            };
            let _ = timeout_at(looked + LOOK, wait).await;
            written.mark_unchanged();
        }
    }

    /// Saves all there is, then looks at the rows.
    async fn round(&self) -> Result<(), StoreError> {
        while self.save_batch().await? {}
        let rows = self.shared.rows.get(&self.shared.store).await?;
        self.take_in(&rows);
        Ok(())
    }

    /// Saves up to [`BATCH`] gateways. False if there was nothing to do.
    async fn save_batch(&self) -> Result<bool, StoreError> {
        let ended = self.live().next_ended();
        if let Some((id, epoch)) = ended {
            let down = self.shared.store.link_down(&id, epoch).await;
            down.inspect_err(|_| self.live().ended_again(id.clone(), epoch, MOST_ENDED))?;
            return Ok(true);
        }
        let mut batch = Vec::new();
        while batch.len() < BATCH {
            let Some(work) = self.live().next_work() else { break };
            match self.prepare(&work).await {
                Ok(Some(saved)) => batch.push((work, saved)),
                Ok(None) => self.live().removed(&work.id),
                Err(error) => {
                    let mut live = self.live();
                    live.failed(&work.id);
                    batch.iter().for_each(|(work, _)| live.failed(&work.id));
                    return Err(error);
                }
            }
        }
        if batch.is_empty() {
            return Ok(false);
        }
        let now = Millis::now();
        let reports: Vec<_> = batch.iter().filter_map(|(work, _)| report(work, now)).collect();
        let result = if reports.is_empty() { Ok(()) } else { self.shared.store.save_reports(&reports).await };
        let news = {
            let mut live = self.live();
            for (work, saved) in &batch {
                live.saved(work, saved, now);
                if result.is_err() {
                    live.failed(&work.id);
                }
            }
            batch.iter().any(|(work, _)| work.link || !work.transitions.is_empty())
        };
        if news {
            self.bump();
        }
        result.map(|()| true)
    }

    /// Keeps link and transitions of one gateway. `None` if the store has forgotten it.
    async fn prepare(&self, work: &Work) -> Result<Option<Saved>, StoreError> {
        let store = &self.shared.store;
        let mut saved = Saved::default();
        if work.link {
            let Some(up) = self.link_up(&work.id).await? else { return Ok(None) };
            saved.epoch = Some(up.epoch);
            saved.acknowledged = Some(up.acknowledged_sequence);
            saved.generation = Some(up.generation);
            if work.holds > up.generation {
                let (holds, knows) = (work.holds, up.generation);
                warn!(gateway = %work.id, holds, knows, "a gateway holds a newer assignment than the store knows of");
            }
        }
        if !work.transitions.is_empty() {
            let records: Vec<_> = work.transitions.iter().map(record).collect();
            match store.append_transitions(&work.id, &records).await {
                Ok(acknowledged) => saved.acknowledged = saved.acknowledged.max(Some(acknowledged)),
                Err(StoreError::NotFound { .. }) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        Ok(Some(saved))
    }

    async fn link_up(&self, id: &GatewayId) -> Result<Option<LinkUp>, StoreError> {
        let store = &self.shared.store;
        match (store.link_up(id, &self.shared.replica).await, self.shared.unknown) {
            (Err(StoreError::NotFound { .. }), Unknown::Refuse) => Ok(None),
            (Err(StoreError::NotFound { .. }), Unknown::Adopt) => {
                let joined = Millis::now();
                let (id, labels, serial) = (id.clone(), Default::default(), String::new());
                // It has no certificate, and so none that could end.
                let gateway = NewGateway { id, labels, joined, serial, not_after: Millis(0) };
                match store.put_gateway(&gateway, "control plane").await {
                    Ok(()) | Err(StoreError::Exists { .. }) => {}
                    Err(error) => return Err(error),
                }
                store.link_up(&gateway.id, &self.shared.replica).await.map(Some)
            }
            (result, _) => result.map(Some),
        }
    }
}

fn report(work: &Work, seen: Millis) -> Option<Report> {
    let report = work.report.as_ref()?;
    // Neither has keys that are no strings, so both have a JSON form; a report without is as the one before.
    let facts_json = serde_json::to_string(&report.facts).ok();
    let versions_json = serde_json::to_string(&*report.versions).ok();
    Some(Report { gateway: work.id.clone(), facts_json, versions_json, seen })
}

fn record(transition: &Transition) -> TransitionRecord {
    TransitionRecord {
        sequence: transition.sequence,
        at: transition.at,
        model: transition.model.clone(),
        digest: transition.digest.clone(),
        from: transition.from.map(|phase| phase.as_str().to_owned()).unwrap_or_default(),
        to: transition.to.as_str().to_owned(),
        reason: transition.reason.clone(),
        generation: transition.generation,
        verdicts_json: serde_json::to_string(&transition.verdicts).unwrap_or_else(|_| "[]".to_owned()),
    }
}
