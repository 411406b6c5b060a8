use rookery_control_plane::{
    domain::{Millis, rollout::RolloutState},
    store::{StoreError, TransitionFilter, TransitionRecord},
};

use crate::support::{
    Db, change, digest, gateway, model, new_gateway, next, on_both, prepared, rollout, target,
};

on_both!(transitions_are_kept_once, transitions_know_their_rollout);

fn transition(sequence: u64, generation: u64) -> TransitionRecord {
    TransitionRecord {
        sequence,
        at: Millis(-5),
        model: model("org/chat"),
        digest: digest(1),
        from: "staged".into(),
        to: "probing".into(),
        reason: format!("step {sequence}"),
        generation,
        verdicts_json: "[]".into(),
    }
}

async fn transitions_are_kept_once(db: &Db) {
    let (store, other) = (prepared(db, 2).await, db.open().await);
    let batch: Vec<_> = (1..=3).map(|sequence| transition(sequence, 0)).collect();
    assert_eq!(store.append_transitions(&gateway(0), &batch).await.unwrap(), 3);
    // The answer was lost: the gateway tells it all again, to another replica, and more.
    let batch: Vec<_> = (2..=5).map(|sequence| transition(sequence, 0)).collect();
    let id = gateway(0);
    let (one, two) =
        tokio::join!(store.append_transitions(&id, &batch), other.append_transitions(&id, &batch));
    assert_eq!((one.unwrap(), two.unwrap()), (5, 5));
    assert_eq!(store.append_transitions(&gateway(0), &batch[..1]).await.unwrap(), 5);
    let filter = TransitionFilter { gateway: Some(gateway(0)), rollout: None };
    let kept = store.transitions(&filter, 100).await.unwrap();
    let sequences: Vec<_> = kept.iter().map(|kept| kept.transition.sequence).collect();
    assert_eq!(sequences, [5, 4, 3, 2, 1], "newest first");
    assert_eq!(kept[4].transition, transition(1, 0));
    assert_eq!(store.transitions(&filter, 2).await.unwrap(), kept[..2]);
    assert_eq!(store.gateway(&gateway(0)).await.unwrap().acknowledged_sequence, 5);
    let unknown = store.append_transitions(&gateway(9), &batch).await;
    assert!(matches!(unknown, Err(StoreError::NotFound { .. })));

    // One that joins again counts from 1 again, and nothing that was before is lost.
    store.remove_gateway(&gateway(0), "ada").await.unwrap();
    store.put_gateway(&new_gateway(0, "again"), "ada").await.unwrap();
    assert_eq!(store.append_transitions(&gateway(0), &[transition(1, 0)]).await.unwrap(), 1);
    let kept = store.transitions(&filter, 100).await.unwrap();
    assert_eq!(kept.iter().map(|kept| kept.transition.sequence).collect::<Vec<_>>(), [1, 5, 4, 3, 2, 1]);
    store.append_transitions(&gateway(1), &[transition(1, 0)]).await.unwrap();
    assert_eq!(store.transitions(&TransitionFilter::default(), 100).await.unwrap().len(), 7);
}

async fn transitions_know_their_rollout(db: &Db) {
    let store = prepared(db, 1).await;
    let first = rollout(1, 1, &[0]);
    store.create_rollout(&first).await.unwrap();
    store.advance(&next(&first.plan, RolloutState::Done, first.plan.targets.clone()), 1, &[]).await.unwrap();
    let mut second = rollout(2, 2, &[0]);
    second.plan.targets = [(gateway(0), target(Some(2), Some(1)))].into();
    second.changes = vec![change(&gateway(0), Some(2))];
    store.create_rollout(&second).await.unwrap();
    let generation = store.gateway(&gateway(0)).await.unwrap().generation;
    assert_eq!(generation, 2);
    // The gateway was away: it tells of the first roll-out after the second has begun.
    let batch = [transition(1, 1), transition(2, 2), transition(3, 3)];
    store.append_transitions(&gateway(0), &batch).await.unwrap();
    let of = async |rollout: &rookery_control_plane::domain::rollout::RolloutId| {
        let filter = TransitionFilter { gateway: None, rollout: Some(rollout.clone()) };
        let kept = store.transitions(&filter, 10).await.unwrap();
        let both = TransitionFilter { gateway: Some(gateway(0)), rollout: Some(rollout.clone()) };
        assert_eq!(store.transitions(&both, 10).await.unwrap(), kept);
        kept.into_iter().map(|kept| kept.transition.sequence).collect::<Vec<_>>()
    };
    assert_eq!(of(&first.id).await, [1]);
    assert_eq!(of(&second.id).await, [3, 2]);
}
