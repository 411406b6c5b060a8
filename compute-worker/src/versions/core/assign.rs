//! Beginning: with what was kept, and with what is assigned.

use super::{Action, Core, Live, begin};
use crate::versions::{
    agent::AssignError,
    state::{Assignment, MAX_TRANSITIONS, Phase, Saved, Slots, State, Wanted},
};

impl Core {
    /// With what was kept when the process last ran.
    ///
    /// What was on its way begins again: blobs that are here need not be fetched again, and everything else was in memory.
    pub fn new(saved: Saved, now_ms: u64) -> Self {
        let Saved { mut state, assignment } = saved;
        // An assignment that cannot be read is asked for again by telling generation 0; until then nothing changes.
        let assigned = assignment.generation > 0 && assignment.generation >= state.generation;
        let live = state.models.keys().map(|model| (model.clone(), Live::default())).collect();
        state.transitions.drain(..state.transitions.len().saturating_sub(MAX_TRANSITIONS));
        let mut core =
            Self { state, assignment, assigned, live, dirty: false, commit: None, kept: None, now_ms };
        core.resume();
        if core.assigned {
            core.follow();
        }
        core
    }

    /// Nothing runs any more of what ran when the process ended.
    fn resume(&mut self) {
        let models: Vec<String> = self.state.models.keys().cloned().collect();
        for model in models {
            let slots = self.slots(&model);
            let unfinished = slots.target.as_ref().map(|target| target.phase);
            match unfinished {
                Some(
                    Phase::Downloading
                    | Phase::Verifying
                    | Phase::Staged
                    | Phase::Probing
                    | Phase::Activating
                    | Phase::Serving
                    | Phase::Draining
                    | Phase::RolledBack,
                ) => self.go(&model, Phase::Assigned, "the gateway was started again", Vec::new()),
                Some(Phase::Assigned | Phase::Failed) | None => {}
            }
            if self.slots(&model).gone.as_ref().is_some_and(|gone| gone.phase == Phase::Draining) {
                self.drained_replaced(&model);
            }
        }
    }

    /// Whether an assignment would be taken.
    ///
    /// # Errors
    /// [`AssignError::Stale`] and [`AssignError::Conflict`].
    pub fn check(&self, offered: &Assignment) -> Result<(), AssignError> {
        let held = self.generation();
        if offered.generation < held {
            return Err(AssignError::Stale { offered: offered.generation, held });
        }
        // Signatures, keys and limits may be told anew; what is to be served may not.
        let serves = |assignment: &Assignment| -> Vec<_> {
            let name = |wanted: &Wanted| (wanted.model.clone(), wanted.digest.clone());
            assignment.versions.values().map(name).collect()
        };
        if offered.generation == held && serves(offered) != serves(&self.assignment) {
            return Err(AssignError::Conflict(held));
        }
        Ok(())
    }

    /// Takes an assignment that [`Core::check`] let pass and that has been kept.
    pub fn assign(&mut self, offered: Assignment, now_ms: u64) {
        self.now_ms = now_ms;
        self.assignment = offered;
        self.assigned = true;
        self.follow();
    }

    /// The control plane has kept transitions up to `sequence`.
    pub fn acknowledge(&mut self, sequence: u64) {
        let State { transitions, sequence: last, .. } = &mut self.state;
        if sequence > *last {
            // This gateway has lost its count. What waits has numbers that the control plane knows already: new ones.
            *last = sequence;
            for record in &mut *transitions {
                *last += 1;
                record.sequence = *last;
            }
            self.dirty = true;
            return;
        }
        let before = transitions.len();
        transitions.retain(|record| record.sequence > sequence);
        self.dirty |= transitions.len() != before;
    }

    /// Sets targets by the assignment.
    fn follow(&mut self) {
        let newer = self.assignment.generation != self.state.generation;
        self.state.generation = self.assignment.generation;
        self.dirty |= newer;
        let models: Vec<String> =
            self.state.models.keys().chain(self.assignment.versions.keys()).cloned().collect();
        for model in models {
            self.live(&model);
            self.follow_model(&model, newer);
        }
        let assignment = &self.assignment;
        let used = |slots: &Slots| *slots != Slots::default();
        self.state.models.retain(|model, slots| used(slots) || assignment.versions.contains_key(model));
        let models = &self.state.models;
        self.live.retain(|model, live| models.contains_key(model) || live.is_used());
    }

    fn follow_model(&mut self, model: &str, newer: bool) {
        let generation = self.assignment.generation;
        let wanted = self.assignment.versions.get(model);
        let wish = wanted.map(|wanted| (wanted.digest.clone(), wanted.version.clone()));
        let slots = self.slots(model);
        if newer && slots.gone.as_ref().is_some_and(|gone| gone.phase != Phase::Draining) {
            slots.gone = None;
        }
        let committed = slots.committed.as_ref().map(|committed| &committed.digest);
        let needed = wish.filter(|(digest, _)| committed != Some(digest));
        let same = match (&mut slots.target, &needed) {
            (Some(target), Some((digest, _))) if target.digest == *digest => {
                target.generation = generation;
                true
            }
            _ => false,
        };
        if same {
            let failed = slots.target.as_ref().is_some_and(|target| target.phase == Phase::Failed);
            if newer && failed {
                if let Some(target) = &mut slots.target {
                    target.verdicts.clear();
                }
                self.live(model).repairs.clear();
                self.go(model, Phase::Assigned, "it was assigned again", Vec::new());
            }
            return;
        }
        let over = slots.target.as_ref().is_some_and(|target| target.phase != Phase::Failed);
        if over {
            self.go(model, Phase::Failed, "something else was assigned", Vec::new());
        }
        if self.slots(model).target.take().is_some() || needed.is_some() {
            self.dirty = true;
            // The next target finds out for itself.
            self.live(model).gave_way = None;
        }
        if let Some((digest, version)) = needed {
            self.live(model).repairs.clear();
            self.slots(model).target = Some(begin(digest.clone(), version, generation));
            self.tell(model, digest, [Phase::Assigned; 2], "", generation, Vec::new());
        }
    }

    /// Breaks off what the assignment does not want any more.
    pub(super) fn cancellations(&mut self) -> Vec<Action> {
        let mut actions = Vec::new();
        for (model, live) in &mut self.live {
            let Some(busy) = live.busy.as_mut().filter(|busy| !busy.cancelled) else { continue };
            let target = self.state.models.get(model).and_then(|slots| slots.target.as_ref());
            let wanted = target.is_some_and(|target| target.digest == busy.digest);
            if busy.step.can_be_cancelled() && !wanted {
                busy.cancelled = true;
                actions.push(Action::Cancel { model: model.clone() });
            }
        }
        actions
    }
}
