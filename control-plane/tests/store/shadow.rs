//! Random roll-outs by two replicas at once, against a model of what the store is.
//!
//! Steps of a batch run at the same time. What they answered and what is there afterwards must be what the model gives for one
//! order of them: nothing may be seen that no order explains.

use std::collections::{BTreeMap, BTreeSet};

use proptest::{collection::vec, prelude::*, test_runner::TestRunner};
use rookery_control_plane::{
    domain::rollout::{Plan, RolloutState},
    store::{NewRollout, Store, StoreError},
};
use tokio::runtime::Runtime;

use crate::support::{Db, Targets, change, gateway, id, new_gateway, next, plan, prepare, rollout, target};

const GATEWAYS: usize = 4;

#[derive(Clone, Debug)]
enum Step {
    /// Begins a roll-out that selects some gateways and reaches the first ones of them.
    Create {
        rollout: u64,
        version: u64,
        gateways: BTreeSet<usize>,
        reached: usize,
    },
    /// Follows the plan that was current before the batch, or the one before that.
    Advance {
        rollout: u64,
        stale: bool,
        changes: BTreeMap<usize, Option<u64>>,
        over: bool,
    },
    Remove(usize),
    Join(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let gateways = || 0..GATEWAYS;
    let versions = || 1..=3_u64;
    prop_oneof![
        3 => (1..=5_u64, versions(), proptest::collection::btree_set(gateways(), 1..=3), 1..=2_usize)
            .prop_map(|(rollout, version, gateways, reached)| Step::Create { rollout, version, gateways, reached }),
        6 => (
            1..=5_u64,
            proptest::bool::weighted(0.1),
            proptest::collection::btree_map(gateways(), proptest::option::weighted(0.8, versions()), 0..=2),
            proptest::bool::weighted(0.3),
        )
            .prop_map(|(rollout, stale, changes, over)| Step::Advance { rollout, stale, changes, over }),
        1 => gateways().prop_map(Step::Remove),
        1 => gateways().prop_map(Step::Join),
    ]
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    Done,
    Conflict,
    Overlaps,
    NotFound,
    Exists,
}

/// A gateway's assignment: version, whether its roll-out is unfinished, version before, generation.
type Assigned = (u64, bool, Option<u64>, u64);

/// What can be seen of a store.
#[derive(Clone, Debug, Default, PartialEq)]
struct Seen {
    generations: BTreeMap<usize, u64>,
    owners: BTreeMap<usize, u64>,
    assigned: BTreeMap<usize, Assigned>,
    /// Of each roll-out: the current plan.
    plans: BTreeMap<u64, Plan>,
}

/// The model: what is seen, and what is behind it.
#[derive(Clone, Debug, Default)]
struct Shadow {
    generations: BTreeMap<usize, u64>,
    alive: BTreeSet<usize>,
    owners: BTreeMap<usize, u64>,
    assigned: BTreeMap<usize, (u64, u64, Option<u64>, u64)>,
    plans: BTreeMap<u64, Plan>,
}

impl Shadow {
    fn seen(&self) -> Seen {
        let assigned = self.assigned.iter().map(|(gateway, (version, rollout, previous, generation))| {
            let owned = self.owners.get(gateway) == Some(rollout);
            (*gateway, (*version, owned, *previous, *generation))
        });
        Seen {
            generations: self.alive.iter().map(|gateway| (*gateway, self.generations[gateway])).collect(),
            owners: self.owners.clone(),
            assigned: assigned.collect(),
            plans: self.plans.clone(),
        }
    }

    fn take(&mut self, rollout: u64, gateways: &BTreeSet<usize>) -> Option<Outcome> {
        if !gateways.is_subset(&self.alive) {
            return Some(Outcome::Conflict);
        }
        if gateways.iter().any(|gateway| self.owners.get(gateway).is_some_and(|owner| *owner != rollout)) {
            return Some(Outcome::Overlaps);
        }
        self.owners.extend(gateways.iter().map(|gateway| (*gateway, rollout)));
        None
    }

    fn keep(&mut self, rollout: u64, plan: &Plan, changes: &BTreeMap<usize, Option<u64>>) {
        self.plans.insert(rollout, plan.clone());
        for (gateway, version) in changes {
            let generation = self.generations.get_mut(gateway).unwrap();
            *generation += 1;
            let before = self.assigned.remove(gateway);
            if let Some(version) = version {
                let previous = before
                    .and_then(|(old, _, previous, _)| if old == *version { previous } else { Some(old) });
                self.assigned.insert(*gateway, (*version, rollout, previous, *generation));
            }
        }
        if plan.state.is_over() {
            self.owners.retain(|_, owner| *owner != rollout);
        }
    }

