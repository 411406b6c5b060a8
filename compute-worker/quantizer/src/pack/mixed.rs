//! Mixed precision: measure, choose, and put rows of both forms together.

use std::collections::BTreeMap;

use rookery_model::bundle::{Bundle, NoProgress, Part, Precision, TensorEntry};
use rookery_model::names::TensorName;
use rookery_model::pack::{Content, Draft, ExistingTarget, PackError, StoredRows};

use super::QuantizeError;
use super::plan::Form;
use super::record::{Quantization, SensitivityRecord, Unit};
use super::stages::{LossStore, Stages};
use super::texts::Texts;
use crate::assignment::{Item, choose};
use crate::recipe::HeadSensitivity;
use crate::sensitivity::{Change, Measurement, UnitRows};

impl Stages<'_> {
    /// Writes all parts of a mixed bundle, and into `quantization` what was found and chosen.
    pub(super) fn mixed(
        &self,
        draft: &mut Draft,
        texts: &Texts,
        capacity: u64,
        quantization: &mut Quantization,
    ) -> Result<Vec<TensorEntry>, QuantizeError> {
        let scratch = draft.scratch().to_owned();
        let base = self.base(&scratch)?;
        let path = scratch.join("low");
        if !path.exists() {
            let mut low = Draft::create(&path, ExistingTarget::Refuse, self.key)?;
            self.calibrated(&mut low, &base, texts.calibration.as_ref(), &scratch)?;
            let entries = self.plan.parts().flat_map(|part| self.plan.low_entries(part)).collect();
            self.publish(low, "low", entries)?;
        }
        let low = Bundle::open(&path, &NoProgress)?;
        let sequences = texts.sensitivity.as_ref().expect("a mixed plan reads it");
        let measurement = Measurement {
            base: &base,
            w4: &low,
            sequences,
            stride: self.plan.recipe.sensitivity.stride,
            compute: self.compute,
            results: scratch.join("sensitivities"),
            progress: self.progress,
        };
        quantization.sensitivity = Some(SensitivityRecord {
            tokens: sequences.tokens.len(),
            sequence: sequences.length,
            positions: measurement.positions(),
        });
        let measured = self.measure(&measurement, &LossStore::new(&scratch))?;
        let items = |(unit, &(kl, _)): (&UnitRows, &(f64, bool))| Item {
            bytes: unit.w8_bytes.saturating_sub(unit.w4_bytes),
            saves: kl,
        };
        let items: Vec<Item> = self.plan.units.iter().zip(&measured).map(items).collect();
        let chosen: Vec<Precision> = choose(&items, capacity)
            .into_iter()
            .map(|bought| if bought { Precision::W8 } else { Precision::W4 })
            .collect();
        quantization.units = self.table(&measured, &chosen);
        let at_w4 = quantization.units.iter().filter(|unit| unit.precision == Precision::W4);
        quantization.predicted_kl = Some(at_w4.map(|unit| unit.kl).sum());
        self.assemble(draft, &base, &low, &chosen)
    }

    /// The KL divergence of each unit, and whether it is its share of its matrix's.
    fn measure(
        &self,
        measurement: &Measurement<'_>,
        losses: &LossStore,
    ) -> Result<Vec<(f64, bool)>, QuantizeError> {
        let units = &self.plan.units;
        let together = self.plan.recipe.sensitivity.heads == HeadSensitivity::Shared;
        let groups: Vec<&[UnitRows]> = units.chunk_by(|a, b| together && a.tensor == b.tensor).collect();
        let change = |group: &&[UnitRows]| -> Option<Change> {
            let (first, last) = (group.first()?, group.last()?);
            let TensorName::Layer(layer, tensor) = first.tensor else { return None };
            Some(Change { layer, tensor, rows: first.rows.start..last.rows.end })
        };
        let changes: Vec<Change> = groups.iter().filter_map(change).collect();
        let results = measurement.run(&changes)?;
        let mut measured = Vec::with_capacity(units.len());
        for (group, kl) in groups.iter().zip(results) {
            match group {
                [_] => measured.push((kl, false)),
                many => {
                    let shares = shares(&losses.of(many[0].tensor), many);
                    measured.extend(shares.into_iter().map(|share| (kl * share, true)));
                }
            }
        }
        Ok(measured)
    }

    fn table(&self, measured: &[(f64, bool)], chosen: &[Precision]) -> Vec<Unit> {
        let unit = |((unit, &(kl, shared)), &precision): ((&UnitRows, &(f64, bool)), &Precision)| Unit {
            tensor: unit.tensor,
            first_row: unit.rows.start,
            rows: unit.rows.len(),
            w8_bytes: unit.w8_bytes,
            w4_bytes: unit.w4_bytes,
            kl,
            shared,
            precision,
        };
        self.plan.units.iter().zip(measured).zip(chosen).map(unit).collect()
    }

    /// Copies rows of both bundles into the final one.
    fn assemble(
        &self,
        draft: &mut Draft,
        base: &Bundle,
        low: &Bundle,
        chosen: &[Precision],
    ) -> Result<Vec<TensorEntry>, QuantizeError> {
        let parts: BTreeMap<Part, Vec<TensorEntry>> =
            self.plan.parts().map(|part| (part, self.plan.chosen_entries(part, chosen))).collect();
        self.progress.start("assembling", parts.values().flatten().map(TensorEntry::bytes).sum());
        for (&part, entries) in &parts {
            if *entries == self.plan.low_entries(part) {
                draft.copy_part(low, part)?;
                self.progress.advance(entries.iter().map(TensorEntry::bytes).sum());
                continue;
            }
            let mut content = |entry: &TensorEntry| {
                let free = self.plan.form(entry.name) == Some(Form::Free);
                let (base, low) = (base.linear(entry.name), low.linear(entry.name));
                let (base, low) = (base.map_err(PackError::ReadBack)?, low.map_err(PackError::ReadBack)?);
                let rows = entry.segments.iter().map(|segment| {
                    let from = if free && segment.precision == Precision::W8 { &base } else { &low };
                    StoredRows::rows_of(
                        &from.segments[0],
                        segment.first_row..segment.first_row + segment.rows,
                    )
                });
                Ok(Content::Rows(rows.collect()))
            };
            draft.part(
                part,
                self.source,
                entries,
                &mut content,
                self.compute.pool.threads(),
                self.progress,
            )?;
        }
        self.progress.finish();
        Ok(self.plan.parts().flat_map(|part| parts[&part].clone()).collect())
    }
}

/// What part of their matrix's loss each unit has; by rows where nothing is known of it.
fn shares(losses: &[f64], units: &[UnitRows]) -> Vec<f64> {
    let rows: Vec<f64> = units.iter().map(|unit| unit.rows.len() as f64).collect();
    let known = losses.len() == units.len() && losses.iter().sum::<f64>() > 0.0;
    let parts = if known { losses } else { &rows };
    let sum: f64 = parts.iter().sum();
    parts.iter().map(|part| part / sum).collect()
}
