//! The gateways that are linked at this moment, here or to another replica, and what is still to be saved of them.
//! Plain data: no store, no clock, nothing that waits.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use rookery_proto::v1;
use tokio::sync::Notify;

use super::{
    Ticket,
    report::{self, GatewayFacts, Transition, VersionStatus},
};
use crate::domain::{GatewayId, Millis};

/// A report is saved this long after the last time even if nothing changed, so that a row tells when its gateway was
/// last seen.
const SAVE_EVERY: Duration = Duration::from_secs(60);

/// An assignment that was sent is sent again after this long without a sign of it.
const SEND_AGAIN: Duration = Duration::from_secs(10);

/// What a gateway last said of itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Report {
    pub(super) facts: GatewayFacts,
    /// Shared with everybody who looks: most reports say what the one before said.
    pub(super) versions: Arc<[VersionStatus]>,
}

/// A gateway that is linked here.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) ticket: Ticket,
    /// Of the link's row, once it is there.
    pub(super) epoch: Option<u64>,
    /// Since when that is.
    in_store_since: Millis,
    pub(super) report: Arc<Report>,
    /// Generation that the gateway holds.
    pub(super) holds: u64,
    saved: Option<(Millis, Arc<Report>)>,
    /// Told and not yet saved, oldest first.
    transitions: Vec<Transition>,
    /// Sequence of the first transition that the gateway still tells.
    tells_from: Option<u64>,
    /// Saved up to this sequence, as far as is known here.
    acknowledged: u64,
    /// Generation and acknowledgement that were sent, and when.
    sent: Option<(u64, u64, Millis)>,
    /// When an assignment was last refused.
    refused: Option<(u64, Millis)>,
    /// The store has forgotten the gateway.
    removed: bool,
    /// What other replicas are told, and its number: without what changes all the time.
    published: (u64, Arc<v1::GatewayStatus>),
    /// Wakes the link's session when there is something to send, or the gateway was removed.
    wake: Arc<Notify>,
}

/// A gateway that is linked to another replica.
#[derive(Debug)]
struct Remote {
    replica: String,
    report: Arc<Report>,
}

/// A gateway with what other replicas are told of it.
pub(super) type Published = (GatewayId, Arc<v1::GatewayStatus>);

/// What the store has to be told of a gateway.
#[derive(Debug, PartialEq)]
pub(super) struct Work {
    pub(super) id: GatewayId,
    pub(super) ticket: Ticket,
    /// The link has no row yet.
    pub(super) link: bool,
    pub(super) transitions: Vec<Transition>,
    pub(super) report: Option<Arc<Report>>,
    /// Generation that the gateway holds.
    pub(super) holds: u64,
}

/// Everything that is linked, and the queue of what is to be saved: at most one entry a gateway.
#[derive(Debug, Default)]
pub(super) struct Live {
    here: BTreeMap<GatewayId, Entry>,
    elsewhere: BTreeMap<GatewayId, Remote>,
    unsaved: BTreeSet<GatewayId>,
    /// Links that ended, whose rows are still there.
    ended: Vec<(GatewayId, u64)>,
    /// Generations that the store wants.
    wanted: BTreeMap<GatewayId, u64>,
    next_ticket: u64,
    /// Number of the last status that other replicas are told.
    last_published: u64,
}

impl Live {
    /// A gateway has linked here.
    pub(super) fn link(&mut self, id: &GatewayId, status: &v1::GatewayStatus, now: Millis) -> Ticket {
        self.unlink(id, Ticket(u64::MAX));
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        let entry = Entry {
            ticket,
            epoch: None,
            in_store_since: now,
            report: Arc::default(),
            holds: 0,
            saved: None,
            transitions: Vec::new(),
            tells_from: None,
            acknowledged: 0,
            sent: None,
            refused: None,
            removed: false,
            published: (0, Arc::default()),
            wake: Arc::default(),
        };
        self.here.insert(id.clone(), entry);
        self.status(id, status, now);
        self.unsaved.insert(id.clone());
        ticket
    }

