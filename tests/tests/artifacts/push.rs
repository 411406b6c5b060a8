//! Pushes that are cut, resumed, repeated, and made by two at once.

use futures_util::{StreamExt, stream};
use rookery_proto::{status::reason_of, v1::ListVersionsRequest};
use rookery_tests::within;
use tempfile::TempDir;

use crate::support::{
    PIECE, Random, TestBundle, assert_kept, control_plane, models, pieces, push, staged_files, upload,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_push_cut_at_every_boundary_goes_on_and_sends_no_byte_twice() {
    let folder = TempDir::new().unwrap();
    let plane = control_plane(folder.path()).await;
    let mut models = models(plane.address());
    let bundle = TestBundle::with_noise(1, &[0, 1, PIECE, 3 * PIECE, 3 * PIECE + 1]);
    let begun = models.begin_push(bundle.begin("1")).await.unwrap().into_inner();
    assert_eq!((begun.digest, begun.present_bytes), (bundle.digest(), 0));
    let mut sent = 0;
    for blob in begun.missing {
        let bytes = bundle.blob(&blob.digest);
        assert_eq!((bytes.len() as u64, blob.offset), (blob.size, 0));
        let all = pieces(&blob.digest, &bytes, 0).len();
        // One piece a call: the call ends after each, and the next begins where the server says.
        for step in 0..all {
            let asked = models.begin_push(bundle.begin("1")).await.unwrap().into_inner();
            let here = asked.missing.iter().find(|other| other.digest == blob.digest).unwrap();
            assert_eq!(here.offset, (step * PIECE) as u64);
            let next = pieces(&blob.digest, &bytes, here.offset).remove(0);
            sent += next.data.len() as u64;
            let answer = upload(&mut models, vec![next]).await.unwrap();
            assert_eq!(answer.offset, ((step + 1) * PIECE).min(bytes.len()) as u64);
            assert_eq!(answer.complete, step + 1 == all);
        }
    }
    assert_eq!(sent, begun.total_bytes);
    let version = models.finish_push(bundle.finish("1")).await.unwrap().into_inner();
    assert_eq!(
        (version.digest.as_str(), version.size_bytes),
        (bundle.info.digest.as_str(), bundle.info.total_bytes)
    );
    assert_eq!((version.architecture.as_str(), version.parameters), ("qwen2", bundle.info.config.parameters));
    assert_kept(&folder.path().join("artifacts"), &bundle);
    assert_eq!(staged_files(&folder.path().join("artifacts")), 0);
    // The same again gives the same, and travels not at all.
    let again = models.begin_push(bundle.begin("1")).await.unwrap().into_inner();
    assert_eq!((again.missing.len(), again.present_bytes), (0, again.total_bytes));
    assert_eq!(models.finish_push(bundle.finish("1")).await.unwrap().into_inner(), version);
    plane.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_vanish_and_control_planes_that_restart_lose_nothing() {
    let folder = TempDir::new().unwrap();
    for seed in 1..=12 {
        println!("seed {seed}");
        let mut random = Random(seed);
        let bundle = TestBundle::with_noise(100 * seed, &[5 * PIECE, 9 * PIECE + 3]);
        let version = seed.to_string();
        let mut before = 0;
        for round in 0..6 {
            let plane = control_plane(folder.path()).await;
            let mut models = models(plane.address());
            let begun = models.begin_push(bundle.begin(&version)).await.unwrap().into_inner();
            assert!(begun.present_bytes >= before, "what came stays");
            before = begun.present_bytes;
            let Some(blob) = begun.missing.get(random.below(begun.missing.len())) else { break };
            let messages = pieces(&blob.digest, &bundle.blob(&blob.digest), blob.offset);
            let cut = random.below(messages.len() + 1);
            // The call hangs after the cut, and is dropped with the connection once the pieces are on their way.
            let (told, seen) = tokio::sync::oneshot::channel();
            let messages = stream::iter(messages.into_iter().take(cut))
                .chain(stream::once(async move { _ = told.send(()) }).filter_map(async |()| None))
                .chain(stream::pending());
            tokio::select! {
                answer = models.upload_blob(messages) => panic!("round {round}: {answer:?}"),
                seen = within("the pieces were taken", seen) => seen.unwrap(),
            }
            drop(models);
            plane.drain().await;
        }
        let plane = control_plane(folder.path()).await;
        let mut models = models(plane.address());
        let pushed = push(&mut models, &bundle, &version).await.unwrap();
        assert_eq!(pushed.digest, bundle.digest());
        assert_kept(&folder.path().join("artifacts"), &bundle);
        plane.drain().await;
    }
    let plane = control_plane(folder.path()).await;
    let listed = models(plane.address()).list_versions(ListVersionsRequest::default()).await.unwrap();
    assert_eq!(listed.into_inner().versions.len(), 12, "no accepted push is lost");
    plane.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_is_missing_travels() {
    let folder = TempDir::new().unwrap();
    let plane = control_plane(folder.path()).await;
    let mut models = models(plane.address());
    let (one, two) =
        (TestBundle::with_noise(30, &[PIECE, PIECE]), TestBundle::with_noise(31, &[PIECE, PIECE]));
    push(&mut models, &one, "1").await.unwrap();
    let begun = models.begin_push(two.begin("2")).await.unwrap().into_inner();
    // The second bundle's first layer of noise is the first one's second.
    let missing: Vec<_> = begun.missing.iter().map(|blob| blob.size).collect();
    assert_eq!(missing, [PIECE as u64]);
    assert_eq!(begun.total_bytes - begun.present_bytes, PIECE as u64);
    push(&mut models, &two, "2").await.unwrap();
    plane.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_pushes_of_the_same_bundle_at_once_both_end() {
    let folder = TempDir::new().unwrap();
    let plane = control_plane(folder.path()).await;
    let bundle = TestBundle::with_noise(40, &[20 * PIECE, 7 * PIECE, PIECE]);
    let (mut one, mut two, mut three) =
        (models(plane.address()), models(plane.address()), models(plane.address()));
    let (one, two, three) = within("the pushes end", async {
        tokio::join!(
            push(&mut one, &bundle, "1"),
            push(&mut two, &bundle, "1"),
            // Under another name: the same digest, another version.
            push(&mut three, &bundle, "2")
        )
    })
    .await;
    assert_eq!(one.unwrap().digest, two.unwrap().digest);
    assert_eq!(three.unwrap().version, "2");
    assert_kept(&folder.path().join("artifacts"), &bundle);
    plane.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_ends_uploads_and_keeps_what_came() {
    let folder = TempDir::new().unwrap();
    let plane = control_plane(folder.path()).await;
    let mut client = models(plane.address());
    let bundle = TestBundle::with_noise(50, &[4 * PIECE]);
    let begun = client.begin_push(bundle.begin("1")).await.unwrap().into_inner();
    let blob = begun.missing.iter().find(|blob| blob.size == 4 * PIECE as u64).unwrap();
    let messages = pieces(&blob.digest, &bundle.blob(&blob.digest), 0).into_iter().take(2);
    let hanging = stream::iter(messages).chain(stream::pending());
    let (status, clean) = within("the upload ends with the drain", async {
        let mut uploading = std::pin::pin!(client.upload_blob(hanging));
        // Begun once the server has some of it.
        let mut other = models(plane.address());
        loop {
            tokio::select! {
                answer = &mut uploading => panic!("{answer:?}"),
                begun = other.begin_push(bundle.begin("1")) => {
                    if begun.unwrap().into_inner().present_bytes > 0 { break }
                }
            }
        }
        drop(other);
        tokio::join!(uploading, plane.drain())
    })
    .await;
    let status = status.unwrap_err();
    assert_eq!(reason_of(&status), Some(rookery_proto::status::Reason::Draining), "{status}");
    assert!(clean);
    let plane = control_plane(folder.path()).await;
    push(&mut models(plane.address()), &bundle, "1").await.unwrap();
    plane.drain().await;
}
