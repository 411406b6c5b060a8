//! Blobs for gateways: ranges, and how many at a time.

use futures_util::StreamExt;
use rookery_control_plane::{domain::GatewayId, service::Blobs, trust::Identity};
use rookery_proto::{
    server::{Gate, Tasks},
    status::{Reason, reason_of, retry_after},
    v1::{ReadBlobRequest, artifact_service_server::ArtifactService},
};
use rookery_tests::within;
use tempfile::TempDir;
use tonic::{Request, Status};

use crate::support::{PIECE, TestBundle, control_plane, models, push};

fn request(digest: &str, offset: u64, length: u64) -> Request<ReadBlobRequest> {
    let mut request = Request::new(ReadBlobRequest { digest: digest.to_owned(), offset, length });
    let id: GatewayId = "gw-1".parse().unwrap();
    request.extensions_mut().insert(Identity::Gateway { id, serial: "01".to_owned() });
    request
}

async fn read(blobs: &Blobs, request: Request<ReadBlobRequest>) -> Result<Vec<u8>, Status> {
    let mut pieces = blobs.read_blob(request).await?.into_inner();
    let mut bytes = Vec::new();
    while let Some(piece) = pieces.next().await {
        bytes.extend(piece?.data);
    }
    Ok(bytes)
}

#[tokio::test(flavor = "multi_thread")]
async fn gateways_read_ranges_of_blobs_of_versions_a_few_at_a_time() {
    let folder = TempDir::new().unwrap();
    let plane = control_plane(folder.path()).await;
    let mut models = models(plane.address());
    let bundle = TestBundle::with_noise(700, &[40 * PIECE]);
    let digest = bundle.info.blobs.last().unwrap().digest.to_string();
    let (tasks, gate) = (Tasks::new(), Gate::new(1));
    let blobs = Blobs::new(plane.store().clone(), plane.artifacts().clone(), 2, tasks, gate.clone());
    let early = read(&blobs, request(&digest, 0, 0)).await.unwrap_err();
    assert_eq!(reason_of(&early), Some(Reason::ObjectNotFound), "{early}");
    push(&mut models, &bundle, "1").await.unwrap();
    let bytes = bundle.blob(&digest);
    let end = bytes.len();
    for (offset, length) in [(0, 0), (1, 1), (PIECE, 3 * PIECE), (end - 1, 100), (end, 0)] {
        let got = read(&blobs, request(&digest, offset as u64, length as u64)).await.unwrap();
        let to = if length == 0 { end } else { (offset + length).min(end) };
        assert!(got == bytes[offset..to], "{offset}+{length}");
    }
    assert_eq!(read(&blobs, request(bundle.info.digest.as_str(), 0, 0)).await.unwrap(), bundle.manifest());
    for (digest, offset, reason) in [
        (digest.as_str(), end as u64 + 1, Reason::InvalidField),
        ("sha256:../../x", 0, Reason::InvalidField),
        ("", 0, Reason::InvalidField),
        (format!("sha256:{}", "0".repeat(64)).as_str(), 0, Reason::ObjectNotFound),
    ] {
        let status = read(&blobs, request(digest, offset, 0)).await.unwrap_err();
        assert_eq!(reason_of(&status), Some(reason), "{digest}: {status}");
    }
    let mut stranger = request(&digest, 0, 0);
    stranger.extensions_mut().insert(Identity::Nobody);
    assert_eq!(reason_of(&read(&blobs, stranger).await.unwrap_err()), Some(Reason::Unauthenticated));

    let held = [0, 1].map(|_| blobs.read_blob(request(&digest, 0, 0)));
    let mut held: Vec<_> = futures_util::future::try_join_all(held).await.unwrap();
    let full = read(&blobs, request(&digest, 0, 0)).await.unwrap_err();
    assert!(reason_of(&full) == Some(Reason::QueueFull) && retry_after(&full).is_some(), "{full}");
    // A gateway that goes away gives its place back.
    held.pop();
    within("a place is free again", async {
        while read(&blobs, request(&digest, 0, 1)).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    gate.begin_drain();
    assert_eq!(reason_of(&read(&blobs, request(&digest, 0, 0)).await.unwrap_err()), Some(Reason::Draining));
    drop(held);
    plane.drain().await;
}
