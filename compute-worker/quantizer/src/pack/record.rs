//! What was done to a model, as its bundle carries it: `quantization.json`.

use rookery_model::bundle::{Bundle, Precision, QUANTIZATION_TYPE};
use rookery_model::names::TensorName;
use rookery_model::rotate::RotateOptions;
use serde::{Deserialize, Serialize};

use crate::recipe::{Bits, Budget, Pin, Rounding};

/// Title of the bundle's layer.
pub(super) const TITLE: &str = "quantization.json";
/// The document's version.
pub(super) const VERSION: u32 = 1;

/// What was done to a model, as its bundle carries it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Quantization {
    /// Version of the document; another one is refused.
    pub version: u32,
    /// How linear layers of blocks are stored.
    pub bits: Bits,
    /// What a mixed bundle was allowed to take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<Budget>,
    /// Precisions that were given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pins: Vec<Pin>,
    /// How weights became int8.
    pub w8_rounding: Rounding,
    /// How weights became int4.
    pub w4_rounding: Rounding,
    /// Strength of the smoothing in the weights, which came before rotation; none where nothing was smoothed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub smooth: Option<f32>,
    /// Rotations in the weights.
    pub rotation: RotationRecord,
    /// Whether the source's head was tied to its embedding and is not any more, since rotation makes them different.
    pub untied_head: bool,
    /// Text that activations were taken from, if they were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<CalibrationRecord>,
    /// Bits per weight of the blocks' linear layers, scales and multipliers counted.
    pub body_bits: f64,
    /// How sensitivities were measured, if they were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sensitivity: Option<SensitivityRecord>,
    /// Sum of the sensitivities of all units at w4, in nats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predicted_kl: Option<f64>,
    /// What could be chosen and was, in the order of the forward pass; empty unless mixed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub units: Vec<Unit>,
}

/// Rotations in the weights. With the source they can be made again: their signs come from a fixed generator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RotationRecord {
    /// Which were asked for.
    pub options: RotateOptions,
    /// Which were possible and their sizes, for people.
    pub description: String,
}

/// Text that activations were taken from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CalibrationRecord {
    /// SHA-256 of the token ids, `sha256:…`.
    pub digest: String,
    /// Tokens in all.
    pub tokens: usize,
    /// Tokens that saw each other.
    pub sequence: usize,
    /// Whether it was the text that is built in.
    pub built_in: bool,
}

/// How sensitivities were measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SensitivityRecord {
    /// Tokens that went through the model.
    pub tokens: usize,
    /// Tokens that saw each other.
    pub sequence: usize,
    /// Positions whose distributions were compared.
    pub positions: usize,
}

/// Rows of a matrix that have one precision, and what it costs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Unit {
    /// The matrix.
    pub tensor: TensorName,
    /// First row.
    pub first_row: usize,
    /// Number of rows.
    pub rows: usize,
    /// Bytes at w8.
    pub w8_bytes: u64,
    /// Bytes at w4.
    pub w4_bytes: u64,
    /// Mean KL divergence in nats from the model whose matrices are all w8, when these rows alone are w4.
    pub kl: f64,
    /// Whether `kl` is this unit's share of its tensor's, by rounding error.
    pub shared: bool,
    /// What it got.
    pub precision: Precision,
}

impl Quantization {
    /// Reads the document.
    ///
    /// # Errors
    /// Says what is wrong with it, and where.
    pub fn parse(json: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        // Names of unknown fields are quoted as they are.
        let fault = |error: serde_json::Error| error.to_string().replace(char::is_control, " ");
        let Version { version } = serde_json::from_slice(json).map_err(fault)?;
        if version != VERSION {
            return Err(format!("{TITLE} has version {version}, this program reads {VERSION}"));
        }
        let read: Self = serde_json::from_slice(json).map_err(fault)?;
        read.check().map_err(|fault| format!("{TITLE}: {fault}"))?;
        Ok(read)
    }

