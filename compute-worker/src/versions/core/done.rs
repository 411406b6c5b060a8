//! What the end of a step means.

use rookery_model::bundle::Digest;

use super::{Core, REPAIRS, Step, begin};
use crate::versions::{
    machine::Outcome,
    state::{Committed, Phase, Target, Verdict},
};

impl Core {
    pub(super) fn done(&mut self, model: &str, outcome: Outcome) {
        let Some(busy) = self.live(model).busy.take() else { return };
        if busy.cancelled {
            return self.broken_off(model, busy.step, busy.digest);
        }
        match busy.step {
            Step::Drain => self.drained(model, &busy.digest),
            Step::Discard => self.live(model).staged = None,
            Step::Restore => self.restored(model, &busy.digest, outcome),
            Step::Download | Step::Verify | Step::Stage(_) | Step::Probe | Step::Activate => {
                self.advanced(model, busy.step, &busy.digest, outcome);
            }
        }
    }

    pub(super) fn cancelled(&mut self, model: &str) {
        if let Some(busy) = self.live(model).busy.take() {
            self.broken_off(model, busy.step, busy.digest);
        }
    }

    fn broken_off(&mut self, model: &str, step: Step, digest: Digest) {
        // There may be an engine, and discarding none does no harm.
        if step.is_heavy() {
            self.live(model).staged = Some(digest);
        }
        self.live(model).gave_way = None;
    }

    fn advanced(&mut self, model: &str, step: Step, digest: &Digest, outcome: Outcome) {
        if self.slots(model).target.as_ref().is_none_or(|target| target.digest != *digest) {
            return self.unwanted(model, step, digest, &outcome);
        }
        match outcome {
            Outcome::Passed { verdicts } => self.passed(model, step, digest, verdicts),
            Outcome::Failed { reason, verdicts } => self.failed(model, step, digest, &reason, verdicts),
            Outcome::Damaged { reason, verdicts } => {
                if self.may_repair(model, digest) {
                    self.go(model, Phase::Downloading, &reason, verdicts);
                    self.staged_again(model, step, digest);
                } else {
                    self.failed(model, step, digest, &reason, verdicts);
                }
            }
            Outcome::NoRoom { reason } if self.live(model).active.is_some() => {
                self.live(model).gave_way = Some(reason);
            }
            Outcome::NoRoom { reason } => self.failed(model, step, digest, &reason, Vec::new()),
        }
    }

    /// A step ended for a version that nobody wants any more.
    fn unwanted(&mut self, model: &str, step: Step, digest: &Digest, outcome: &Outcome) {
        if step == Step::Activate && matches!(outcome, Outcome::Passed { .. }) {
            // Requests go to what is not committed: the next step takes them back.
            let live = self.live(model);
            live.staged = None;
            live.active = Some(digest.clone());
        } else {
            self.broken_off(model, step, digest.clone());
        }
    }

    fn failed(&mut self, model: &str, step: Step, digest: &Digest, reason: &str, verdicts: Vec<Verdict>) {
        self.go(model, Phase::Failed, reason, verdicts);
        self.live(model).gave_way = None;
        self.staged_again(model, step, digest);
    }

    /// After a step that may have left an engine behind.
    fn staged_again(&mut self, model: &str, step: Step, digest: &Digest) {
        if step.is_heavy() {
            self.live(model).staged = Some(digest.clone());
        }
    }

    fn may_repair(&mut self, model: &str, digest: &Digest) -> bool {
        let repairs = self.live(model).repairs.entry(digest.clone()).or_default();
        *repairs += 1;
        *repairs <= REPAIRS
    }

    fn passed(&mut self, model: &str, step: Step, digest: &Digest, verdicts: Vec<Verdict>) {
        match step {
            Step::Download => self.go(model, Phase::Verifying, "", verdicts),
            Step::Verify => self.go(model, Phase::Staged, "", verdicts),
            Step::Stage(_) => {
                self.live(model).staged = Some(digest.clone());
                if self.served_before(model, digest) {
                    let reason = "it takes back a later version, and has served here before: no probes";
                    self.go(model, Phase::Activating, reason, verdicts);
                } else {
                    self.go(model, Phase::Probing, "", verdicts);
                }
            }
            Step::Probe => self.go(model, Phase::Activating, "", verdicts),
            Step::Activate => self.switched(model, digest),
            Step::Restore | Step::Drain | Step::Discard => {}
        }
    }

    fn served_before(&mut self, model: &str, digest: &Digest) -> bool {
        let rolls_back = self.assignment.versions.get(model).is_some_and(|wanted| wanted.rolls_back);
        let slots = self.slots(model);
        rolls_back && slots.previous.as_ref().is_some_and(|previous| previous.digest == *digest)
    }