    /// A status has come. True if it says something that others wait for.
    pub(super) fn status(&mut self, id: &GatewayId, status: &v1::GatewayStatus, now: Millis) -> bool {
        let Some(entry) = self.here.get_mut(id).filter(|entry| !entry.removed) else { return false };
        let (changed, save) = entry.take(status, now);
        if entry.publish(status, self.last_published + 1) {
            self.last_published += 1;
        }
        if save {
            self.unsaved.insert(id.clone());
        }
        self.wake(id, now);
        changed
    }

    /// A link has ended; `ticket` is that link's, or a larger one for whichever there is. False if there is none.
    pub(super) fn unlink(&mut self, id: &GatewayId, ticket: Ticket) -> bool {
        let Some(entry) = self.here.remove(id) else { return false };
        if entry.ticket > ticket {
            self.here.insert(id.clone(), entry);
            return false;
        }
        self.unsaved.remove(id);
        self.ended.extend(entry.epoch.map(|epoch| (id.clone(), epoch)));
        true
    }

    /// Number of the last status that other replicas are told.
    pub(super) fn last_published(&self) -> u64 {
        self.last_published
    }

    /// The gateways that are linked here, and the statuses that were published after `seen`.
    pub(super) fn published_since(&self, seen: u64) -> (BTreeSet<GatewayId>, Vec<Published>) {
        let here = self.here.keys().cloned().collect();
        let news = self.here.iter().filter(|(_, entry)| entry.published.0 > seen);
        (here, news.map(|(id, entry)| (id.clone(), Arc::clone(&entry.published.1))).collect())
    }

    /// A gateway of another replica.
    pub(super) fn remote(&mut self, replica: &str, id: &GatewayId, status: &v1::GatewayStatus) -> bool {
        let before = self.elsewhere.get(id);
        let old = before.map(|remote| Arc::clone(&remote.report)).unwrap_or_default();
        let report = merge(&old, status);
        let changed = before.is_none_or(|remote| remote.replica != replica || !old.is_like(&report));
        let remote = Remote { replica: replica.to_owned(), report: Arc::new(report) };
        self.elsewhere.insert(id.clone(), remote);
        changed
    }

    /// Another replica has lost a gateway, or (without an id) is lost itself.
    pub(super) fn remote_lost(&mut self, replica: &str, id: Option<&GatewayId>) -> bool {
        let before = self.elsewhere.len();
        self.elsewhere.retain(|known, remote| remote.replica != replica || id.is_some_and(|id| id != known));
        self.elsewhere.len() != before
    }

    pub(super) fn here(&self, id: &GatewayId) -> Option<&Entry> {
        self.here.get(id)
    }

    pub(super) fn linked_here(&self) -> usize {
        self.here.len()
    }

    /// Whether something is to be saved.
    pub(super) fn has_work(&self) -> bool {
        !self.unsaved.is_empty() || !self.ended.is_empty()
    }

    /// What a gateway of another replica reports, and the replica.
    pub(super) fn elsewhere(&self, id: &GatewayId) -> Option<(&str, &Arc<Report>)> {
        self.elsewhere.get(id).map(|remote| (remote.replica.as_str(), &remote.report))
    }

    /// The next gateway with something to save. It is taken from the queue; [`Live::failed`] puts it back.
    pub(super) fn next_work(&mut self) -> Option<Work> {
        loop {
            let id = self.unsaved.pop_first()?;
            let Some(entry) = self.here.get(&id) else { continue };
            let link = entry.epoch.is_none();
            let same = entry.saved.as_ref().is_some_and(|(_, saved)| Arc::ptr_eq(saved, &entry.report));
            let (ticket, holds) = (entry.ticket, entry.holds);
            let report = (!same || link || entry.transitions.is_empty()).then(|| Arc::clone(&entry.report));
            let transitions = entry.transitions.clone();
            return Some(Work { id, ticket, link, transitions, report, holds });
        }
    }

    /// A link that ended and whose row is to go.
    pub(super) fn next_ended(&mut self) -> Option<(GatewayId, u64)> {
        self.ended.pop()
    }

    /// The row of an ended link could not be removed: once more later. Rows of links that nobody removes do no harm
    /// beyond this replica's life, so a failing store is not given more than `most` of them to catch up with.
    pub(super) fn ended_again(&mut self, id: GatewayId, epoch: u64, most: usize) {
        if self.ended.len() < most {
            self.ended.push((id, epoch));
        }
    }

