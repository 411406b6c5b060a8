//! What is on disk, and what becomes of it when bits flip.

use std::{fs, path::Path};

use rookery_compute_worker::versions::{
    Kept, State,
    store::{Store, StoreError},
};
use rookery_model::bundle::Digest;
use rookery_proto::v1;
use tempfile::TempDir;

use crate::{
    bundles::{Version, all, version},
    gateway::{Blobs, Gateway, config, is_in},
};

fn state(generation: u64) -> State {
    State { generation, sequence: generation, ..State::default() }
}

#[test]
fn a_damaged_document_gives_way_to_the_one_before() {
    let folder = TempDir::new().unwrap();
    let store = Store::open(folder.path()).unwrap();
    assert_eq!(store.load().state, State::default());
    store.keep_state(&state(1)).unwrap();
    store.keep_state(&state(2)).unwrap();
    assert_eq!(store.load().state, state(2));
    let path = folder.path().join("state.json");
    let whole = fs::read(&path).unwrap();
    for bit in 0..whole.len() * 8 {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        fs::write(&path, &bytes).unwrap();
        assert_eq!(store.load().state, state(1), "bit {bit}");
    }
    for length in 0..whole.len() {
        fs::write(&path, &whole[..length]).unwrap();
        assert_eq!(store.load().state, state(1), "cut to {length}");
    }
    // A damaged one does not become the one before.
    store.keep_state(&state(3)).unwrap();
    assert_eq!(store.load().state, state(3));
    fs::remove_file(&path).unwrap();
    fs::copy(folder.path().join("state.old.json"), &path).unwrap();
    assert_eq!(store.load().state, state(1));
}

#[test]
fn a_folder_has_one_user() {
    let folder = TempDir::new().unwrap();
    let store = Store::open(folder.path()).unwrap();
    assert!(matches!(Store::open(folder.path()), Err(StoreError::InUse(_))));
    drop(store);
    assert!(Store::open(folder.path()).is_ok());
}

#[test]
fn a_blob_gets_its_name_with_its_digest_only() {
    let folder = TempDir::new().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let (right, size) = (b"what it should be".as_slice(), 17);
    let digest = Digest::of(right);
    let mut partial = store.partial(&digest, size).unwrap();
    partial.write(b"what it").unwrap();
    drop(partial);
    let mut partial = store.partial(&digest, size).unwrap();
    assert_eq!((partial.written(), partial.missing()), (7, 10));
    partial.write(b" should BE").unwrap();
    assert!(partial.write(b"!").is_err());
    assert!(matches!(store.adopt(partial), Err(StoreError::Digest { .. })));
    assert!(!store.has(&digest, size));
    store.put(&digest, right).unwrap();
    assert!(store.has(&digest, size));
    assert_eq!(store.read(&digest).unwrap(), right);
    let path = folder.path().join(digest.path());
    assert!(fs::metadata(&path).unwrap().permissions().readonly());
}

fn put(store: &Store, version: &Version) {
    store.put(&version.digest, &version.manifest).unwrap();
    version.blobs.iter().for_each(|(digest, bytes)| store.put(digest, bytes).unwrap());
    store.layout(&version.digest).unwrap();
}

#[test]
fn pruning_leaves_what_is_needed_and_gives_up_what_served_before_when_disk_is_short() {
    let (first, second, third) = (version("prune-a"), version("prune-b"), version("prune-c"));
    let folder = TempDir::new().unwrap();
    let store = Store::open(folder.path()).unwrap();
    [&first, &second, &third].into_iter().for_each(|version| put(&store, version));
    let here = |version: &Version| {
        let blobs = version.blobs.iter().all(|(digest, bytes)| store.has(digest, bytes.len() as u64));
        blobs && folder.path().join("layouts").join(version.digest.hex()).is_dir()
    };
    let kept = Kept { needed: vec![first.digest.clone()], previous: vec![second.digest.clone()] };
    store.prune(&kept).unwrap();
    assert!(here(&first) && here(&second) && !here(&third));
    assert!(store.make_room(0).unwrap() && here(&second));
    assert!(!store.make_room(u64::MAX).unwrap());
    assert!(here(&first) && !here(&second));
    let names = fs::read_dir(folder.path().join("blobs/sha256")).unwrap().count();
    assert_eq!(names, first.blobs.len() + 1);
}

/// Flips a bit of a file that may be read-only.
fn flip(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let mut permissions = fs::metadata(path).unwrap().permissions();
    #[expect(clippy::permissions_set_readonly_false, reason = "a file of the test's own folder")]
    permissions.set_readonly(false);
    fs::set_permissions(path, permissions).unwrap();
    fs::write(path, bytes).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bit_that_flips_on_disk_is_found_before_it_serves_and_what_it_damaged_comes_again() {
    let version = version("rot");
    let folder = TempDir::new().unwrap();
    let source = Blobs::new(all(&[&version]));
    let start = async || Gateway::start(config(folder.path()), source.clone()).await;
    let gateway = start().await;
    gateway.agent.assign(version.assigned(1)).await.unwrap();
    gateway.until_phase(&version.digest, v1::Phase::Serving).await;
    gateway.stop().await;
    let versions = folder.path().join("versions");
    let files = version.blobs.keys().chain([&version.digest]).map(Digest::path);
    let documents = ["state.json", "assignment.json", "state.old.json"].map(Into::into);
    for file in files.chain(documents) {
        let before = source.sent.load(std::sync::atomic::Ordering::Relaxed);
        flip(&versions.join(&file));
        let gateway = start().await;
        if file.to_str() == Some("assignment.json") {
            // It asks for it by telling no generation, and goes on serving meanwhile.
            gateway.until_phase(&version.digest, v1::Phase::Serving).await;
            gateway.agent.assign(version.assigned(1)).await.unwrap();
        }
        let report = gateway.until("serving again", |r| is_in(r, &version.digest, v1::Phase::Serving)).await;
        let sent = source.sent.load(std::sync::atomic::Ordering::Relaxed) - before;
        let damaged = version.blobs.iter().find(|(digest, _)| digest.path() == file);
        assert_eq!(sent, damaged.map_or(0, |(_, bytes)| bytes.len() as u64), "{file:?}: {report:#?}");
        assert_eq!(gateway.serving().as_deref(), Some(version.digest.as_str()), "{file:?}");
        gateway.stop().await;
    }
}
