use rookery_control_plane::{
    domain::rollout::RolloutState,
    store::{AssignmentRecord, StoreError},
};

use crate::support::{
    Db, Targets, change, digest, gateway, id, model, next, on_both, prepared, rollout, spec, target, version,
};

on_both!(
    a_rollout_from_start_to_end,
    overlaps_are_refused_by_name,
    contradictions_are_refused,
    nothing_is_kept_of_what_fails,
    taking_back,
    waves_over_thousands,
);

fn summary(record: &AssignmentRecord) -> (String, u64, Option<u64>, bool, u64) {
    let number = |digest: &rookery_control_plane::domain::Digest| {
        u64::from_str_radix(digest.as_str().trim_start_matches("sha256:"), 16).unwrap()
    };
    (
        record.gateway.to_string(),
        number(&record.digest),
        record.previous.as_ref().map(number),
        record.rollout.is_some(),
        record.generation,
    )
}

async fn a_rollout_from_start_to_end(db: &Db) {
    let store = prepared(db, 3).await;
    let first = rollout(0xab1, 1, &[0, 1]);
    store.create_rollout(&first).await.unwrap();
    assert!(matches!(store.create_rollout(&first).await, Err(StoreError::Exists { .. })));
    let (generation, assigned) = store.assignments_of(&gateway(0)).await.unwrap();
    assert_eq!(generation, 1);
    assert_eq!(assigned.iter().map(summary).collect::<Vec<_>>(), [("gw-0".into(), 1, None, true, 1)]);
    assert_eq!((&assigned[0].traceparent, assigned[0].rolls_back), (&first.traceparent, false));
    assert_eq!(store.assignments_of(&gateway(1)).await.unwrap(), (0, vec![]));

    // A gateway that joined later is owned from its first change on.
    let mut targets = first.plan.targets.clone();
    targets.extend([(gateway(1), target(Some(1), None)), (gateway(2), target(Some(1), None))]);
    let second = next(&first.plan, RolloutState::Soaking, targets.clone());
    assert_eq!(store.owners().await.unwrap().len(), 2);
    let changes = [change(&gateway(2), Some(1)), change(&gateway(1), Some(1))];
    store.advance(&second, 1, &changes).await.unwrap();
    assert_eq!(store.owners().await.unwrap().len(), 3);
    assert!(matches!(store.advance(&second, 1, &changes).await, Err(StoreError::Conflict { .. })));
    // One target fewer: plans may take any back.
    targets.remove(&gateway(1));
    let third = next(&second, RolloutState::Done, targets);
    store.advance(&third, 2, &[]).await.unwrap();

    let kept = store.rollout(&first.id.0).await.unwrap();
    assert_eq!(kept.plan, third);
    assert_eq!((&kept.spec, &kept.created_by), (&first.spec, &first.created_by));
    assert_eq!((kept.created, &kept.traceparent), (first.created, &first.traceparent));
    assert_eq!(store.rollout(&first.id.0[..31]).await.unwrap(), kept, "by its beginning");
    assert_eq!(store.plans(&first.id).await.unwrap(), [first.plan.clone(), second, third.clone()]);
    assert_eq!(store.spec(&first.id).await.unwrap(), first.spec);
    assert_eq!(store.traceparent(&first.id).await.unwrap(), first.traceparent);
    assert!(matches!(store.spec(&id(7)).await, Err(StoreError::NotFound { .. })));
    assert!(store.owners().await.unwrap().is_empty(), "what is over owns nothing");
    assert!(store.rollouts(true, 10).await.unwrap().is_empty());
    // Late gateways are caught up by plans that follow the last one; it stays over.
    let late = next(&third, RolloutState::Done, third.targets.clone());
    store.advance(&late, 3, &[]).await.unwrap();
    assert!(matches!(store.advance(&late, 3, &[]).await, Err(StoreError::Conflict { .. })));
    assert!(store.owners().await.unwrap().is_empty());
    assert!(store.rollouts(true, 10).await.unwrap().is_empty());
    // Assignments outlast their roll-out: gateways that were away find them.
    let all = store.assignments().await.unwrap();
    assert!(all.iter().all(|record| record.assigned_by == first.id));
    assert_eq!(
        all.iter().map(summary).collect::<Vec<_>>(),
        [0, 1, 2].map(|number| (format!("gw-{number}"), 1, None, false, 1))
    );

    let mut another = rollout(0xab2, 2, &[0]);
    another.plan.targets = [(gateway(0), target(Some(2), Some(1)))].into();
    store.create_rollout(&another).await.unwrap();
    let (_, assigned) = store.assignments_of(&gateway(0)).await.unwrap();
    assert_eq!(assigned.iter().map(summary).collect::<Vec<_>>(), [("gw-0".into(), 2, Some(1), true, 2)]);
    let listed: Vec<_> = store.rollouts(false, 10).await.unwrap().into_iter().map(|one| one.id).collect();
    assert_eq!(listed, [another.id.clone(), first.id.clone()], "newest first");
    assert_eq!(store.rollouts(false, 1).await.unwrap().len(), 1);
    assert!(matches!(store.rollout("000").await, Err(StoreError::Ambiguous { .. })));
    assert!(matches!(store.rollout("%").await, Err(StoreError::NotFound { .. })));
    assert!(matches!(store.plans(&id(7)).await, Err(StoreError::NotFound { .. })));
    let actions = store.audit_entries(100).await.unwrap();
    assert_eq!(actions.iter().filter(|entry| entry.action == "rollout.plan").count(), 5);
    assert_eq!(
        actions.iter().filter(|entry| entry.action == "rollout.create" && entry.actor == "ada").count(),
        2
    );
}

