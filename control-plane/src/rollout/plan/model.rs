//! Planner and checker against a model of a fleet whose gateways come and go, fail, are slow and crash, under random orders, with one
//! roll-out of the model after another.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{super::support::*, *};
use crate::domain::rollout::RolloutState::*;

/// A gateway: what it was told, what it does.
#[derive(Clone, Debug)]
struct Gateway {
    online: bool,
    since: Millis,
    seen: Millis,
    open: bool,
    /// The store's row: version and generation.
    row: Option<(u32, u64)>,
    generation: u64,
    /// Generation of the row that it has heard of.
    heard: u64,
    serving: Option<u32>,
    /// On its way to a version, by so many steps.
    way: Option<(u32, u8)>,
    failed: Option<(u32, u64)>,
}

/// A roll-out of a version; versions count up with time.
#[derive(Clone, Debug)]
struct Rollout {
    version: u32,
    world: World,
}

#[derive(Clone, Debug)]
struct Fleet {
    gateways: BTreeMap<GatewayId, Gateway>,
    rollouts: Vec<Rollout>,
    now: Millis,
}

#[derive(Clone, Debug)]
enum Op {
    Plan,
    Work(usize),
    Online(usize, bool),
    Open(usize, bool),
    Crash(usize),
    Time(i64),
    Join,
    Create { waves: usize, failed: u8, unavailable: u8, soak: u16, approval: bool },
    Order(u8),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => Just(Op::Plan),
        6 => (0..16_usize).prop_map(Op::Work),
        2 => (0..16_usize, any::<bool>()).prop_map(|(at, on)| Op::Online(at, on)),
        1 => (0..16_usize, any::<bool>()).prop_map(|(at, open)| Op::Open(at, open)),
        1 => (0..16_usize).prop_map(Op::Crash),
        2 => (0..200_i64).prop_map(Op::Time),
        1 => Just(Op::Join),
        2 => (0..4_usize, 0..101_u8, 1..101_u8, 0..1200_u16, any::<bool>()).prop_map(
            |(waves, failed, unavailable, soak, approval)| Op::Create { waves, failed, unavailable, soak, approval }
        ),
        1 => (0..5_u8).prop_map(Op::Order),
    ]
}

/// Every third version answers its probes wrongly, wherever it is tried.
fn bad(version: u32) -> bool {
    version.is_multiple_of(3)
}

impl Gateway {
    fn new(now: Millis) -> Self {
        Self {
            online: true,
            since: now,
            seen: now,
            open: true,
            row: None,
            generation: 0,
            heard: 0,
            serving: None,
            way: None,
            failed: None,
        }
    }

    /// Hears of its assignment, or goes on by one step.
    fn work(&mut self) {
        let wanted = self.row.map(|(version, _)| version);
        if self.online && self.heard < self.generation {
            self.heard = self.generation;
            self.way = wanted.filter(|wanted| self.serving != Some(*wanted)).map(|wanted| (wanted, 0));
            if wanted.is_none() {
                self.serving = None;
            }
            return;
        }
        let Some((version, step)) = self.way else { return };
        self.way = match (step, bad(version)) {
            (0..3, _) => Some((version, step + 1)),
            (_, true) => {
                self.failed = Some((version, self.heard));
                None
            }
            (_, false) => {
                (self.serving, self.failed) = (Some(version), None);
                None
            }
        };
    }

    fn member(&self, id: &GatewayId, claimed_by: Option<RolloutId>) -> Member {
        let mut versions: Vec<_> = self
            .serving
            .map(|serving| reported(serving, Progress::Serving, self.heard))
            .into_iter()
            .collect();
        if let Some((version, step)) = self.way {
            let progress = if step < 2 { Progress::Coming } else { Progress::Trying };
            versions.push(reported(version, progress, self.heard));
        }
        let failed = self.failed.filter(|(failed, _)| Some(*failed) != self.serving);
        if let Some((version, generation)) = failed
            && self.way.is_none_or(|(way, _)| way != version)
        {
            versions.push(reported(version, Progress::Failed, generation));
        }
        Member {
            id: id.clone(),
            selected: true,
            claimed_by,
            open: self.open,
            online: self.online,
            online_since: self.since,
            seen: self.seen,
            assigned: self.row.map(|(number, generation)| Assigned { digest: version(number), generation }),
            versions,
        }
    }
}

impl Fleet {
    fn new(gateways: usize) -> Self {
        let gateways = (0..gateways).map(|number| (gateway(number), Gateway::new(Millis(0)))).collect();
        Self { gateways, rollouts: Vec::new(), now: Millis(0) }
    }

