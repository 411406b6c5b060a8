//! Every way a bundle can be broken, and what the error says.

use std::fs;
use std::path::Path;

use rookery_model::bundle::Digest;
use rookery_model::config::ModelConfig;
use rookery_model::pack::Recipe;
use serde_json::{Value, json};

use super::support::{Editor, chain, open_error, packed, small_config, tensor_range};

/// Breaks a fresh bundle and checks that the error's text has all the parts.
#[track_caller]
fn check(recipe: Recipe, corrupt: impl FnOnce(&Editor<'_>), parts: &[&str]) {
    let (_parent, path) = packed(small_config(), recipe);
    corrupt(&Editor(&path));
    let text = chain(&open_error(&path));
    for part in parts {
        assert!(text.contains(part), "{text:?} lacks {part:?}");
    }
}

#[track_caller]
fn w8(corrupt: impl FnOnce(&Editor<'_>), parts: &[&str]) {
    check(Recipe::W8, corrupt, parts);
}

#[track_caller]
fn w4(corrupt: impl FnOnce(&Editor<'_>), parts: &[&str]) {
    check(Recipe::W4, corrupt, parts);
}

fn flip(path: &Path, at: impl FnOnce(usize) -> usize) {
    let mut bytes = fs::read(path).unwrap();
    let at = at(bytes.len());
    bytes[at] ^= 0x10;
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_flipped_byte_in_any_layer() {
    let (_parent, path) = packed(ModelConfig { tied_head: false, ..small_config() }, Recipe::W4);
    let editor = Editor(&path);
    for layer in editor.manifest()["layers"].as_array().unwrap() {
        let title = layer["annotations"]["org.opencontainers.image.title"].as_str().unwrap();
        let digest = layer["digest"].as_str().unwrap();
        for at in [|_| 0, |len| len / 2, |len| len - 1] {
            flip(&editor.blob_path(digest), at);
            let text = open_error(&path).to_string();
            assert!(text.starts_with(&format!("blob {title} hashes to sha256:")), "{text}");
            assert!(
                text.contains(digest) && text.contains("copy the bundle again or pack the model again"),
                "{text}"
            );
            flip(&editor.blob_path(digest), at);
        }
    }
    rookery_model::bundle::Bundle::open(&path, &rookery_model::bundle::NoProgress).unwrap();
}

#[test]
fn a_flipped_byte_in_a_document() {
    let digest = |value: &Value| value["digest"].as_str().unwrap().to_owned();
    let parts = ["hashes to"];
    w8(|e| flip(&e.blob_path(&digest(&e.manifest()["config"])), |len| len / 2), &[parts[0], "blob config "]);
    w8(
        |e| flip(&e.blob_path(&digest(&e.index()["manifests"][0])), |len| len / 2),
        &[parts[0], "blob manifest "],
    );
}

#[test]
fn truncated_missing_and_swapped_blobs() {
    let title = "block.1.safetensors";
    let truncate = |e: &Editor<'_>| {
        let bytes = fs::read(e.layer_path(title)).unwrap();
        fs::write(e.layer_path(title), &bytes[..bytes.len() - 1]).unwrap();
    };
    w8(truncate, &["blob block.1.safetensors", "bytes instead of"]);
    w8(|e| fs::write(e.layer_path(title), "").unwrap(), &["has 0 bytes instead of"]);
    w8(|e| fs::remove_file(e.layer_path(title)).unwrap(), &["blob block.1.safetensors", "is missing; copy"]);
    let replace_by_folder = |e: &Editor<'_>| {
        fs::remove_file(e.layer_path(title)).unwrap();
        fs::create_dir(e.layer_path(title)).unwrap();
    };
    w8(replace_by_folder, &["block.1.safetensors", "is no regular file"]);
    let swap_files = |e: &Editor<'_>| {
        let (a, b) = (e.layer_path("block.0.safetensors"), e.layer_path(title));
        fs::rename(&a, e.0.join("aside")).unwrap();
        fs::rename(&b, &a).unwrap();
        fs::rename(e.0.join("aside"), &b).unwrap();
    };
    w8(swap_files, &["blob block.0.safetensors hashes to"]);
    let swap_titles = |e: &Editor<'_>| {
        e.edit_manifest(|manifest| {
            let layers = manifest["layers"].as_array_mut().unwrap();
            let annotations = layers[1]["annotations"].clone();
            layers[1]["annotations"] = layers[2]["annotations"].clone();
            layers[2]["annotations"] = annotations;
        });
    };
    w8(swap_titles, &["blob block.0.safetensors: tensor blk.0.attn_norm.weight: is missing"]);
}

