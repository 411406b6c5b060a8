//! Bundles under construction: interrupted, resumed, opened before they are published, made of others' parts.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rookery_model::bundle::{Bundle, BundleConfig, NoProgress, Part, Precision, SegmentEntry, TensorEntry};
use rookery_model::config::ModelConfig;
use rookery_model::names::{LayerTensor, TensorName};
use rookery_model::pack::{Content, Draft, ExistingTarget, PackError, Recipe, StoredRows, describe};

use crate::support::{RandomSource, chain, packed, small_config};
use crate::{dequantized, files};

/// Every other head of q at four bits, so that each head is a segment; two of the feed-forward's matrices at four bits.
fn mixed_table(model: &ModelConfig) -> Vec<TensorEntry> {
    use LayerTensor::{AttnQ, FfnDown, FfnUp};
    let entry = |name: TensorName| {
        let (rows, cols) = model.shape(name);
        let whole = |precision| vec![SegmentEntry { first_row: 0, rows, precision }];
        let head = |head: usize| SegmentEntry {
            first_row: head * model.head_dim,
            rows: model.head_dim,
            precision: if head.is_multiple_of(2) { Precision::W4 } else { Precision::W8 },
        };
        let segments = if !name.is_linear() {
            whole(Precision::F32)
        } else if matches!(name, TensorName::Layer(_, AttnQ)) {
            (0..model.heads).map(head).collect()
        } else if matches!(name, TensorName::Layer(_, FfnUp | FfnDown)) {
            whole(Precision::W4)
        } else {
            whole(Precision::W8)
        };
        TensorEntry { name, rows, cols, segments }
    };
    model.tensor_names().into_iter().map(entry).collect()
}

fn mixed_config(source: &RandomSource) -> BundleConfig {
    describe(source, "org/mixed", "mixed", mixed_table(&source.config)).unwrap()
}

fn draft(target: &Path) -> Draft {
    Draft::create(target, ExistingTarget::Refuse, "key").unwrap()
}

fn entries_of(config: &BundleConfig, part: Part) -> Vec<TensorEntry> {
    let of_part = |entry: &&TensorEntry| Part::of(entry.name, config.model.tied_head) == part;
    config.tensors.iter().filter(of_part).cloned().collect()
}

fn write_rounded(draft: &mut Draft, source: &RandomSource, config: &BundleConfig, part: Part) {
    let entries = entries_of(config, part);
    draft.part(part, source, &entries, &mut |_| Ok(Content::Round), 2, &NoProgress).unwrap();
}

/// A bundle of the table above, never interrupted.
fn mixed_bundle(source: &RandomSource, config: &BundleConfig, target: &Path) {
    let mut draft = draft(target);
    for part in config.parts() {
        write_rounded(&mut draft, source, config, part);
    }
    draft.publish(config, source).unwrap();
}

fn separate_head() -> ModelConfig {
    ModelConfig { tied_head: false, ..small_config() }
}

#[test]
fn a_draft_dropped_after_any_part_goes_on_to_the_same_bytes() {
    let parent = tempfile::tempdir().unwrap();
    let source = RandomSource::new(separate_head());
    let config = mixed_config(&source);
    let whole = parent.path().join("whole");
    mixed_bundle(&source, &config, &whole);
    let parts: Vec<_> = config.parts().collect();
    for done in 0..=parts.len() {
        let target = parent.path().join(format!("after-{done}"));
        let mut first = draft(&target);
        for part in &parts[..done] {
            write_rounded(&mut first, &source, &config, *part);
        }
        fs::write(first.scratch().join("mine"), "kept").unwrap();
        drop(first);
        assert!(!target.exists());
        let mut second = draft(&target);
        assert_eq!(fs::read(second.scratch().join("mine")).unwrap(), b"kept");
        for (index, part) in parts.iter().enumerate() {
            assert_eq!(second.has(*part), index < done);
            if index >= done {
                write_rounded(&mut second, &source, &config, *part);
            }
        }
        second.publish(&config, &source).unwrap();
        assert!(files(&target) == files(&whole), "interrupted after {done} parts");
    }
    let names = fs::read_dir(parent.path()).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(names.into_iter().all(|name| !name.to_str().unwrap().starts_with('.')), "no staging is left");
}

