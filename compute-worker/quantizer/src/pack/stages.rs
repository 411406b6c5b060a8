//! The steps of packing that every recipe shares.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rookery_model::bundle::{Bundle, NoProgress, Part, Precision, Progress, TensorEntry};
use rookery_model::names::TensorName;
use rookery_model::pack::{Content, Draft, ExistingTarget, PackError, StoredRows, describe};
use rookery_model::rotate::RotatedSource;

use super::QuantizeError;
use super::plan::Plan;
use crate::calibrate::{LayerSink, RoundedMatrix, Rounder, StreamStore, calibrate};
use crate::calibration::Sequences;
use crate::linalg::Compute;
use crate::sensitivity::head_run;

/// What every step needs.
pub(super) struct Stages<'a> {
    pub(super) plan: &'a Plan,
    pub(super) source: &'a RotatedSource<'a>,
    pub(super) compute: &'a Compute,
    /// Digest of all that the bytes depend on.
    pub(super) key: &'a str,
    pub(super) progress: &'a dyn Progress,
}

impl Stages<'_> {
    fn threads(&self) -> usize {
        self.compute.pool.threads()
    }

    /// Writes parts that are not there yet with plain rounding.
    fn rounded_parts(
        &self,
        draft: &mut Draft,
        what: &str,
        parts: &[(Part, Vec<TensorEntry>)],
    ) -> Result<(), QuantizeError> {
        self.progress
            .start(what, parts.iter().flat_map(|(_, entries)| entries).map(TensorEntry::bytes).sum());
        for (part, entries) in parts {
            if draft.has(*part) {
                self.progress.advance(entries.iter().map(TensorEntry::bytes).sum());
                continue;
            }
            let mut round = |_: &TensorEntry| Ok(Content::Round);
            draft.part(*part, self.source, entries, &mut round, self.threads(), self.progress)?;
        }
        self.progress.finish();
        Ok(())
    }

    /// A bundle of nothing but plainly rounded matrices.
    pub(super) fn plain(&self, draft: &mut Draft) -> Result<Vec<TensorEntry>, QuantizeError> {
        let parts: Vec<_> = self.plan.parts().map(|part| (part, self.plan.low_entries(part))).collect();
        self.rounded_parts(draft, "packing", &parts)?;
        Ok(parts.into_iter().flat_map(|(_, entries)| entries).collect())
    }

    /// The model with all matrices at w8, as a bundle in `scratch`.
    pub(super) fn base(&self, scratch: &Path) -> Result<Arc<Bundle>, QuantizeError> {
        let path = scratch.join("base");
        if !path.exists() {
            let parts: Vec<_> = self.plan.parts().map(|part| (part, self.plan.base_entries(part))).collect();
            let mut draft = Draft::create(&path, ExistingTarget::Refuse, self.key)?;
            self.rounded_parts(&mut draft, "packing at w8", &parts)?;
            let entries = parts.into_iter().flat_map(|(_, entries)| entries).collect();
            self.publish(draft, "base", entries)?;
        }
        Ok(Bundle::open(&path, &NoProgress)?)
    }

    /// Publishes a bundle that is there for the time of packing only.
    pub(super) fn publish(
        &self,
        draft: Draft,
        name: &str,
        tensors: Vec<TensorEntry>,
    ) -> Result<(), QuantizeError> {
        let config = describe(self.source, name, name, self.plan.in_order(tensors))?;
        draft.publish(&config, self.source)?;
        Ok(())
    }

    /// Writes all parts of the model with what is free at w4, rounded by calibration, which keeps its state in `scratch`.
    pub(super) fn calibrated(
        &self,
        draft: &mut Draft,
        base: &Bundle,
        sequences: Option<&Sequences>,
        scratch: &Path,
    ) -> Result<(), QuantizeError> {
        for part in self.plan.parts().filter(|part| !matches!(part, Part::Block(_))) {
            if draft.has(part) {
                continue;
            }
            let entries = self.plan.low_entries(part);
            if entries == self.plan.base_entries(part) {
                draft.copy_part(base, part)?;
            } else {
                self.rounded_parts(draft, &format!("packing {part}"), &[(part, entries)])?;
            }
        }
        // A recipe that smooths has sequences even where it rounds without them.
        let Some(sequences) = sequences.filter(|_| self.plan.calibrates()) else {
            let blocks: Vec<_> = (0..self.plan.model.layers)
                .map(|layer| (Part::Block(layer), self.plan.low_entries(Part::Block(layer))))
                .collect();
            return self.rounded_parts(draft, "packing", &blocks);
        };
        let wanted = |name| self.plan.calibrated(name);
        let unit_rows = |name| match name {
            TensorName::Layer(_, tensor) if self.plan.is_mixed() => head_run(&self.plan.model, tensor),
            TensorName::Layer(..)
            | TensorName::TokenEmbedding
            | TensorName::OutputNorm
            | TensorName::Output => None,
        };
        let rounder = Rounder {
            compute: self.compute,
            source: self.source,
            wanted: &wanted,
            unit_rows: &unit_rows,
            progress: self.progress,
        };
        let streams = StreamStore::new(scratch);
        let mut sink = BlockSink { stages: self, draft, base, losses: LossStore::new(scratch) };
        let weights = |layer| -> u64 {
            let entries = self.plan.low_entries(Part::Block(layer));
            let rounded = entries.iter().filter(|entry| self.plan.calibrated(entry.name).is_some());
            rounded.map(|entry| (entry.rows * entry.cols) as u64).sum::<u64>() + bytes(&entries)
        };
        let layers = self.plan.model.layers;
        self.progress.start("calibrating", (0..layers).map(weights).sum());
        self.progress.advance((0..layers).filter(|&layer| sink.has(layer)).map(weights).sum());
        calibrate(base, sequences, &rounder, &streams, &mut sink)?;
        self.progress.finish();
        Ok(())
    }
}