#[test]
fn folders_that_are_no_bundle() {
    let parent = tempfile::tempdir().unwrap();
    let text = open_error(&parent.path().join("nowhere")).to_string();
    assert!(text.contains("does not exist") && text.contains("rookery pack"), "{text}");
    let text = open_error(parent.path()).to_string();
    assert!(text.contains("has no oci-layout file"), "{text}");
    fs::write(parent.path().join("file"), "").unwrap();
    let text = open_error(&parent.path().join("file")).to_string();
    assert!(text.contains("is no folder"), "{text}");
    w8(|e| fs::remove_file(e.0.join("index.json")).unwrap(), &["was never finished; pack the model again"]);
}

#[test]
fn indexes_out_of_order() {
    w8(|e| fs::write(e.0.join("index.json"), "{").unwrap(), &["index.json: EOF"]);
    w8(|e| fs::write(e.0.join("index.json"), vec![b' '; 2 << 20]).unwrap(), &["index.json: has more than"]);
    let index = |edit: fn(&mut Value), parts: &[&str]| {
        let corrupt = |e: &Editor<'_>| {
            let mut index = e.index();
            edit(&mut index);
            e.set_index(&index);
        };
        w8(corrupt, parts);
    };
    index(|i| i["manifests"] = json!([]), &["lists 0 manifests"]);
    index(|i| i["manifests"] = json!([i["manifests"][0], i["manifests"][0]]), &["lists 2 manifests"]);
    index(|i| i["schemaVersion"] = json!(1), &["schemaVersion is 1 instead of 2"]);
    for digest in ["sha256:../../../index.json", "/etc/passwd", "sha512:00", "sha256:"] {
        let corrupt = |e: &Editor<'_>| {
            let mut index = e.index();
            index["manifests"][0]["digest"] = digest.into();
            e.set_index(&index);
        };
        w8(corrupt, &["index.json: ", "is not a digest"]);
    }
    index(
        |i| i["manifests"][0]["size"] = json!(u64::MAX),
        &["manifest has 18446744073709551615 bytes, more than"],
    );
    index(|i| i["manifests"][0]["size"] = json!(7), &["blob manifest", "bytes instead of 7"]);
    index(
        |i| i["manifests"][0]["mediaType"] = json!("text/plain"),
        &["\"text/plain\" is not an image manifest"],
    );
}

#[test]
fn manifests_out_of_order() {
    let manifest = |edit: fn(&mut Value), parts: &[&str]| w8(|e| e.edit_manifest(edit), parts);
    manifest(|m| m["schemaVersion"] = json!(3), &["manifest: schemaVersion is 3 instead of 2"]);
    manifest(|m| m["artifactType"] = json!("application/x-tar"), &["artifactType", "no Rookery model"]);
    manifest(|m| m["config"]["mediaType"] = json!(""), &["config.mediaType"]);
    manifest(
        |m| m["config"]["size"] = json!(1u64 << 40),
        &["config has 1099511627776 bytes, more than the limit"],
    );
    manifest(
        |m| m["layers"] = json!([]),
        &["0 layers of type application/vnd.rookery.model.tokenizer.v1+json"],
    );
    manifest(|m| m["layers"][1]["digest"] = json!("sha256:..%2f"), &["is not a digest"]);
    manifest(|m| m["layers"][1]["size"] = json!(-1), &["manifest: invalid value"]);
    manifest(
        |m| m["layers"][1]["size"] = json!(u64::MAX),
        &["block.0.safetensors", "instead of 18446744073709551615"],
    );
    manifest(|m| m["layers"][1] = m["layers"][0].clone(), &["2 layers with the title embedding.safetensors"]);
    let title = "org.opencontainers.image.title";
    let rename = move |m: &mut Value| m["layers"][1]["annotations"][title] = json!("block.7.safetensors");
    w8(|e| e.edit_manifest(rename), &["lacks the layer block.0.safetensors"]);
    let extra = move |m: &mut Value| {
        let mut layer = m["layers"][1].clone();
        layer["annotations"][title] = json!("head.safetensors");
        m["layers"].as_array_mut().unwrap().push(layer);
    };
    w8(|e| e.edit_manifest(extra), &["weight layer \"head.safetensors\", which the model has no use for"]);
    w8(|e| e.set_manifest(b"[]"), &["manifest: invalid"]);
    w8(|e| e.set_manifest(("{\"x\":".to_owned() + &"[".repeat(100_000)).as_bytes()), &["manifest: EOF"]);
}

