use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;
use crate::bundle::{Digest, Part};

fn take(target: &Path, existing: ExistingTarget) -> Result<(Staging, State), PackError> {
    Staging::take(target, existing, State::new("key"))
}

fn publish(target: &Path, existing: ExistingTarget, index: &str) {
    let (staging, _) = take(target, existing).unwrap();
    staging.publish(index.as_bytes()).unwrap();
    staging.delete();
}

/// Writes a part that holds `text`.
fn write_part(staging: &Staging, state: &mut State, part: Part, text: &str) {
    let mut blob = staging.blob().unwrap();
    blob.write(text.as_bytes()).unwrap();
    state.parts.insert(part, blob.finish().unwrap());
    staging.save(state).unwrap();
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn the_target_appears_when_complete() {
    let parent = tempfile::tempdir().unwrap();
    let target = parent.path().join("deep/er/model");
    let (staging, _) = take(&target, ExistingTarget::Refuse).unwrap();
    fs::write(staging.scratch().join("notes"), "mine").unwrap();
    assert!(!target.exists());
    staging.publish(b"{}").unwrap();
    staging.delete();
    assert_eq!(names(&target), ["blobs", "index.json", "oci-layout"]);
    assert_eq!(names(&parent.path().join("deep/er")), ["model"]);
    assert_ne!(target.metadata().unwrap().permissions().mode() & 0o055, 0, "other users may read it");
}

#[test]
fn an_existing_target_is_refused_or_swapped() {
    let parent = tempfile::tempdir().unwrap();
    let target = parent.path().join("model");
    fs::create_dir(&target).unwrap();
    publish(&target, ExistingTarget::Refuse, "an empty folder is as good as none");

    assert!(matches!(take(&target, ExistingTarget::Refuse), Err(PackError::TargetExists { .. })));
    let open = File::open(target.join(oci::INDEX_FILE)).unwrap();
    publish(&target, ExistingTarget::Replace, "new");
    assert_eq!(fs::read(target.join(oci::INDEX_FILE)).unwrap(), b"new");
    assert_eq!(open.metadata().unwrap().len(), 34, "whoever has the old one open keeps it");
    assert_eq!(names(parent.path()), ["model"]);
    assert_eq!(names(&target), ["blobs", "index.json", "oci-layout"]);
}

#[test]
fn a_target_that_came_meanwhile_is_refused() {
    let parent = tempfile::tempdir().unwrap();
    let target = parent.path().join("model");
    let (staging, _) = take(&target, ExistingTarget::Replace).unwrap();
    fs::create_dir(&target).unwrap();
    fs::write(target.join("photo"), "precious").unwrap();
    assert!(matches!(staging.publish(b"{}"), Err(PackError::TargetNotABundle { .. })));
    drop(staging);
    assert!(matches!(take(&target, ExistingTarget::Refuse), Err(PackError::TargetExists { .. })));
    assert_eq!(names(&target), ["photo"]);
}

#[test]
fn a_folder_or_file_that_is_no_bundle_is_never_replaced() {
    let parent = tempfile::tempdir().unwrap();
    fs::create_dir(parent.path().join("holiday")).unwrap();
    fs::write(parent.path().join("holiday/photo"), "precious").unwrap();
    for name in ["holiday", "holiday/photo"] {
        let target = parent.path().join(name);
        assert!(
            matches!(take(&target, ExistingTarget::Replace), Err(PackError::TargetNotABundle { .. })),
            "{name}"
        );
    }
    assert_eq!(names(&parent.path().join("holiday")), ["photo"]);
    assert_eq!(names(parent.path()), ["holiday"]);
}

#[test]
fn a_link_to_a_bundle_stays_and_the_bundle_is_replaced() {
    let parent = tempfile::tempdir().unwrap();
    let (elsewhere, link) = (parent.path().join("elsewhere"), parent.path().join("link"));
    fs::create_dir(&elsewhere).unwrap();
    symlink(elsewhere.join("model"), &link).unwrap();
    for name in ["link", "link/"] {
        let refused = take(&parent.path().join(name), ExistingTarget::Replace);
        assert!(matches!(refused, Err(PackError::TargetNotABundle { .. })), "{name} points nowhere");
    }
    publish(&elsewhere.join("model"), ExistingTarget::Refuse, "old");
    assert!(matches!(check_target(&link, ExistingTarget::Refuse), Err(PackError::TargetExists { .. })));
    for (name, index) in [("link", "new"), ("link/", "newer")] {
        publish(&parent.path().join(name), ExistingTarget::Replace, index);
        assert_eq!(fs::read(elsewhere.join("model").join(oci::INDEX_FILE)).unwrap(), index.as_bytes());
        assert!(link.is_symlink());
    }
    assert_eq!(names(parent.path()), ["elsewhere", "link"]);
    assert_eq!(names(&elsewhere), ["model"]);
}

#[test]
fn one_packer_at_a_time() {
    let parent = tempfile::tempdir().unwrap();
    let target = parent.path().join("model");
    let (first, _) = take(&target, ExistingTarget::Refuse).unwrap();
    let error = take(&target, ExistingTarget::Replace).unwrap_err();
    assert!(matches!(error, PackError::InProgress { .. }));
    assert!(
        error.to_string().ends_with("another process; wait until it has finished or choose another folder")
    );
    take(&parent.path().join("model2"), ExistingTarget::Refuse).unwrap();
    drop(first);
    take(&target, ExistingTarget::Refuse).unwrap();
}

#[test]
fn many_packers_in_turn_never_meet() {
    // Taking and deleting race: whoever gets the folder must have the file that everybody else tries to lock.
    let parent = tempfile::tempdir().unwrap();
    let target = parent.path().join("model");
    let inside = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..50 {
                    let taken = take(&target, ExistingTarget::Refuse);
                    if let Err(error) = &taken {
                        assert!(matches!(error, PackError::InProgress { .. }), "{error:?}");
                        continue;
                    }
                    assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two packers at once");
                    inside.fetch_sub(1, Ordering::SeqCst);
                    taken.unwrap().0.delete();
                }
            });
        }
    });
}