fn bytes(entries: &[TensorEntry]) -> u64 {
    entries.iter().map(TensorEntry::bytes).sum()
}

/// Writes each block as its matrices come; those that do not are the base's.
struct BlockSink<'a> {
    stages: &'a Stages<'a>,
    draft: &'a mut Draft,
    base: &'a Bundle,
    losses: LossStore,
}

impl LayerSink for BlockSink<'_> {
    fn has(&self, layer: usize) -> bool {
        self.draft.has(Part::Block(layer))
    }

    fn take(&mut self, layer: usize, matrices: Vec<RoundedMatrix>) -> Result<(), QuantizeError> {
        self.losses.keep(layer, &matrices)?;
        let part = Part::Block(layer);
        let entries = self.stages.plan.low_entries(part);
        let mut rounded: BTreeMap<TensorName, StoredRows> =
            matrices.into_iter().map(|matrix| (matrix.name, matrix.rows)).collect();
        let mut content = |entry: &TensorEntry| match rounded.remove(&entry.name) {
            Some(rows) => Ok(Content::Rows(vec![rows])),
            None if entry.segments.iter().all(|segment| segment.precision == Precision::W8) => {
                let stored = self.base.linear(entry.name).map_err(PackError::ReadBack)?;
                Ok(Content::Rows(stored.segments.iter().map(StoredRows::of).collect()))
            }
            None => Ok(Content::Round),
        };
        let (source, threads) = (self.stages.source, self.stages.threads());
        self.draft.part(part, source, &entries, &mut content, threads, self.stages.progress)?;
        Ok(())
    }
}

/// How much each unit of each matrix lost by rounding, on disk.
pub(super) struct LossStore {
    folder: PathBuf,
}

impl LossStore {
    /// In `folder`, which exists.
    pub(super) fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    fn path(&self, layer: usize) -> PathBuf {
        self.folder.join(format!("losses.{layer}"))
    }

    /// One line for each matrix: its name, and the bits of each value.
    fn keep(&self, layer: usize, matrices: &[RoundedMatrix]) -> Result<(), QuantizeError> {
        let mut text = String::new();
        for matrix in matrices {
            text.push_str(&matrix.name.to_string());
            for loss in &matrix.losses {
                text.push_str(&format!(" {:016x}", loss.to_bits()));
            }
            text.push('\n');
        }
        let path = self.path(layer);
        fs::write(&path, text).map_err(|source| QuantizeError::Io { path, source })
    }

    /// Losses of a matrix's units; empty where it was not rounded by calibration.
    pub(super) fn of(&self, name: TensorName) -> Vec<f64> {
        let TensorName::Layer(layer, _) = name else { return Vec::new() };
        let text = fs::read_to_string(self.path(layer)).unwrap_or_default();
        let wanted = name.to_string();
        let line = text.lines().find_map(|line| line.strip_prefix(&wanted)?.strip_prefix(' '));
        let value = |bits: &str| u64::from_str_radix(bits, 16).ok().map(f64::from_bits);
        line.map(|line| line.split(' ').filter_map(value).collect()).unwrap_or_default()
    }
}