#[test]
fn configs_out_of_order() {
    let config = |edit: fn(&mut Value), parts: &[&str]| w8(|e| e.edit_config(edit), parts);
    for version in [0, 3] {
        let text = format!("bundle schema {version} is not supported (this version reads 1 to 2)");
        w8(|e| e.edit_config(|c| c["schema_version"] = json!(version)), &[&text]);
    }
    config(|c| *c = json!({"schema_version": 99, "new_field": []}), &["bundle schema 99 is not supported"]);
    config(|c| c["colour"] = json!("red"), &["config: unknown field `colour`"]);
    config(|c| c["name"] = json!("\u{1b}[2J"), &["config: name", "has characters other than"]);
    config(|c| c["source"] = json!("\u{1b}[2J"), &["config: source", "has control characters"]);
    config(|c| c["parameters"] = json!(7), &["config: parameters is 7, the model has"]);
    let title = |m: &mut Value| {
        m["layers"][3]["annotations"]["org.opencontainers.image.title"] = json!("\u{1b}[2J");
    };
    w8(|e| e.edit_manifest(title), &["manifest: title or media type", "has control characters"]);
    config(|c| c["source_digest"] = json!("md5:0"), &["source_digest \"md5:0\" is not"]);
    config(|c| c["model"]["head_dim"] = json!(40), &["config: model: head size 40"]);
    config(|c| c["model"]["hidden"] = json!(0), &["config: model: hidden is 0"]);
    config(|c| c["model"]["hidden"] = json!(u64::MAX), &["config: model: hidden is 18446744073709551615"]);
    config(
        |c| c["model"]["vocab"] = json!(132),
        &["tensor token_embd.weight: shape [131, 144] instead of [132, 144]"],
    );
    config(|c| c["model"]["layers"] = json!(3), &["config: lists 30 tensors, the model needs 44"]);
    config(|c| c["tensors"][1]["name"] = json!("blk.00.attn_norm.weight"), &["unknown tensor name"]);
    config(
        |c| c["tensors"][2]["name"] = json!("blk.1.attn_q.weight"),
        &["tensor blk.1.attn_q.weight where blk.0.attn_q.weight belongs"],
    );
    config(
        |c| c["tensors"][2]["segments"] = json!([]),
        &["blk.0.attn_q.weight: segments cover 0 of 144 rows"],
    );
    config(|c| c["tensors"][2]["segments"][0]["precision"] = json!("f32"), &["cannot be stored as f32"]);
    config(|c| c["tensors"][1]["segments"][0]["precision"] = json!("w8"), &["cannot be stored as w8"]);
    config(|c| c["tensors"][1]["segments"][0]["precision"] = json!("w2"), &["unknown variant `w2`"]);
    config(|c| c["tensors"][2]["segments"][0]["rows"] = json!(145), &["segment of 145 rows from row 0"]);
    config(|c| c["tensors"][2]["segments"][0]["rows"] = json!(0), &["segment of 0 rows"]);
    config(|c| c["tensors"][2]["segments"][0]["first_row"] = json!(1), &["segment of 144 rows from row 1"]);
}

