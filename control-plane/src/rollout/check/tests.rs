//! Each promise, broken by hand.

use super::{super::support::*, *};
use crate::domain::{Millis, rollout::RolloutState};

/// A world in its first wave, the step that it would take next, and that step with `change` made to it.
fn broken(world: &World, change: impl FnOnce(&mut Step)) -> Vec<Violation> {
    let super::super::plan::Next::Step(mut step) = world.next() else {
        panic!("it waits: {}", world.waits())
    };
    assert_eq!(check(&world.situation(), &step), []);
    change(&mut step);
    check(&world.situation(), &step)
}

fn fresh() -> World {
    World::new(10).waves(&["2", "50%", "100%"]).unavailable(20.0)
}

#[test]
fn a_plan_follows_its_parent() {
    assert_eq!(broken(&fresh(), |step| step.plan.parent += 1), [Violation::Lineage]);
    assert_eq!(broken(&fresh(), |step| step.plan.generation += 1), [Violation::Lineage]);
    assert_eq!(broken(&fresh(), |step| step.plan.rollout.0.push('x')), [Violation::Lineage]);
}

#[test]
fn states_follow_as_drawn() {
    let wrong = broken(&fresh(), |step| step.plan.state = RolloutState::RolledBack);
    assert!(matches!(wrong[0], Violation::State { to: RolloutState::RolledBack, .. }), "{wrong:?}");
    let wrong = broken(&fresh(), |step| step.plan.state = RolloutState::Paused);
    assert!(
        wrong.iter().any(|it| matches!(it, Violation::State { .. })),
        "what is paused says how it goes on"
    );
    let mut over = fresh();
    over.plan.state = RolloutState::RolledBack;
    for to in [RolloutState::Running, RolloutState::Done, RolloutState::RollingBack, RolloutState::RolledBack]
    {
        assert!(!follows(&over.plan, to), "{to:?}");
    }
}

#[test]
fn waves_soak_and_come_in_order() {
    let mut world = fresh().soak(600);
    world.step();
    world.serve_all();
    world.step();
    world.now.0 += 600_000;
    assert_eq!(broken(&world, |step| step.plan.wave = 2), [Violation::Wave { from: 0, to: 2 }]);
    let super::super::plan::Next::Step(step) = world.next() else { panic!() };
    world.now.0 -= 1;
    assert_eq!(check(&world.situation(), &step), [Violation::Soak]);
    world.now.0 += 1;
    let world = world.approval();
    assert_eq!(check(&world.situation(), &step), [Violation::Approval]);
}

#[test]
fn no_wave_is_larger_and_no_more_are_unavailable_than_allowed() {
    let world = fresh();
    let add = |world: &World, step: &mut Step, count: usize| {
        let version = world.spec.spec.digest.clone();
        let others = world.fleet.iter().filter(|member| !step.plan.targets.contains_key(&member.id));
        let chosen: Vec<_> = others.take(count).map(|member| member.id.clone()).collect();
        for id in chosen {
            let target = step.plan.targets.values().next().unwrap().clone();
            step.plan.targets.insert(id.clone(), target);
            step.changes.push(Change { gateway: id, digest: Some(version.clone()), rolls_back: false });
        }
    };
    let wrong = broken(&world, |step| add(&world, step, 1));
    assert_eq!(
        wrong,
        [Violation::Quota { reached: 3, quota: 2 }, Violation::Unavailable { gateways: 3, most: 2 }]
    );
}

#[test]
fn only_gateways_that_are_meant_and_can_hear_it_are_given_anything() {
    let world = fresh();
    let super::super::plan::Next::Step(step) = world.next() else { panic!() };
    let id = step.changes[0].gateway.clone();
    let after = |change: &dyn Fn(&mut Member)| {
        let mut world = world.clone();
        change(world.member(&id));
        check(&world.situation(), &step)
    };
    assert!(after(&|member| member.selected = false).contains(&Violation::NotSelected(id.clone())));
    let other = crate::domain::rollout::RolloutId("other".to_owned());
    assert!(
        after(&|member| member.claimed_by = Some(other.clone())).contains(&Violation::Claimed(id.clone()))
    );
    for change in [&(|member: &mut Member| member.online = false) as &dyn Fn(&mut Member), &|member| {
        member.open = false
    }] {
        assert!(after(change).contains(&Violation::NotReachable(id.clone())));
    }
    let mut gone = world.clone();
    gone.fleet.retain(|member| member.id != id);
    assert!(check(&gone.situation(), &step).contains(&Violation::NotSelected(id.clone())));
    let mut closed = world.clone().window("Thu 00:00-01:00 UTC");
    closed.now = Millis(2 * 3_600_000);
    assert!(check(&closed.situation(), &step).contains(&Violation::Window(id.clone())));
}

#[test]
fn a_plan_and_what_it_changes_say_the_same() {
    let wrong = broken(&fresh(), |step| drop(step.changes.pop()));
    assert!(matches!(wrong[..], [Violation::Changes(_)]), "{wrong:?}");
    let wrong = broken(&fresh(), |step| step.changes[0].digest = Some(version(9)));
    assert!(matches!(wrong[..], [Violation::Changes(_)]), "{wrong:?}");
    let wrong = broken(&fresh(), |step| step.changes[0].gateway = gateway(99));
    assert!(wrong.contains(&Violation::Changes(gateway(99))), "{wrong:?}");
}

#[test]
fn what_gateways_go_back_to_is_what_they_had() {
    let mut world = fresh();
    world.step();
    let id = world.given()[0].clone();
    world.fail(&id, "x");
    let wrong = broken(&world, |step| step.plan.targets.get_mut(&id).unwrap().digest = Some(version(7)));
    assert!(wrong.contains(&Violation::Foreign(id.clone())), "{wrong:?}");
    let wrong = broken(&world, |step| {
        let target = step.plan.targets.get_mut(&id).unwrap();
        (target.digest, target.previous) = (Some(version(7)), Some(version(7)));
    });
    assert!(wrong.contains(&Violation::History(id.clone())), "{wrong:?}");
    let wrong = broken(&world, |step| drop(step.plan.targets.remove(&id)));
    assert!(wrong.contains(&Violation::History(id.clone())), "{wrong:?}");
    // Taken back in a state in which nothing is.
    let wrong = broken(&world, |step| step.plan.state = RolloutState::Aborted);
    assert!(wrong.contains(&Violation::Direction(id)), "{wrong:?}");
}

#[test]
fn a_pause_gives_nobody_anything() {
    let wrong = broken(&fresh(), |step| {
        (step.plan.state, step.plan.resume) = (RolloutState::Paused, Some(RolloutState::Running));
    });
    assert!(wrong.iter().all(|it| matches!(it, Violation::Direction(_))) && wrong.len() == 2, "{wrong:?}");
}
