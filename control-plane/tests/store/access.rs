use rookery_control_plane::{
    domain::Millis,
    store::{JoinTokenRefusal, NewJoinToken, StoreError, TokenRecord, TrustedKey},
};

use crate::support::{Db, gateway, labels, new_gateway, on_both};

on_both!(
    bearer_tokens,
    a_join_token_is_taken_as_often_as_it_says,
    enrolling_is_all_or_nothing,
    the_first_secret_stays,
    trusted_keys,
    replicas_and_audit,
);

async fn bearer_tokens(db: &Db) {
    let store = db.open().await;
    let token = |name: &str, hash: &str| TokenRecord {
        name: name.into(),
        role: "admin".into(),
        hash: hash.into(),
        created: Millis(1),
        ends: (name == "b").then_some(Millis(2)),
    };
    store.put_token(&token("b", "h2"), "ada").await.unwrap();
    store.put_token(&token("a", "h1"), "ada").await.unwrap();
    for taken in [token("a", "h3"), token("c", "h1")] {
        assert!(matches!(store.put_token(&taken, "ada").await, Err(StoreError::Exists { .. })));
    }
    assert_eq!(store.token_by_hash("h2").await.unwrap(), Some(token("b", "h2")));
    assert_eq!(store.tokens().await.unwrap(), [token("a", "h1"), token("b", "h2")]);
    store.revoke_token("a", "ada").await.unwrap();
    assert_eq!(store.token_by_hash("h1").await.unwrap(), None);
    assert!(matches!(store.revoke_token("a", "ada").await, Err(StoreError::NotFound { .. })));
}

fn refusal(result: Result<impl std::fmt::Debug, StoreError>) -> JoinTokenRefusal {
    match result {
        Err(StoreError::JoinToken(refusal)) => refusal,
        other => panic!("{other:?}"),
    }
}

async fn a_join_token_is_taken_as_often_as_it_says(db: &Db) {
    let store = db.open().await;
    let token =
        NewJoinToken { hash: "h".into(), ends: Millis(100), uses: 2, labels: labels(&[("site", "bonn")]) };
    store.put_join_token(&token, "ada").await.unwrap();
    assert!(matches!(store.put_join_token(&token, "ada").await, Err(StoreError::Exists { .. })));
    let take = async |hash, number, now| store.take_join_token(hash, &gateway(number), Millis(now)).await;
    assert_eq!(refusal(take("x", 0, 1).await), JoinTokenRefusal::Unknown);
    assert_eq!(refusal(take("h", 0, 100).await), JoinTokenRefusal::Expired);
    assert_eq!(take("h", 0, 99).await.unwrap(), token.labels);
    assert_eq!(refusal(take("h", 0, 99).await), JoinTokenRefusal::Replayed);
    take("h", 1, 99).await.unwrap();
    assert_eq!(refusal(take("h", 2, 99).await), JoinTokenRefusal::UsedUp);
    assert_eq!(refusal(take("h", 1, 99).await), JoinTokenRefusal::Replayed);
}

async fn enrolling_is_all_or_nothing(db: &Db) {
    let store = db.open().await;
    store.put_gateway(&new_gateway(0, "s0"), "ada").await.unwrap();
    let token =
        NewJoinToken { hash: "h".into(), ends: Millis(5000), uses: 1, labels: labels(&[("site", "bonn")]) };
    store.put_join_token(&token, "ada").await.unwrap();
    // Someone else's id does not cost the token's use, and leaves that gateway as it is.
    let stolen = store.enrol("h", &new_gateway(0, "s1")).await;
    assert!(matches!(stolen, Err(StoreError::Exists { .. })), "{stolen:?}");
    assert_eq!(store.gateway(&gateway(0)).await.unwrap().serial, "s0");
    store.enrol("h", &new_gateway(1, "s1")).await.unwrap();
    assert_eq!(store.gateway(&gateway(1)).await.unwrap().labels, token.labels, "the token's labels win");
    assert_eq!(refusal(store.enrol("h", &new_gateway(2, "s2")).await), JoinTokenRefusal::UsedUp);
    assert!(matches!(store.gateway(&gateway(2)).await, Err(StoreError::NotFound { .. })));
    let entries = store.audit_entries(10).await.unwrap();
    assert!(entries.iter().any(|entry| entry.actor == "gateway gw-1" && entry.action == "gateway.join"));
}

async fn the_first_secret_stays(db: &Db) {
    let (one, two) = (db.open().await, db.open().await);
    assert_eq!(one.secret("authority").await.unwrap(), None);
    let (first, second) = tokio::join!(one.put_once("authority", "a"), two.put_once("authority", "b"));
    let (first, second) = (first.unwrap(), second.unwrap());
    assert_eq!(first, second);
    assert_eq!(one.secret("authority").await.unwrap(), Some(first.clone()));
    assert_eq!(two.put_once("authority", "c").await.unwrap(), first);
}

async fn trusted_keys(db: &Db) {
    let store = db.open().await;
    let key = |id: &str, byte| TrustedKey {
        key_id: id.into(),
        public_key: vec![byte; 32],
        added: Millis(3),
        added_by: "ada".into(),
    };
    store.put_key(&key("b", 2)).await.unwrap();
    store.put_key(&key("a", 1)).await.unwrap();
    store.put_key(&key("a", 1)).await.unwrap();
    assert!(matches!(store.put_key(&key("a", 9)).await, Err(StoreError::Exists { .. })));
    assert_eq!(store.keys().await.unwrap(), [key("a", 1), key("b", 2)]);
    store.delete_key("a", "ada").await.unwrap();
    assert!(matches!(store.delete_key("a", "ada").await, Err(StoreError::NotFound { .. })));
}

async fn replicas_and_audit(db: &Db) {
    let store = db.open().await;
    let day = 24 * 60 * 60 * 1000;
    store.beat("b", "10.0.0.2:1", Millis(10)).await.unwrap();
    store.beat("a", "10.0.0.1:1", Millis(20)).await.unwrap();
    store.beat("b", "10.0.0.3:1", Millis(30)).await.unwrap();
    let ids = async |since| {
        let replicas = store.replicas(Millis(since)).await.unwrap();
        replicas.into_iter().map(|replica| (replica.id, replica.address)).collect::<Vec<_>>()
    };
    let (a, b) = (("a".to_owned(), "10.0.0.1:1".to_owned()), ("b".to_owned(), "10.0.0.3:1".to_owned()));
    assert_eq!(ids(0).await, [a, b.clone()]);
    assert_eq!(ids(30).await, [b]);
    store.beat("c", "", Millis(day + 25)).await.unwrap();
    assert_eq!(ids(0).await.len(), 2, "the silent one is forgotten");

    let mut written = store.written();
    written.mark_unchanged();
    store.audit("ada", "gc", "blobs", "12 freed").await.unwrap();
    store.audit("ev\0e", "login", "token", "refused").await.unwrap();
    assert!(written.has_changed().unwrap());
    let entries = store.audit_entries(1).await.unwrap();
    assert_eq!(
        (entries.len(), entries[0].actor.as_str(), entries[0].detail.as_str()),
        (1, "ev\u{fffd}e", "refused")
    );
}
