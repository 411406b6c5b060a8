//! Downloads that are cut at every boundary, that bring other bytes, or that begin again.

use std::sync::{Arc, atomic::Ordering};

use rookery_model::bundle::Digest;
use rookery_proto::v1;
use tempfile::TempDir;

use crate::{
    bundles::{all, version},
    gateway::{Blobs, Gateway, config, verdict},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_download_that_is_cut_again_and_again_loses_no_byte() {
    let version = version("cut");
    let total: u64 = version.blobs.values().map(|bytes| bytes.len() as u64).sum();
    let longest = version.blobs.values().map(Vec::len).max().unwrap();
    for cut in [1 << 10, 4095, 4096, 4097, 32 << 10, 100_000, longest - 1] {
        let folder = TempDir::new().unwrap();
        let source = Blobs { cut, ..Blobs::new(all(&[&version])) };
        let gateway = Gateway::start(config(folder.path()), source.clone()).await;
        gateway.agent.assign(version.assigned(1)).await.unwrap();
        let status = gateway.until_phase(&version.digest, v1::Phase::Serving).await;
        assert_eq!(source.sent.load(Ordering::Relaxed), total, "cut at {cut}");
        assert_eq!((status.downloaded_bytes, status.total_bytes), (total, total), "cut at {cut}");
        gateway.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_in_any_blob_is_noticed_and_never_served() {
    let version = version("flip");
    for (index, digest) in version.blobs.keys().enumerate() {
        let folder = TempDir::new().unwrap();
        let mut blobs = version.blobs.clone();
        let bytes = blobs.get_mut(digest).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1 << (index % 8);
        let gateway = Gateway::start(config(folder.path()), Blobs::new(Arc::new(blobs))).await;
        gateway.agent.assign(version.assigned(1)).await.unwrap();
        let status = gateway.until_phase(&version.digest, v1::Phase::Failed).await;
        let digests = verdict(&status, "digests");
        assert!(!digests.passed && digests.expected.contains(digest.as_str()), "{digests:?}");
        assert_eq!(gateway.serving(), None);
        gateway.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_goes_on_where_it_was_and_shared_blobs_travel_once() {
    let (first, second) = (version("shared-a"), version("shared-b"));
    let folder = TempDir::new().unwrap();
    let source = Blobs::new(all(&[&first, &second]));
    let gateway = Gateway::start(config(folder.path()), source.clone()).await;
    gateway.agent.assign(first.assigned(1)).await.unwrap();
    gateway.until_phase(&first.digest, v1::Phase::Serving).await;
    gateway.stop().await;
    source.sent.store(0, Ordering::Relaxed);
    let gateway = Gateway::start(config(folder.path()), source.clone()).await;
    gateway.until_phase(&first.digest, v1::Phase::Serving).await;
    assert_eq!(source.sent.load(Ordering::Relaxed), 0);
    gateway.agent.assign(second.assigned(2)).await.unwrap();
    gateway.until_phase(&second.digest, v1::Phase::Serving).await;
    let shared = |digest: &&Digest| first.blobs.contains_key(digest);
    let new: usize =
        second.blobs.keys().filter(|digest| !shared(digest)).map(|d| second.blobs[d].len()).sum();
    assert_eq!(source.sent.load(Ordering::Relaxed), new as u64);
    gateway.stop().await;
}
