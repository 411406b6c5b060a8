//! The rules, one by one; those of how a roll-out ends are in [`ends`].

mod ends;

use super::{super::support::*, *};
use crate::domain::rollout::RolloutState::*;

const MINUTE: i64 = 60_000;

/// A roll-out of version 2 over gateways that serve version 1.
fn fleet(gateways: usize) -> World {
    World::new(gateways)
}

#[test]
fn waves_count_from_the_start_and_soak_in_between() {
    let mut world = fleet(20).waves(&["1", "10%", "100%"]).soak(600).unavailable(100.0);
    world.step();
    assert_eq!((world.plan.state, world.given().len()), (Running, 1));
    assert!(world.waits().contains("1 gateway on the way"));
    world.serve_all();
    world.step();
    assert_eq!((world.plan.state, world.plan.wave), (Soaking, 0));
    world.now.0 += 9 * MINUTE;
    assert!(world.waits().contains("soaks for another 1m"), "{}", world.waits());
    world.now.0 += MINUTE;
    world.step();
    assert_eq!((world.plan.state, world.plan.wave), (Running, 1));
    world.step();
    assert_eq!(world.given().len(), 2, "10 % of 20, the first among them");
    world.serve_all();
    world.step();
    // The soak of this wave is its own.
    assert_eq!((world.plan.state, world.plan.since), (Soaking, world.now));
    world.now.0 += 10 * MINUTE;
    world.step();
    world.step();
    assert_eq!((world.plan.wave, world.given().len()), (2, 20));
    world.serve_all();
    world.step();
    world.now.0 += 10 * MINUTE;
    world.step();
    assert_eq!(world.plan.state, Done);
    assert_eq!(world.next(), Next::Wait(Waiting::Nothing));
}

#[test]
fn no_more_switch_at_a_time_than_may_be_unavailable() {
    let mut world = fleet(10).waves(&["100%"]).unavailable(20.0);
    world.step();
    assert_eq!(world.given().len(), 2);
    assert!(matches!(world.next(), Next::Wait(Waiting::Unavailable { gateways: 2, most: 2 })));
    let first = world.given()[0].clone();
    world.serve(&first);
    world.step();
    assert_eq!(world.given().len(), 3);
    // At least one may always.
    let mut world = fleet(3).waves(&["100%"]).unavailable(0.1);
    world.step();
    assert_eq!(world.given().len(), 1);
}

#[test]
fn a_broken_gateway_counts_as_unavailable_and_one_that_serves_on_does_not() {
    let mut world = fleet(10).waves(&["100%"]).unavailable(20.0).failed(100.0);
    world.step();
    let given = world.given();
    world.fail(&given[0], "probes: expected 7, saw 8");
    // It serves the version before: there is room again.
    world.step();
    assert_eq!(world.given().len(), 3);
    let last = world.given().into_iter().find(|id| !given.contains(id)).unwrap();
    world.fail(&last, "x");
    world.member(&last).versions.retain(|version| version.progress == Progress::Failed);
    let waits = Next::Wait(Waiting::Unavailable { gateways: 2, most: 2 });
    assert_eq!(world.next(), waits, "one is broken, one on the way");
    // The one that is there is being loaded again: that is worth waiting for.
    world.fail(&given[1], "y");
    world.report(&given[1], 1, Progress::Trying, "");
    assert_eq!(world.next(), waits);
    // Nothing is on the way any more, and what is broken stays so: no use in waiting.
    world.member(&given[1]).versions.retain(|version| version.progress == Progress::Failed);
    world.step();
    assert_eq!(world.plan.state, RollingBack);
    assert!(world.plan.reason.contains("2 gateways that now serve nothing"), "{}", world.plan.reason);
}

#[test]
fn offline_and_broken_gateways_hold_nothing_up_and_come_last() {
    let mut world = fleet(5).waves(&["100%"]).unavailable(100.0).grace(60);
    for (id, change) in [
        (0, Box::new(|member: &mut Member| member.online = false) as Box<dyn Fn(&mut Member)>),
        (1, Box::new(|member| member.open = false)),
        // Something is wanted of it, and it serves nothing.
        (2, Box::new(|member| member.versions.clear())),
    ] {
        change(&mut world.fleet[id]);
    }
    world.step();
    assert_eq!(world.given(), [gateway(3), gateway(4)]);
    world.serve_all();
    assert!(world.waits().contains("just left"), "{}", world.waits());
    world.now.0 += MINUTE;
    world.step();
    assert_eq!(world.plan.state, Soaking);
    world.step();
    assert_eq!(world.plan.state, Done);
    assert!(world.plan.reason.contains("3 gateways will follow"), "{}", world.plan.reason);
    // The broken one first: it can be reached.
    world.now.0 += MINUTE;
    world.step();
    assert_eq!((world.plan.state, world.given().len()), (Done, 3));
    assert!(world.plan.targets[&gateway(2)].late);
    world.fail(&gateway(2), "it is broken");
    assert!(matches!(world.next(), Next::Wait(Waiting::Nothing)));
    world.fleet[0].online = true;
    world.now.0 += MINUTE;
    world.step();
    world.fleet[1].open = true;
    world.now.0 += MINUTE;
    world.step();
    assert_eq!(world.given().len(), 5);
}