/// The config agrees with itself and all digests are right, yet the blobs hold something else.
#[test]
fn blobs_that_do_not_fit_the_config() {
    let precision = |c: &mut Value| c["tensors"][2]["segments"][0]["precision"] = json!("w4");
    w8(
        |e| e.edit_config(precision),
        &[
            "blob block.0.safetensors: tensor blk.0.attn_q.weight.tiles: is I8 [5, 5, 32, 32] instead of U8 [3, 5, 64, 16]",
        ],
    );
    let wider = |c: &mut Value| {
        c["model"]["vocab"] = json!(260);
        c["tensors"][0]["rows"] = json!(260);
        c["tensors"][0]["segments"][0]["rows"] = json!(260);
        c["parameters"] = json!(c["parameters"].as_u64().unwrap() + (260 - 131) * 144);
    };
    w8(|e| e.edit_config(wider), &["blob embedding.safetensors: tensor token_embd.weight.", "instead of"]);
    let no_norm = |c: &mut Value| {
        c["model"]["qk_norm"] = json!(false);
        c["parameters"] = json!(c["parameters"].as_u64().unwrap() - 2 * 2 * 48);
        c["tensors"].as_array_mut().unwrap().retain(|t| {
            !t["name"].as_str().unwrap().ends_with("_norm.weight")
                || !t["name"].as_str().unwrap().contains("attn_q")
                    && !t["name"].as_str().unwrap().contains("attn_k")
        });
    };
    w8(|e| e.edit_config(no_norm), &["blob block.0.safetensors: holds", "tensors, 26 belong to it"]);
}

#[test]
fn safetensors_headers_out_of_order() {
    let title = "block.0.safetensors";
    let layer = |edit: fn(&mut Vec<u8>), parts: &[&str]| {
        let (_parent, path) = packed(small_config(), Recipe::W8);
        Editor(&path).edit_layer(title, edit);
        let text = chain(&open_error(&path));
        for part in ["blob block.0.safetensors: "].iter().chain(parts) {
            assert!(text.contains(part), "{text:?} lacks {part:?}");
        }
    };
    layer(|b| b.clear(), &["0 bytes are too few"]);
    layer(|b| b.truncate(7), &["7 bytes are too few"]);
    layer(|b| b[..8].fill(0xff), &["header of 18446744073709551615 bytes exceeds the limit"]);
    layer(
        |b| b[..8].copy_from_slice(&(100u64 << 20).to_le_bytes()),
        &["header of 104857600 bytes exceeds the limit"],
    );
    layer(|b| b[..8].copy_from_slice(&(8u64 << 20).to_le_bytes()), &["safetensors header: "]);
    layer(|b| b[8] = b'[', &["safetensors header: "]);
    layer(|b| drop(b.splice(8..12, *b"\xff\xff\xff\xff")), &["safetensors header: invalid UTF-8"]);
    layer(|b| b.push(0), &["safetensors header: incomplete metadata"]);
    // The data moves by 8 bytes: still safetensors, no longer aligned.
    let shift = |b: &mut Vec<u8>| {
        let length = u64::from_le_bytes(b[..8].try_into().unwrap());
        b[..8].copy_from_slice(&(length + 8).to_le_bytes());
        drop(b.splice(8 + length as usize..8 + length as usize, [b' '; 8]));
    };
    layer(shift, &["data starts at byte", "not at a multiple of 4096"]);
}

#[test]
fn values_no_packer_writes() {
    let (title, norm, q) = ("block.1.safetensors", "blk.1.attn_norm.weight", "blk.1.attn_q.weight");
    let tensor = |recipe, part: &str, edit: &dyn Fn(&mut [u8]), fault: &str| {
        let name = if part.is_empty() { norm.to_owned() } else { format!("{q}.{part}") };
        let text = format!("blob {title}: tensor {name}: {fault}");
        check(recipe, |e| e.edit_tensor(title, &name, edit), &[&text]);
    };
    let set_f32 = |at: usize, value: f32| {
        move |b: &mut [u8]| b[at * 4..at * 4 + 4].copy_from_slice(&value.to_le_bytes())
    };
    tensor(Recipe::W8, "", &set_f32(3, f32::NAN), "element 3 is NaN");
    for recipe in [Recipe::W8, Recipe::W4] {
        tensor(recipe, "scales", &set_f32(5, f32::NAN), "scale of row 5 is NaN");
        tensor(recipe, "scales", &set_f32(5, f32::INFINITY), "scale of row 5 is inf");
        tensor(recipe, "scales", &set_f32(143, -1.0), "scale of row 143 is -1");
        tensor(recipe, "row_sums", &|b| b[7 * 4] ^= 1, "row 7 is ");
    }
    tensor(Recipe::W8, "tiles", &|b| b[5] = 0x80, "a weight in rows 0.. is -128");
    // 144 columns leave 16 of padding in the fifth tile; 144 rows leave 16 (w8) or 48 (w4) rows of it. Two opposite
    // values keep the row sum right.
    let padding = |first: usize, second: usize| move |b: &mut [u8]| (b[first], b[second]) = (1, 0xff);
    tensor(
        Recipe::W8,
        "tiles",
        &padding(4 * 1024 + 16, 4 * 1024 + 17),
        "padding at row 0, column 144 is not zero",
    );
    tensor(Recipe::W4, "multipliers", &|b| b[3] = 0, "multiplier of row 1, group 1 is 0");
    tensor(Recipe::W4, "multipliers", &|b| b[0] = 16, "multiplier of row 0, group 0 is 16");
    tensor(Recipe::W4, "tiles", &|b| b[4 * 1024 + 8] = 0x1f, "padding at row 0, column 144 is not zero");
}