#[test]
fn parts_are_taken_over_by_the_same_key_only() {
    let parent = tempfile::tempdir().unwrap();
    let target = parent.path().join("model");
    let (staging, mut state) = take(&target, ExistingTarget::Refuse).unwrap();
    write_part(&staging, &mut state, Part::Block(12), "twelve");
    write_part(&staging, &mut state, Part::Head, "head");
    fs::write(staging.scratch().join("notes"), "mine").unwrap();
    fs::write(staging.unfinished(), "half a blo").unwrap();
    drop(staging);

    let (staging, resumed) = take(&target, ExistingTarget::Refuse).unwrap();
    assert_eq!(resumed, state);
    assert_eq!(names(&staging.blobs()).len(), 2, "unfinished blobs are gone");
    assert_eq!(names(staging.scratch()), ["notes"]);
    drop(staging);

    let (staging, other) = Staging::take(&target, ExistingTarget::Refuse, State::new("another key")).unwrap();
    assert!(other.parts.is_empty());
    assert_eq!(names(&staging.root), ["bundle", "lock", "scratch", "state.json"]);
    assert!(names(staging.scratch()).is_empty() && names(&staging.blobs()).is_empty());
}

#[test]
fn parts_whose_file_is_another_are_forgotten() {
    let parent = tempfile::tempdir().unwrap();
    let target = parent.path().join("model");
    let break_file: [fn(&Path); 5] = [
        |path| fs::write(path, "tvelve").unwrap(),
        |path| fs::remove_file(path).unwrap(),
        |path| fs::write(path, "too long for twelve").unwrap(),
        |path| {
            fs::remove_file(path).unwrap();
            fs::create_dir(path).unwrap();
        },
        |path| {
            let aside = path.with_file_name("aside");
            fs::rename(path, &aside).unwrap();
            symlink(&aside, path).unwrap();
        },
    ];
    for break_file in break_file {
        let (staging, mut state) = take(&target, ExistingTarget::Refuse).unwrap();
        write_part(&staging, &mut state, Part::Block(0), "zero");
        write_part(&staging, &mut state, Part::Block(12), "twelve");
        break_file(&staging.bundle().join(state.parts[&Part::Block(12)].digest.path()));
        drop(staging);
        let (staging, resumed) = take(&target, ExistingTarget::Refuse).unwrap();
        assert_eq!(resumed.parts.keys().collect::<Vec<_>>(), [&Part::Block(0)]);
        assert_eq!(names(&staging.blobs()), [Digest::of(b"zero").hex()]);
        staging.delete();
    }
}