    /// The store has it.
    pub(super) fn saved(&mut self, work: &Work, saved: &Saved, now: Millis) {
        let entry = self.here.get_mut(&work.id).filter(|entry| entry.ticket == work.ticket);
        let Some(entry) = entry else {
            // It ended while its row was written.
            self.ended.extend(saved.epoch.map(|epoch| (work.id.clone(), epoch)));
            return;
        };
        if let Some(epoch) = saved.epoch {
            (entry.epoch, entry.in_store_since) = (Some(epoch), now);
        }
        if let Some(report) = &work.report {
            entry.saved = Some((now, Arc::clone(report)));
        }
        if let Some(acknowledged) = saved.acknowledged {
            entry.acknowledged = entry.acknowledged.max(acknowledged);
        }
        if let Some(wanted) = saved.generation {
            let known = self.wanted.entry(work.id.clone()).or_default();
            *known = wanted.max(*known);
        }
        let acknowledged = entry.acknowledged;
        entry.transitions.retain(|transition| transition.sequence > acknowledged);
        self.wake(&work.id, now);
    }

    /// The store could not take it: once more later.
    pub(super) fn failed(&mut self, id: &GatewayId) {
        if self.here.get(id).is_some_and(|entry| !entry.removed) {
            self.unsaved.insert(id.clone());
        }
    }

    /// The gateways that the store knew at `read`, with the generations that it wants. True if anything is new.
    pub(super) fn set_wanted(&mut self, wanted: BTreeMap<GatewayId, u64>, read: Millis, now: Millis) -> bool {
        let removed = |(id, entry): (&GatewayId, &Entry)| {
            // Its row may be newer than what was read: gateways enrol with other replicas, too.
            let known = entry.epoch.is_some() && entry.in_store_since < read;
            (known && !entry.removed && !wanted.contains_key(id)).then(|| id.clone())
        };
        let removed: Vec<_> = self.here.iter().filter_map(removed).collect();
        removed.iter().for_each(|id| self.removed(id));
        if self.wanted == wanted {
            return !removed.is_empty();
        }
        self.wanted = wanted;
        let here: Vec<_> = self.here.keys().cloned().collect();
        here.iter().for_each(|id| self.wake(id, now));
        true
    }

    /// The store has forgotten the gateway: its link is to end.
    pub(super) fn removed(&mut self, id: &GatewayId) {
        if let Some(entry) = self.here.get_mut(id) {
            entry.removed = true;
            entry.wake.notify_waiters();
        }
        self.unsaved.remove(id);
    }

    /// What wakes a link's session, and whether its gateway was removed. `None` if the link has ended.
    pub(super) fn session(&self, id: &GatewayId, ticket: Ticket) -> Option<(Arc<Notify>, bool)> {
        let entry = self.here.get(id).filter(|entry| entry.ticket == ticket)?;
        Some((Arc::clone(&entry.wake), entry.removed))
    }

    fn wake(&self, id: &GatewayId, now: Millis) {
        if self.due(id, now).is_some()
            && let Some(entry) = self.here.get(id)
        {
            entry.wake.notify_waiters();
        }
    }

    /// Whether something has to be sent to the gateway: generation and acknowledgement.
    pub(super) fn due(&self, id: &GatewayId, now: Millis) -> Option<u64> {
        let entry = self.here.get(id)?;
        let wanted = self.wanted.get(id).copied().unwrap_or(0);
        let newer = wanted > entry.holds;
        let told = entry.tells_from.is_some_and(|first| first <= entry.acknowledged);
        if wanted == 0 || !(newer || told) {
            return None;
        }
        let recent = |at: Millis| now.since(at) < SEND_AGAIN;
        let sent = entry.sent.is_some_and(|(generation, acknowledged, at)| {
            generation >= wanted && acknowledged >= entry.acknowledged && recent(at)
        });
        let refused = entry.refused.is_some_and(|(generation, at)| generation >= wanted && recent(at));
        (!sent && !refused).then_some(entry.acknowledged)
    }

