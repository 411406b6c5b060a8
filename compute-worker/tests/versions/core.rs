//! The pure core against a shadow of what may be true, with any order of assignments, outcomes, failures and crashes.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use rookery_compute_worker::versions::{
    Assignment, Outcome, Phase, Room, Saved, State, Wanted,
    core::{Action, Core, Event, Step},
};
use rookery_model::bundle::Digest;

const MODELS: [&str; 2] = ["a", "b"];

#[derive(Clone, Debug)]
enum Op {
    /// Each model gets a version, or none.
    Assign([Option<u8>; 2], bool),
    /// A step of a model ends.
    End(usize, Ending),
    /// The process ends, and starts on what was kept.
    Crash,
    /// The next states cannot be kept.
    Full(bool),
    Acknowledge(u64),
}

#[derive(Clone, Copy, Debug)]
enum Ending {
    Pass,
    Fail,
    Damage,
    NoRoom,
}

fn op() -> impl Strategy<Value = Op> {
    let version = || proptest::option::weighted(0.85, 0u8..4);
    let ending = prop_oneof![
        8 => Just(Ending::Pass),
        1 => Just(Ending::Fail),
        1 => Just(Ending::Damage),
        1 => Just(Ending::NoRoom)
    ];
    prop_oneof![
        3 => ([version(), version()], any::<bool>()).prop_map(|(versions, back)| Op::Assign(versions, back)),
        20 => (0..2usize, ending).prop_map(|(model, ending)| Op::End(model, ending)),
        1 => Just(Op::Crash),
        1 => any::<bool>().prop_map(Op::Full),
        1 => (0..60u64).prop_map(Op::Acknowledge),
    ]
}

fn digest(version: u8) -> Digest {
    Digest::of(&[version])
}

fn wanted(model: &str, version: u8, rolls_back: bool) -> Wanted {
    Wanted {
        model: model.to_owned(),
        version: format!("v{version}"),
        digest: digest(version),
        manifest: String::new(),
        signatures: Vec::new(),
        trusted_keys: Vec::new(),
        min_speed_percent: 0.0,
        max_celsius: 0.0,
        start_spread_ms: 0,
        bandwidth_limit: 0,
        rolls_back,
        traceparent: String::new(),
    }
}

/// What a gateway would have seen.
#[derive(Default)]
struct World {
    core: Option<Core>,
    kept: Saved,
    full: bool,
    generation: u64,
    /// What runs, by model.
    running: BTreeMap<String, (Step, Digest)>,
    /// Engines that are loaded in this life of the process.
    loaded: BTreeSet<(String, Digest)>,
    /// Versions whose probes passed in some life.
    probed: BTreeSet<(String, Digest)>,
    /// Versions whose digests were right in this life.
    verified: BTreeSet<(String, Digest)>,
    active: BTreeMap<String, Digest>,
    told: u64,
}

impl World {
    fn core(&mut self) -> &mut Core {
        self.core.get_or_insert_with(|| Core::new(Saved::default(), 0))
    }

    fn keep(&mut self) {
        let full = self.full;
        let core = self.core();
        if !core.is_dirty() {
            return;
        }
        if full {
            core.on(Event::NotKept("disk full".to_owned()), 0);
        } else {
            let state = core.state().clone();
            core.on(Event::Kept, 0);
            self.check_kept(&state);
            self.kept.state = state;
        }
    }

    /// What would serve after a power cut has passed its probes here, at some time.
    fn check_kept(&mut self, state: &State) {
        for (model, slots) in &state.models {
            for held in slots.committed.iter().chain(&slots.previous) {
                assert!(
                    self.probed.contains(&(model.clone(), held.digest.clone())),
                    "{model} committed unprobed"
                );
            }
        }
        let numbers: Vec<u64> = state.transitions.iter().map(|t| t.sequence).collect();
        assert!(numbers.windows(2).all(|pair| pair[0] < pair[1]), "{numbers:?}");
        assert!(state.sequence >= self.told, "numbers of transitions are given twice");
        self.told = state.sequence;
    }

    fn advance(&mut self) {
        self.keep();
        let actions = self.core().settle();
        self.keep();
        let mut cancelled = Vec::new();
        for action in actions {
            match action {
                Action::Start { model, digest, step } => self.begin(model, digest, step),
                Action::Cancel { model } => {
                    let (step, digest) = self.running.remove(&model).unwrap();
                    assert!(matches!(step, Step::Download | Step::Verify | Step::Stage(_) | Step::Probe));
                    // It may have loaded an engine before it heard.
                    if matches!(step, Step::Stage(_)) {
                        self.loaded.insert((model.clone(), digest));
                    }
                    cancelled.push(model);
                }
                Action::Prune(kept) => {
                    for held in
                        self.core().state().models.values().filter_map(|slots| slots.committed.as_ref())
                    {
                        assert!(kept.needed.contains(&held.digest), "the committed version would be removed");
                    }
                    for digest in self.active.values() {
                        assert!(kept.needed.contains(digest), "what serves would be removed");
                    }
                }
            }
        }
        for model in cancelled {
            self.core().on(Event::Cancelled { model }, 0);
            self.advance();
        }
    }

