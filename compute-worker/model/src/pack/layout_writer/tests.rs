use super::*;

fn layout(target: &Path, existing: ExistingTarget) -> Result<LayoutWriter, PackError> {
    LayoutWriter::create(target, existing)
}

fn publish(writer: LayoutWriter, text: &str) {
    let blob = writer.small_blob("text/plain", "text", text.as_bytes()).unwrap();
    let index = Index { schema_version: 2, media_type: oci::INDEX_TYPE.to_owned(), manifests: vec![blob] };
    writer.publish(&index).unwrap();
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
    let writer = layout(&target, ExistingTarget::Refuse).unwrap();
    assert!(!target.exists());
    publish(writer, "x");
    assert_eq!(names(&target), ["blobs", "index.json", "oci-layout"]);
    assert_eq!(names(&parent.path().join("deep/er")), ["model"]);
    assert_ne!(target.metadata().unwrap().permissions().mode() & 0o055, 0, "other users may read it");
}

#[test]
fn dropping_leaves_nothing() {
    let parent = tempfile::tempdir().unwrap();
    let target = parent.path().join("model");
    let writer = layout(&target, ExistingTarget::Refuse).unwrap();
    writer.blob().unwrap().write(b"half a blob").unwrap();
    drop(writer);
    assert_eq!(names(parent.path()), [""; 0]);
}

#[test]
fn an_existing_target_is_refused_or_swapped() {
    let parent = tempfile::tempdir().unwrap();
    let target = parent.path().join("model");
    fs::create_dir(&target).unwrap();
    publish(layout(&target, ExistingTarget::Refuse).unwrap(), "an empty folder is as good as none");
    let old = fs::read(target.join(oci::INDEX_FILE)).unwrap();

    assert!(matches!(layout(&target, ExistingTarget::Refuse), Err(PackError::TargetExists { .. })));
    let open = File::open(target.join(oci::INDEX_FILE)).unwrap();
    publish(layout(&target, ExistingTarget::Replace).unwrap(), "new");
    assert_ne!(fs::read(target.join(oci::INDEX_FILE)).unwrap(), old);
    assert_eq!(open.metadata().unwrap().len(), old.len() as u64, "whoever has the old one open keeps it");
    assert_eq!(names(parent.path()), ["model"]);
    assert_eq!(names(&target), ["blobs", "index.json", "oci-layout"]);
}

#[test]
fn the_later_of_two_packers_is_refused() {
    let parent = tempfile::tempdir().unwrap();
    let target = parent.path().join("model");
    let first = layout(&target, ExistingTarget::Refuse).unwrap();
    let second = layout(&target, ExistingTarget::Refuse).unwrap();
    publish(first, "first");
    let index = Index { schema_version: 2, media_type: String::new(), manifests: Vec::new() };
    assert!(matches!(second.publish(&index), Err(PackError::TargetExists { .. })));
    assert_eq!(names(parent.path()), ["model"]);
}

#[test]
fn a_folder_or_file_that_is_no_bundle_is_never_replaced() {
    let parent = tempfile::tempdir().unwrap();
    fs::create_dir(parent.path().join("holiday")).unwrap();
    fs::write(parent.path().join("holiday/photo"), "precious").unwrap();
    for name in ["holiday", "holiday/photo"] {
        let target = parent.path().join(name);
        assert!(
            matches!(layout(&target, ExistingTarget::Replace), Err(PackError::TargetNotABundle { .. })),
            "{name}"
        );
    }
    assert_eq!(names(&parent.path().join("holiday")), ["photo"]);
}

#[test]
fn leftovers_of_crashed_packers_are_deleted_and_live_ones_left() {
    let parent = tempfile::tempdir().unwrap();
    let target = parent.path().join("model");
    // A crashed packer: its lock file is there, nobody holds it.
    let crashed = parent.path().join(".model.packing-crashed");
    fs::create_dir_all(crashed.join("blobs/sha256")).unwrap();
    fs::write(crashed.join(LOCK_FILE), "").unwrap();
    // An old bundle, swapped out by a packer that died before deleting it.
    let swapped = parent.path().join(".model.packing-swapped");
    fs::create_dir_all(&swapped).unwrap();
    fs::write(swapped.join(oci::INDEX_FILE), "{}").unwrap();
    // Someone else's.
    let other = parent.path().join(".model2.packing-other");
    fs::create_dir_all(&other).unwrap();
    fs::write(other.join(LOCK_FILE), "").unwrap();
    let live = layout(&target, ExistingTarget::Refuse).unwrap();
    let writer = layout(&target, ExistingTarget::Refuse).unwrap();
    assert!(!crashed.exists() && !swapped.exists());
    assert!(other.exists() && live.folder.path().exists());
    publish(writer, "x");
    drop(live);
    assert_eq!(names(parent.path()), [".model2.packing-other", "model"]);
}
