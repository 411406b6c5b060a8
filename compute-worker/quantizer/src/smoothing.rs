//! How large each input of each linear layer gets, which is what smoothing needs to know (SmoothQuant, Xiao et al. 2022).
//!
//! ```text
//! source, neither smoothed nor rotated ─► w8 bundle ─► the engine's forward pass, sequence by sequence
//!                                                        │ f32 inputs of each linear call, before rounding
//!                                                        ▼
//!                                            max |x_j| for each channel j
//! ```
//!
//! What was found is on disk after each sequence, so an interrupted measurement goes on with the next one.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rookery_compute_worker::backend::{Backend, BackendError, CpuBackend};
use rookery_compute_worker::model::forward::{Batch, Forward, ForwardLimits};
use rookery_compute_worker::model::weights::ModelWeights;
use rookery_kernels::{Activations, KvType, LinearJob, Pool};
use rookery_model::bundle::{Bundle, NoProgress, Progress};
use rookery_model::config::ModelConfig;
use rookery_model::pack::{ExistingTarget, PackOptions, Recipe, pack};
use rookery_model::smooth::{ChannelMaxima, LayerMaxima};
use rookery_model::source::ModelSource;

use crate::calibrate::Rows;
use crate::calibration::Sequences;
use crate::linalg::Compute;
use crate::pack::QuantizeError;

/// Bits of an f32 but its sign. Of such values the larger number is the larger value, and what is no number is above all.
const MAGNITUDE: u32 = 0x7fff_ffff;

/// Largest absolute value of each channel of the inputs of `source`'s linear layers over `sequences`. Keeps its state in
/// `scratch`, which exists and belongs to this source and these sequences alone.
///
/// The same on every machine and with any number of threads.
///
/// # Errors
/// When the source cannot be packed, the model cannot be run, or state cannot be kept.
pub fn maxima(
    source: &dyn ModelSource,
    compute: &Compute,
    sequences: &Sequences,
    scratch: &Path,
    progress: &dyn Progress,
) -> Result<ChannelMaxima, QuantizeError> {
    let store = Store { path: scratch.join("maxima") };
    let mut seen = store.read(source.config())?;
    let plain = scratch.join("plain");
    if seen.sequences < sequences.count() {
        let base = packed(source, compute, &plain, progress)?;
        measure(&base, compute, sequences, &mut seen, &store, progress)?;
    }
    // Of no more use; the draft clears away whatever stays.
    let _ = fs::remove_dir_all(&plain);
    Ok(seen.into_maxima())
}

/// The model as it is, at w8.
fn packed(
    source: &dyn ModelSource,
    compute: &Compute,
    path: &Path,
    progress: &dyn Progress,
) -> Result<Arc<Bundle>, QuantizeError> {
    if !path.exists() {
        let options = PackOptions {
            name: "plain".to_owned(),
            recipe: Recipe::W8,
            threads: compute.pool.threads(),
            existing: ExistingTarget::Refuse,
        };
        pack(source, &options, path, progress)?;
    }
    Ok(Bundle::open(path, &NoProgress)?)
}

/// Runs the sequences that have not been run.
fn measure(
    base: &Bundle,
    compute: &Compute,
    sequences: &Sequences,
    seen: &mut Seen,
    store: &Store,
    progress: &dyn Progress,
) -> Result<(), QuantizeError> {
    let all = |count: usize| base.weight_bytes() * count as u64;
    progress.start("measuring channels", all(sequences.count()));
    progress.advance(all(seen.sequences));
    let length = sequences.length;
    let one = |tokens: &[u32]| Sequences { tokens: tokens.to_vec(), length };
    let rows = Rows::of(&one(&sequences.tokens[..length]));
    let limits = ForwardLimits {
        threads: compute.pool.threads(),
        blocks: rows.block_count(),
        kv_type: KvType::F16,
        positions: length,
        max_rows: length,
        max_logit_rows: 0,
    };
    let mut forward = Forward::new(ModelWeights::resolve(base)?, compute.kernels, &limits);
    let queries = rows.queries();
    for tokens in sequences.tokens.chunks_exact(length).skip(seen.sequences) {
        let batch = Batch { tokens, queries: &queries, logits_of: &[] };
        let inner = CpuBackend::new(compute.kernels);
        forward.run(&mut Watching { inner, magnitudes: &mut seen.magnitudes, next: 0 }, &batch)?;
        seen.sequences += 1;
        store.keep(seen)?;
        progress.advance(all(1));
    }
    progress.finish();
    Ok(())
}