async fn overlaps_are_refused_by_name(db: &Db) {
    let store = prepared(db, 4).await;
    let first = rollout(1, 1, &[0, 1]);
    store.create_rollout(&first).await.unwrap();
    let owned_by = |result: Result<(), StoreError>| match result {
        Err(StoreError::Overlaps { rollout, gateway, model }) => (rollout, gateway, model),
        other => panic!("{other:?}"),
    };
    // Gateway 1 is selected though no wave has reached it.
    let refused = owned_by(store.create_rollout(&rollout(2, 2, &[3, 1])).await);
    assert_eq!(refused, (first.id.clone(), gateway(1), model("org/chat")));
    assert!(store.assignments_of(&gateway(3)).await.unwrap().1.is_empty());

    let apart = rollout(3, 2, &[2, 3]);
    store.create_rollout(&apart).await.unwrap();
    let mut targets = apart.plan.targets.clone();
    targets.insert(gateway(0), target(Some(2), None));
    let greedy = next(&apart.plan, RolloutState::Running, targets);
    let refused = owned_by(store.advance(&greedy, 1, &[change(&gateway(0), Some(2))]).await);
    assert_eq!(refused.0, first.id);
    assert_eq!(store.rollout(&apart.id.0).await.unwrap().plan, apart.plan);

    // Of another model it may have the same gateways.
    store.insert_version(&version("org/other", 2)).await.unwrap();
    let mut other = rollout(4, 2, &[0, 1]);
    other.spec.model = model("org/other");
    other.changes[0].model = model("org/other");
    store.create_rollout(&other).await.unwrap();
    assert_eq!(store.assignments_of(&gateway(0)).await.unwrap().1.len(), 2);
    // Once it is over, others may have its gateways.
    store.advance(&next(&first.plan, RolloutState::Aborted, Targets::new()), 1, &[]).await.unwrap();
    store.create_rollout(&rollout(5, 2, &[0, 1])).await.unwrap();
}

