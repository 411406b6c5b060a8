//! Garbage, collected while others push.

use rookery_proto::v1::{CollectGarbageRequest, DeleteVersionRequest};
use rookery_tests::within;
use tempfile::TempDir;
use tonic::Code;

use crate::support::{PIECE, TestBundle, assert_kept, control_plane, models, pieces, push, upload};

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_version_frees_what_it_alone_needed() {
    let folder = TempDir::new().unwrap();
    let plane = control_plane(folder.path()).await;
    let mut models = models(plane.address());
    let (one, two) =
        (TestBundle::with_noise(200, &[PIECE, 3 * PIECE]), TestBundle::with_noise(300, &[PIECE]));
    push(&mut models, &one, "1").await.unwrap();
    push(&mut models, &two, "2").await.unwrap();
    let none = models.collect_garbage(CollectGarbageRequest { dry_run: false }).await.unwrap().into_inner();
    assert_eq!((none.blobs, none.bytes), (0, 0));
    let version = DeleteVersionRequest { model: "tiny".into(), version: "1".into() };
    models.delete_version(version.clone()).await.unwrap();
    // Half of another push is not garbage.
    let three = TestBundle::with_noise(400, &[PIECE]);
    let begun = models.begin_push(three.begin("3")).await.unwrap().into_inner();
    let blob = &begun.missing[0];
    upload(&mut models, pieces(&blob.digest, &three.blob(&blob.digest), 0)).await.unwrap();
    let alone = 4 * PIECE as u64 + one.info.manifest_size;
    for dry_run in [true, true, false] {
        let freed = models.collect_garbage(CollectGarbageRequest { dry_run }).await.unwrap().into_inner();
        assert_eq!((freed.blobs, freed.bytes), (3, alone), "dry run: {dry_run}");
    }
    assert_kept(&folder.path().join("artifacts"), &two);
    assert!(!folder.path().join("artifacts").join(one.info.digest.path()).exists());
    push(&mut models, &three, "3").await.unwrap();
    let gone = models.delete_version(version).await.unwrap_err();
    assert_eq!(gone.code(), Code::NotFound);
    plane.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pushes_end_whole_beside_collections_that_never_stop() {
    let folder = TempDir::new().unwrap();
    let plane = control_plane(folder.path()).await;
    let address = plane.address();
    let bundles: Vec<_> = (0..6).map(|n| TestBundle::with_noise(500 + n, &[2 * PIECE, PIECE, 1])).collect();
    let collecting = async {
        let mut models = models(address);
        loop {
            match models.collect_garbage(CollectGarbageRequest { dry_run: false }).await {
                Ok(_) => {}
                Err(status) if status.code() == Code::Aborted => {}
                Err(status) => panic!("{status}"),
            }
        }
    };
    let pushing = async |model: u64| {
        let mut models = models(address);
        for (at, bundle) in bundles.iter().enumerate() {
            let version = format!("{model}.{at}");
            push(&mut models, bundle, &version).await.unwrap();
            // What goes away takes nothing that others need.
            if at % 2 == model as usize % 2 {
                models.delete_version(DeleteVersionRequest { model: "tiny".into(), version }).await.unwrap();
            }
        }
    };
    within("the pushes end", async {
        tokio::select! {
            _ = collecting => {}
            _ = async { tokio::join!(pushing(0), pushing(1)) } => {}
        }
    })
    .await;
    for bundle in &bundles {
        assert_kept(&folder.path().join("artifacts"), bundle);
    }
    plane.drain().await;
}
