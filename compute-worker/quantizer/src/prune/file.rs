//! A pruned model as a GGUF file in f16, with the metadata of its source.

use std::ops::Range;
use std::path::Path;

use rookery_model::config::{Architecture, ModelConfig};
use rookery_model::dequant::StorageType;
use rookery_model::gguf::{Array, GgufFile, TensorPlan, Value, write_gguf};
use rookery_model::names::{LayerTensor, TensorName};
use rookery_model::source::{ImportError, ModelSource, TensorFault};

use super::PruneError;

/// Factors of Llama 3's rotary embedding, a tensor of the file that is none of the model.
const ROPE_FREQS: &str = "rope_freqs.weight";
/// Number of f16 among the types of files.
const FILE_TYPE_F16: u64 = 1;
/// More than a header takes.
const HEADER_BYTES: u64 = 32 << 20;
/// Keys that are not true of the pruned file: the writer's alignment is its own, the rest speaks of size and rounding.
const LEFT_OUT: [&str; 4] =
    ["general.alignment", "general.quantization_version", "general.size_label", "rookery.pruned"];

/// Fails if a model of this shape does not fit the file system of `path`.
pub(super) fn check_space(path: &Path, config: &ModelConfig) -> Result<(), PruneError> {
    let size = |name: TensorName| {
        let (rows, columns) = config.shape(name);
        rows as u64 * columns as u64 * if name.is_linear() { 2 } else { 4 }
    };
    let needed = config.tensor_names().into_iter().map(size).sum::<u64>() + HEADER_BYTES;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let space = rustix::fs::statvfs(folder)
        .map_err(|error| PruneError::Io { path: folder.to_owned(), source: error.into() })?;
    let available = space.f_bavail.saturating_mul(space.f_frsize);
    if needed > available {
        return Err(PruneError::NoSpace { path: path.to_owned(), needed, available });
    }
    Ok(())
}

/// Writes `model` with the metadata of `file`; `note` says what was done to it.
pub(super) fn write(
    path: &Path,
    file: &GgufFile,
    model: &dyn ModelSource,
    note: &str,
) -> Result<(), PruneError> {
    let names = model.config().tensor_names();
    let plan = |name: &TensorName| {
        let (rows, columns) = model.config().shape(*name);
        let matrix = name.is_linear();
        TensorPlan {
            name: name.to_string(),
            rows: matrix.then_some(rows),
            columns,
            storage: if matrix { StorageType::F16 } else { StorageType::F32 },
        }
    };
    let mut tensors: Vec<TensorPlan> = names.iter().map(plan).collect();
    if let Some(factors) = file.tensor(ROPE_FREQS) {
        let columns = factors.columns;
        let storage = StorageType::F32;
        tensors.push(TensorPlan { name: ROPE_FREQS.to_owned(), rows: None, columns, storage });
    }
    let mut rows = |index: usize, range: Range<usize>| match names.get(index) {
        Some(&name) => {
            let values = stored_rows(model, name, range.clone())?;
            check_range(name, &values, range, tensors[index].columns)?;
            Ok(values)
        }
        None => {
            let mut values = Vec::new();
            file.read_rows(ROPE_FREQS, range, &mut values)?;
            Ok(values)
        }
    };
    write_gguf(path, &metadata(file, model.config(), note), &tensors, &mut rows)?;
    Ok(())
}

/// The source's metadata with what is no longer true changed.
fn metadata(file: &GgufFile, config: &ModelConfig, note: &str) -> Vec<(String, Value)> {
    let prefix = config.architecture;
    let changed = [
        (format!("{prefix}.block_count"), Value::Unsigned(config.layers as u64)),
        (format!("{prefix}.feed_forward_length"), Value::Unsigned(config.ffn as u64)),
        ("general.file_type".to_owned(), Value::Unsigned(FILE_TYPE_F16)),
        // Some files list a value for each layer.
        (format!("{prefix}.attention.head_count"), Value::Unsigned(config.heads as u64)),
        (format!("{prefix}.attention.head_count_kv"), Value::Unsigned(config.kv_heads as u64)),
    ];
    let value = |key: &str, value: &Value| {
        let changed = changed.iter().find(|(other, _)| other == key);
        changed.map_or_else(|| value.clone(), |(_, value)| value.clone())
    };
    let kept = |key: &str| !LEFT_OUT.contains(&key) && !key.starts_with("quantize.");
    let kept = file.metadata().iter().filter(|(key, value)| kept(key) && !is_empty(value));
    let mut metadata: Vec<_> = kept.map(|(key, old)| (key.to_owned(), value(key, old))).collect();
    metadata.push(("rookery.pruned".to_owned(), Value::String(note.to_owned())));
    metadata
}

/// An array without values, whose type was lost.
fn is_empty(value: &Value) -> bool {
    matches!(value, Value::Array(array) if Array::is_empty(array))
}

/// Rows of a tensor in the order of the file: those of a Llama's q and k stand for neighbouring rotary pairs there, and
/// half a head apart in a source.
fn stored_rows(
    model: &dyn ModelSource,
    name: TensorName,
    rows: Range<usize>,
) -> Result<Vec<f32>, ImportError> {
    let config = model.config();
    let head_dim = config.head_dim;
    let rotated = matches!(
        name,
        TensorName::Layer(
            _,
            LayerTensor::AttnQ | LayerTensor::AttnK | LayerTensor::AttnQBias | LayerTensor::AttnKBias
        )
    );
    if config.architecture != Architecture::Llama || !rotated {
        return model.tensor_rows(name, rows);
    }
    let channel = |stored: usize| {
        let (head, within) = (stored / head_dim, stored % head_dim);
        head * head_dim + within % 2 * (head_dim / 2) + within / 2
    };
    if !name.is_linear() {
        let values = model.tensor_rows(name, rows)?;
        return Ok((0..values.len()).map(|stored| values[channel(stored)]).collect());
    }
    // Whole heads hold what is asked for.
    let first = rows.start / head_dim * head_dim;
    let values = model.tensor_rows(name, first..rows.end.next_multiple_of(head_dim))?;
    let columns = config.shape(name).1;
    let row = |stored: usize| values[(channel(stored) - first) * columns..][..columns].iter().copied();
    Ok(rows.flat_map(row).collect())
}

/// Fails where f16 has no finite value for a weight.
fn check_range(
    name: TensorName,
    values: &[f32],
    rows: Range<usize>,
    columns: usize,
) -> Result<(), ImportError> {
    let out_of_range = |value: &f32| name.is_linear() && !half::f16::from_f32(*value).is_finite();
    let Some(at) = values.iter().position(out_of_range) else { return Ok(()) };
    let fault =
        TensorFault::NotFinite { value: values[at], row: rows.start + at / columns, column: at % columns };
    Err(ImportError::Tensor { tensor: name.to_string(), fault })
}