async fn contradictions_are_refused(db: &Db) {
    let store = prepared(db, 2).await;
    let sound = rollout(1, 1, &[0, 1]);
    let mut cases = Vec::new();
    let breaks: [fn(&mut rookery_control_plane::store::NewRollout); 7] = [
        |new| new.plan.generation = 2,
        |new| new.plan.parent = 1,
        |new| new.plan.rollout = id(9),
        |new| new.changes[0].digest = Some(digest(2)),
        |new| new.changes[0].model = model("org/other"),
        |new| new.changes.push(new.changes[0].clone()),
        |new| new.plan.targets.clear(),
    ];
    for break_it in breaks {
        let mut broken = sound.clone();
        break_it(&mut broken);
        cases.push(store.create_rollout(&broken).await);
    }
    for refused in cases {
        assert!(matches!(refused, Err(StoreError::Invalid { .. })), "{refused:?}");
    }
    let mut unknown = sound.clone();
    unknown.gateways.push(gateway(7));
    assert!(matches!(store.create_rollout(&unknown).await, Err(StoreError::Conflict { .. })));
    let mut missing = sound.clone();
    missing.spec = spec(9);
    assert!(matches!(store.create_rollout(&missing).await, Err(StoreError::NotFound { .. })));
    store.create_rollout(&sound).await.unwrap();
    let skipping = next(
        &next(&sound.plan, RolloutState::Running, Targets::new()),
        RolloutState::Running,
        Targets::new(),
    );
    assert!(matches!(store.advance(&skipping, 1, &[]).await, Err(StoreError::Invalid { .. })));
    assert!(matches!(store.advance(&skipping, 2, &[]).await, Err(StoreError::Conflict { .. })));
    let mut nobodys = skipping;
    nobodys.rollout = id(7);
    assert!(matches!(store.advance(&nobodys, 2, &[]).await, Err(StoreError::NotFound { .. })));
}

async fn nothing_is_kept_of_what_fails(db: &Db) {
    let store = prepared(db, 3).await;
    let first = rollout(1, 1, &[0]);
    store.create_rollout(&first).await.unwrap();
    let before = store.audit_entries(1000).await.unwrap();
    let mut targets = first.plan.targets.clone();
    targets.extend([(gateway(1), target(Some(1), None)), (gateway(9), target(Some(1), None))]);
    let plan = next(&first.plan, RolloutState::Running, targets);
    let changes = [change(&gateway(1), Some(1)), change(&gateway(9), Some(1))];
    assert!(matches!(store.advance(&plan, 1, &changes).await, Err(StoreError::Conflict { .. })));
    assert_eq!(store.assignments_of(&gateway(1)).await.unwrap(), (0, vec![]));
    assert_eq!(store.owners().await.unwrap().len(), 1);
    assert_eq!(store.plans(&first.id).await.unwrap().len(), 1);
    assert_eq!(store.audit_entries(1000).await.unwrap(), before);
}

async fn taking_back(db: &Db) {
    let store = prepared(db, 2).await;
    let first = rollout(1, 1, &[0, 1]);
    store.create_rollout(&first).await.unwrap();
    // Before the roll-out the gateway served nothing of the model.
    let targets = [(gateway(0), target(None, None))].into();
    let back = next(&first.plan, RolloutState::RollingBack, targets);
    store.advance(&back, 1, &[change(&gateway(0), None)]).await.unwrap();
    assert_eq!(store.assignments_of(&gateway(0)).await.unwrap(), (2, vec![]));
    let targets = [(gateway(0), target(Some(2), None))].into();
    let forth = next(&back, RolloutState::Running, targets);
    let mut change = change(&gateway(0), Some(2));
    change.rolls_back = true;
    store.advance(&forth, 2, std::slice::from_ref(&change)).await.unwrap();
    let (generation, assigned) = store.assignments_of(&gateway(0)).await.unwrap();
    assert_eq!((generation, assigned[0].rolls_back, &assigned[0].previous), (3, true, &None));
}

/// More than fit into one statement.
async fn waves_over_thousands(db: &Db) {
    let gateways = 450;
    let store = prepared(db, gateways).await;
    let first = rollout(1, 1, &(0..gateways).collect::<Vec<_>>());
    store.create_rollout(&first).await.unwrap();
    let targets: Targets = (0..gateways).map(|number| (gateway(number), target(Some(1), None))).collect();
    let all = next(&first.plan, RolloutState::Running, targets);
    let changes: Vec<_> = (0..gateways).map(|number| change(&gateway(number), Some(1))).collect();
    store.advance(&all, 1, &changes).await.unwrap();
    assert_eq!(store.assignments().await.unwrap().len(), gateways);
    assert_eq!(store.rollout(&first.id.0).await.unwrap().plan, all);
    let none = next(&all, RolloutState::Aborted, Targets::new());
    store.advance(&none, 2, &[]).await.unwrap();
    assert_eq!(store.plans(&first.id).await.unwrap(), [first.plan, all, none]);
}