    /// An assignment is on its way.
    pub(super) fn sent(&mut self, id: &GatewayId, generation: u64, acknowledged: u64, now: Millis) {
        if let Some(entry) = self.here.get_mut(id) {
            entry.sent = Some((generation, acknowledged, now));
        }
    }

    /// The gateway did not take it. It is not tried again at once: what was refused will be refused again.
    pub(super) fn refused(&mut self, id: &GatewayId, generation: u64, now: Millis) {
        if let Some(entry) = self.here.get_mut(id) {
            entry.sent = None;
            entry.refused = Some((generation, now));
        }
    }
}

/// What the store said to a [`Work`].
#[derive(Debug, Default)]
pub(super) struct Saved {
    /// Of the link's new row.
    pub(super) epoch: Option<u64>,
    /// Transitions up to this sequence are kept.
    pub(super) acknowledged: Option<u64>,
    /// Generation that the gateway is to hold.
    pub(super) generation: Option<u64>,
}

impl Entry {
    /// Takes a status in. Whether it says anything new to others, and whether there is something to save.
    fn take(&mut self, status: &v1::GatewayStatus, now: Millis) -> (bool, bool) {
        let first = self.saved.is_none() && self.holds == 0 && self.report.versions.is_empty();
        let mut like = true;
        if !self.repeats(status) {
            let report = merge(&self.report, status);
            like = self.report.is_like(&report);
            if *self.report != report {
                self.report = Arc::new(report);
            }
        }
        let changed = first || !like || self.holds != status.generation;
        self.holds = status.generation;
        let told = status.transitions.iter().take(report::MOST_TRANSITIONS);
        let known: u64 = self.transitions.last().map_or(self.acknowledged, |last| last.sequence);
        self.tells_from = status.transitions.first().map(|transition| transition.sequence);
        let before = self.transitions.len();
        let new = told.filter(|transition| transition.sequence > known).filter_map(report::transition);
        self.transitions.extend(new);
        // Those that the gateway tells again are saved before more are taken.
        self.transitions.truncate(report::MOST_TRANSITIONS);
        let more = self.transitions.len() > before;
        let stale = self.saved.as_ref().is_none_or(|(at, saved)| {
            now.since(*at) >= SAVE_EVERY || !Arc::ptr_eq(saved, &self.report) && !saved.is_like(&self.report)
        });
        (changed || more, stale || more)
    }
}

impl Entry {
    /// Whether a status says nothing new of facts and versions, as most heartbeats.
    fn repeats(&self, status: &v1::GatewayStatus) -> bool {
        let (told, before) = &self.published;
        *told > 0 && status.facts.is_none() && status.versions == before.versions
    }

    /// Notes the status for other replicas under `number` if it would tell them anything new.
    fn publish(&mut self, status: &v1::GatewayStatus, number: u64) -> bool {
        let old = &self.published.1;
        let facts = status.facts.as_ref();
        let same = self.published.0 > 0
            && old.accepting == status.accepting
            && old.generation == status.generation
            && old.models == status.models
            && old.versions == status.versions
            && facts.is_none_or(|facts| {
                let before = old.facts.as_ref().map(report::facts).unwrap_or_default();
                before.is_like(&report::facts(facts))
            });
        if same {
            return false;
        }
        let facts = status.facts.clone().or_else(|| old.facts.clone());
        // Transitions are saved by the replica that has the link, and by no other.
        let status = v1::GatewayStatus { facts, transitions: Vec::new(), ..status.clone() };
        self.published = (number, Arc::new(status));
        true
    }
}

impl Report {
    pub(super) fn is_like(&self, other: &Self) -> bool {
        self.facts.is_like(&other.facts)
            && self.versions.len() == other.versions.len()
            && self.versions.iter().zip(other.versions.iter()).all(|(one, other)| one.is_like(other))
    }
}

/// A status without facts says that they are as before.
fn merge(before: &Report, status: &v1::GatewayStatus) -> Report {
    let facts = status.facts.as_ref().map_or_else(|| before.facts.clone(), report::facts);
    Report { facts, versions: report::versions(&status.versions).into() }
}

#[cfg(test)]
mod tests;
