//! What is refused, and that it disturbs nothing else.

use std::fs;

use rookery_proto::{
    status::{Reason, field_violations, reason_of},
    v1,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tonic::{Code, Status};

use crate::support::{
    Models, PIECE, TestBundle, control_plane, models, noise, pieces, push, staged_files, upload,
    write_manifest,
};

#[tokio::test(flavor = "multi_thread")]
async fn names_that_are_paths_and_blobs_that_nobody_announced_are_refused() {
    let folder = TempDir::new().unwrap();
    let plane = control_plane(folder.path()).await;
    let mut models = models(plane.address());
    let bundle = TestBundle::with_noise(60, &[PIECE]);
    for (model, version) in [
        ("", "1"),
        ("..", "1"),
        ("a/../b", "1"),
        ("/etc", "1"),
        ("a\0", "1"),
        ("tiny", ""),
        ("tiny", "a/b"),
        ("tiny", "ü"),
        ("tiny", "v".repeat(129).as_str()),
    ] {
        let request =
            v1::BeginPushRequest { model: model.into(), version: version.into(), ..bundle.begin("1") };
        let status = models.begin_push(request).await.unwrap_err();
        assert_eq!(reason_of(&status), Some(Reason::InvalidField), "{model:?}@{version:?}: {status}");
    }
    let blob = noise(61, PIECE);
    let digest = rookery_model::bundle::Digest::of(&blob).to_string();
    let unknown = upload(&mut models, pieces(&digest, &blob, 0)).await.unwrap_err();
    assert_eq!(reason_of(&unknown), Some(Reason::Conflict), "{unknown}");
    for digest in ["", "sha256:..", "../../../../etc/passwd", &digest.to_uppercase(), &format!("{digest}/x")]
    {
        let status = upload(&mut models, pieces(digest, &blob, 0)).await.unwrap_err();
        assert_eq!(reason_of(&status), Some(Reason::InvalidField), "{digest}: {status}");
    }
    let nothing = upload(&mut models, Vec::new()).await.unwrap_err();
    assert_eq!(field_violations(&nothing)[0].0, "digest");
    // None of it has left a trace.
    assert_eq!(staged_files(&folder.path().join("artifacts")), 0);
    push(&mut models, &bundle, "1").await.unwrap();
    plane.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_sizes_and_offsets_are_refused_and_the_push_goes_on() {
    let folder = TempDir::new().unwrap();
    let plane = control_plane(folder.path()).await;
    let mut models = models(plane.address());
    let bundle = TestBundle::with_noise(70, &[2 * PIECE]);
    let begun = models.begin_push(bundle.begin("1")).await.unwrap().into_inner();
    let blob = begun.missing.iter().find(|blob| blob.size == 2 * PIECE as u64).unwrap();
    let bytes = bundle.blob(&blob.digest);

    let mut wrong = bytes.clone();
    wrong[PIECE + 7] ^= 0x10;
    let status = upload(&mut models, pieces(&blob.digest, &wrong, 0)).await.unwrap_err();
    assert_eq!((reason_of(&status), status.code()), (Some(Reason::DigestMismatch), Code::DataLoss));

    let mut longer = pieces(&blob.digest, &bytes, 0);
    longer.push(v1::UploadBlobRequest { data: vec![0], ..Default::default() });
    let status = upload(&mut models, longer).await.unwrap_err();
    assert_eq!(field_violations(&status)[0].0, "data", "{status}");

    let mut sized = pieces(&blob.digest, &bytes, 0);
    sized[0].size += 1;
    let status = upload(&mut models, sized).await.unwrap_err();
    assert_eq!(reason_of(&status), Some(Reason::Conflict), "{status}");

    let mut beyond = pieces(&blob.digest, &bytes, 0);
    beyond[0].offset = blob.size + 1;
    let status = upload(&mut models, beyond).await.unwrap_err();
    assert_eq!(field_violations(&status)[0].0, "offset");

    let mut named_again = pieces(&blob.digest, &bytes, 2 * PIECE as u64);
    named_again[0].offset = 1;
    let status = upload(&mut models, named_again).await.unwrap_err();
    assert_eq!(reason_of(&status), Some(Reason::Conflict), "{status}");

    let here = models.begin_push(bundle.begin("1")).await.unwrap().into_inner();
    let offset = here.missing.iter().find(|other| other.digest == blob.digest).unwrap().offset;
    let mut twice = pieces(&blob.digest, &bytes, offset);
    twice.push(v1::UploadBlobRequest { digest: blob.digest.clone(), ..Default::default() });
    let status = upload(&mut models, twice).await.unwrap_err();
    assert_eq!(field_violations(&status)[0].0, "digest", "{status}");

    push(&mut models, &bundle, "1").await.unwrap();
    plane.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn oversized_messages_are_refused() {
    let folder = TempDir::new().unwrap();
    let plane = control_plane(folder.path()).await;
    let mut models = models(plane.address());
    let bundle = TestBundle::with_noise(80, &[3 << 20]);
    let begun = models.begin_push(bundle.begin("1")).await.unwrap().into_inner();
    let blob = begun.missing.iter().find(|blob| blob.size == 3 << 20).unwrap();
    let message = |data: Vec<u8>| v1::UploadBlobRequest {
        digest: blob.digest.clone(),
        size: blob.size,
        offset: 0,
        data,
    };
    let bytes = bundle.blob(&blob.digest);
    let over = upload(&mut models, vec![message(bytes[..(1 << 20) + 1].to_vec())]).await.unwrap_err();
    assert_eq!(field_violations(&over)[0].0, "data", "{over}");
    let huge = upload(&mut models, vec![message(bytes.clone())]).await.unwrap_err();
    assert_eq!(huge.code(), Code::OutOfRange, "{huge}");
    let manifest = vec![b' '; (1 << 20) + 1];
    let long = models.begin_push(v1::BeginPushRequest { manifest, ..bundle.begin("1") }).await.unwrap_err();
    assert_eq!(field_violations(&long)[0].0, "manifest", "{long}");
    let exact = upload(&mut models, vec![message(bytes[..1 << 20].to_vec())]).await.unwrap();
    assert_eq!((exact.offset, exact.complete), (1 << 20, false));
    plane.drain().await;
}

/// Pushes a changed manifest of the bundle by hand, with whatever blobs it names, and gives what the end of it says.
async fn finish_changed(
    models: &mut Models,
    change: impl FnOnce(&TestBundle, &mut Value),
) -> Result<(), Status> {
    let bundle = TestBundle::with_noise(90, &[]);
    let mut manifest: Value = serde_json::from_slice(&bundle.manifest()).unwrap();
    change(&bundle, &mut manifest);
    write_manifest(&bundle.path, &manifest);
    let bytes = manifest.to_string().into_bytes();
    let digest = rookery_model::bundle::Digest::of(&bytes).to_string();
    let begin = v1::BeginPushRequest { manifest: bytes, ..bundle.begin("changed") };
    for blob in models.begin_push(begin).await?.into_inner().missing {
        upload(models, pieces(&blob.digest, &bundle.blob(&blob.digest), blob.offset)).await?;
    }
    models.finish_push(v1::FinishPushRequest { digest, ..bundle.finish("changed") }).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_readers_of_bundles_refuse_is_no_version() {
    let folder = TempDir::new().unwrap();
    let plane = control_plane(folder.path()).await;
    let mut models = models(plane.address());
    let refused = [
        // Seen when the push begins.
        finish_changed(&mut models, |_, manifest| manifest["artifactType"] = json!("other")).await,
        finish_changed(&mut models, |_, manifest| manifest["layers"] = json!([])).await,
        finish_changed(&mut models, |_, manifest| manifest["config"]["size"] = json!(1u64 << 40)).await,
        finish_changed(&mut models, |_, manifest| manifest["layers"][0]["digest"] = json!("sha256:../x"))
            .await,
        // Seen when it ends: the config wants a layer that is not there, or is no config.
        finish_changed(&mut models, |_, manifest| {
            manifest["layers"].as_array_mut().unwrap().remove(0);
        })
        .await,
        finish_changed(&mut models, |bundle, manifest| {
            let bytes = br#"{"schema_version": 2}"#;
            let digest = rookery_model::bundle::Digest::of(bytes);
            fs::write(bundle.path.join(digest.path()), bytes).unwrap();
            manifest["config"]["digest"] = json!(digest);
            manifest["config"]["size"] = json!(bytes.len());
        })
        .await,
    ];
    for (at, refused) in refused.into_iter().enumerate() {
        let status = refused.unwrap_err();
        assert_eq!(field_violations(&status)[0].0, "manifest", "{at}: {status}");
    }
    let listed = models.list_versions(v1::ListVersionsRequest::default()).await.unwrap().into_inner();
    assert_eq!(listed.versions, []);
    finish_changed(&mut models, |_, manifest| manifest["unknown"] = json!(1)).await.unwrap();
    plane.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_that_is_not_whole_does_not_end() {
    let folder = TempDir::new().unwrap();
    let plane = control_plane(folder.path()).await;
    let mut models = models(plane.address());
    let bundle = TestBundle::with_noise(95, &[PIECE]);
    let status = models.finish_push(bundle.finish("1")).await.unwrap_err();
    assert_eq!(reason_of(&status), Some(Reason::Conflict), "not begun: {status}");
    let missing = models.begin_push(bundle.begin("1")).await.unwrap().into_inner().missing;
    for blob in &missing[1..] {
        upload(&mut models, pieces(&blob.digest, &bundle.blob(&blob.digest), 0)).await.unwrap();
    }
    let status = models.finish_push(bundle.finish("1")).await.unwrap_err();
    assert!(
        reason_of(&status) == Some(Reason::Conflict) && status.message().contains(&missing[0].digest),
        "{status}"
    );
    push(&mut models, &bundle, "1").await.unwrap();
    plane.drain().await;
}