#[test]
fn where_all_was_broken_before_the_waves_go_on_all_the_same() {
    let mut world = fleet(3).waves(&["1"]).unavailable(100.0);
    for member in &mut world.fleet {
        member.versions.clear();
    }
    world.step();
    assert_eq!((world.plan.state, world.given().len()), (Running, 1));
    assert!(!world.plan.targets.values().any(|target| target.late));
    let mut world = fleet(2).waves(&["100%"]);
    for member in &mut world.fleet {
        member.online = false;
    }
    world.now.0 += 60 * MINUTE;
    assert_eq!(world.next(), Next::Wait(Waiting::Nobody { selected: 2 }));
}

#[test]
fn a_gateway_that_goes_on_its_way_is_replaced_after_a_while() {
    let mut world = fleet(4).waves(&["1", "100%"]).grace(60);
    world.step();
    let first = world.given()[0].clone();
    world.member(&first).online = false;
    world.now.0 += MINUTE / 2;
    assert!(matches!(world.next(), Next::Wait(Waiting::Switching { gateways: 1 })));
    world.now.0 += MINUTE;
    world.step();
    assert_eq!(world.given().len(), 2, "a wave that nobody serves says nothing");
    // It counts as no failure, whatever happens.
    world.now.0 += 600 * MINUTE;
    assert!(world.tally().failed.len() == 1, "only the one that is there and slow");
}

#[test]
fn who_goes_away_while_it_tries_the_version_is_a_failure_after_its_time() {
    let mut world = fleet(4).waves(&["1", "100%"]).grace(60);
    world.step();
    let first = world.given()[0].clone();
    world.report(&first, 2, Progress::Trying, "");
    world.member(&first).online = false;
    world.now.0 += 119 * MINUTE;
    assert!(matches!(world.next(), Next::Wait(Waiting::Switching { gateways: 1 })));
    world.now.0 += MINUTE;
    world.step();
    assert_eq!(world.plan.state, RollingBack);
    assert!(world.plan.reason.contains("went away while it tried"), "{}", world.plan.reason);
}

#[test]
fn time_counts_only_while_a_gateway_is_there() {
    let mut world = fleet(4).waves(&["1", "100%"]);
    world.step();
    let first = world.given()[0].clone();
    world.now.0 += 100 * MINUTE;
    world.member(&first).online_since = world.now;
    world.now.0 += 30 * MINUTE;
    let standing = world.standing(&first);
    assert_eq!(standing, Standing::Away(Away::Interrupted));
    world.now.0 += 90 * MINUTE;
    assert!(matches!(world.standing(&first), Standing::Failed(_)));
    world.step();
    assert!(world.plan.reason.contains("is not there after 2h"), "{}", world.plan.reason);
}

#[test]
fn too_many_failures_take_everything_back() {
    let mut world = fleet(10).waves(&["100%"]).unavailable(100.0).failed(20.0);
    world.step();
    let ids = world.given();
    for id in &ids[..2] {
        world.fail(id, "speed: expected 10 tok/s, saw 6 tok/s");
    }
    for id in &ids[3..6] {
        world.serve(id);
    }
    assert!(matches!(world.next(), Next::Wait(_)), "20 % may");
    world.fail(&ids[2], "memory");
    world.step();
    assert_eq!(world.plan.state, RollingBack);
    assert!(
        world.plan.reason.starts_with("3 of 10 gateways failed (30.0 %, 20 % may)"),
        "{}",
        world.plan.reason
    );
    assert!(world.plan.reason.contains("saw 6 tok/s"));
    assert!(world.changes.iter().all(|change| change.rolls_back && change.digest == Some(version(1))));
    world.settle_back();
    while world.plan.state == RollingBack {
        world.step();
        world.settle_back();
    }
    assert_eq!(world.plan.state, RolledBack);
    assert!(world.plan.reason.contains("3 of 10 gateways failed"), "{}", world.plan.reason);
    assert!(world.plan.targets.values().all(|target| target.digest == Some(version(1))));
    assert_eq!(world.next(), Next::Wait(Waiting::Nothing));
}

#[test]
fn who_serves_the_version_goes_back_no_faster_than_the_bound() {
    let mut world = fleet(10).waves(&["100%"]).unavailable(100.0);
    world.step();
    world.serve_all();
    world.step();
    world.set_unavailable(20.0);
    world.order(Order::RollBack).unwrap();
    assert_eq!((world.plan.state, world.changes.len()), (RollingBack, 2));
    assert!(matches!(world.next(), Next::Wait(Waiting::Switching { gateways: 2 })));
    world.settle_back();
    world.step();
    assert_eq!(world.changes.len(), 2);
}

