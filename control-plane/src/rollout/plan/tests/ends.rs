//! Aborts, roll-backs, late gateways, and what is there already.

use super::{
    super::{super::support::*, *},
    MINUTE, fleet,
};
use crate::domain::rollout::RolloutState::*;

#[test]
fn an_abort_leaves_things_as_they_are() {
    let mut world = fleet(4).waves(&["2", "100%"]).unavailable(100.0);
    world.step();
    world.order(Order::Abort).unwrap();
    assert_eq!((world.plan.state, world.changes.len(), world.given().len()), (Aborted, 0, 2));
    assert_eq!(world.next(), Next::Wait(Waiting::Nothing));
    assert_eq!(world.order(Order::Abort), Err(Refusal::Over("aborted")));
    assert_eq!(world.order(Order::Pause), Err(Refusal::Over("aborted")));
    // Those that are on the way go back too.
    world.order(Order::RollBack).unwrap();
    assert_eq!(world.changes.len(), 2);
}

#[test]
fn what_is_done_can_be_rolled_back_until_a_later_one_has_the_gateways() {
    let mut world = fleet(3).waves(&["100%"]).unavailable(100.0);
    world.finish();
    let done = world.clone();
    world.order(Order::RollBack).unwrap();
    assert_eq!((world.plan.state, world.changes.len()), (RollingBack, 3));
    assert_eq!(world.order(Order::RollBack), Err(Refusal::GoingBack));

    let mut world = done.clone();
    world.fleet[1].claimed_by = Some(RolloutId("later".to_owned()));
    let refusal = world.order(Order::RollBack).unwrap_err();
    assert!(refusal.to_string().contains("such as later): gw-1"), "{refusal}");
    let mut world = done;
    world.fleet[2].assigned.as_mut().unwrap().digest = version(3);
    assert!(matches!(world.order(Order::RollBack), Err(Refusal::Superseded { count: 1, .. })));
}

#[test]
fn new_and_late_gateways_get_the_version_straight_away_and_others_are_left_alone() {
    let mut world = fleet(4).waves(&["100%"]).unavailable(100.0).grace(0);
    world.fleet[3].online = false;
    world.finish();
    assert_eq!(world.given().len(), 3);
    // Away for days, with an assignment that it never took: told the newest before it is back.
    world.fleet[3].assigned.as_mut().unwrap().digest = version(7);
    world.now.0 += MINUTE;
    world.step();
    assert_eq!((world.changes.len(), world.changes[0].digest.clone()), (1, Some(version(2))));
    // A later roll-out has a new one.
    let mut new = world.fleet[0].clone();
    (new.id, new.assigned, new.versions) = (gateway(4), None, Vec::new());
    world.fleet.push(Member { claimed_by: Some(RolloutId("later".to_owned())), ..new.clone() });
    world.now.0 += MINUTE;
    assert_eq!(world.next(), Next::Wait(Waiting::Nothing));
    world.fleet[4] = Member { selected: false, ..new.clone() };
    assert_eq!(world.next(), Next::Wait(Waiting::Nothing));
    world.fleet[4] = new;
    world.step();
    assert_eq!(world.changes[0].gateway, gateway(4));
}

#[test]
fn late_gateways_do_not_count_as_failures() {
    let mut world = fleet(2).waves(&["100%"]).unavailable(100.0).grace(0);
    world.fleet[1].online = false;
    world.finish();
    world.fleet[1].online = true;
    world.now.0 += MINUTE;
    world.step();
    world.fail(&gateway(1), "bad board");
    assert_eq!(world.next(), Next::Wait(Waiting::Nothing));
    assert_eq!(world.plan.state, Done);
}

#[test]
fn a_gateway_that_joins_anew_gets_the_version_again() {
    let mut world = fleet(2).waves(&["100%"]).unavailable(100.0).soak(600);
    world.step();
    world.serve_all();
    (world.fleet[0].assigned, world.fleet[0].versions) = (None, Vec::new());
    world.step();
    assert_eq!((world.plan.state, world.changes.len()), (Running, 1));
    assert_eq!(world.changes[0].gateway, gateway(0));
}

#[test]
fn gates_of_traffic_turn_it_back() {
    let mut world = fleet(3).waves(&["1", "100%"]).soak(600);
    world.step();
    world.serve_all();
    world.step();
    let counts = |failures| crate::rollout::TrafficCounts { requests: 100, failures, ttft_us: None };
    world.evidence = vec![Evidence { source: "here", new: counts(0), old: counts(0) }];
    assert!(matches!(world.next(), Next::Wait(Waiting::Soak { judged: true, .. })));
    world.evidence[0].new = counts(30);
    world.step();
    assert_eq!(world.plan.state, RollingBack);
    assert!(world.plan.reason.starts_with("error rate"), "{}", world.plan.reason);
}

#[test]
fn gateways_that_have_the_version_already_are_left_as_they_are() {
    let mut world = fleet(4).waves(&["1", "100%"]).unavailable(100.0);
    for id in [0, 1] {
        world.fleet[id].assigned.as_mut().unwrap().digest = version(2);
        world.fleet[id].versions = vec![reported(2, Progress::Serving, 1)];
    }
    world.finish();
    assert_eq!(world.given(), [gateway(2), gateway(3)]);
    let mut all = fleet(1);
    all.fleet[0].assigned.as_mut().unwrap().digest = version(2);
    all.step();
    assert_eq!(all.plan.state, Done);
}

#[test]
fn the_first_plan_begins_at_generation_one() {
    let mut world = fleet(3).waves(&["1", "100%"]);
    world.plan = first(RolloutId("r".to_owned()), "ann", world.now);
    let step = begin(&world.situation());
    assert_eq!((step.plan.generation, step.plan.parent, step.changes.len()), (1, 0, 1));
    assert_eq!(step.plan.actor, "ann");
    for member in &mut world.fleet {
        member.online = false;
    }
    world.now.0 += 60 * MINUTE;
    let step = begin(&world.situation());
    assert_eq!((step.plan.generation, step.plan.state, step.changes.len()), (1, Running, 0));
    assert!(step.plan.reason.contains("none of 3 gateways selected"), "{}", step.plan.reason);
}