#[test]
fn another_key_starts_anew_and_discarding_leaves_nothing() {
    let parent = tempfile::tempdir().unwrap();
    let target = parent.path().join("model");
    let source = RandomSource::new(small_config());
    let config = mixed_config(&source);
    let mut first = draft(&target);
    write_rounded(&mut first, &source, &config, Part::Embedding);
    let blocked = Draft::create(&target, ExistingTarget::Refuse, "key").unwrap_err();
    assert!(matches!(blocked, PackError::InProgress { .. }), "{blocked}");
    drop(first);
    let second = Draft::create(&target, ExistingTarget::Refuse, "another key").unwrap();
    assert!(!second.has(Part::Embedding));
    second.discard();
    assert!(files(parent.path()).is_empty());
}

#[test]
fn missing_parts_cannot_be_published() {
    let parent = tempfile::tempdir().unwrap();
    let target = parent.path().join("model");
    let source = RandomSource::new(small_config());
    let config = mixed_config(&source);
    let mut first = draft(&target);
    write_rounded(&mut first, &source, &config, Part::Embedding);
    write_rounded(&mut first, &source, &config, Part::Block(1));
    let error = first.open(&config, &source).unwrap_err();
    assert_eq!(error.to_string(), "part block.0 is missing");
    assert!(matches!(first.publish(&config, &source), Err(PackError::NoPart { part: Part::Block(0) })));
    let second = draft(&target);
    assert!(second.has(Part::Embedding) && second.has(Part::Block(1)));
}

#[test]
fn a_part_of_another_table_is_not_published() {
    let parent = tempfile::tempdir().unwrap();
    let source = RandomSource::new(small_config());
    let mut config = mixed_config(&source);
    let mut draft = draft(&parent.path().join("model"));
    for part in config.parts() {
        write_rounded(&mut draft, &source, &config, part);
    }
    let down = config.tensors.iter_mut().rfind(|t| t.name == TensorName::Layer(1, LayerTensor::FfnDown));
    down.unwrap().segments[0].precision = Precision::W8;
    let error = draft.publish(&config, &source).unwrap_err();
    let text = chain(&error);
    assert!(
        text.contains("does not read back: blob block.1.safetensors: tensor blk.1.ffn_down.weight"),
        "{text}"
    );
    assert!(!parent.path().join("model").exists());
}

/// Rows of the base bundles that a segment is made of.
fn rows_from(base: &Bundle, four: &Bundle, entry: &TensorEntry) -> Content {
    let rows = |segment: &SegmentEntry| {
        let bundle = if segment.precision == Precision::W4 && matches!(entry.name, TensorName::Layer(..)) {
            four
        } else {
            base
        };
        let matrix = bundle.linear(entry.name).unwrap();
        StoredRows::rows_of(&matrix.segments[0], segment.first_row..segment.first_row + segment.rows)
    };
    Content::Rows(entry.segments.iter().map(rows).collect())
}