#[test]
fn a_state_that_cannot_be_believed_clears_the_folder() {
    let parent = tempfile::tempdir().unwrap();
    let target = parent.path().join("model");
    let outside = parent.path().join("outside");
    fs::write(&outside, "twelve").unwrap();
    let hostile: [fn(String) -> String; 10] = [
        |_| String::new(),
        |state| state[..state.len() / 2].to_owned(),
        |state| state + &" ".repeat(1 << 20),
        |_| "[".repeat(1 << 19),
        |state| state.replace(r#""version":1"#, r#""version":2"#),
        |state| state.replace("block.12", "block.012"),
        |state| state.replace("block.12", "block.99999999999999999999"),
        |state| state.replace(r#""size":6"#, r#""size":-6"#),
        |state| {
            let digest = Digest::of(b"twelve");
            state.replace(digest.hex(), "../../../outside")
        },
        |state| state.replace(r#""parts""#, r#""surprise":1,"parts""#),
    ];
    for hostile in hostile {
        let (staging, mut state) = take(&target, ExistingTarget::Refuse).unwrap();
        write_part(&staging, &mut state, Part::Block(12), "twelve");
        fs::write(staging.scratch().join("notes"), "mine").unwrap();
        let path = staging.root.join(STATE_FILE);
        let before = fs::read_to_string(&path).unwrap();
        let after = hostile(before.clone());
        assert_ne!(after, before);
        fs::write(&path, after).unwrap();
        drop(staging);
        let (staging, resumed) = take(&target, ExistingTarget::Refuse).unwrap();
        assert!(resumed.parts.is_empty());
        assert!(names(staging.scratch()).is_empty() && names(&staging.blobs()).is_empty());
        staging.delete();
    }
    assert_eq!(fs::read(&outside).unwrap(), b"twelve");
}

#[test]
fn a_packer_killed_between_the_two_renames_loses_nothing() {
    let parent = tempfile::tempdir().unwrap();
    let target = parent.path().join("model");
    publish(&target, ExistingTarget::Refuse, "old");
    let (staging, mut state) = take(&target, ExistingTarget::Replace).unwrap();
    write_part(&staging, &mut state, Part::Head, "head");
    fs::rename(&target, staging.root.join("replaced")).unwrap();
    drop(staging);
    // Another key: all that the killed one has made goes, not what it had moved.
    let other = Staging::take(&target, ExistingTarget::Replace, State::new("another key"));
    assert!(other.unwrap().1.parts.is_empty());
    assert_eq!(fs::read(target.join(oci::INDEX_FILE)).unwrap(), b"old");
}

#[test]
fn a_packer_killed_right_after_publishing_leaves_what_the_next_one_clears() {
    let parent = tempfile::tempdir().unwrap();
    let target = parent.path().join("model");
    publish(&target, ExistingTarget::Refuse, "old");
    let (staging, mut state) = take(&target, ExistingTarget::Replace).unwrap();
    write_part(&staging, &mut state, Part::Head, "head");
    staging.publish(b"new").unwrap();
    drop(staging);
    assert_eq!(names(parent.path()), [".model.packing", "model"]);
    // What was exchanged lies where the parts were; none of it is taken for one.
    let (staging, state) = take(&target, ExistingTarget::Replace).unwrap();
    assert!(state.parts.is_empty() && names(&staging.blobs()).is_empty());
    staging.delete();
    assert_eq!(names(parent.path()), ["model"]);
    assert_eq!(fs::read(target.join(oci::INDEX_FILE)).unwrap(), b"new");
}

#[test]
fn something_else_in_the_staging_folder_s_place_is_an_error() {
    let parent = tempfile::tempdir().unwrap();
    fs::write(parent.path().join(".model.packing"), "a file").unwrap();
    let error = take(&parent.path().join("model"), ExistingTarget::Refuse).unwrap_err();
    assert!(matches!(error, PackError::Io { .. }), "{error:?}");
    assert_eq!(names(parent.path()), [".model.packing"]);
}