#[test]
fn what_was_served_before_may_be_nothing() {
    let mut world = fleet(2).waves(&["100%"]).unavailable(100.0);
    for member in &mut world.fleet {
        (member.assigned, member.versions) = (None, Vec::new());
    }
    world.step();
    let ids = world.given();
    world.fail(&ids[0], "x");
    world.step();
    assert!(world.changes.iter().all(|change| change.digest.is_none()), "{:?}", world.changes);
    world.settle_back();
    world.step();
    assert_eq!(world.plan.state, RolledBack);
}

#[test]
fn reports_of_an_older_assignment_do_not_count() {
    let mut world = fleet(2).waves(&["1"]);
    for member in &mut world.fleet {
        member.versions.push(reported(2, Progress::Failed, 1));
    }
    world.step();
    let id = world.given()[0].clone();
    assert_eq!(world.standing(&id), Standing::Switching, "it failed there once, and is tried anew");
    world.fail(&id, "again");
    assert!(matches!(world.standing(&id), Standing::Failed(_)));
}

#[test]
fn windows_hold_back_what_begins_and_nothing_else() {
    // The world begins on 1970-01-01, a Thursday, at midnight.
    let mut world = fleet(4).waves(&["2", "100%"]).unavailable(25.0).window("Thu 00:00-01:00 UTC");
    world.step();
    assert_eq!(world.given().len(), 1);
    world.now.0 += 61 * MINUTE;
    // The one on the way goes on.
    assert!(matches!(world.next(), Next::Wait(Waiting::Switching { .. })));
    world.serve_all();
    world.step();
    assert_eq!((world.plan.state, world.plan.wave), (AwaitingWindow, 0));
    assert!(world.waits().contains("1970-01-08T00:00:00Z"), "{}", world.waits());
    world.now = Millis(7 * 24 * 60 * MINUTE);
    world.step();
    world.step();
    assert_eq!(world.given().len(), 2);
    world.serve_all();
    world.step();
    world.now.0 += 61 * MINUTE;
    world.step();
    assert_eq!((world.plan.state, world.plan.wave), (AwaitingWindow, 1));
    // A window does not keep anything from going back.
    let id = world.given()[0].clone();
    world.fail(&id, "x");
    world.step();
    assert_eq!(world.plan.state, RollingBack);
}

#[test]
fn each_wave_waits_for_approval_if_that_is_wanted() {
    let mut world = fleet(4).waves(&["1", "2", "100%"]).approval().unavailable(100.0);
    assert_eq!(world.order(Order::Approve), Err(Refusal::NothingToApprove("running")));
    world.step();
    world.serve_all();
    world.step();
    world.step();
    assert_eq!((world.plan.state, world.plan.wave), (AwaitingApproval, 0));
    assert_eq!(world.next(), Next::Wait(Waiting::Approval));
    world.order(Order::Approve).unwrap();
    assert_eq!((world.plan.state, world.plan.wave, world.plan.approved), (Running, 1, true));
    world.step();
    assert!(!world.plan.approved, "the next wave needs another approval");
    world.serve_all();
    world.step();
    world.step();
    assert_eq!((world.plan.state, world.plan.wave), (AwaitingApproval, 1));
}

#[test]
fn waves_that_would_reach_nobody_are_left_out() {
    let mut world = fleet(5).waves(&["1", "10%", "20%", "100%"]).unavailable(100.0);
    world.step();
    world.serve_all();
    world.step();
    world.step();
    assert_eq!((world.plan.state, world.plan.wave), (Running, 3), "10 % and 20 % of 5 are one");
    let mut one = fleet(1).waves(&["1", "100%"]);
    one.step();
    one.serve_all();
    one.step();
    one.step();
    assert_eq!(one.plan.state, Done);
}

#[test]
fn a_pause_begins_nothing_and_a_soak_begins_anew_after_it() {
    let mut world = fleet(4).waves(&["1", "100%"]).soak(600).failed(0.0);
    world.step();
    world.serve_all();
    world.step();
    world.now.0 += 9 * MINUTE;
    world.order(Order::Pause).unwrap();
    assert_eq!(world.order(Order::Pause), Err(Refusal::Paused));
    world.now.0 += 60 * MINUTE;
    assert!(world.waits().contains("paused"));
    let id = world.given()[0].clone();
    world.fail(&id, "late trouble");
    assert!(world.waits().contains("late trouble"), "{}", world.waits());
    world.serve(&id);
    world.order(Order::Resume).unwrap();
    assert_eq!((world.plan.state, world.plan.since), (Soaking, world.now));
    assert_eq!(world.order(Order::Resume), Err(Refusal::NotPaused("soaking")));
}
