//! Names of versions, aliases, signatures.

use rookery_proto::{
    signing::SigningKey,
    status::{Reason, field_violations, reason_of},
    v1,
};
use tempfile::TempDir;

use crate::support::{PIECE, TestBundle, control_plane, models, push};

#[tokio::test(flavor = "multi_thread")]
async fn a_version_never_changes_and_aliases_move() {
    let folder = TempDir::new().unwrap();
    let plane = control_plane(folder.path()).await;
    let mut models = models(plane.address());
    let (one, two) = (TestBundle::with_noise(600, &[PIECE]), TestBundle::with_noise(601, &[PIECE]));
    push(&mut models, &one, "1").await.unwrap();
    let taken = models.begin_push(two.begin("1")).await.unwrap_err();
    assert_eq!(reason_of(&taken), Some(Reason::VersionExists), "{taken}");
    push(&mut models, &two, "2").await.unwrap();
    let alias = |alias: &str, version: &str| v1::SetAliasRequest {
        model: "tiny".into(),
        alias: alias.into(),
        version: version.into(),
    };
    models.set_alias(alias("stable", "1")).await.unwrap();
    models.set_alias(alias("stable", "2")).await.unwrap();
    let named = models.begin_push(one.begin("stable")).await.unwrap_err();
    assert_eq!(reason_of(&named), Some(Reason::VersionExists), "{named}");
    for (alias, reason) in [
        (alias("1", "2"), Reason::VersionExists),
        (alias("x", "3"), Reason::ObjectNotFound),
        (alias("../x", "1"), Reason::InvalidField),
    ] {
        let status = models.set_alias(alias).await.unwrap_err();
        assert_eq!(reason_of(&status), Some(reason), "{status}");
    }
    let listed = models.list_versions(v1::ListVersionsRequest { model: "tiny".into() }).await.unwrap();
    let listed = listed.into_inner().versions;
    let aliases: Vec<_> = listed.iter().map(|one| (one.version.as_str(), one.aliases.join(","))).collect();
    assert_eq!(aliases, [("2", "stable".to_owned()), ("1", String::new())]);
    let version = v1::DeleteVersionRequest { model: "tiny".into(), version: "2".into() };
    let used = models.delete_version(version.clone()).await.unwrap_err();
    assert!(reason_of(&used) == Some(Reason::VersionInUse) && used.message().contains("stable"), "{used}");
    let gone = v1::DeleteAliasRequest { model: "tiny".into(), alias: "stable".into() };
    models.delete_alias(gone.clone()).await.unwrap();
    assert_eq!(reason_of(&models.delete_alias(gone).await.unwrap_err()), Some(Reason::ObjectNotFound));
    models.delete_version(version).await.unwrap();
    let index = std::fs::read_to_string(folder.path().join("artifacts/index.json")).unwrap();
    assert!(index.contains("tiny:1") && !index.contains("tiny:2"), "{index}");
    plane.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn signatures_by_trusted_keys_are_checked_when_they_come() {
    let folder = TempDir::new().unwrap();
    let plane = control_plane(folder.path()).await;
    let mut models = models(plane.address());
    let bundle = TestBundle::with_noise(610, &[]);
    let (key, other) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
    let trust = v1::TrustKeyRequest { public_key: key.public().to_bytes().to_vec() };
    let trusted = models.trust_key(trust.clone()).await.unwrap().into_inner();
    assert_eq!(trusted.key_id, key.public().id().as_str());
    assert_eq!(models.trust_key(trust).await.unwrap().into_inner().key_id, trusted.key_id);
    let weak = models.trust_key(v1::TrustKeyRequest { public_key: vec![0; 32] }).await.unwrap_err();
    assert_eq!(field_violations(&weak)[0].0, "public_key");

    push(&mut models, &bundle, "1").await.unwrap();
    let elsewhere = key.sign("sha256:0");
    let finish = v1::FinishPushRequest { signatures: vec![elsewhere.clone()], ..bundle.finish("2") };
    models.begin_push(bundle.begin("2")).await.unwrap();
    let wrong = models.finish_push(finish).await.unwrap_err();
    assert_eq!(field_violations(&wrong)[0].0, "signatures", "{wrong}");
    let add = |signature| v1::AddSignatureRequest { model: "tiny".into(), version: "1".into(), signature };
    assert!(models.add_signature(add(Some(elsewhere))).await.is_err());
    assert!(models.add_signature(add(None)).await.is_err());
    let short = v1::Signature { key_id: trusted.key_id.clone(), signature: vec![1; 63] };
    assert!(models.add_signature(add(Some(short))).await.is_err());
    let signed = models.add_signature(add(Some(key.sign(&bundle.digest())))).await.unwrap().into_inner();
    assert_eq!(signed.signatures, [key.sign(&bundle.digest())]);
    // A stranger's is kept: whether it counts is asked by gateways, of the keys that are trusted then.
    let signed = models.add_signature(add(Some(other.sign(&bundle.digest())))).await.unwrap().into_inner();
    assert_eq!(signed.signatures.len(), 2);

    let keys = models.list_trusted_keys(v1::ListTrustedKeysRequest {}).await.unwrap().into_inner().keys;
    assert_eq!(keys.len(), 1);
    let distrust = v1::DistrustKeyRequest { key_id: trusted.key_id };
    models.distrust_key(distrust.clone()).await.unwrap();
    assert_eq!(reason_of(&models.distrust_key(distrust).await.unwrap_err()), Some(Reason::ObjectNotFound));
    plane.drain().await;
}
