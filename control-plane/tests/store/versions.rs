use std::collections::BTreeSet;

use rookery_control_plane::{
    domain::rollout::RolloutState,
    store::{SignatureRecord, StoreError},
};

use crate::support::{Db, digest, gateway, model, next, on_both, prepared, rollout, target, version};

on_both!(
    a_version_is_kept_once,
    aliases_point_at_versions,
    what_is_in_use_stays,
    blobs_are_those_of_versions
);

async fn a_version_is_kept_once(db: &Db) {
    let store = db.open().await;
    let new = version("org/chat", 1);
    store.insert_version(&new).await.unwrap();
    store.insert_version(&new).await.unwrap();
    let mut other = version("org/chat", 2);
    other.version = new.version.clone();
    assert!(matches!(store.insert_version(&other).await, Err(StoreError::Exists { .. })));
    let mut broken = version("org/chat", 3);
    broken.manifest = "{\"layers\":[{\"digest\":\"../../etc/passwd\"}]}".into();
    assert!(matches!(store.insert_version(&broken).await, Err(StoreError::Invalid { .. })));

    // Another model may have the same bundle, and the oldest one answers for the digest.
    let mut twin = version("org/twin", 1);
    twin.created = rookery_control_plane::domain::Millis(99);
    store.insert_version(&twin).await.unwrap();
    store.add_signature(&digest(1), "k1", &[1, 2, 255], "ada").await.unwrap();
    store.add_signature(&digest(1), "k1", &[3; 64], "ada").await.unwrap();
    assert!(matches!(
        store.add_signature(&digest(8), "k1", &[], "ada").await,
        Err(StoreError::NotFound { .. })
    ));

    let kept = store.version(&new.model, &new.version).await.unwrap();
    assert_eq!((kept.digest, kept.size_bytes, kept.summary), (digest(1), 8, new.summary));
    assert_eq!(kept.signatures, [SignatureRecord { key_id: "k1".into(), signature: vec![3; 64] }]);
    assert_eq!(store.manifest(&digest(1)).await.unwrap(), new.manifest);
    let by_digest = |of| store.version_by_digest(of, digest_ref());
    assert_eq!(by_digest(None).await.unwrap().unwrap().model, new.model);
    assert_eq!(by_digest(Some(&twin.model)).await.unwrap().unwrap().model, twin.model);
    assert!(by_digest(Some(&model("none"))).await.unwrap().is_none());
    let pushes = store.audit_entries(100).await.unwrap();
    assert_eq!(pushes.iter().filter(|entry| entry.action == "version.push").count(), 2);
}

fn digest_ref() -> &'static rookery_control_plane::domain::Digest {
    static ONE: std::sync::LazyLock<rookery_control_plane::domain::Digest> =
        std::sync::LazyLock::new(|| digest(1));
    &ONE
}

async fn aliases_point_at_versions(db: &Db) {
    let store = prepared(db, 0).await;
    let (chat, stable) = (model("org/chat"), "stable".parse().unwrap());
    let v = |number: u64| format!("v{number}").parse().unwrap();
    assert!(matches!(store.set_alias(&chat, &stable, &v(9), "ada").await, Err(StoreError::NotFound { .. })));
    let named_so = store.set_alias(&chat, &"v2".parse().unwrap(), &v(1), "ada").await;
    assert!(matches!(named_so, Err(StoreError::Exists { .. })));
    store.set_alias(&chat, &stable, &v(1), "ada").await.unwrap();
    store.set_alias(&chat, &stable, &v(2), "ada").await.unwrap();
    let mut taken = version("org/chat", 7);
    taken.version = "stable".parse().unwrap();
    assert!(matches!(store.insert_version(&taken).await, Err(StoreError::Exists { .. })));

    let aliases = store.aliases().await.unwrap();
    assert_eq!(aliases.len(), 1);
    assert_eq!((&aliases[0].version, &aliases[0].digest), (&v(2), &digest(2)));
    let listed = store.versions(Some(&chat)).await.unwrap();
    let names: Vec<_> = listed.iter().map(|version| version.version.as_str()).collect();
    assert_eq!(names, ["v3", "v2", "v1"], "newest first");
    assert_eq!(listed[1].aliases, std::slice::from_ref(&stable));
    store.delete_alias(&chat, &stable, "ada").await.unwrap();
    assert!(matches!(store.delete_alias(&chat, &stable, "ada").await, Err(StoreError::NotFound { .. })));
}

async fn what_is_in_use_stays(db: &Db) {
    let store = prepared(db, 2).await;
    let chat = model("org/chat");
    let v = |number: u64| format!("v{number}").parse().unwrap();
    let delete = async |number| store.delete_version(&chat, &v(number), "ada").await;
    let used_by = async |number| match delete(number).await {
        Err(StoreError::InUse { by, .. }) => by,
        other => panic!("{other:?}"),
    };

    store.set_alias(&chat, &"stable".parse().unwrap(), &v(1), "ada").await.unwrap();
    assert_eq!(used_by(1).await, "alias stable");
    store.delete_alias(&chat, &"stable".parse().unwrap(), "ada").await.unwrap();

    let first = rollout(1, 1, &[0]);
    store.create_rollout(&first).await.unwrap();
    assert_eq!(used_by(1).await, format!("roll-out {}", first.id));
    let done = next(&first.plan, RolloutState::Done, first.plan.targets.clone());
    store.advance(&done, 1, &[]).await.unwrap();
    assert_eq!(used_by(1).await, format!("gateway {}", gateway(0)));

    // What a roll-out may have to go back to stays, though no gateway is to serve it at the moment.
    let mut second = rollout(2, 2, &[0]);
    second.plan.targets = [(gateway(0), target(Some(2), Some(1)))].into();
    store.create_rollout(&second).await.unwrap();
    assert_eq!(used_by(1).await, format!("roll-out {}", second.id));
    let done = next(&second.plan, RolloutState::Done, second.plan.targets.clone());
    store.advance(&done, 1, &[]).await.unwrap();
    delete(1).await.unwrap();
    assert!(matches!(delete(1).await, Err(StoreError::NotFound { .. })));
    assert_eq!(used_by(2).await, format!("gateway {}", gateway(0)));
    let gone = rollout(3, 1, &[1]);
    assert!(matches!(store.create_rollout(&gone).await, Err(StoreError::NotFound { .. })));
}

async fn blobs_are_those_of_versions(db: &Db) {
    let store = prepared(db, 0).await;
    let of = |numbers: &[u64]| numbers.iter().copied().map(digest).collect::<BTreeSet<_>>();
    let all = of(&[1, 2, 3, 1001, 1002, 1003, 2001, 2002, 2003, 3000]);
    assert_eq!(store.referenced_blobs().await.unwrap(), all);
    store.delete_version(&model("org/chat"), &"v1".parse().unwrap(), "ada").await.unwrap();
    assert!(!store.is_referenced(&digest(2001)).await.unwrap());
    assert!(store.is_referenced(&digest(3000)).await.unwrap(), "others share it");
    assert_eq!(store.referenced_blobs().await.unwrap().len(), 7);
    assert!(matches!(store.manifest(&digest(1)).await, Err(StoreError::NotFound { .. })));

    // Two versions of one bundle: the second keeps the blobs.
    let mut twin = version("org/chat", 2);
    twin.version = "again".parse().unwrap();
    store.insert_version(&twin).await.unwrap();
    store.delete_version(&model("org/chat"), &"v2".parse().unwrap(), "ada").await.unwrap();
    assert!(store.is_referenced(&digest(2002)).await.unwrap());
}
