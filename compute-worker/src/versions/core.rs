//! The state machine, pure: events in, actions and what is to be kept out. It owns no clock, no disk and no engine.
//!
//! Decisions are made from the state alone ([`Core::settle`]), not from the event that led there, so a restart, a changed
//! assignment and a failure in the middle are nothing special: whatever is, the next step is the one that brings it closer
//! to what is wanted.

mod assign;
mod decide;
mod done;
mod view;

use std::collections::{BTreeMap, BTreeSet};

use rookery_model::bundle::Digest;

use super::{
    machine::{Kept, Outcome, Room},
    state::{Assignment, MAX_TRANSITIONS, Phase, Slots, State, Target, TransitionRecord, Verdict, Wanted},
};

pub use view::View;

/// Times that blobs found damaged are fetched again, and versions that did not come up are tried again, for each version
/// and life of the process.
const REPAIRS: u32 = 2;

/// Something that a [`super::Machine`] does with one version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// Fetch what is missing.
    Download,
    /// Check every digest.
    Verify,
    /// Load its engine.
    Stage(Room),
    /// Replay its probes.
    Probe,
    /// Move requests to it.
    Activate,
    /// Serve it again without asking its probes.
    Restore,
    /// Let its last streams end and free its engine.
    Drain,
    /// Free its engine, which never served.
    Discard,
}

/// What the runner is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Begin a step. Its end comes back as [`Event::Done`].
    Start {
        /// Name of the model.
        model: String,
        /// The version.
        digest: Digest,
        /// What.
        step: Step,
    },
    /// Break off the step of this model. [`Event::Cancelled`] comes back, or [`Event::Done`] if it ended before.
    Cancel {
        /// Name of the model.
        model: String,
    },
    /// Remove what need not be kept on disk.
    Prune(Kept),
}

/// What the core is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A step has ended.
    Done {
        /// Name of the model.
        model: String,
        /// How.
        outcome: Outcome,
    },
    /// A step was broken off.
    Cancelled {
        /// Name of the model.
        model: String,
    },
    /// The state was kept.
    Kept,
    /// The state could not be kept, in words.
    NotKept(String),
}

/// What is true of a model in this life of the process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Live {
    /// Takes requests.
    active: Option<Digest>,
    /// Its engine is loaded, and takes no requests.
    staged: Option<Digest>,
    /// Has its last streams.
    ending: Option<Digest>,
    /// What runs.
    busy: Option<Busy>,
    /// The committed version gave way because memory has no room for two: why.
    gave_way: Option<String>,
    /// What was last told of the committed version, if that is not [`Phase::Serving`].
    told: Option<Phase>,
    /// How often versions were repaired.
    repairs: BTreeMap<Digest, u32>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Busy {
    step: Step,
    digest: Digest,
    cancelled: bool,
}

/// The state machine of one gateway.
#[derive(Clone, Debug)]
pub struct Core {
    state: State,
    assignment: Assignment,
    /// Whether there is an assignment; without one, what is committed is served.
    assigned: bool,
    live: BTreeMap<String, Live>,
    /// The state has changed since it was kept.
    dirty: bool,
    /// The state before a commit that has not been kept yet, and the model.
    commit: Option<(String, Box<State>)>,
    /// What was last told to [`Action::Prune`].
    kept: Option<Kept>,
    now_ms: u64,
}

impl Core {
    /// Whether the state is to be kept before anything else happens.
    pub fn is_dirty(&self) -> bool {
        self.dirty
    }

    /// What is to be kept.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// What is to be served.
    pub fn assignment(&self) -> &Assignment {
        &self.assignment
    }

    /// Generation of the assignment that is held; 0 if there is none.
    pub fn generation(&self) -> u64 {
        if self.assigned { self.assignment.generation } else { 0 }
    }

    /// Digest of the version that takes requests for `model` now.
    pub fn active(&self, model: &str) -> Option<&Digest> {
        self.live.get(model)?.active.as_ref()
    }

    /// The version that is committed with the next state that is kept.
    pub fn committing(&self) -> Option<&Wanted> {
        let (model, _) = self.commit.as_ref()?;
        self.assignment.versions.get(model)
    }

    /// Whether steps run.
    pub fn is_busy(&self) -> bool {
        self.live.values().any(|live| live.busy.is_some())
    }

    /// Takes in what happened, at `now_ms` by the gateway's clock. If the core is dirty then, the state must be kept before
    /// [`Core::settle`] is asked.
    pub fn on(&mut self, event: Event, now_ms: u64) {
        self.now_ms = now_ms;
        match event {
            Event::Done { model, outcome } => self.done(&model, outcome),
            Event::Cancelled { model } => self.cancelled(&model),
            Event::Kept => {
                self.dirty = false;
                self.commit = None;
            }
            Event::NotKept(why) => self.not_kept(&why),
        }
    }