#[test]
fn a_changed_weight_shows_in_its_row_sum() {
    for recipe in [Recipe::W8, Recipe::W4] {
        // Row 33 lies in the second block of rows in w8, in the first in w4.
        let at = if recipe == Recipe::W8 { 5 * 1024 + 32 } else { 33 * 16 };
        let corrupt = |e: &Editor<'_>| {
            e.edit_tensor("block.0.safetensors", "blk.0.ffn_up.weight.tiles", |b| b[at] ^= 1)
        };
        check(
            recipe,
            corrupt,
            &["tensor blk.0.ffn_up.weight.row_sums: row 33 is ", "its weights add up to "],
        );
    }
}

#[test]
fn padding_rows_are_zero() {
    let name = "blk.1.attn_q.weight.tiles";
    // Last block of rows: 144 = 4·32 + 16 rows in w8, 2·64 + 16 in w4; the row after the last is n = 16 of its block.
    let w8_row = |b: &mut [u8]| (b[4 * 5 * 1024 + 16 * 32], b[4 * 5 * 1024 + 16 * 32 + 1]) = (1, 0xff);
    w8(|e| e.edit_tensor("block.1.safetensors", name, w8_row), &["padding at row 144, column 0 is not zero"]);
    let w4_row = |b: &mut [u8]| b[2 * 5 * 1024 + 16 * 16] = 0x1f;
    w4(|e| e.edit_tensor("block.1.safetensors", name, w4_row), &["padding at row 144, column 0 is not zero"]);
}

#[test]
fn tokenizers_out_of_order() {
    let open = |title: &str, text: &[u8]| {
        let (_parent, path) = packed(small_config(), Recipe::W8);
        Editor(&path).edit_layer(title, |bytes| *bytes = text.to_vec());
        let bundle = rookery_model::bundle::Bundle::open(&path, &rookery_model::bundle::NoProgress).unwrap();
        chain(&bundle.tokenizer().map(|_| ()).unwrap_err())
    };
    assert!(open("tokenizer.json", b"{}").starts_with("tokenizer: "));
    assert!(open("tokenizer.json", b"\xff").starts_with("tokenizer: invalid utf-8"));
    assert!(open("tokenizer_config.json", b"").starts_with("tokenizer config: EOF"));
}

#[test]
fn a_blob_that_is_changed_after_editing_has_another_digest() {
    // Guards the editor itself: without it the cases above could pass for the wrong reason.
    let (_parent, path) = packed(small_config(), Recipe::W8);
    let editor = Editor(&path);
    let before = editor.layer("block.0.safetensors");
    editor.edit_layer("block.0.safetensors", |bytes| {
        let range = tensor_range(bytes, "blk.0.attn_norm.weight");
        bytes[range][..4].copy_from_slice(&1.0f32.to_le_bytes());
    });
    assert_ne!(editor.layer("block.0.safetensors"), before);
    let bytes = fs::read(editor.layer_path("block.0.safetensors")).unwrap();
    assert_eq!(Digest::of(&bytes).to_string(), editor.layer("block.0.safetensors"));
    rookery_model::bundle::Bundle::open(&path, &rookery_model::bundle::NoProgress).unwrap();
}
