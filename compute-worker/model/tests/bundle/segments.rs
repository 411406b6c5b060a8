//! Matrices in several segments: read from files, cut from larger ones, put together from different bundles.

use std::sync::Arc;

use rookery_model::bundle::{Bundle, LinearWeights, NoProgress, Precision, Segment, TileStorage};
use rookery_model::config::ModelConfig;
use rookery_model::names::{LayerTensor, TensorName};
use rookery_model::pack::{Recipe, StoredRows};
use tempfile::TempDir;

use crate::dequantized;
use crate::support::{Editor, packed, small_config};

#[test]
fn segments_of_mixed_precision_are_read() {
    // Not what our packer wrote.
    let (_parent, path) = packed(small_config(), Recipe::W8);
    let editor = Editor(&path);
    let before = Bundle::open(&path, &NoProgress).unwrap();
    let name = TensorName::Layer(1, LayerTensor::AttnV);
    let whole = dequantized(&before.linear(name).unwrap().segments[0]);
    let entry = before.info().config.tensors.iter().position(|entry| entry.name == name).unwrap();
    editor.edit_config(|config| {
        config["tensors"][entry]["segments"] = serde_json::json!([
            {"first_row": 0, "rows": 32, "precision": "w8"},
            {"first_row": 32, "rows": 16, "precision": "w8"},
        ]);
    });
    editor.edit_layer("block.1.safetensors", |bytes| split_segment(bytes, &name.to_string(), 32));
    let after = Bundle::open(&path, &NoProgress).unwrap();
    let segments = after.linear(name).unwrap().segments;
    let ranges: Vec<_> = segments.iter().map(|segment| (segment.first_row, segment.rows)).collect();
    assert_eq!(ranges, [(0, 32), (32, 16)]);
    assert_eq!(segments.iter().flat_map(dequantized).collect::<Vec<_>>(), whole);
}

/// Renames a matrix's tensors in a safetensors file to those of two segments, the first of which has `rows` rows.
fn split_segment(bytes: &mut [u8], name: &str, rows: usize) {
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let object = header.as_object_mut().unwrap();
    for (part, per) in [("tiles", 32), ("scales", 1), ("row_sums", 1)] {
        let info = object.remove(&format!("{name}.{part}")).unwrap();
        let count = info["shape"][0].as_u64().unwrap() as usize;
        let offset = |i: usize| info["data_offsets"][i].as_u64().unwrap() as usize;
        let middle = offset(0) + (offset(1) - offset(0)) / count * (rows / per);
        for (first, rows, range) in
            [(0, rows / per, [offset(0), middle]), (rows, count - rows / per, [middle, offset(1)])]
        {
            let mut info = info.clone();
            info["shape"][0] = rows.into();
            info["data_offsets"] = range.to_vec().into();
            object.insert(format!("{name}.rows.{first}.{part}"), info);
        }
    }
    let mut padded = header.to_string().into_bytes();
    assert!(padded.len() <= length);
    padded.resize(length, b' ');
    bytes[8..8 + length].copy_from_slice(&padded);
}

const UP: TensorName = TensorName::Layer(1, LayerTensor::FfnUp);

/// The up projection, 200 x 144.
fn up(recipe: Recipe) -> (TempDir, Segment) {
    let (parent, path) = packed(small_config(), recipe);
    let bundle = Bundle::open(&path, &NoProgress).unwrap();
    (parent, bundle.linear(UP).unwrap().segments.remove(0))
}

#[derive(Debug)]
struct Elsewhere(Vec<u8>);

impl TileStorage for Elsewhere {
    fn bytes(&self) -> &[u8] {
        &self.0
    }
}

#[test]
fn parts_of_segments_are_their_rows() {
    for recipe in [Recipe::W8, Recipe::W4] {
        let (_parent, mut segment) = up(recipe);
        let whole = dequantized(&segment);
        let check = |segment: &Segment| {
            for rows in [0..64, 0..200, 64..128, 64..200, 128..192, 192..200] {
                let part = segment.part(rows.clone());
                assert_eq!((part.first_row, part.rows, part.cols), (rows.start, rows.len(), 144));
                assert!(dequantized(&part) == whole[rows.start * 144..rows.end * 144], "{rows:?}");
                let sums = StoredRows::of(&part);
                assert!(sums == StoredRows::rows_of(segment, rows.clone()), "{rows:?}");
            }
            let nested = segment.part(64..200).part(64..136);
            assert_eq!((nested.first_row, nested.rows), (128, 72));
            assert!(dequantized(&nested) == whole[128 * 144..]);
        };
        check(&segment);
        let bytes: u64 = [0..64, 64..128, 128..200].map(|rows| segment.part(rows).bytes()).iter().sum();
        assert_eq!(bytes, segment.bytes());
        let tiles = segment.tiles().to_vec();
        segment.move_tiles(Arc::new(Elsewhere([vec![9; 100], tiles].concat())), 100);
        check(&segment);
    }
}

