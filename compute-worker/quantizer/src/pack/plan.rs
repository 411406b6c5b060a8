//! What a recipe means for a model: a precision for each matrix, or the freedom to choose one, and what that may take.

use std::collections::BTreeMap;
use std::ops::Range;

use rookery_model::bundle::{Part, Precision, SegmentEntry, TensorEntry};
use rookery_model::config::ModelConfig;
use rookery_model::names::TensorName;

use super::QuantizeError;
use crate::recipe::{Bits, Budget, Recipe, Rounding};
use crate::sensitivity::{UnitRows, units};

/// Blobs' headers are padded to this many bytes.
const PAGE: u64 = 4096;
/// More than the line of a stored tensor in a blob's header takes.
const HEADER_LINE: u64 = 224;

/// What a matrix is to become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// This, and whether a pin says so.
    Given(Precision, bool),
    /// Whatever is worth its bytes.
    Free,
}

/// A recipe applied to a model.
pub(super) struct Plan {
    pub(super) model: ModelConfig,
    pub(super) recipe: Recipe,
    forms: BTreeMap<TensorName, Form>,
    /// What can be chosen.
    pub(super) units: Vec<UnitRows>,
}

impl Plan {
    /// For a model of this shape, rotated already.
    pub(super) fn new(model: &ModelConfig, recipe: &Recipe) -> Result<Self, QuantizeError> {
        recipe.check()?;
        let matrices: Vec<TensorName> =
            model.tensor_names().into_iter().filter(|name| name.is_linear()).collect();
        for pin in &recipe.pins {
            if !matrices.iter().any(|&name| pin.fits(name)) {
                let example = matrices.get(1).or(matrices.first()).map(ToString::to_string);
                let example = example.unwrap_or_default();
                return Err(QuantizeError::PinWithoutTensor { pin: pin.to_string(), example });
            }
        }
        let forms: BTreeMap<TensorName, Form> =
            matrices.iter().map(|&name| (name, form(recipe, name))).collect();
        let units = units(model, |name| forms.get(&name) == Some(&Form::Free));
        Ok(Self { model: model.clone(), recipe: recipe.clone(), forms, units })
    }

    /// What a matrix is to become; `None` for a vector.
    pub(super) fn form(&self, name: TensorName) -> Option<Form> {
        self.forms.get(&name).copied()
    }

    /// Whether something is to be chosen.
    pub(super) fn is_mixed(&self) -> bool {
        !self.units.is_empty()
    }

    /// The precision at which calibration rounds a matrix, if it does.
    pub(super) fn calibrated(&self, name: TensorName) -> Option<Precision> {
        let TensorName::Layer(..) = name else { return None };
        let gptq = |rounding: Rounding, precision| (rounding == Rounding::Gptq).then_some(precision);
        match self.form(name)? {
            Form::Given(Precision::W4, _) | Form::Free => gptq(self.recipe.w4_rounding, Precision::W4),
            Form::Given(..) => gptq(self.recipe.w8_rounding, Precision::W8),
        }
    }

    /// Whether any matrix is rounded by calibration.
    pub(super) fn calibrates(&self) -> bool {
        self.forms.keys().any(|&name| self.calibrated(name).is_some())
    }

    /// The tensors of a part with all matrices at w8.
    pub(super) fn base_entries(&self, part: Part) -> Vec<TensorEntry> {
        self.entries(part, &|_| Precision::W8)
    }

    /// The tensors of a part with what is free at w4.
    pub(super) fn low_entries(&self, part: Part) -> Vec<TensorEntry> {
        self.entries(part, &|name| match self.form(name) {
            Some(Form::Given(precision, _)) => precision,
            Some(Form::Free) | None => Precision::W4,
        })
    }

    fn entries(&self, part: Part, precision: &dyn Fn(TensorName) -> Precision) -> Vec<TensorEntry> {
        let names = self.model.tensor_names().into_iter();
        names
            .filter(|&name| Part::of(name, self.model.tied_head) == part)
            .map(|name| self.entry(name, precision(name)))
            .collect()
    }

    fn entry(&self, name: TensorName, precision: Precision) -> TensorEntry {
        let (rows, cols) = self.model.shape(name);
        let precision = if name.is_linear() { precision } else { Precision::F32 };
        TensorEntry { name, rows, cols, segments: vec![SegmentEntry { first_row: 0, rows, precision }] }
    }

    /// The tensors of a part with each unit at what was chosen: neighbours that are alike are one segment.
    pub(super) fn chosen_entries(&self, part: Part, chosen: &[Precision]) -> Vec<TensorEntry> {
        let mut entries = self.low_entries(part);
        for entry in &mut entries {
            if self.form(entry.name) != Some(Form::Free) {
                continue;
            }
            entry.segments.clear();
            let of_entry = self.units.iter().zip(chosen).filter(|(unit, _)| unit.tensor == entry.name);
            for (UnitRows { rows: Range { start, end }, .. }, &precision) in of_entry {
                match entry.segments.last_mut() {
                    Some(last) if last.precision == precision => last.rows += end - start,
                    _ => {
                        entry.segments.push(SegmentEntry { first_row: *start, rows: end - start, precision })
                    }
                }
            }
        }
        entries
    }

