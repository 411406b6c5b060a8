//! A small world for tests of planner and checker.

use std::time::Duration;

use crate::domain::{
    Digest, GatewayId, Millis,
    rollout::{GateLimits, Plan, RolloutId, RolloutSpec, RolloutState},
};

pub(super) use super::member::{Assigned, Away, Member, Progress, Reported, Standing};
use super::{
    check::check,
    gates::Evidence,
    plan::{self, Change, Next, Order, Refusal, Situation, Step, Tally},
    spec::CheckedSpec,
    waves,
};

/// A roll-out of version 2 and the gateways as they are.
#[derive(Clone, Debug)]
pub(super) struct World {
    pub(super) spec: CheckedSpec,
    pub(super) plan: Plan,
    pub(super) fleet: Vec<Member>,
    pub(super) evidence: Vec<Evidence>,
    pub(super) grace: Duration,
    pub(super) now: Millis,
    /// Of the last step.
    pub(super) changes: Vec<Change>,
}

pub(super) fn version(number: u32) -> Digest {
    format!("sha256:{number:064x}").parse().unwrap()
}

pub(super) fn gateway(number: usize) -> GatewayId {
    format!("gw-{number}").parse().unwrap()
}

pub(super) fn reported(number: u32, progress: Progress, generation: u64) -> Reported {
    Reported { digest: version(number), progress, phase: "", reason: String::new(), generation }
}

pub(super) fn member(number: usize) -> Member {
    Member {
        id: gateway(number),
        selected: true,
        claimed_by: None,
        open: true,
        online: true,
        online_since: Millis(0),
        seen: Millis(0),
        assigned: Some(Assigned { digest: version(1), generation: 1 }),
        versions: vec![reported(1, Progress::Serving, 1)],
    }
}

pub(super) fn spec() -> RolloutSpec {
    RolloutSpec {
        model: "m".parse().unwrap(),
        version: "2".parse().unwrap(),
        digest: version(2),
        selector: String::new(),
        waves: waves::parse(&["1", "100%"]).unwrap(),
        soak: Duration::ZERO,
        max_failed_percent: 0.0,
        max_unavailable_percent: 50.0,
        windows: Vec::new(),
        manual_approval: false,
        gateway_timeout: Duration::from_secs(7200),
        gates: GateLimits::default(),
    }
}

impl World {
    pub(super) fn new(gateways: usize) -> Self {
        let mut fleet: Vec<_> = (0..gateways).map(member).collect();
        fleet.sort_by(|a, b| a.id.cmp(&b.id));
        let mut plan = plan::first(RolloutId("r".to_owned()), "test", Millis(0));
        plan.generation = 1;
        Self {
            spec: CheckedSpec::new(spec()).unwrap(),
            plan,
            fleet,
            evidence: Vec::new(),
            grace: Duration::ZERO,
            now: Millis(0),
            changes: Vec::new(),
        }
    }

    fn with(mut self, change: impl FnOnce(&mut RolloutSpec)) -> Self {
        let mut spec = self.spec.spec.clone();
        change(&mut spec);
        self.spec = CheckedSpec::new(spec).unwrap();
        self
    }

    pub(super) fn waves(self, sizes: &[&str]) -> Self {
        self.with(|spec| spec.waves = waves::parse(sizes).unwrap())
    }

    pub(super) fn soak(self, seconds: u64) -> Self {
        self.with(|spec| spec.soak = Duration::from_secs(seconds))
    }

    pub(super) fn failed(self, percent: f64) -> Self {
        self.with(|spec| spec.max_failed_percent = percent)
    }

    pub(super) fn unavailable(self, percent: f64) -> Self {
        self.with(|spec| spec.max_unavailable_percent = percent)
    }

    pub(super) fn set_unavailable(&mut self, percent: f64) {
        self.spec.spec.max_unavailable_percent = percent;
    }

    pub(super) fn window(self, text: &str) -> Self {
        self.with(|spec| spec.windows = vec![text.to_owned()])
    }

    pub(super) fn approval(self) -> Self {
        self.with(|spec| spec.manual_approval = true)
    }