    /// All or nothing, like the store: works on a copy.
    fn apply(&self, request: &Request) -> (Shadow, Outcome) {
        let mut after = self.clone();
        let outcome = after.try_apply(request);
        if outcome == Outcome::Done { (after, outcome) } else { (self.clone(), outcome) }
    }

    fn try_apply(&mut self, request: &Request) -> Outcome {
        match request {
            Request::Create { number, new, changes, gateways } => {
                if self.plans.contains_key(number) {
                    return Outcome::Exists;
                }
                if let Some(refused) = self.take(*number, gateways) {
                    return refused;
                }
                self.keep(*number, &new.plan, changes);
            }
            Request::Advance { number, plan, changes } => {
                let Some(current) = self.plans.get(number) else { return Outcome::NotFound };
                if current.generation != plan.parent {
                    return Outcome::Conflict;
                }
                if let Some(refused) = self.take(*number, &changes.keys().copied().collect()) {
                    return refused;
                }
                self.keep(*number, plan, changes);
            }
            Request::Remove(gateway) => {
                if !self.alive.remove(gateway) {
                    return Outcome::NotFound;
                }
                *self.generations.get_mut(gateway).unwrap() += 1;
                self.owners.remove(gateway);
                self.assigned.remove(gateway);
            }
            Request::Join { number, .. } => {
                if !self.alive.insert(*number) {
                    return Outcome::Exists;
                }
                self.generations.entry(*number).or_insert(0);
            }
        }
        Outcome::Done
    }
}

/// A step as a call, made from what was there before its batch.
#[derive(Debug)]
enum Request {
    Create {
        number: u64,
        new: Box<NewRollout>,
        changes: BTreeMap<usize, Option<u64>>,
        gateways: BTreeSet<usize>,
    },
    Advance {
        number: u64,
        plan: Plan,
        changes: BTreeMap<usize, Option<u64>>,
    },
    Remove(usize),
    Join {
        number: usize,
        serial: String,
    },
}

impl Request {
    fn new(step: &Step, shadow: &Shadow, unique: usize) -> Self {
        match step {
            Step::Create { rollout: number, version, gateways, reached } => {
                let mut new = rollout(*number, *version, &gateways.iter().copied().collect::<Vec<_>>());
                let changes: BTreeMap<_, _> =
                    gateways.iter().take(*reached).map(|gateway| (*gateway, Some(*version))).collect();
                new.plan.targets = changed(&Targets::new(), &changes);
                // Tells plans of one batch apart.
                new.plan.reason = unique.to_string();
                new.changes =
                    changes.iter().map(|(number, version)| change(&gateway(*number), *version)).collect();
                Self::Create { number: *number, new: Box::new(new), changes, gateways: gateways.clone() }
            }
            Step::Advance { rollout: number, stale, changes, over } => {
                let none = plan(&id(*number), 1, RolloutState::Running, Targets::new());
                let mut parent = shadow.plans.get(number).unwrap_or(&none).clone();
                if *stale {
                    parent.generation = parent.generation.saturating_sub(1).max(1);
                }
                let state = if *over { RolloutState::Done } else { RolloutState::Running };
                let mut plan = next(&parent, state, changed(&parent.targets, changes));
                plan.reason = unique.to_string();
                Self::Advance { number: *number, plan, changes: changes.clone() }
            }
            Step::Remove(gateway) => Self::Remove(*gateway),
            Step::Join(number) => Self::Join { number: *number, serial: format!("serial-again-{unique}") },
        }
    }