#[test]
fn heads_of_two_precisions_come_from_two_bundles() {
    let source = RandomSource::new(separate_head());
    let config = mixed_config(&source);
    let open =
        |(parent, path): (tempfile::TempDir, PathBuf)| (parent, Bundle::open(&path, &NoProgress).unwrap());
    let (_base_parent, base) = open(packed(separate_head(), Recipe::W8));
    let (_four_parent, four) = open(packed(separate_head(), Recipe::W4));
    let parent = tempfile::tempdir().unwrap();
    let target = parent.path().join("model");
    let mut draft = draft(&target);
    let mut asked = Vec::new();
    for part in config.parts() {
        let mut content = |entry: &TensorEntry| {
            asked.push(entry.name);
            Ok(rows_from(&base, &four, entry))
        };
        draft.part(part, &source, &entries_of(&config, part), &mut content, 1, &NoProgress).unwrap();
    }
    draft.publish(&config, &source).unwrap();

    asked.sort_unstable();
    let mut matrices: Vec<_> =
        config.tensors.iter().map(|entry| entry.name).filter(|name| name.is_linear()).collect();
    matrices.sort_unstable();
    assert_eq!(asked, matrices, "each matrix is asked for once");
    let mixed = Bundle::open(&target, &NoProgress).unwrap();
    for entry in config.tensors.iter().filter(|entry| entry.name.is_linear()) {
        let matrix = mixed.linear(entry.name).unwrap();
        assert_eq!(matrix.segments.len(), entry.segments.len());
        for (segment, described) in matrix.segments.iter().zip(&entry.segments) {
            let from = if described.precision == Precision::W4 { &four } else { &base };
            let whole = dequantized(&from.linear(entry.name).unwrap().segments[0]);
            let rows = segment.first_row * entry.cols..(segment.first_row + segment.rows) * entry.cols;
            assert_eq!(segment.precision, described.precision);
            assert!(dequantized(segment) == whole[rows], "{} row {}", entry.name, segment.first_row);
        }
    }
    // Rounding works row by row, so rounding the segments by themselves gives the same.
    let rounded = parent.path().join("rounded");
    mixed_bundle(&source, &config, &rounded);
    assert!(files(&rounded) == files(&target));
}

#[test]
fn rows_that_do_not_fit_their_entry_are_refused() {
    let parent = tempfile::tempdir().unwrap();
    let source = RandomSource::new(small_config());
    let config = mixed_config(&source);
    let mut draft = draft(&parent.path().join("model"));
    let w8 = |rows: usize, cols: usize| StoredRows::w8(cols, &vec![1; rows * cols], &vec![0.5; rows]);
    let w4 = |rows: usize, cols: usize| {
        StoredRows::w4(cols, &vec![-8; rows * cols], &vec![15; rows * cols.div_ceil(128)], &vec![0.5; rows])
    };
    let part = Part::Block(0);
    let entries = entries_of(&config, part);
    let mut check = |name: LayerTensor, given: &dyn Fn() -> Vec<StoredRows>, fault: &str| {
        let mut content = |entry: &TensorEntry| {
            let faulty = entry.name == TensorName::Layer(0, name);
            Ok(if faulty { Content::Rows(given()) } else { Content::Round })
        };
        let error = draft.part(part, &source, &entries, &mut content, 1, &NoProgress).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, PackError::Misfit { .. }) && text.contains(fault), "{text}");
        assert!(!draft.has(part));
    };
    check(LayerTensor::AttnQ, &|| vec![w4(48, 144)], "1 segments given instead of 3");
    check(LayerTensor::AttnQ, &|| vec![w4(48, 144), w8(47, 144), w4(48, 144)], "47 x 144 w8");
    check(LayerTensor::AttnQ, &|| vec![w8(48, 144), w8(48, 144), w4(48, 144)], "at w4 from row 0");
    check(LayerTensor::FfnDown, &|| vec![w4(144, 144)], "given for 144 x 200 at w4");
    let broken = || {
        let mut scales = vec![0.5; 200];
        scales[7] = f32::NAN;
        vec![StoredRows::w8(144, &vec![1; 200 * 144], &scales)]
    };
    check(LayerTensor::FfnGate, &broken, "blk.0.ffn_gate.weight: scale of row 7 is NaN");

    let mut round = |_: &TensorEntry| Ok(Content::Round);
    let foreign = draft.part(Part::Block(1), &source, &entries, &mut round, 1, &NoProgress).unwrap_err();
    assert!(foreign.to_string().ends_with("belongs to another part than block.1"), "{foreign}");
    let mut uncovered = entries.clone();
    uncovered[1].segments.pop();
    let uncovered = draft.part(part, &source, &uncovered, &mut round, 1, &NoProgress).unwrap_err();
    assert_eq!(uncovered.to_string(), "tensor blk.0.attn_q.weight: segments cover 96 of 144 rows");
    let mut failing = |entry: &TensorEntry| {
        Err(PackError::Content { tensor: entry.name, source: "no calibration for it".into() })
    };
    let failed = draft.part(part, &source, &entries, &mut failing, 1, &NoProgress).unwrap_err();
    assert!(chain(&failed).ends_with(": no calibration for it"));
}