    /// That all numbers can be written and read, units have rows that can be counted, and no text moves a terminal's cursor.
    pub(super) fn check(&self) -> Result<(), String> {
        let digest = self.calibration.as_ref().map(|text| &text.digest);
        let pins = self.pins.iter().map(|pin| &pin.pattern);
        for text in pins.chain(digest).chain([&self.rotation.description]) {
            if text.contains(char::is_control) {
                return Err(format!("the text {text:?} has a control character"));
            }
        }
        let finite = |what: &str, value: f64| match value.is_finite() {
            true => Ok(()),
            false => Err(format!("{what} is {value}, not a finite number")),
        };
        finite("the size in bits per weight", self.body_bits)?;
        finite("the share of smoothing", f64::from(self.smooth.unwrap_or(0.0)))?;
        for Unit { tensor, first_row, rows, kl, .. } in &self.units {
            if *rows == 0 || first_row.checked_add(*rows).is_none() {
                return Err(format!("a unit of {tensor} has {rows} rows from row {first_row}"));
            }
            finite(&format!("the divergence of {tensor} from row {first_row} at w4"), *kl)?;
        }
        finite("the predicted divergence", self.predicted_kl.unwrap_or(0.0))
    }

    /// What a bundle says was done to it; `None` where it says nothing.
    ///
    /// # Errors
    /// As [`Quantization::parse`].
    pub fn of(bundle: &Bundle) -> Result<Option<Self>, String> {
        bundle.document(QUANTIZATION_TYPE).map(Self::parse).transpose()
    }

    /// The document.
    pub fn to_json(&self) -> Vec<u8> {
        // Nothing in it can fail to be written: no maps but of strings, and numbers that are not finite become null.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn document() -> Value {
        let units: Vec<Value> = (0..2)
            .map(|head| {
                json!({"tensor": "blk.0.attn_q.weight", "first-row": 64 * head, "rows": 64, "w8-bytes": 8, "w4-bytes": 4,
                       "kl": 0.001, "shared": true, "precision": "w4"})
            })
            .collect();
        json!({
            "version": VERSION, "bits": "mixed", "pins": ["blk.*=w8"], "w8-rounding": "nearest", "w4-rounding": "gptq",
            "rotation": {"options": {"residual": true, "heads": true, "ffn": true}, "description": "R1 = H32"},
            "untied-head": false,
            "calibration": {"digest": "sha256:0", "tokens": 512, "sequence": 64, "built_in": true},
            "body-bits": 5.0, "predicted-kl": 0.002, "units": units,
        })
    }

    fn parse(document: &Value) -> Result<Quantization, String> {
        Quantization::parse(document.to_string().as_bytes())
    }

    #[test]
    fn what_nobody_may_be_shown_is_refused() {
        parse(&document()).unwrap();
        let cases = [
            ("/units/1/rows", json!(0), "0 rows from row 64"),
            ("/units/1/first-row", json!(usize::MAX), "64 rows from row"),
            ("/rotation/description", json!("\u{1b}[2Jgone"), "control character"),
            ("/calibration/digest", json!("sha256:\n"), "control character"),
            ("/pins/0", json!("blk.\r*=w8"), "control character"),
            ("/version", json!(VERSION + 1), "has version 2"),
        ];
        for (place, value, expected) in cases {
            let mut document = document();
            *document.pointer_mut(place).unwrap() = value;
            let fault = parse(&document).unwrap_err();
            assert!(fault.contains(expected) && !fault.contains(char::is_control), "{place}: {fault:?}");
        }
        let mut unknown = document();
        unknown["\u{1b}[2J"] = json!(1);
        assert!(!parse(&unknown).unwrap_err().contains(char::is_control), "names of fields neither");
    }

    #[test]
    fn numbers_that_are_not_finite_are_not_recorded() {
        let good = parse(&document()).unwrap();
        assert_eq!(good.check(), Ok(()));
        let mut wrong = good.clone();
        wrong.units[1].kl = f64::NAN;
        assert!(wrong.check().unwrap_err().contains("blk.0.attn_q.weight"));
        for wrong in [
            Quantization { predicted_kl: Some(f64::INFINITY), ..good.clone() },
            Quantization { body_bits: f64::NAN, ..good.clone() },
        ] {
            assert!(wrong.check().unwrap_err().contains("not a finite number"));
        }
    }
}