    /// Brings a roll-out's world up to date.
    fn look(&mut self, at: usize) {
        let newer = &self.rollouts[at + 1..];
        let claimed = |id: &GatewayId| {
            let other = newer.iter().find(|other| claims(&other.world.plan, &other.digest(), id, || true));
            let owner = self.rollouts.iter().find(|other| {
                !other.world.plan.state.is_over() && other.version != self.rollouts[at].version
            });
            other.or(owner).map(|other| other.world.plan.rollout.clone())
        };
        let fleet = self.gateways.iter().map(|(id, gateway)| gateway.member(id, claimed(id))).collect();
        let (now, world) = (self.now, &mut self.rollouts[at].world);
        (world.fleet, world.now) = (fleet, now);
    }

    fn plan(&mut self) {
        for at in 0..self.rollouts.len() {
            self.look(at);
            if let Next::Step(step) = self.rollouts[at].world.next() {
                self.take(at, *step);
            }
        }
    }

    /// Takes a step, as long as every promise is kept.
    fn take(&mut self, at: usize, step: Step) {
        let before = self.rollouts[at].world.plan.clone();
        let rollout = self.rollouts[at].version;
        assert_eq!(step.plan.generation, before.generation + 1);
        assert!(
            step.changes.is_empty() || before.state != Paused || step.plan.actor == "ann",
            "something begins in a pause: {}",
            step.plan.reason
        );
        let later = self.rollouts[at + 1..].iter().filter(|later| later.world.plan.state == Done);
        let newest_done = later.map(|later| later.version).max();
        for change in &step.changes {
            let target = &step.plan.targets[&change.gateway];
            assert_eq!(change.digest, target.digest);
            let gateway = self.gateways.get_mut(&change.gateway).unwrap();
            if change.rolls_back {
                assert!(target.digest == target.previous, "it goes back to what it never had");
            } else {
                assert_eq!(change.digest, Some(version(rollout)), "two versions are wanted at once");
                assert!(
                    newest_done.is_none(),
                    "{} is given version {rollout}, {newest_done:?} is newer",
                    change.gateway
                );
                assert!(gateway.row.is_none_or(|(row, _)| row != rollout) || gateway.failed.is_some());
            }
            gateway.generation += 1;
            let number = |digest: &Digest| u32::from_str_radix(&digest.as_str()[63..], 16).unwrap();
            gateway.row = change.digest.as_ref().map(|digest| (number(digest), gateway.generation));
        }
        let forward = step.changes.iter().any(|change| !change.rolls_back);
        // The checker has its own count; rows are ours.
        let current = &mut self.rollouts[at];
        let wrong = super::super::check::check(&current.world.situation(), &step);
        assert!(wrong.is_empty(), "{wrong:?} in {} after {:?}", step.plan.reason, before.state);
        let limits = &current.world.spec.spec;
        let (failing, percent) = (limits.max_failed_percent, limits.max_unavailable_percent);
        if bad(rollout) && failing < 100.0 {
            assert_eq!(step.plan.wave, 0, "a version that always fails goes on: {}", step.plan.reason);
            assert!(step.plan.state != Done && step.plan.state != Soaking, "{}", step.plan.reason);
        }
        if forward {
            let on_the_way = self.on_the_way(&step.plan, rollout);
            let most = super::super::waves::most_unavailable(percent, self.gateways.len());
            assert!(on_the_way <= most, "{on_the_way} of {most} are on the way: {}", step.plan.reason);
        }
        self.rollouts[at].world.plan = step.plan;
    }

    /// Gateways that are there and do not serve what they were given by a plan, and did not refuse it.
    fn on_the_way(&self, plan: &Plan, rollout: u32) -> usize {
        let given = |id: &&GatewayId| {
            let gateway = &self.gateways[*id];
            let row = gateway.row.filter(|(row, _)| *row == rollout);
            row.is_some_and(|(_, generation)| {
                gateway.open
                    && gateway.online
                    && gateway.serving != Some(rollout)
                    && !gateway.failed.is_some_and(|(failed, at)| failed == rollout && at >= generation)
            })
        };
        let timeout = std::time::Duration::from_secs(7200);
        let in_time = |id: &&GatewayId| {
            let since = plan.targets[*id].since.max(self.gateways[*id].since);
            self.now.since(since) < timeout
        };
        plan.targets.keys().filter(given).filter(in_time).count()
    }

    fn apply(&mut self, op: &Op) {
        let chosen = |at: usize, fleet: &Self| gateway(at % fleet.gateways.len());
        match *op {
            Op::Plan => self.plan(),
            Op::Work(at) => {
                let id = chosen(at, self);
                self.gateways.get_mut(&id).unwrap().work();
            }
            Op::Online(at, online) => {
                let (id, now) = (chosen(at, self), self.now);
                let gateway = self.gateways.get_mut(&id).unwrap();
                if online && !gateway.online {
                    gateway.since = now;
                }
                gateway.seen = now;
                gateway.online = online;
            }
            Op::Open(at, open) => {
                let id = chosen(at, self);
                self.gateways.get_mut(&id).unwrap().open = open;
            }
            Op::Crash(at) => {
                let id = chosen(at, self);
                let gateway = self.gateways.get_mut(&id).unwrap();
                // Whole as before, and from the beginning.
                gateway.way = gateway.way.map(|(version, _)| (version, 0));
            }
            Op::Time(minutes) => self.time(minutes),
            Op::Join if self.gateways.len() < 16 => {
                let id = gateway(self.gateways.len());
                self.gateways.insert(id, Gateway::new(self.now));
            }
            Op::Join => {}
            Op::Create { .. } => self.create(op),
            Op::Order(order) => self.order(order),
        }
    }