#[test]
fn parts_of_other_bundles_are_the_same_files() {
    let (_parent, path) = packed(separate_head(), Recipe::W4);
    let from = Bundle::open(&path, &NoProgress).unwrap();
    let source = RandomSource::new(separate_head());
    let config = &from.info().config;
    let parent = tempfile::tempdir().unwrap();
    let copy = |name: &str| {
        let target = parent.path().join(name);
        let mut draft = draft(&target);
        for part in config.parts() {
            draft.copy_part(&from, part).unwrap();
            draft.copy_part(&from, part).unwrap();
        }
        assert_eq!(draft.publish(config, &source).unwrap().digest.as_str(), from.digest());
        assert!(files(&target) == files(&path));
        target
    };
    let blob = &from.info().blobs.iter().find(|blob| blob.title == "block.1.safetensors").unwrap().path();
    let inode = |bundle: &Path| bundle.join(blob).metadata().unwrap().ino();
    assert_eq!(inode(&copy("linked")), inode(&path), "linked, not copied");

    // Where the bundle was lies another now; the mapped one is what is taken.
    let aside = path.with_file_name("aside");
    fs::rename(&path, &aside).unwrap();
    fs::create_dir_all(path.join("blobs/sha256")).unwrap();
    for blob in from.info().contents() {
        fs::write(path.join(blob.path()), vec![0; blob.size as usize]).unwrap();
    }
    let target = parent.path().join("copied");
    let mut second = draft(&target);
    for part in config.parts() {
        second.copy_part(&from, part).unwrap();
    }
    second.publish(config, &source).unwrap();
    assert!(files(&target) == files(&aside));

    let (_parent, tied) = packed(small_config(), Recipe::W8);
    let tied = Bundle::open(&tied, &NoProgress).unwrap();
    let error = draft(&parent.path().join("tied")).copy_part(&tied, Part::Head).unwrap_err();
    assert!(matches!(error, PackError::NoPart { part: Part::Head }));
}

#[test]
fn a_draft_is_a_bundle_before_it_is_published() {
    let parent = tempfile::tempdir().unwrap();
    let target = parent.path().join("model");
    let source = RandomSource::new(small_config());
    let config = mixed_config(&source);
    let mut draft = draft(&target);
    for part in config.parts() {
        write_rounded(&mut draft, &source, &config, part);
    }
    let staged = draft.open(&config, &source).unwrap();
    assert!(!target.exists());
    let info = draft.publish(&config, &source).unwrap();
    assert_eq!(*staged.info(), info);
    let published = Bundle::open(&target, &NoProgress).unwrap();
    fs::remove_dir_all(&target).unwrap();
    for name in config.model.tensor_names() {
        if name.is_linear() {
            let segments = |bundle: &Bundle| -> Vec<f32> {
                bundle.linear(name).unwrap().segments.iter().flat_map(dequantized).collect()
            };
            assert!(segments(&staged) == segments(&published), "{name}");
        } else {
            assert_eq!(staged.vector(name).unwrap(), published.vector(name).unwrap());
        }
    }
    assert_eq!(staged.tokenizer().unwrap().encode_text("abba").unwrap(), [2, 1, 0]);
}

#[test]
fn a_staged_part_that_was_damaged_is_found_before_it_is_computed_with() {
    let parent = tempfile::tempdir().unwrap();
    let target = parent.path().join("model");
    let source = RandomSource::new(small_config());
    let config = mixed_config(&source);
    let mut first = draft(&target);
    for part in config.parts() {
        write_rounded(&mut first, &source, &config, part);
    }
    for entry in fs::read_dir(parent.path().join(".model.packing/bundle/blobs/sha256")).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = fs::read(&path).unwrap();
        bytes[4096] ^= 0x10;
        fs::write(&path, bytes).unwrap();
    }
    let error = first.open(&config, &source).unwrap_err();
    assert!(chain(&error).contains("its weights add up to"), "{}", chain(&error));
    drop(first);
    let second = draft(&target);
    for part in config.parts() {
        assert!(!second.has(part), "{part}");
    }
}
