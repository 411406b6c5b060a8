//! Which tensors a weight blob holds, under which names, in which order. Packer and reader share this.
//!
//! ```text
//! embedding.safetensors   token_embd.weight   (+ output_norm.weight if the head is tied)
//! block.I.safetensors     blk.I.*
//! head.safetensors        output_norm.weight, output.weight   (absent if the head is tied)
//! ```

use std::fmt;

use safetensors::Dtype;

use super::config::{Precision, SegmentEntry, TensorEntry};
use crate::names::TensorName;

/// Inputs that share one multiplier in w4.
pub(crate) const GROUP: usize = 128;
/// Data of a weight blob starts at a multiple of this, and so does every tensor whose length is one.
pub(crate) const PAGE: usize = 4096;

/// Which blob of a bundle holds a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Part {
    /// The token embedding.
    Embedding,
    /// One transformer block.
    Block(usize),
    /// Final norm and separate output head.
    Head,
}

impl Part {
    /// Where `name` is stored.
    pub fn of(name: TensorName, tied_head: bool) -> Self {
        match name {
            TensorName::TokenEmbedding => Self::Embedding,
            TensorName::Layer(layer, _) => Self::Block(layer),
            TensorName::OutputNorm if tied_head => Self::Embedding,
            TensorName::OutputNorm | TensorName::Output => Self::Head,
        }
    }

    /// Title of the part's blob.
    pub fn title(self) -> String {
        format!("{self}.safetensors")
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedding => f.write_str("embedding"),
            Self::Block(layer) => write!(f, "block.{layer}"),
            Self::Head => f.write_str("head"),
        }
    }
}

/// What a stored tensor is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Role {
    /// Quantised weights in tile order.
    Tiles,
    /// f32 per row.
    Scales,
    /// int32 per row: sum of the row's int8 weights.
    RowSums,
    /// w4 only: one for every row and group of 128 inputs.
    Multipliers,
    /// The f32 values of a vector.
    Values,
}

/// A tensor as a safetensors header lists it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct StoredTensor {
    pub(crate) name: String,
    pub(crate) role: Role,
    /// Index of the segment in its tensor's entry.
    pub(crate) segment: usize,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: usize,
}

/// The stored tensors of one entry, in no particular order. The entry's shape is that of a validated config, so
/// no product here overflows.
pub(crate) fn stored_tensors(entry: &TensorEntry) -> Vec<StoredTensor> {
    let mut stored = Vec::new();
    for (index, segment) in entry.segments.iter().enumerate() {
        for &(role, dtype, ref shape) in &segment_tensors(segment, entry.cols) {
            stored.push(StoredTensor {
                name: stored_name(entry, segment, role),
                role,
                segment: index,
                dtype,
                bytes: shape.iter().product::<usize>() * dtype.bitsize() / 8,
                shape: shape.clone(),
            });
        }
    }
    stored
}

/// Puts a blob's tensors in file order.
///
/// safetensors allows no holes, so alignment comes from order: tiles (multiples of 1024 bytes) first, then the rest,
/// each by how large a power of two divides its length, largest first. Then every tensor starts at a multiple of
/// that power of two. Ties keep the order of the forward pass, which is the order weights are read in.
pub(crate) fn file_order<T>(tensors: &mut [T], stored: impl Fn(&T) -> &StoredTensor) {
    tensors.sort_by_key(|tensor| {
        let tensor = stored(tensor);
        let alignment = PAGE.trailing_zeros().min(tensor.bytes.trailing_zeros());
        (tensor.role != Role::Tiles, std::cmp::Reverse(alignment))
    });
}

fn stored_name(entry: &TensorEntry, segment: &SegmentEntry, role: Role) -> String {
    let name = entry.name;
    let rows = if entry.segments.len() > 1 { format!(".rows.{}", segment.first_row) } else { String::new() };
    match role {
        Role::Tiles => format!("{name}{rows}.tiles"),
        Role::Scales => format!("{name}{rows}.scales"),
        Role::RowSums => format!("{name}{rows}.row_sums"),
        Role::Multipliers => format!("{name}{rows}.multipliers"),
        Role::Values => name.to_string(),
    }
}

fn segment_tensors(segment: &SegmentEntry, cols: usize) -> Vec<(Role, Dtype, Vec<usize>)> {
    let rows = segment.rows;
    let mut tensors = match segment.precision {
        Precision::F32 => return vec![(Role::Values, Dtype::F32, vec![cols])],
        Precision::W8 => vec![(Role::Tiles, Dtype::I8, vec![rows.div_ceil(32), cols.div_ceil(32), 32, 32])],
        Precision::W4 => vec![
            (Role::Tiles, Dtype::U8, vec![rows.div_ceil(64), cols.div_ceil(32), 64, 16]),
            (Role::Multipliers, Dtype::U8, vec![rows, cols.div_ceil(GROUP)]),
        ],
    };
    tensors.push((Role::Scales, Dtype::F32, vec![rows]));
    tensors.push((Role::RowSums, Dtype::I32, vec![rows]));
    tensors
}
