//! Random damage: whatever the bytes, the answer is a value or an error, never a panic.

use std::fs;
use std::sync::LazyLock;

use proptest::prelude::*;
use rookery_model::bundle::{Bundle, BundleConfig, NoProgress, Part, check_documents, check_weight_blob};
use rookery_model::pack::Recipe;

use super::support::{Editor, packed, small_config};

/// The documents and one weight blob of a sound bundle.
struct Sound {
    index: Vec<u8>,
    manifest: Vec<u8>,
    config: Vec<u8>,
    block: Vec<u8>,
}

static SOUND: LazyLock<Sound> = LazyLock::new(|| {
    let (_parent, path) = packed(small_config(), Recipe::W4);
    let editor = Editor(&path);
    let read =
        |value: &serde_json::Value| fs::read(editor.blob_path(value["digest"].as_str().unwrap())).unwrap();
    Sound {
        index: fs::read(path.join("index.json")).unwrap(),
        manifest: read(&editor.index()["manifests"][0]),
        config: read(&editor.manifest()["config"]),
        block: fs::read(editor.layer_path("block.0.safetensors")).unwrap(),
    }
});

/// One edit: where (as a share of the length), and what.
#[derive(Clone, Debug)]
enum Edit {
    Set(f64, u8),
    Cut(f64),
    Insert(f64, Vec<u8>),
    Remove(f64, usize),
    Repeat(f64, usize),
}

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    // Pieces of syntax and boundary numbers reach deeper than random bytes do.
    let pieces = prop::sample::select(vec![
        "0",
        "-1",
        "1e400",
        "18446744073709551615",
        "18446744073709551616",
        "null",
        "{}",
        "[]",
        "\"\"",
        ",",
        "}",
        "]",
        "\u{0}",
        "\"sha256:\"",
        "9999999",
    ]);
    let edit = prop_oneof![
        (0.0..1.0, any::<u8>()).prop_map(|(at, byte)| Edit::Set(at, byte)),
        (0.0..1.0f64).prop_map(Edit::Cut),
        (0.0..1.0, pieces).prop_map(|(at, piece)| Edit::Insert(at, piece.as_bytes().to_vec())),
        (0.0..1.0, 1..40usize).prop_map(|(at, count)| Edit::Remove(at, count)),
        (0.0..1.0, 1..400usize).prop_map(|(at, count)| Edit::Repeat(at, count)),
    ];
    prop::collection::vec(edit, 1..6)
}

/// Applies edits to the first `reach` bytes.
fn apply(bytes: &[u8], reach: usize, edits: &[Edit]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for edit in edits {
        let end = reach.min(bytes.len());
        let place = |share: f64| (share * end as f64) as usize;
        match edit {
            Edit::Set(at, byte) => {
                if let Some(target) = bytes.get_mut(place(*at)) {
                    *target = *byte;
                }
            }
            Edit::Cut(at) => bytes.truncate(place(*at)),
            Edit::Insert(at, piece) => drop(bytes.splice(place(*at)..place(*at), piece.iter().copied())),
            Edit::Remove(at, count) => drop(bytes.drain(place(*at)..(place(*at) + count).min(end))),
            Edit::Repeat(at, count) => {
                let piece = bytes[place(*at)..(place(*at) + count).min(end)].to_vec();
                drop(bytes.splice(place(*at)..place(*at), piece));
            }
        }
    }
    bytes
}

#[test]
fn sound_documents_pass() {
    let sound = &*SOUND;
    check_documents(&sound.index, &sound.manifest, &sound.config).unwrap();
    let config = BundleConfig::parse(&sound.config).unwrap();
    check_weight_blob(&config, Part::Block(0), &sound.block).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn damaged_documents_do_not_panic(edits in edits(), which in 0..3usize) {
        let sound = &*SOUND;
        let mut documents = [sound.index.clone(), sound.manifest.clone(), sound.config.clone()];
        documents[which] = apply(&documents[which], usize::MAX, &edits);
        let [index, manifest, config] = &documents;
        let _ = check_documents(index, manifest, config);
    }

    #[test]
    fn damaged_headers_do_not_panic(edits in edits(), reach in prop::sample::select(vec![16, 3000, usize::MAX])) {
        let sound = &*SOUND;
        let config = BundleConfig::parse(&sound.config).unwrap();
        let _ = check_weight_blob(&config, Part::Block(0), &apply(&sound.block, reach, &edits));
    }

    #[test]
    fn any_part_of_any_config_takes_any_blob(part in 0..4usize, edits in edits()) {
        let sound = &*SOUND;
        if let Ok(config) = BundleConfig::parse(&apply(&sound.config, usize::MAX, &edits)) {
            let part = [Part::Embedding, Part::Block(0), Part::Block(9), Part::Head][part];
            let _ = check_weight_blob(&config, part, &sound.block);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn damaged_bundles_with_right_digests_do_not_panic(edits in edits(), which in 0..3usize) {
        let (_parent, path) = packed(small_config(), Recipe::W8);
        let editor = Editor(&path);
        match which {
            0 => editor.set_manifest(&apply(&SOUND.manifest, usize::MAX, &edits)),
            1 => editor.set_config(&apply(&SOUND.config, usize::MAX, &edits)),
            _ => editor.edit_layer("block.0.safetensors", |bytes| *bytes = apply(bytes, 4000, &edits)),
        }
        if let Ok(bundle) = Bundle::open(&path, &NoProgress) {
            for entry in &bundle.info().config.tensors {
                let _ = (bundle.linear(entry.name), bundle.vector(entry.name));
            }
        }
    }
}