    /// Requests go to the target: it is committed with the next state that is kept.
    fn switched(&mut self, model: &str, digest: &Digest) {
        self.commit = Some((model.to_owned(), Box::new(self.state.clone())));
        self.go(model, Phase::Serving, "", Vec::new());
        let (generation, since_ms) = (self.state.generation, self.now_ms);
        let rolls_back = self.assignment.versions.get(model).is_some_and(|wanted| wanted.rolls_back);
        let slots = self.slots(model);
        let Some(target) = slots.target.take() else { return };
        let Target { digest: committed, version, verdicts, .. } = target;
        let new = Committed { digest: committed, version: version.clone(), since_ms, verdicts };
        let old = slots.committed.replace(new);
        let live = self.live(model);
        let told = live.told.take();
        live.staged = None;
        live.gave_way = None;
        live.ending = live.active.replace(digest.clone());
        let serves = live.ending.is_some();
        let Some(old) = old else { return };
        let reason = if rolls_back {
            format!("taken back for version {version}")
        } else {
            format!("replaced by version {version}")
        };
        let mut gone = begin(old.digest.clone(), old.version.clone(), generation);
        gone.phase = Phase::Draining;
        gone.reason.clone_from(&reason);
        let told = told.unwrap_or(Phase::Serving);
        self.tell(model, old.digest.clone(), [told, Phase::Draining], &reason, generation, Vec::new());
        let slots = self.slots(model);
        slots.previous = Some(old);
        slots.gone = Some(gone);
        if !serves {
            self.drained_replaced(model);
        }
    }

    /// The state could not be kept. A commit that is not kept is none.
    pub(super) fn not_kept(&mut self, why: &str) {
        let Some((model, before)) = self.commit.take() else { return };
        self.state = *before;
        let live = self.live(&model);
        if live.ending.take().is_none() {
            live.told = Some(Phase::Staged);
        }
        self.go(&model, Phase::Failed, &format!("the switch could not be kept: {why}"), Vec::new());
    }

    fn drained(&mut self, model: &str, digest: &Digest) {
        let live = self.live(model);
        if live.ending.as_ref() == Some(digest) {
            live.ending = None;
            if self.slots(model).gone.as_ref().is_some_and(|gone| gone.digest == *digest) {
                self.drained_replaced(model);
            }
            return;
        }
        live.active = None;
        if self.is_wished(model) {
            let reason = "its memory is needed for the version that is to replace it";
            return self.tell_committed(model, Phase::Staged, reason, Vec::new());
        }
        let reason = "it is not assigned any more";
        self.tell_committed(model, Phase::RolledBack, reason, Vec::new());
        self.live(model).told = None;
        let generation = self.state.generation;
        let slots = self.slots(model);
        if let Some(old) = slots.committed.take() {
            let mut gone = begin(old.digest, old.version, generation);
            gone.phase = Phase::RolledBack;
            reason.clone_into(&mut gone.reason);
            slots.gone = Some(gone);
            slots.previous = None;
            self.dirty = true;
        }
    }

    /// The last stream of a replaced version has ended.
    pub(super) fn drained_replaced(&mut self, model: &str) {
        let rolls_back = self.assignment.versions.get(model).is_some_and(|wanted| wanted.rolls_back);
        let Some(mut gone) = self.slots(model).gone.take() else { return };
        let to = if rolls_back { Phase::RolledBack } else { Phase::Staged };
        let reason = if rolls_back { gone.reason.clone() } else { "kept while disk allows".to_owned() };
        self.tell(model, gone.digest.clone(), [Phase::Draining, to], &reason, gone.generation, Vec::new());
        if rolls_back {
            gone.phase = to;
            self.slots(model).gone = Some(gone);
        }
    }

    fn restored(&mut self, model: &str, digest: &Digest, outcome: Outcome) {
        let (reason, verdicts) = match outcome {
            Outcome::Passed { verdicts } => {
                let live = self.live(model);
                let before = live.active.replace(digest.clone());
                live.ending = before.filter(|before| before != digest);
                live.gave_way = None;
                return self.tell_committed(model, Phase::Serving, "it serves again", verdicts);
            }
            Outcome::Failed { reason, verdicts } | Outcome::Damaged { reason, verdicts } => {
                (reason, verdicts)
            }
            Outcome::NoRoom { reason } => (reason, Vec::new()),
        };
        self.tell_committed(model, Phase::Failed, &reason, verdicts.clone());
        let live = self.live(model);
        live.told = None;
        // Part of an engine may be there, or all of one that served until a moment ago.
        live.staged = Some(digest.clone());
        let again = self.may_repair(model, digest);
        let wanted = self.assignment.versions.get(model).is_some_and(|wanted| wanted.digest == *digest);
        let generation = self.state.generation;
        let slots = self.slots(model);
        let Some(lost) = slots.committed.take() else { return };
        // What served before it passed its gates here, too, and is opened with the same care.
        slots.committed = slots.previous.take();
        // It lay there as the one before, or was on its way back.
        let mut told = slots.committed.is_some().then_some(Phase::Staged);
        let falls_back_to = slots.committed.as_ref().map(|committed| committed.digest.clone());
        if let Some(back) = slots.target.take_if(|target| falls_back_to.as_ref() == Some(&target.digest)) {
            told = Some(back.phase);
        }
        if wanted {
            let mut target = begin(lost.digest.clone(), lost.version, generation);
            target.phase = Phase::Failed;
            reason.clone_into(&mut target.reason);
            target.verdicts = verdicts;
            slots.target = Some(target);
            if again {
                self.go(
                    model,
                    Phase::Assigned,
                    "it did not come up and is fetched and tried again",
                    Vec::new(),
                );
            }
        }
        self.live(model).told = told;
        self.dirty = true;
    }
}
