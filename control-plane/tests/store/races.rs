//! Two replicas, each with connections of its own, want the same.

use rookery_control_plane::{domain::rollout::RolloutState, store::StoreError};
use tokio::task::JoinSet;

use crate::support::{Db, Targets, change, gateway, id, next, on_both, prepared, rollout, target, version};

on_both!(
    one_plan_wins,
    one_rollout_gets_the_gateway,
    a_version_is_deleted_or_rolled_out,
    many_writers_wait_their_turn,
);

async fn one_plan_wins(db: &Db) {
    let (one, two) = (prepared(db, 2).await, db.open().await);
    let first = rollout(1, 1, &[0, 1]);
    one.create_rollout(&first).await.unwrap();
    let mut current = first.plan;
    for round in 0..20 {
        // Each wants another version, so that what is kept tells who won.
        let want = |version: u64, actor: &str| {
            let mut plan =
                next(&current, RolloutState::Running, [(gateway(0), target(Some(version), None))].into());
            plan.actor = actor.to_owned();
            (plan, [change(&gateway(0), Some(version))])
        };
        let ((plan_one, change_one), (plan_two, change_two)) = (want(1, "one"), want(2, "two"));
        let (first, second) = tokio::join!(
            one.advance(&plan_one, current.generation, &change_one),
            two.advance(&plan_two, current.generation, &change_two)
        );
        let (winner, change, lost) = match (first, second) {
            (Ok(()), Err(lost)) => (plan_one, change_one, lost),
            (Err(lost), Ok(())) => (plan_two, change_two, lost),
            both => panic!("round {round}: {both:?}"),
        };
        assert!(matches!(lost, StoreError::Conflict { .. }), "{lost:?}");
        assert_eq!(two.rollout(&id(1).0).await.unwrap().plan, winner);
        let (generation, assigned) = one.assignments_of(&gateway(0)).await.unwrap();
        assert_eq!((generation, Some(&assigned[0].digest)), (winner.generation, change[0].digest.as_ref()));
        current = winner;
    }
}

async fn one_rollout_gets_the_gateway(db: &Db) {
    let (one, two) = (prepared(db, 3).await, db.open().await);
    for round in 0..10_u64 {
        let ours = rollout(2 * round + 1, 1, &[0, 1]);
        let theirs = rollout(2 * round + 2, 2, &[2, 1]);
        let (first, second) = tokio::join!(one.create_rollout(&ours), two.create_rollout(&theirs));
        let winner = match (first, second) {
            (Ok(()), Err(StoreError::Overlaps { rollout, .. })) if rollout == ours.id => ours,
            (Err(StoreError::Overlaps { rollout, .. }), Ok(())) if rollout == theirs.id => theirs,
            both => panic!("round {round}: {both:?}"),
        };
        let unfinished = one.rollouts(true, 10).await.unwrap();
        assert_eq!(unfinished.iter().map(|rollout| &rollout.id).collect::<Vec<_>>(), [&winner.id]);
        one.advance(&next(&winner.plan, RolloutState::Aborted, Targets::new()), 1, &[]).await.unwrap();
    }
}

async fn a_version_is_deleted_or_rolled_out(db: &Db) {
    let (one, two) = (prepared(db, 1).await, db.open().await);
    for round in 10..20_u64 {
        let version = version("org/chat", round);
        one.insert_version(&version).await.unwrap();
        let new = rollout(round, round, &[0]);
        let (created, deleted) = tokio::join!(
            one.create_rollout(&new),
            two.delete_version(&version.model, &version.version, "ada")
        );
        match (created, deleted) {
            (Ok(()), Err(StoreError::InUse { .. })) => {
                one.advance(&next(&new.plan, RolloutState::Aborted, Targets::new()), 1, &[]).await.unwrap();
            }
            (Err(StoreError::NotFound { .. }), Ok(())) => {}
            both => panic!("round {round}: {both:?}"),
        }
    }
}

/// No error of a locked database reaches a caller.
async fn many_writers_wait_their_turn(db: &Db) {
    let one = prepared(db, 4).await;
    let mut writers = JoinSet::new();
    for writer in 0..4_usize {
        let store = if writer == 0 { one.clone() } else { db.open().await };
        writers.spawn(async move {
            for turn in 0..25_u32 {
                store.audit("ada", "turn", &writer.to_string(), &turn.to_string()).await.unwrap();
                let epoch = store.link_up(&gateway(writer), "replica").await.unwrap().epoch;
                store.gateways().await.unwrap();
                store.link_down(&gateway((writer + 1) % 4), epoch).await.unwrap();
                store
                    .set_labels(
                        &gateway(0),
                        &crate::support::labels(&[("turn", &turn.to_string())]),
                        &[],
                        "x",
                    )
                    .await
                    .unwrap();
            }
        });
    }
    while let Some(writer) = writers.join_next().await {
        writer.unwrap();
    }
    let entries = one.audit_entries(10_000).await.unwrap();
    assert_eq!(entries.iter().filter(|entry| entry.action == "turn").count(), 100);
    for number in 0..4 {
        assert_eq!(one.link_up(&gateway(number), "replica").await.unwrap().epoch, 26);
    }
}
