//! What does not get through, and what its verdict says.

use rookery_proto::{signing::SigningKey, v1};
use tempfile::TempDir;

use crate::{
    bundles::{Version, all, version, with_probes},
    gateway::{Blobs, Gateway, board, config, verdict},
};

/// Has `bad` refused by a gateway that serves `good`, which goes on serving.
async fn refused(
    good: &Version,
    bad: &Version,
    change: impl FnOnce(&mut v1::VersionAssignment),
) -> v1::VersionStatus {
    let folder = TempDir::new().unwrap();
    let gateway = Gateway::start(config(folder.path()), Blobs::new(all(&[good, bad]))).await;
    gateway.agent.assign(good.assigned(1)).await.unwrap();
    gateway.until_phase(&good.digest, v1::Phase::Serving).await;
    let mut assignment = bad.assigned(2);
    change(&mut assignment.versions[0]);
    gateway.agent.assign(assignment.clone()).await.unwrap();
    let status = gateway.until_phase(&bad.digest, v1::Phase::Failed).await;
    assert_eq!(gateway.serving().as_deref(), Some(good.digest.as_str()));
    // The same generation again changes nothing.
    assert_eq!(gateway.agent.assign(assignment).await, Ok(2));
    let again = gateway.until_phase(&bad.digest, v1::Phase::Failed).await;
    assert_eq!(again.reason, status.reason);
    gateway.stop().await;
    status
}

#[tokio::test(flavor = "multi_thread")]
async fn weights_that_were_altered_by_one_bit_are_refused_by_their_probes() {
    let good = version("one-bit");
    let bad = good.repacked("block.0.safetensors", |bytes| {
        let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let tensors: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
        let offsets = &tensors["blk.0.ffn_down.weight.scales"]["data_offsets"];
        // The highest bit of the first scale's mantissa.
        bytes[8 + header + offsets[0].as_u64().unwrap() as usize + 2] ^= 0x40;
    });
    let status = refused(&good, &bad, |_| {}).await;
    let probes = verdict(&status, "probes");
    assert!(!probes.passed && probes.seen.contains("differ"), "{probes:?}");
    assert!(probes.seen.contains("logits") && probes.expected.contains("2 probes"), "{probes:?}");
    assert!(status.reason.starts_with("probes: expected"), "{}", status.reason);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_answers_are_refused_with_what_was_expected_and_seen() {
    let good = version("good-answers");
    let bad = with_probes("good-answers", |set| {
        let token = &mut set.probes[1].f16.tokens[2];
        *token = (*token + 1) % 512;
    });
    let status = refused(&good, &bad, |_| {}).await;
    let probes = verdict(&status, "probes");
    assert!(probes.seen.contains("\"text/1\" differs at generated token 2: expected token"), "{probes:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_slower_than_its_profile_is_refused_and_without_a_profile_it_is_not_judged() {
    let good = version("speed");
    let bad = with_probes("speed", |set| {
        set.profile.insert("*".to_owned(), 1e9);
    });
    let status = refused(&good, &bad, |wanted| wanted.min_speed_percent = 80.0).await;
    let speed = verdict(&status, "speed");
    assert!(speed.expected.contains("80 % of the profile's 1000000000.0"), "{speed:?}");
    assert!(speed.seen.ends_with("tokens/s"), "{speed:?}");
    // A profile that is easily reached.
    let easy = with_probes("speed", |set| {
        set.profile.insert("*".to_owned(), 1e-3);
    });
    let folder = TempDir::new().unwrap();
    let gateway = Gateway::start(config(folder.path()), Blobs::new(all(&[&easy]))).await;
    gateway.agent.assign(easy.assigned(1)).await.unwrap();
    let status = gateway.until_phase(&easy.digest, v1::Phase::Serving).await;
    assert!(verdict(&status, "speed").passed);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_nobody_trusted_has_signed_is_refused_before_anything_travels() {
    let (trusted, stranger) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
    let (good, bad) = (version("signed"), version("unsigned"));
    let keys = vec![trusted.public().to_bytes().to_vec()];
    let status = refused(&good, &bad, |wanted| {
        wanted.trusted_keys.clone_from(&keys);
        wanted.signatures = vec![stranger.sign(&wanted.digest)];
    })
    .await;
    assert!(!verdict(&status, "signature").passed);
    assert_eq!(status.downloaded_bytes, 0);
    let folder = TempDir::new().unwrap();
    let gateway = Gateway::start(config(folder.path()), Blobs::new(all(&[&good]))).await;
    let mut assignment = good.assigned(1);
    assignment.versions[0].trusted_keys = keys;
    assignment.versions[0].signatures = vec![trusted.sign(good.digest.as_str())];
    gateway.agent.assign(assignment).await.unwrap();
    let status = gateway.until_phase(&good.digest, v1::Phase::Serving).await;
    assert!(verdict(&status, "signature").seen.contains(trusted.public().id().as_str()));
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fits_neither_memory_nor_disk_is_refused_before_its_weights_travel() {
    let version = version("fit");
    let large: u64 = version.blobs.values().map(|bytes| bytes.len() as u64).sum();
    for gate in ["memory", "disk"] {
        let folder = TempDir::new().unwrap();
        let mut config = config(folder.path());
        if gate == "memory" {
            config.board = board(folder.path(), 8 << 30, 60 << 20);
        } else {
            config.disk_headroom = 1 << 60;
        }
        let source = Blobs::new(all(&[&version]));
        let gateway = Gateway::start(config, source.clone()).await;
        gateway.agent.assign(version.assigned(1)).await.unwrap();
        let status = gateway.until_phase(&version.digest, v1::Phase::Failed).await;
        let verdict = verdict(&status, gate);
        assert!(!verdict.passed && !verdict.expected.is_empty() && !verdict.seen.is_empty(), "{verdict:?}");
        let sent = source.sent.load(std::sync::atomic::Ordering::Relaxed);
        assert!(sent < large / 4, "{sent} of {large} bytes came before {gate} refused");
        gateway.stop().await;
    }
}
