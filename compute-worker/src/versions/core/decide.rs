//! The next step of each model, from what is and what is wanted.

use rookery_model::bundle::Digest;

use super::{Action, Busy, Core, Live, Step};
use crate::versions::{
    machine::Room,
    state::{Phase, Slots},
};

impl Core {
    /// What is to be done now. Asked after every event, once the state is kept.
    pub fn settle(&mut self) -> Vec<Action> {
        let mut actions = self.cancellations();
        let kept = self.wanted_on_disk();
        if self.kept.as_ref() != Some(&kept) {
            self.kept = Some(kept.clone());
            actions.push(Action::Prune(kept));
        }
        let models: Vec<String> = self.live.keys().cloned().collect();
        for model in models {
            if let Some((step, digest)) = self.next(&model) {
                self.begin_step(&model, step, &digest);
                actions.push(Action::Start { model, digest, step });
            }
        }
        actions
    }

    fn next(&self, model: &str) -> Option<(Step, Digest)> {
        let live = self.live.get(model).filter(|live| live.busy.is_none())?;
        // A model that is nowhere any more may have left an engine behind.
        let nothing = Slots::default();
        let slots = self.state.models.get(model).unwrap_or(&nothing);
        let (step, digest) = self.step(model, live, slots)?;
        if step.is_heavy() && self.other_has_memory(model) {
            return None;
        }
        Some((step, digest))
    }

    fn step(&self, model: &str, live: &Live, slots: &Slots) -> Option<(Step, Digest)> {
        let target = slots.target.as_ref().filter(|target| self.assigned && target.phase != Phase::Failed);
        let committed = slots.committed.as_ref().map(|committed| &committed.digest);
        if let Some(staged) = &live.staged {
            let wanted = target.is_some_and(|target| {
                target.digest == *staged && matches!(target.phase, Phase::Probing | Phase::Activating)
            });
            if !wanted {
                return Some((Step::Discard, staged.clone()));
            }
        }
        if let Some(active) = live.active.as_ref().filter(|active| committed != Some(*active)) {
            // A commit that could not be kept: back to the version before, if there is one.
            return Some(committed.map_or((Step::Drain, active.clone()), |c| (Step::Restore, c.clone())));
        }
        if let Some(ending) = &live.ending {
            return Some((Step::Drain, ending.clone()));
        }
        if !self.is_wished(model) {
            return committed.map(|committed| (Step::Drain, committed.clone()));
        }
        let gives_way = live.gave_way.is_some() && target.is_some();
        if let Some(committed) = committed {
            match &live.active {
                None if !gives_way => return Some((Step::Restore, committed.clone())),
                Some(active) if gives_way => return Some((Step::Drain, active.clone())),
                None | Some(_) => {}
            }
        }
        let target = target?;
        let step = match target.phase {
            Phase::Assigned | Phase::Downloading => Step::Download,
            Phase::Verifying => Step::Verify,
            Phase::Staged if live.active.is_some() => Step::Stage(Room::Beside),
            Phase::Staged => Step::Stage(Room::Alone),
            Phase::Probing => Step::Probe,
            Phase::Activating => Step::Activate,
            // No target is in one of these.
            Phase::Serving | Phase::Failed | Phase::RolledBack | Phase::Draining => return None,
        };
        Some((step, target.digest.clone()))
    }

    /// Whether another model's version is being loaded, tried or switched to.
    fn other_has_memory(&self, model: &str) -> bool {
        self.live.iter().any(|(other, live)| {
            let heavy = live.busy.as_ref().is_some_and(|busy| busy.step.is_heavy());
            other != model && (heavy || live.staged.is_some() || live.gave_way.is_some())
        })
    }

    fn begin_step(&mut self, model: &str, step: Step, digest: &Digest) {
        self.live(model).busy = Some(Busy { step, digest: digest.clone(), cancelled: false });
        match step {
            Step::Download => {
                let assigned = |target: &super::Target| target.phase == Phase::Assigned;
                if self.slots(model).target.as_ref().is_some_and(assigned) {
                    self.go(model, Phase::Downloading, "", Vec::new());
                }
            }
            Step::Drain => self.begin_drain(model, digest),
            Step::Verify | Step::Stage(_) | Step::Probe | Step::Activate | Step::Restore | Step::Discard => {}
        }
    }

    fn begin_drain(&mut self, model: &str, digest: &Digest) {
        let committed = self.slots(model).committed.as_ref().is_some_and(|held| held.digest == *digest);
        if committed {
            let wished = self.is_wished(model);
            let room = self.live(model).gave_way.clone().filter(|_| wished);
            let reason = room.unwrap_or_else(|| "it is not assigned any more".to_owned());
            self.tell_committed(model, Phase::Draining, &reason, Vec::new());
        }
    }
}
