use rookery_control_plane::{
    domain::Millis,
    store::{Admission, Report, StoreError},
};

use crate::support::{Db, change, gateway, labels, new_gateway, next, on_both, prepared, rollout, target};

on_both!(
    labels_and_admission,
    a_removed_gateway_is_gone_and_may_join_again,
    certificates_are_revoked_for_good,
    the_newest_link_counts,
    reports_keep_what_they_do_not_say,
);

async fn labels_and_admission(db: &Db) {
    let store = prepared(db, 2).await;
    assert!(matches!(
        store.put_gateway(&new_gateway(0, "other"), "eve").await,
        Err(StoreError::Exists { .. })
    ));
    let after = store
        .set_labels(
            &gateway(0),
            &labels(&[("a", "1"), ("b", "2")]),
            &["site".to_owned(), "none".to_owned()],
            "ada",
        )
        .await
        .unwrap();
    assert_eq!(after.labels, labels(&[("a", "1"), ("b", "2")]));
    assert_eq!(store.gateway(&gateway(0)).await.unwrap(), after);
    store.set_admission(&gateway(1), Admission::Drained, "ada").await.unwrap();
    store.set_admission(&gateway(1), Admission::Drained, "ada").await.unwrap();
    let all = store.gateways().await.unwrap();
    assert_eq!(
        all.iter().map(|one| one.admission).collect::<Vec<_>>(),
        [Admission::Open, Admission::Drained]
    );
    assert_eq!(all[0].serial, "serial-0");
    let unknown = store.set_labels(&gateway(9), &labels(&[]), &[], "ada").await;
    assert!(matches!(unknown, Err(StoreError::NotFound { .. })));
    let actions: Vec<_> =
        store.audit_entries(3).await.unwrap().into_iter().map(|entry| entry.action).collect();
    assert_eq!(
        actions,
        ["gateway.admission", "gateway.label", "gateway.join"],
        "what changes nothing is not noted"
    );
}

async fn a_removed_gateway_is_gone_and_may_join_again(db: &Db) {
    let store = prepared(db, 2).await;
    let first = rollout(1, 1, &[0, 1]);
    store.create_rollout(&first).await.unwrap();
    store.link_up(&gateway(0), "replica").await.unwrap();
    let before = store.gateway(&gateway(0)).await.unwrap().generation;
    store.remove_gateway(&gateway(0), "ada").await.unwrap();

    for refused in [
        store.gateway(&gateway(0)).await.map(drop),
        store.assignments_of(&gateway(0)).await.map(drop),
        store.remove_gateway(&gateway(0), "ada").await,
        store.link_up(&gateway(0), "replica").await.map(drop),
        store.renew(&gateway(0), "serial-x", Millis(1)).await,
    ] {
        assert!(matches!(refused, Err(StoreError::NotFound { .. })), "{refused:?}");
    }
    assert_eq!(store.gateways().await.unwrap().len(), 1);
    assert!(store.is_revoked("serial-0").await.unwrap());
    assert_eq!(store.owners().await.unwrap().len(), 1);
    // The plan that names it is not to be followed any more.
    let targets = [(gateway(0), target(Some(2), None))].into();
    let plan = next(&first.plan, first.plan.state, targets);
    let refused = store.advance(&plan, 1, &[change(&gateway(0), Some(2))]).await;
    assert!(matches!(refused, Err(StoreError::Conflict { .. })), "{refused:?}");

    store.put_gateway(&new_gateway(0, "serial-new"), "ada").await.unwrap();
    let again = store.gateway(&gateway(0)).await.unwrap();
    assert!(again.generation > before, "{} after {before}", again.generation);
    assert_eq!((again.acknowledged_sequence, again.link, again.last_seen), (0, None, None));
    assert_eq!(store.assignments_of(&gateway(0)).await.unwrap(), (again.generation, vec![]));
    assert!(!store.is_revoked("serial-new").await.unwrap());
}

async fn certificates_are_revoked_for_good(db: &Db) {
    let store = prepared(db, 1).await;
    store.renew(&gateway(0), "serial-b", Millis(20_000)).await.unwrap();
    let record = store.gateway(&gateway(0)).await.unwrap();
    assert_eq!((record.serial.as_str(), record.not_after), ("serial-b", Millis(20_000)));
    assert!(matches!(
        store.renew(&gateway(0), "serial-b", Millis(20_000)).await,
        Err(StoreError::Exists { .. })
    ));
    for serial in ["serial-0", "never seen"] {
        assert!(!store.is_revoked(serial).await.unwrap());
        store.revoke(serial, "ada").await.unwrap();
        store.revoke(serial, "ada").await.unwrap();
        assert!(store.is_revoked(serial).await.unwrap());
    }
    let entries = store.audit_entries(100).await.unwrap();
    assert_eq!(entries.iter().filter(|entry| entry.action == "certificate.revoke").count(), 2);
    store.remove_gateway(&gateway(0), "ada").await.unwrap();
    assert!(store.is_revoked("serial-b").await.unwrap());
}

async fn the_newest_link_counts(db: &Db) {
    let store = prepared(db, 1).await;
    let old = store.link_up(&gateway(0), "one").await.unwrap().epoch;
    let new = store.link_up(&gateway(0), "two").await.unwrap().epoch;
    assert!(new > old);
    // The first replica notices late that its connection is dead.
    store.link_down(&gateway(0), old).await.unwrap();
    let link = store.gateway(&gateway(0)).await.unwrap().link.unwrap();
    assert_eq!((link.replica.as_str(), link.epoch), ("two", new));
    store.link_down(&gateway(0), new).await.unwrap();
    store.link_down(&gateway(0), new).await.unwrap();
    let record = store.gateway(&gateway(0)).await.unwrap();
    assert!(record.link.is_none() && record.last_seen.is_some());
}

async fn reports_keep_what_they_do_not_say(db: &Db) {
    let store = prepared(db, 2).await;
    let report = |number, facts: Option<&str>, versions: Option<&str>, seen| Report {
        gateway: gateway(number),
        facts_json: facts.map(str::to_owned),
        versions_json: versions.map(str::to_owned),
        seen: Millis(seen),
    };
    let both = [
        report(1, Some("{}"), Some("[1]"), 50),
        report(0, Some("{\"a\":1}"), None, 60),
        report(7, None, None, 1),
    ];
    store.save_reports(&both).await.unwrap();
    // PostgreSQL has no NUL in texts; a gateway must not be able to make the write fail by one.
    store.save_reports(&[report(0, None, Some("[\0]"), 40)]).await.unwrap();
    store.save_reports(&[]).await.unwrap();
    let all = store.gateways().await.unwrap();
    assert_eq!(all[0].facts_json.as_deref(), Some("{\"a\":1}"));
    assert_eq!(all[0].versions_json.as_deref(), Some("[\u{fffd}]"));
    assert_eq!(all[0].last_seen, Some(Millis(60)), "time does not go back");
    assert_eq!(all[1].versions_json.as_deref(), Some("[1]"));
}