/// Computes as the processor does, and keeps the largest magnitude of each channel.
struct Watching<'a> {
    inner: CpuBackend,
    magnitudes: &'a mut [Vec<u32>],
    /// The input that is rounded next; each is once in a pass.
    next: usize,
}

impl Backend for Watching<'_> {
    fn linear(
        &mut self,
        pool: &Pool,
        a: &Activations,
        jobs: &mut [LinearJob<'_>],
    ) -> Result<(), BackendError> {
        self.inner.linear(pool, a, jobs)
    }

    fn quantize(&mut self, _pool: &Pool, x: &[f32], cols: usize, _out: &mut Activations) -> bool {
        if let Some(magnitudes) = self.magnitudes.get_mut(self.next) {
            assert_eq!(magnitudes.len(), cols, "inputs come in the order of the layers");
            for row in x.chunks_exact(cols) {
                for (most, value) in magnitudes.iter_mut().zip(row) {
                    *most = (*most).max(value.to_bits() & MAGNITUDE);
                }
            }
        }
        self.next += 1;
        false
    }

    fn name(&self) -> String {
        "channel maxima".to_owned()
    }
}

/// What was found so far.
struct Seen {
    /// Sequences that were run.
    sequences: usize,
    /// Of each layer the inputs of q, k and v, of o, of gate and up, and of down.
    magnitudes: Vec<Vec<u32>>,
}

impl Seen {
    fn nothing(config: &ModelConfig) -> Self {
        let of_layer = [config.hidden, config.q_rows(), config.hidden, config.ffn];
        let inputs = (0..config.layers).flat_map(|_| of_layer);
        Self { sequences: 0, magnitudes: inputs.map(|channels| vec![0; channels]).collect() }
    }

    fn into_maxima(self) -> ChannelMaxima {
        let (layers, _) = self.magnitudes.as_chunks::<4>();
        let values = |magnitudes: &[u32]| magnitudes.iter().map(|&bits| f32::from_bits(bits)).collect();
        let layer = |[attention, output, ffn, down]: &[Vec<u32>; 4]| LayerMaxima {
            attention: values(attention),
            output: values(output),
            ffn: values(ffn),
            down: values(down),
        };
        ChannelMaxima { layers: layers.iter().map(layer).collect() }
    }
}

/// A file with the number of sequences and the magnitudes, u32 each, little-endian.
struct Store {
    path: PathBuf,
}

impl Store {
    /// What an earlier run found: nothing, if there is no file or it is of another size.
    fn read(&self, config: &ModelConfig) -> Result<Seen, QuantizeError> {
        let mut seen = Seen::nothing(config);
        if !self.path.exists() {
            return Ok(seen);
        }
        let bytes =
            fs::read(&self.path).map_err(|source| QuantizeError::Io { path: self.path.clone(), source })?;
        let (values, rest) = bytes.as_chunks::<4>();
        let channels: usize = seen.magnitudes.iter().map(Vec::len).sum();
        let mut values = values.iter().map(|bytes| u32::from_le_bytes(*bytes));
        if !rest.is_empty() || values.len() != channels + 1 {
            return Ok(seen);
        }
        seen.sequences = values.next().unwrap_or_default() as usize;
        seen.magnitudes.iter_mut().flatten().zip(values).for_each(|(most, value)| *most = value);
        Ok(seen)
    }

    /// Keeps `seen` in place of what was kept before.
    fn keep(&self, seen: &Seen) -> Result<(), QuantizeError> {
        let values = std::iter::once(seen.sequences as u32).chain(seen.magnitudes.iter().flatten().copied());
        let bytes: Vec<u8> = values.flat_map(u32::to_le_bytes).collect();
        let unfinished = self.path.with_extension("unfinished");
        let io = |path: &Path, source| QuantizeError::Io { path: path.to_owned(), source };
        fs::write(&unfinished, bytes).map_err(|source| io(&unfinished, source))?;
        fs::rename(&unfinished, &self.path).map_err(|source| io(&self.path, source))
    }
}