    pub(super) fn grace(mut self, seconds: u64) -> Self {
        self.grace = Duration::from_secs(seconds);
        self
    }

    pub(super) fn situation(&self) -> Situation<'_> {
        Situation {
            spec: &self.spec,
            plan: &self.plan,
            fleet: &self.fleet,
            evidence: &self.evidence,
            grace: self.grace,
            now: self.now,
        }
    }

    pub(super) fn tally(&self) -> Tally<'_> {
        Tally::new(&self.situation())
    }

    pub(super) fn next(&self) -> Next {
        plan::next(&self.situation())
    }

    pub(super) fn waits(&self) -> String {
        match self.next() {
            Next::Wait(waiting) => waiting.to_string(),
            Next::Step(step) => panic!("it does not wait: {}", step.plan.reason),
        }
    }

    /// Takes the planner's next step, which the checker must find nothing wrong with.
    pub(super) fn step(&mut self) {
        match self.next() {
            Next::Step(step) => self.take(*step),
            Next::Wait(waiting) => panic!("{:?} waits: {waiting}", self.plan.state),
        }
    }

    pub(super) fn take(&mut self, step: Step) {
        let wrong = check(&self.situation(), &step);
        assert!(wrong.is_empty(), "{wrong:?} in {} after {:?}", step.plan.reason, self.plan.state);
        for change in &step.changes {
            let member = self.member(&change.gateway);
            let generation = member.assigned.as_ref().map_or(1, |assigned| assigned.generation) + 1;
            member.assigned = change.digest.clone().map(|digest| Assigned { digest, generation });
        }
        self.plan = step.plan;
        self.changes = step.changes;
    }

    pub(super) fn order(&mut self, order: Order) -> Result<(), Refusal> {
        let step = plan::steer(&self.situation(), order, "ann", "because")?;
        assert!(step.plan.reason.ends_with(": because") && step.plan.actor == "ann");
        self.take(step);
        Ok(())
    }

    /// Lets everything succeed until the roll-out is done.
    pub(super) fn finish(&mut self) {
        while self.plan.state != RolloutState::Done {
            match self.next() {
                Next::Step(step) => self.take(*step),
                Next::Wait(_) => self.serve_all(),
            }
        }
    }

    pub(super) fn member(&mut self, id: &GatewayId) -> &mut Member {
        self.fleet.iter_mut().find(|member| member.id == *id).unwrap()
    }

    /// Gateways that have been given the version, by id.
    pub(super) fn given(&self) -> Vec<GatewayId> {
        let has =
            |(_, target): &(&GatewayId, &crate::domain::rollout::Target)| target.digest == Some(version(2));
        self.plan.targets.iter().filter(has).map(|(id, _)| id.clone()).collect()
    }

    pub(super) fn standing(&self, id: &GatewayId) -> Standing {
        self.tally().standings[id].clone()
    }

    pub(super) fn report(&mut self, id: &GatewayId, number: u32, progress: Progress, reason: &str) {
        let member = self.member(id);
        let generation = member.assigned.as_ref().map_or(0, |assigned| assigned.generation);
        member.versions.retain(|known| known.digest != version(number));
        let reason = reason.to_owned();
        member.versions.push(Reported { reason, ..reported(number, progress, generation) });
    }

    pub(super) fn serve(&mut self, id: &GatewayId) {
        self.member(id).versions.clear();
        self.report(id, 2, Progress::Serving, "");
    }

    pub(super) fn serve_all(&mut self) {
        for id in self.given() {
            if self.member(&id).online {
                self.serve(&id);
            }
        }
    }

    pub(super) fn fail(&mut self, id: &GatewayId, reason: &str) {
        self.report(id, 2, Progress::Failed, reason);
    }

    /// Every gateway that was told to is back where it was.
    pub(super) fn settle_back(&mut self) {
        for member in self.fleet.iter_mut().filter(|member| !member.wants(Some(&version(2)))) {
            let assigned = member.assigned.clone();
            let serving = assigned.map(|assigned| Reported {
                digest: assigned.digest,
                ..reported(1, Progress::Serving, assigned.generation)
            });
            member.versions = serving.into_iter().collect();
        }
    }
}