    fn begin(&mut self, model: String, digest: Digest, step: Step) {
        assert!(!self.running.contains_key(&model), "two steps of {model}");
        let key = (model.clone(), digest.clone());
        let heavy =
            |step: Step| matches!(step, Step::Stage(_) | Step::Probe | Step::Activate | Step::Restore);
        if heavy(step) {
            assert!(self.running.values().all(|(other, _)| !heavy(*other)), "two heavy steps");
        }
        match step {
            Step::Stage(room) => {
                assert!(self.verified.contains(&key), "staged before it was verified in this life");
                assert_eq!(room == Room::Beside, self.active.contains_key(&model));
            }
            Step::Probe => assert!(self.loaded.contains(&key), "probed without an engine"),
            Step::Activate => {
                assert!(self.loaded.contains(&key), "activated without an engine");
                assert!(self.probed.contains(&key), "activated before its probes passed");
            }
            Step::Restore => assert!(self.probed.contains(&key), "restored what never passed"),
            Step::Download | Step::Verify | Step::Drain | Step::Discard => {}
        }
        self.running.insert(model, (step, digest));
    }

    fn end(&mut self, model: &str, ending: Ending) {
        let Some((step, digest)) = self.running.remove(model) else { return };
        let key = (model.to_owned(), digest.clone());
        let always = matches!(step, Step::Drain | Step::Discard);
        let (reason, verdicts) = ("as the test wants".to_owned(), Vec::new());
        let outcome = match ending {
            Ending::NoRoom if step == Step::Stage(Room::Beside) => Outcome::NoRoom { reason },
            Ending::Fail if !always => Outcome::Failed { reason, verdicts },
            Ending::Damage if matches!(step, Step::Verify | Step::Restore) => {
                Outcome::Damaged { reason, verdicts }
            }
            Ending::Pass | Ending::Fail | Ending::Damage | Ending::NoRoom => {
                self.passed(step, key);
                Outcome::passed()
            }
        };
        self.core().on(Event::Done { model: model.to_owned(), outcome }, 0);
        self.advance();
    }

    fn passed(&mut self, step: Step, key: (String, Digest)) {
        match step {
            Step::Download => {}
            Step::Verify => {
                self.verified.insert(key);
            }
            Step::Stage(_) => {
                self.loaded.insert(key);
            }
            Step::Probe => {
                self.probed.insert(key);
            }
            Step::Activate | Step::Restore => {
                self.loaded.insert(key.clone());
                self.active.insert(key.0, key.1);
            }
            Step::Drain | Step::Discard => {
                self.loaded.remove(&key);
                if self.active.get(&key.0) == Some(&key.1) {
                    self.active.remove(&key.0);
                }
            }
        }
    }

    fn assign(&mut self, versions: [Option<u8>; 2], rolls_back: bool) {
        self.generation += 1;
        let wanted = |(model, version): (&&str, Option<u8>)| {
            Some(((*model).to_owned(), wanted(model, version?, rolls_back)))
        };
        let versions = MODELS.iter().zip(versions).filter_map(wanted).collect();
        let assignment = Assignment { generation: self.generation, versions };
        self.core().check(&assignment).unwrap();
        self.kept.assignment = assignment.clone();
        self.core().assign(assignment, 0);
        self.advance();
    }

    fn crash(&mut self) {
        self.core = Some(Core::new(self.kept.clone(), 0));
        self.running.clear();
        self.loaded.clear();
        self.verified.clear();
        self.active.clear();
        self.told = self.kept.state.sequence;
        self.advance();
    }

    fn run(&mut self, op: Op) {
        match op {
            Op::Assign(versions, back) => self.assign(versions, back),
            Op::End(model, ending) => self.end(MODELS[model], ending),
            Op::Crash => self.crash(),
            Op::Full(full) => self.full = full,
            Op::Acknowledge(sequence) => {
                let sequence = sequence.min(self.kept.state.sequence);
                self.core().acknowledge(sequence);
                self.advance();
            }
        }
        for (model, digest) in &self.active.clone() {
            assert!(self.loaded.contains(&(model.clone(), digest.clone())), "requests go to a freed engine");
        }
    }

    /// With nothing in the way any more, what is wanted serves.
    fn settles(&mut self) {
        self.full = false;
        let versions = [Some(9), None];
        self.assign(versions, false);
        for _ in 0..200 {
            if self.running.is_empty() {
                break;
            }
            for model in MODELS {
                self.end(model, Ending::Pass);
            }
        }
        assert!(self.running.is_empty(), "it never comes to rest: {:?}", self.running);
        assert_eq!(self.active, BTreeMap::from([("a".to_owned(), digest(9))]));
        let core = self.core();
        assert_eq!(core.active("a"), Some(&digest(9)));
        let views = core.views();
        let serving: Vec<_> = views.iter().filter(|view| view.phase == Phase::Serving).collect();
        assert_eq!(serving.len(), 1, "{views:#?}");
        assert!(self.loaded.len() == 1, "engines that nobody needs: {:?}", self.loaded);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_only_what_passed_serves_and_what_is_wanted_serves_in_the_end(
        ops in proptest::collection::vec(op(), 1..120)
    ) {
        let mut world = World::default();
        ops.into_iter().for_each(|op| world.run(op));
        world.settles();
    }
}

#[test]
fn a_version_that_failed_is_tried_again_with_the_next_generation_only() {
    let mut world = World::default();
    world.assign([Some(1), None], false);
    world.end("a", Ending::Fail);
    assert!(world.running.is_empty());
    world.crash();
    assert!(world.running.is_empty(), "tried again after a restart");
    world.assign([Some(1), None], false);
    assert_eq!(world.running["a"].0, Step::Download);
}

#[test]
fn a_count_that_was_lost_goes_on_behind_what_the_control_plane_knows() {
    let mut world = World::default();
    world.assign([Some(1), None], false);
    let before = world.core().state().transitions.len() as u64;
    world.core().acknowledge(500);
    let numbers: Vec<u64> = world.core().state().transitions.iter().map(|t| t.sequence).collect();
    assert_eq!(numbers, (501..=500 + before).collect::<Vec<_>>());
}