    fn slots(&mut self, model: &str) -> &mut Slots {
        self.state.models.entry(model.to_owned()).or_default()
    }

    fn live(&mut self, model: &str) -> &mut Live {
        self.live.entry(model.to_owned()).or_default()
    }

    /// Takes the target to another phase and says so.
    fn go(&mut self, model: &str, to: Phase, reason: &str, verdicts: Vec<Verdict>) {
        let Some(target) = &mut self.slots(model).target else { return };
        let from = std::mem::replace(&mut target.phase, to);
        reason.clone_into(&mut target.reason);
        for verdict in &verdicts {
            target.verdicts.retain(|old| old.gate != verdict.gate);
        }
        target.verdicts.extend(verdicts.iter().cloned());
        let (digest, generation) = (target.digest.clone(), target.generation);
        self.tell(model, digest, [from, to], reason, generation, verdicts);
    }

    /// Notes a transition.
    fn tell(
        &mut self,
        model: &str,
        digest: Digest,
        [from, to]: [Phase; 2],
        reason: &str,
        generation: u64,
        verdicts: Vec<Verdict>,
    ) {
        self.dirty = true;
        self.state.sequence += 1;
        let (sequence, at_ms) = (self.state.sequence, self.now_ms);
        let (model, reason) = (model.to_owned(), reason.to_owned());
        let record =
            TransitionRecord { sequence, at_ms, model, digest, from, to, reason, generation, verdicts };
        self.state.transitions.push_back(record);
        if self.state.transitions.len() > MAX_TRANSITIONS {
            self.state.transitions.pop_front();
        }
    }

    /// Notes a transition of the committed version.
    fn tell_committed(&mut self, model: &str, to: Phase, reason: &str, verdicts: Vec<Verdict>) {
        let from = self.live(model).told.unwrap_or(Phase::Serving);
        let Some(committed) = &self.slots(model).committed else { return };
        let digest = committed.digest.clone();
        self.live(model).told = (to != Phase::Serving).then_some(to);
        if from != to {
            let generation = self.state.generation;
            self.tell(model, digest, [from, to], reason, generation, verdicts);
        }
    }

    /// Whether some version of the model is to serve. Without an assignment, what is committed is.
    fn is_wished(&self, model: &str) -> bool {
        !self.assigned || self.assignment.versions.contains_key(model)
    }

    /// What must stay on disk.
    fn wanted_on_disk(&self) -> Kept {
        let (mut needed, mut previous) = (BTreeSet::new(), BTreeSet::new());
        for slots in self.state.models.values() {
            needed.extend(slots.committed.iter().map(|version| version.digest.clone()));
            previous.extend(slots.previous.iter().map(|version| version.digest.clone()));
            for target in slots.target.iter().chain(&slots.gone) {
                let gone = matches!(target.phase, Phase::Failed | Phase::RolledBack);
                if gone { &mut previous } else { &mut needed }.insert(target.digest.clone());
            }
        }
        for live in self.live.values() {
            let here = [&live.active, &live.staged, &live.ending];
            needed.extend(here.into_iter().flatten().cloned());
            needed.extend(live.busy.iter().map(|busy| busy.digest.clone()));
        }
        previous.retain(|digest| !needed.contains(digest));
        Kept { needed: needed.into_iter().collect(), previous: previous.into_iter().collect() }
    }
}

impl Live {
    fn is_used(&self) -> bool {
        self.busy.is_some() || self.active.is_some() || self.staged.is_some() || self.ending.is_some()
    }
}

impl Step {
    /// Whether it needs memory that two models cannot have at a time.
    fn is_heavy(self) -> bool {
        match self {
            Self::Stage(_) | Self::Probe | Self::Activate | Self::Restore => true,
            Self::Download | Self::Verify | Self::Drain | Self::Discard => false,
        }
    }

    /// Whether it may be broken off. What moves requests is done in a moment, and streams are not cut because plans change.
    fn can_be_cancelled(self) -> bool {
        match self {
            Self::Download | Self::Verify | Self::Stage(_) | Self::Probe => true,
            Self::Activate | Self::Restore | Self::Drain | Self::Discard => false,
        }
    }
}

/// A target at the beginning of its way.
fn begin(digest: Digest, version: String, generation: u64) -> Target {
    Target {
        digest,
        version,
        phase: Phase::Assigned,
        reason: String::new(),
        verdicts: Vec::new(),
        generation,
    }
}