    /// All parts, in order.
    pub(super) fn parts(&self) -> impl Iterator<Item = Part> {
        let head = (!self.model.tied_head).then_some(Part::Head);
        std::iter::once(Part::Embedding).chain((0..self.model.layers).map(Part::Block)).chain(head)
    }

    /// Tensors of all parts in the order of a bundle's config: a tied head's norm is in the embedding's part, and comes after
    /// the blocks.
    pub(super) fn in_order(&self, mut tensors: Vec<TensorEntry>) -> Vec<TensorEntry> {
        let places: BTreeMap<TensorName, usize> = self.model.tensor_names().into_iter().zip(0..).collect();
        tensors.sort_by_key(|entry| places.get(&entry.name).copied());
        tensors
    }

    /// Bits per weight of the blocks' matrices.
    pub(super) fn body_bits(&self, entries: &[TensorEntry]) -> f64 {
        let body = || entries.iter().filter(|entry| is_body(entry.name));
        let bytes: u64 = body().map(TensorEntry::bytes).sum();
        bytes as f64 * 8.0 / weights(body()) as f64
    }

    /// Bytes that w8 may take beyond what the model takes with everything free at w4.
    ///
    /// # Errors
    /// [`QuantizeError::BudgetTooSmall`] when that alone is too much.
    pub(super) fn capacity(&self) -> Result<u64, QuantizeError> {
        let parts: Vec<(Part, Vec<TensorEntry>)> =
            self.parts().map(|part| (part, self.low_entries(part))).collect();
        let all = || parts.iter().flat_map(|(_, entries)| entries);
        let budget = self.recipe.budget();
        let too_small = |least: String| QuantizeError::BudgetTooSmall { budget: show(budget), least };
        match budget {
            Budget::BodyBits(bits) => {
                let body = || all().filter(|entry| is_body(entry.name));
                let bytes: u64 = body().map(TensorEntry::bytes).sum();
                let allowed = (bits * weights(body()) as f64 / 8.0) as u64;
                let least = || bytes as f64 * 8.0 / weights(body()) as f64;
                // Rounded up, so that asking for what is named works.
                allowed
                    .checked_sub(bytes)
                    .ok_or_else(|| too_small(format!("{:.3}bits", (least() * 1e3).ceil() / 1e3)))
            }
            Budget::WeightBytes(allowed) => {
                let bytes: u64 = all().map(TensorEntry::bytes).sum();
                let header = |lines: usize| (lines as u64 * HEADER_LINE).next_multiple_of(PAGE) + PAGE;
                let plain: u64 = parts.iter().map(|(_, entries)| header(4 * entries.len())).sum();
                let least = bytes + plain;
                if allowed < least {
                    return Err(too_small(show(Budget::WeightBytes(least))));
                }
                // Cut into units, a matrix takes more lines in its header.
                let cut: u64 = parts
                    .iter()
                    .map(|(part, entries)| header(4 * (entries.len() + self.units_of(*part))))
                    .sum();
                Ok(allowed.saturating_sub(bytes + cut))
            }
        }
    }

    fn units_of(&self, part: Part) -> usize {
        self.units.iter().filter(|unit| Part::of(unit.tensor, self.model.tied_head) == part).count()
    }
}

fn form(recipe: &Recipe, name: TensorName) -> Form {
    if let Some(pin) = recipe.pins.iter().rev().find(|pin| pin.fits(name)) {
        return Form::Given(pin.precision, true);
    }
    match (name, recipe.bits) {
        (TensorName::TokenEmbedding, _) => Form::Given(recipe.embedding, false),
        (TensorName::Output | TensorName::OutputNorm, _) => Form::Given(recipe.head, false),
        (TensorName::Layer(..), Bits::W8) => Form::Given(Precision::W8, false),
        (TensorName::Layer(..), Bits::W4) => Form::Given(Precision::W4, false),
        (TensorName::Layer(..), Bits::Mixed) => Form::Free,
    }
}

fn is_body(name: TensorName) -> bool {
    matches!(name, TensorName::Layer(..)) && name.is_linear()
}

fn weights<'e>(entries: impl Iterator<Item = &'e TensorEntry>) -> u64 {
    entries.map(|entry| (entry.rows * entry.cols) as u64).sum()
}

/// A budget for people, never less than it is.
fn show(budget: Budget) -> String {
    match budget {
        Budget::BodyBits(_) => budget.to_string(),
        Budget::WeightBytes(bytes) => format!("{:.1}MB", (bytes as f64 / 1e5).ceil() / 10.0),
    }
}

#[cfg(test)]
mod tests;
