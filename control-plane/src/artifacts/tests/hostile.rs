//! Bytes that are not what they should be, and uploads that meet.

use std::io::Write;

use super::*;

#[tokio::test]
async fn bytes_without_the_digest_are_thrown_away_and_can_be_sent_again() {
    for place in places().await {
        for length in [1, PIECE, 9 << 20] {
            let bytes = noise(11, length);
            let (digest, size) = (digest(&bytes), length as u64);
            let mut wrong = bytes.clone();
            wrong[length / 2] ^= 1;
            let mut upload = place.artifacts.begin_upload(&digest, size, 0).unwrap();
            upload.append(&wrong).await.unwrap();
            let refused = upload.finish().await.unwrap_err();
            let found = super::digest(&wrong);
            assert!(
                matches!(&refused, ArtifactError::Digest { found: told, .. } if *told == found),
                "{refused}"
            );
            assert!(!place.artifacts.has(&digest).await.unwrap());
            assert_eq!(place.artifacts.staged_bytes(&digest, size).unwrap(), 0);
            assert!(send(&place.artifacts, &bytes).await.unwrap());
            assert_eq!(stored(&place.artifacts, &digest).await, bytes);
        }
    }
}

#[tokio::test]
async fn what_a_power_cut_left_of_a_file_is_found_out() {
    for place in places().await {
        let bytes = noise(12, 4 * PIECE);
        let (digest, size) = (digest(&bytes), bytes.len() as u64);
        // The length was written and the last piece was not: file systems do that.
        let mut file = std::fs::File::create(place.staged(&digest)).unwrap();
        file.write_all(&bytes[..3 * PIECE]).unwrap();
        file.set_len(size).unwrap();
        drop(file);
        assert_eq!(place.artifacts.staged_bytes(&digest, size).unwrap(), size);
        assert!(matches!(send(&place.artifacts, &bytes).await, Err(ArtifactError::Digest { .. })));
        assert!(send(&place.artifacts, &bytes).await.unwrap());
        assert_eq!(stored(&place.artifacts, &digest).await, bytes);
    }
}

#[tokio::test]
async fn a_blob_takes_no_more_than_its_size_and_only_from_where_it_is() {
    for place in places().await {
        let bytes = noise(13, 2 * PIECE);
        let (digest, size) = (digest(&bytes), bytes.len() as u64);
        let mut upload = place.artifacts.begin_upload(&digest, size, 0).unwrap();
        upload.append(&bytes[..PIECE]).await.unwrap();
        let more = upload.append(&noise(14, PIECE + 1)).await.unwrap_err();
        assert!(matches!(more, ArtifactError::TooLong { .. }));
        assert!(!upload.finish().await.unwrap());
        for offset in [0, PIECE as u64 - 1, PIECE as u64 + 1, size] {
            let refused = place.artifacts.begin_upload(&digest, size, offset).unwrap_err();
            assert!(matches!(refused, ArtifactError::Offset { offset: here, .. } if here == PIECE as u64));
        }
        // Somebody thought the blob larger: what they left is no beginning of this one.
        assert_eq!(place.artifacts.staged_bytes(&digest, 10).unwrap(), 0);
        let short = place.artifacts.begin_upload(&digest, 10, 0).unwrap();
        assert!(!short.finish().await.unwrap());
        assert!(send(&place.artifacts, &bytes).await.unwrap());
    }
}

#[tokio::test]
async fn one_call_appends_at_a_time_in_whatever_process() {
    for place in places().await {
        let other = place.reopened().await;
        let bytes = noise(15, 2 * PIECE);
        let (digest, size) = (digest(&bytes), bytes.len() as u64);
        let mut first = place.artifacts.begin_upload(&digest, size, 0).unwrap();
        first.append(&bytes[..PIECE]).await.unwrap();
        first.pause().await.unwrap();
        let mut first = place.artifacts.begin_upload(&digest, size, PIECE as u64).unwrap();
        for artifacts in [&place.artifacts, &other] {
            let refused = artifacts.begin_upload(&digest, size, 0).unwrap_err();
            assert!(
                matches!(refused, ArtifactError::Busy { offset, .. } if offset == PIECE as u64),
                "{refused}"
            );
        }
        first.append(&bytes[PIECE..]).await.unwrap();
        // Opened before the file is published, used after: it must not write into the blob.
        assert!(first.finish().await.unwrap());
        let late = other.begin_upload(&digest, size, 0).unwrap();
        drop(late);
        assert_eq!(stored(&other, &digest).await, bytes);
    }
}

#[tokio::test]
async fn only_what_a_push_awaits_may_be_sent() {
    for place in places().await {
        let manifest = garbage::manifest(&[&noise(16, PIECE)]);
        let (blob, size) = manifest.blobs().last().map(|(digest, size)| (digest.clone(), size)).unwrap();
        let refused = place.artifacts.check_awaited(&blob, size).await.unwrap_err();
        assert!(matches!(refused, ArtifactError::NotAwaited { .. }));
        assert!(matches!(place.artifacts.push(manifest.digest()).await, Err(ArtifactError::NotBegun(_))));
        place.artifacts.begin_push(&manifest).await.unwrap();
        // Another process knows by the store.
        for artifacts in [place.artifacts.clone(), place.reopened().await] {
            artifacts.check_awaited(&blob, size).await.unwrap();
            assert!(artifacts.check_awaited(&blob, size + 1).await.is_err());
            assert_eq!(artifacts.push(manifest.digest()).await.unwrap(), manifest);
        }
        place.artifacts.end_push(manifest.digest()).await.unwrap();
        place.artifacts.end_push(manifest.digest()).await.unwrap();
        assert!(place.artifacts.check_awaited(&blob, size).await.is_err());
    }
}

#[test]
fn manifests_are_checked_before_anything_is_sent() {
    let good = garbage::manifest(&[b"weights"]);
    let text = good.text();
    assert_eq!(good.blobs().count(), 4);
    assert_eq!(good.blobs().next().map(|(digest, _)| digest), Some(good.config()));
    let bad = [
        (text.replace("sha256:", "sha256:../"), "a path"),
        (text.replace("\"schemaVersion\":2", "\"schemaVersion\":3"), "another schema"),
        (text.replace("vnd.rookery.model.v1", "vnd.other.v1"), "another kind"),
        (text.replace("vnd.rookery.model.config.v1", "vnd.other.v1"), "another config"),
        (text.replace("vnd.rookery.model.tokenizer.v1", "vnd.other.v1"), "no tokenizer"),
        (text.replace("\"size\":7", "\"size\":18446744073709551615"), "an absurd size"),
        (text.replace("\"size\":7", "\"size\":-1"), "a negative size"),
        (format!("{}{text}", " ".repeat(1 << 20)), "a long one"),
        (String::new(), "nothing"),
        (text[..text.len() / 2].to_owned(), "half of it"),
    ];
    for (text, what) in bad {
        assert!(Manifest::parse(text.into_bytes()).is_err(), "{what}");
    }
    let twice = garbage::manifest(&[b"weights", b"weights"]);
    assert_eq!(twice.blobs().count(), 4, "each content once");
    let layer = twice.text().rfind("\"size\":7").unwrap();
    let mut torn = twice.text().to_owned();
    torn.replace_range(layer + 7..layer + 8, "8");
    assert!(matches!(Manifest::parse(torn.into_bytes()), Err(ArtifactError::Manifest(_))));
    assert!(good.check(b"{}").is_err(), "a config that is none");
}