    fn time(&mut self, minutes: i64) {
        self.now.0 += minutes * 60_000;
        for gateway in self.gateways.values_mut().filter(|gateway| gateway.online) {
            gateway.seen = self.now;
        }
    }

    fn create(&mut self, op: &Op) {
        let Op::Create { waves, failed, unavailable, soak, approval } = *op else { return };
        if self.rollouts.len() >= 6 || self.rollouts.iter().any(|rollout| !rollout.world.plan.state.is_over())
        {
            return;
        }
        let number = u32::try_from(self.rollouts.len()).unwrap() + 1;
        let waves = [&["1", "100%"][..], &["2", "50%"], &["100%"], &["1", "3", "30%"]][waves];
        let mut world = World::new(0)
            .waves(waves)
            .soak(soak.into())
            .failed(failed.into())
            .unavailable(unavailable.into())
            .grace(60);
        if approval {
            world = world.approval();
        }
        world.spec.spec.digest = version(number);
        world.plan = first(RolloutId(format!("{number:032x}")), "test", self.now);
        self.rollouts.push(Rollout { version: number, world });
        let at = self.rollouts.len() - 1;
        self.look(at);
        let step = begin(&self.rollouts[at].world.situation());
        self.take(at, step);
    }

    fn order(&mut self, order: u8) {
        let order =
            [Order::Pause, Order::Resume, Order::Abort, Order::RollBack, Order::Approve][order as usize];
        let Some(at) = self.rollouts.len().checked_sub(1) else { return };
        // Older ones are as good, as long as nothing runs.
        for at in [at, at.saturating_sub(1)] {
            self.look(at);
            let running = self.rollouts.iter().any(|rollout| !rollout.world.plan.state.is_over());
            if running && self.rollouts[at].world.plan.state.is_over() {
                continue;
            }
            if let Ok(step) = steer(&self.rollouts[at].world.situation(), order, "ann", "") {
                return self.take(at, step);
            }
        }
    }

    /// Whether nothing is on the way and no planner waits for anything but people.
    fn is_still(&mut self) -> bool {
        let on_the_way =
            self.gateways.values().any(|gateway| gateway.way.is_some() || gateway.heard < gateway.generation);
        let count = self.rollouts.len();
        !on_the_way
            && (0..count).all(|at| {
                self.look(at);
                self.rollouts[at].world.next() == Next::Wait(Waiting::Nothing)
            })
    }

    /// Ends all faults, and lets everything go on until nothing does.
    fn converge(&mut self) {
        for gateway in self.gateways.values_mut() {
            if !gateway.online {
                gateway.since = self.now;
            }
            (gateway.online, gateway.open) = (true, true);
        }
        for _ in 0..400 {
            if self.is_still() {
                break;
            }
            self.time(1);
            self.order(1);
            self.order(4);
            self.plan();
            for gateway in self.gateways.values_mut() {
                gateway.work();
            }
        }
        for rollout in &self.rollouts {
            let plan = &rollout.world.plan;
            assert!(plan.state.is_over(), "{:?} since {}: {}", plan.state, plan.since, rollout.world.waits());
        }
        for (id, gateway) in &self.gateways {
            let wanted = self
                .rollouts
                .iter()
                .rev()
                .find(|rollout| claims(&rollout.world.plan, &rollout.digest(), id, || true));
            // What one that was aborted had may have been taken further by one that was rolled back.
            if let Some(wanted) = wanted.filter(|wanted| wanted.world.plan.state == Done) {
                assert_eq!(gateway.row.map(|(row, _)| row), Some(wanted.version), "{id} is not caught up");
            }
            let row = gateway.row.map(|(row, _)| row);
            let serves = gateway.serving == row || row.is_some_and(bad);
            assert!(serves && gateway.way.is_none(), "{id} does not get where it is to go: {gateway:?}");
        }
    }
}

impl Rollout {
    fn digest(&self) -> Digest {
        version(self.version)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_every_promise_is_kept_and_all_converge(
        gateways in 1..12_usize,
        ops in proptest::collection::vec(op(), 1..160),
    ) {
        let mut fleet = Fleet::new(gateways);
        for op in &ops {
            fleet.apply(op);
        }
        fleet.converge();
    }
}
