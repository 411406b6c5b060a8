//! Copies of bundles with other scales, digests and all.

use std::path::Path;
use std::sync::Arc;

use rookery_kernels::{Weights, tiles};
use rookery_model::bundle::{Bundle, NoProgress, Part, QUANTIZATION_TYPE, Segment, TensorEntry};
use rookery_model::names::TensorName;
use rookery_model::pack::{Content, Draft, ExistingTarget, StoredRows};
use rookery_model::rotate::{RotateOptions, RotatedSource};
use rookery_model::source::ModelSource;
use rookery_quantizer::pack::Quantization;

/// A copy of `original`, packed from `source`, in the new folder `out`, in which `change` was called on the scales of each of
/// `tensors`.
pub(crate) fn altered(
    original: &Bundle,
    source: &dyn ModelSource,
    out: &Path,
    tensors: &[TensorName],
    change: &dyn Fn(&mut [f32]),
) -> Arc<Bundle> {
    let config = &original.info().config;
    let part_of = |tensor: TensorName| Part::of(tensor, config.model.tied_head);
    let parts: Vec<Part> = tensors.iter().map(|tensor| part_of(*tensor)).collect();
    let none = RotateOptions { residual: false, heads: false, ffn: false };
    let record = Quantization::of(original).unwrap();
    let rotate = record.map_or(none, |record| record.rotation.options);
    // Norms and biases are taken from it.
    let source = RotatedSource::new(source, rotate).unwrap();
    let mut draft = Draft::create(out, ExistingTarget::Refuse, "altered").unwrap();
    for part in config.parts() {
        if !parts.contains(&part) {
            draft.copy_part(original, part).unwrap();
            continue;
        }
        let entries: Vec<TensorEntry> =
            config.tensors.iter().filter(|entry| part_of(entry.name) == part).cloned().collect();
        let mut content = |entry: &TensorEntry| {
            let matrix = original.linear(entry.name).unwrap();
            let scales = matrix.segments.iter().flat_map(|segment| segment.view().scales().to_vec());
            let mut scales: Vec<f32> = scales.collect();
            if tensors.contains(&entry.name) {
                change(&mut scales);
            }
            let rows = |segment: &Segment| {
                rescaled(segment, &scales[segment.first_row..segment.first_row + segment.rows])
            };
            Ok(Content::Rows(matrix.segments.iter().map(rows).collect()))
        };
        draft.part(part, &source, &entries, &mut content, 2, &NoProgress).unwrap();
    }
    if let Some(document) = original.document(QUANTIZATION_TYPE) {
        draft.document(QUANTIZATION_TYPE, "quantization.json", document).unwrap();
    }
    draft.publish(config, &source).unwrap();
    Bundle::open(out, &NoProgress).unwrap()
}

/// The same integers with other scales.
fn rescaled(segment: &Segment, scales: &[f32]) -> StoredRows {
    let (rows, cols) = (segment.rows, segment.cols);
    let mut values = vec![0; rows * cols];
    match segment.view() {
        Weights::W8(weights) => {
            tiles::unpack_w8(rows, cols, weights.tiles, &mut values);
            StoredRows::w8(cols, &values, scales)
        }
        Weights::W4(weights) => {
            tiles::unpack_w4(rows, cols, weights.tiles, &mut values);
            StoredRows::w4(cols, &values, weights.multipliers, scales)
        }
    }
}
