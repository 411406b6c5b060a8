//! Optional documents beside the weights, and bundles of the first schema, which had none.

use std::fs;
use std::path::PathBuf;

use rookery_model::bundle::{Bundle, MAX_DOCUMENT_BYTES, NoProgress, PROBES_TYPE, QUANTIZATION_TYPE};
use rookery_model::pack::{Draft, ExistingTarget, PackError, Recipe};
use serde_json::json;
use tempfile::TempDir;

use crate::support::{Editor, RandomSource, chain, open_error, packed, small_config};

/// A copy of a packed bundle with both documents.
fn documented() -> (TempDir, PathBuf) {
    let (parent, path) = packed(small_config(), Recipe::W8);
    let from = Bundle::open(&path, &NoProgress).unwrap();
    let target = parent.path().join("documented");
    let mut draft = Draft::create(&target, ExistingTarget::Refuse, "key").unwrap();
    for part in from.info().config.parts() {
        draft.copy_part(&from, part).unwrap();
    }
    draft.document(QUANTIZATION_TYPE, "quantization.json", b"{\"table\":[]}").unwrap();
    draft.document(PROBES_TYPE, "probes.json", b"{\"first\":\"version\"}").unwrap();
    draft.document(PROBES_TYPE, "probes.json", b"{\"probes\":[]}").unwrap();
    draft.publish(&from.info().config, &RandomSource::new(small_config())).unwrap();
    (parent, target)
}

#[test]
fn documents_are_read_with_and_without_the_weights() {
    let (_parent, path) = documented();
    let bundle = Bundle::open(&path, &NoProgress).unwrap();
    assert_eq!(bundle.document(PROBES_TYPE), Some(&b"{\"probes\":[]}"[..]));
    assert_eq!(bundle.document(QUANTIZATION_TYPE), Some(&b"{\"table\":[]}"[..]));
    let titles: Vec<_> = bundle.info().blobs.iter().map(|blob| blob.title.as_str()).collect();
    assert_eq!(titles[titles.len() - 2..], ["probes.json", "quantization.json"], "in one order always");
    for blob in &bundle.info().blobs {
        if blob.title.ends_with(".safetensors") {
            fs::remove_file(path.join(blob.path())).unwrap();
        }
    }
    for (media_type, text) in [(PROBES_TYPE, "{\"probes\":[]}"), (QUANTIZATION_TYPE, "{\"table\":[]}")] {
        let document = Bundle::read_document(&path, media_type).unwrap();
        assert_eq!(document.as_deref(), Some(text.as_bytes()));
    }
    // Weights are no document, whatever they are asked for as.
    let weights = "application/vnd.rookery.model.weights.v1+safetensors";
    assert_eq!((bundle.document(weights), Bundle::read_document(&path, weights).unwrap()), (None, None));
}

#[test]
fn bundles_without_documents_have_none() {
    let (_parent, path) = packed(small_config(), Recipe::W8);
    let bundle = Bundle::open(&path, &NoProgress).unwrap();
    for media_type in [PROBES_TYPE, QUANTIZATION_TYPE] {
        assert_eq!(bundle.document(media_type), None);
        assert_eq!(Bundle::read_document(&path, media_type).unwrap(), None);
    }
}

#[test]
fn documents_no_reader_takes_are_not_written() {
    let parent = tempfile::tempdir().unwrap();
    let mut draft = Draft::create(&parent.path().join("model"), ExistingTarget::Refuse, "key").unwrap();
    let large = vec![b' '; MAX_DOCUMENT_BYTES as usize + 1];
    let error = draft.document(PROBES_TYPE, "probes.json", &large).unwrap_err();
    assert_eq!(
        error.to_string(),
        "document probes.json: has 16777217 bytes, more than the 16777216 that readers take"
    );
    draft.document(PROBES_TYPE, "probes.json", &large[1..]).unwrap();
    let error = draft.document("text/plain", "notes", b"").unwrap_err();
    assert!(matches!(error, PackError::Document { .. }), "{error}");
}

#[test]
fn documents_out_of_order() {
    let refused = |corrupt: &dyn Fn(&Editor<'_>), fault: &str| {
        let (_parent, path) = documented();
        corrupt(&Editor(&path));
        let opening = chain(&open_error(&path));
        let reading = chain(&Bundle::read_document(&path, PROBES_TYPE).unwrap_err());
        assert!(
            opening.contains(fault) && reading.contains(fault),
            "{opening:?}, {reading:?} lack {fault:?}"
        );
    };
    let claim = |size: u64| {
        move |e: &Editor<'_>| {
            e.edit_manifest(|manifest| {
                let layers = manifest["layers"].as_array_mut().unwrap();
                let probes = layers.iter_mut().find(|layer| layer["mediaType"] == PROBES_TYPE);
                probes.unwrap()["size"] = json!(size);
            });
        }
    };
    refused(
        &claim(MAX_DOCUMENT_BYTES + 1),
        "manifest: probes.json has 16777217 bytes, more than the limit of 16777216",
    );
    refused(&claim(3), "blob probes.json");
    let twice = |e: &Editor<'_>| {
        e.edit_manifest(|manifest| {
            let layers = manifest["layers"].as_array_mut().unwrap();
            let probes = layers.iter().find(|layer| layer["mediaType"] == PROBES_TYPE).unwrap().clone();
            layers.push(probes);
        });
    };
    refused(&twice, "2 layers of type application/vnd.rookery.model.probes.v1+json instead of 1");
    let flipped = |e: &Editor<'_>| fs::write(e.layer_path("probes.json"), "{\"probes\":{}}").unwrap();
    refused(&flipped, "blob probes.json hashes to");
    refused(&|e| fs::remove_file(e.layer_path("probes.json")).unwrap(), "blob probes.json");
}

#[test]
fn the_first_schema_is_still_read() {
    let (_parent, path) = packed(small_config(), Recipe::W4);
    let editor = Editor(&path);
    editor.edit_config(|config| config["schema_version"] = json!(1));
    let bundle = Bundle::open(&path, &NoProgress).unwrap();
    assert_eq!(bundle.info().config.schema_version, 1);
    // What came with the second would be left out by readers of the first.
    editor.edit_config(|config| config["model"]["ffn_hadamard"] = json!(8));
    let text = chain(&open_error(&path));
    assert_eq!(text, "config: model.ffn_hadamard does not exist in schema 1");
}