#[test]
fn any_rows_are_stored_anew_as_if_they_had_been_packed_alone() {
    for recipe in [Recipe::W8, Recipe::W4] {
        let (_parent, segment) = up(recipe);
        let whole = dequantized(&segment);
        for rows in [0..1, 1..64, 47..96, 63..65, 100..200, 199..200] {
            let stored = StoredRows::rows_of(&segment, rows.clone());
            assert_eq!(
                (stored.rows(), stored.cols(), stored.precision()),
                (rows.len(), 144, segment.precision)
            );
            let found = crate::dequantized_view(&stored.view());
            assert!(found == whole[rows.start * 144..rows.end * 144], "{recipe} {rows:?}");
            let mut segment = stored.segment(7).unwrap();
            assert_eq!((segment.first_row, segment.rows, segment.cols), (7, rows.len(), 144));
            assert!(dequantized(&segment) == found && StoredRows::of(&segment) == stored);
            // What is in memory only must not be given back.
            let other = segment.clone();
            segment.move_tiles(Arc::new(Elsewhere(segment.tiles().to_vec())), 0);
            assert!(dequantized(&segment) == found && dequantized(&other) == found);
        }
    }
}

#[test]
fn matrices_are_put_together_from_segments_of_two_bundles() {
    let ((_first, eight), (_second, four)) = (up(Recipe::W8), up(Recipe::W4));
    let segments = vec![four.part(0..64), eight.part(64..192), four.part(192..200)];
    let expected: Vec<f32> = segments.iter().flat_map(dequantized).collect();
    let bytes = segments.iter().map(Segment::bytes).sum::<u64>();
    let matrix = LinearWeights::from_segments(200, 144, segments);
    let precisions: Vec<_> = matrix.segments.iter().map(|segment| segment.precision).collect();
    assert_eq!(precisions, [Precision::W4, Precision::W8, Precision::W4]);
    assert_eq!(matrix.bytes(), bytes);
    assert!(matrix.segments.iter().flat_map(dequantized).eq(expected));
}

#[test]
#[should_panic(expected = "rows 32..128 cut a panel")]
fn a_part_begins_with_a_panel() {
    up(Recipe::W8).1.part(32..128);
}

#[test]
#[should_panic(expected = "rows 0..199 cut a panel")]
fn a_part_ends_with_a_panel_or_the_segment() {
    up(Recipe::W4).1.part(0..199);
}

#[test]
#[should_panic(expected = "segments cover 192 of 200 rows")]
fn segments_cover_their_matrix() {
    let (_parent, segment) = up(Recipe::W8);
    LinearWeights::from_segments(200, 144, vec![segment.part(0..64), segment.part(64..192)]);
}

#[test]
#[should_panic(expected = "segment does not go on at row 64")]
fn segments_follow_each_other() {
    let (_parent, segment) = up(Recipe::W8);
    LinearWeights::from_segments(200, 144, vec![segment.part(0..64), segment.part(128..200)]);
}

#[test]
fn heads_of_64_are_panels() {
    // The common head sizes are whole panels: a head is a part without a copy.
    let config = ModelConfig { head_dim: 64, ..small_config() };
    let (_parent, path) = packed(config, Recipe::W4);
    let bundle = Bundle::open(&path, &NoProgress).unwrap();
    let q = bundle.linear(TensorName::Layer(0, LayerTensor::AttnQ)).unwrap();
    let heads = (0..3).map(|head| q.segments[0].part(head * 64..(head + 1) * 64)).collect();
    let by_head = LinearWeights::from_segments(192, 144, heads);
    assert!(by_head.segments.iter().flat_map(dequantized).eq(dequantized(&q.segments[0])));
}