    async fn send(&self, store: &Store) -> Outcome {
        let answer = match self {
            Self::Create { new, .. } => store.create_rollout(new).await,
            Self::Advance { plan, changes, .. } => {
                let changes: Vec<_> =
                    changes.iter().map(|(number, version)| change(&gateway(*number), *version)).collect();
                store.advance(plan, plan.parent, &changes).await
            }
            Self::Remove(number) => store.remove_gateway(&gateway(*number), "ada").await,
            Self::Join { number, serial } => store.put_gateway(&new_gateway(*number, serial), "ada").await,
        };
        match answer {
            Ok(()) => Outcome::Done,
            Err(StoreError::Conflict { .. }) => Outcome::Conflict,
            Err(StoreError::Overlaps { .. }) => Outcome::Overlaps,
            Err(StoreError::NotFound { .. }) => Outcome::NotFound,
            Err(StoreError::Exists { .. }) => Outcome::Exists,
            Err(other) => panic!("{self:?}: {other:?}"),
        }
    }
}

fn changed(before: &Targets, changes: &BTreeMap<usize, Option<u64>>) -> Targets {
    let mut targets = before.clone();
    targets.extend(changes.iter().map(|(number, version)| (gateway(*number), target(*version, None))));
    targets
}

fn number_of(text: &str, prefix: &str, radix: u32) -> u64 {
    u64::from_str_radix(text.strip_prefix(prefix).unwrap(), radix).unwrap()
}

async fn look(store: &Store) -> Seen {
    let number = |id: &rookery_control_plane::domain::GatewayId| {
        usize::try_from(number_of(id.as_str(), "gw-", 10)).unwrap()
    };
    let version = |of: &rookery_control_plane::domain::Digest| number_of(of.as_str(), "sha256:", 16);
    let gateways = store.gateways().await.unwrap();
    let owners = store.owners().await.unwrap();
    let assignments = store.assignments().await.unwrap();
    let rollouts = store.rollouts(false, 100).await.unwrap();
    Seen {
        generations: gateways.iter().map(|gateway| (number(&gateway.id), gateway.generation)).collect(),
        owners: owners
            .iter()
            .map(|owner| (number(&owner.gateway), number_of(&owner.rollout.0, "", 16)))
            .collect(),
        assigned: assignments
            .iter()
            .map(|one| {
                let previous = one.previous.as_ref().map(version);
                (
                    number(&one.gateway),
                    (version(&one.digest), one.rollout.is_some(), previous, one.generation),
                )
            })
            .collect(),
        plans: rollouts.into_iter().map(|one| (number_of(&one.id.0, "", 16), one.plan)).collect(),
    }
}

/// Every order of `count` things.
fn orders(count: usize) -> Vec<Vec<usize>> {
    if count == 0 {
        return vec![vec![]];
    }
    orders(count - 1)
        .into_iter()
        .flat_map(|order| {
            (0..count).map(move |place| {
                let mut order = order.clone();
                order.insert(place, count - 1);
                order
            })
        })
        .collect()
}

async fn run(db: &Db, batches: &[Vec<Step>]) -> Result<(), TestCaseError> {
    let stores = [db.open().await, db.open().await];
    prepare(&stores[0], GATEWAYS).await;
    let mut shadow = Shadow::default();
    for number in 0..GATEWAYS {
        shadow.alive.insert(number);
        shadow.generations.insert(number, 0);
    }
    let mut unique = 0;
    for batch in batches {
        let requests: Vec<_> = batch
            .iter()
            .map(|step| {
                unique += 1;
                Request::new(step, &shadow, unique)
            })
            .collect();
        let calls = requests.iter().enumerate().map(|(index, request)| request.send(&stores[index % 2]));
        let outcomes = futures_util::future::join_all(calls).await;
        let seen = look(&stores[0]).await;
        let explained = orders(requests.len()).into_iter().find_map(|order| {
            let mut after = shadow.clone();
            for index in order {
                let (next, outcome) = after.apply(&requests[index]);
                if outcome != outcomes[index] {
                    return None;
                }
                after = next;
            }
            (after.seen() == seen).then_some(after)
        });
        match explained {
            Some(after) => shadow = after,
            None => {
                let before = shadow.seen();
                return Err(TestCaseError::fail(format!(
                    "no order explains {outcomes:#?} to {requests:#?}\nbefore: {before:#?}\nafter: {seen:#?}"
                )));
            }
        }
    }
    for (number, current) in &shadow.plans {
        let plans = stores[1].plans(&id(*number)).await.unwrap();
        prop_assert_eq!(plans.last(), Some(current));
        prop_assert!(plans.iter().zip(1..).all(|(plan, generation)| plan.generation == generation));
    }
    for store in stores {
        store.close().await;
    }
    Ok(())
}

fn explore(cases: u32, database: impl Fn() -> Db) {
    let runtime = Runtime::new().unwrap();
    // The same sequence of cases in every run.
    let mut runner = TestRunner::new_with_rng(
        ProptestConfig {
            cases,
            max_shrink_iters: 200,
            failure_persistence: None,
            ..ProptestConfig::default()
        },
        proptest::test_runner::TestRng::deterministic_rng(proptest::test_runner::RngAlgorithm::ChaCha),
    );
    let batches = vec(vec(step(), 1..=3), 1..=14);
    let result = runner.run(&batches, |batches| runtime.block_on(run(&database(), &batches)));
    if let Err(failure) = result {
        panic!("{failure}");
    }
}

#[test]
fn rollouts_follow_the_model_sqlite() {
    explore(24, Db::sqlite);
}

#[test]
fn rollouts_follow_the_model_postgres() {
    explore(12, Db::postgres);
}
