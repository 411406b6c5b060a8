//! `rookery inspect`: what is in a bundle or a GGUF file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args;
use rookery_model::bundle::{Bundle, BundleInfo, Precision, QUANTIZATION_TYPE};
use rookery_model::config::ModelConfig;
use rookery_model::gguf::{GgufFile, Value};
use rookery_quantizer::pack::Quantization;
use serde::Serialize;
use serde_json::json;

use crate::error::{Failure, OrFail};
use crate::output::{self, Table};

/// Shows what a bundle or a GGUF file holds, without reading its weights.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  rookery inspect qwen-w8
  rookery inspect model.gguf --tensors
  rookery inspect qwen-mixed --units
  rookery inspect qwen-w8 --json | jq .digest")]
pub struct InspectArgs {
    /// A bundle folder or a .gguf file.
    path: PathBuf,
    /// List every tensor.
    #[arg(long)]
    tensors: bool,
    /// List what a mixed bundle could choose: bytes and divergence of every matrix and attention head, and what it got.
    #[arg(long, conflicts_with = "tensors")]
    units: bool,
    /// Write JSON, tensors and units included.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// If the path is neither a bundle nor a GGUF file, or a damaged one.
pub fn run(args: &InspectArgs) -> Result<(), Failure> {
    if args.path.is_dir() { bundle(args) } else { gguf(args) }
}

fn unreadable(path: &Path) -> impl FnOnce() -> String {
    move || format!("could not inspect {}", path.display())
}

/// A name and what there is to say of it.
type Fact = (&'static str, String);

fn facts(rows: impl IntoIterator<Item = Fact>) -> Result<(), Failure> {
    let mut table = Table::new(&["", ""]);
    for (name, value) in rows {
        table.row([name.to_owned(), value]);
    }
    output::write(table.render().trim_start_matches('\n'))
}

fn bundle(args: &InspectArgs) -> Result<(), Failure> {
    let info = Bundle::inspect(&args.path).or_fail(unreadable(&args.path))?;
    let quantization = quantization(&args.path, args.units)?;
    if args.json {
        return output::json(&WithQuantization { info: &info, quantization: quantization.as_ref() });
    }
    let config = &info.config;
    let mut rows = vec![
        ("name", config.name.clone()),
        ("digest", info.digest.to_string()),
        ("recipe", format!("{} ({:.2} bits per weight)", config.recipe, info.bits_per_weight)),
        ("source", format!("{} ({})", config.source, config.source_digest)),
        ("packer", config.packer_version.clone()),
        ("size", output::bytes(info.total_bytes)),
        ("parameters", output::grouped(config.parameters)),
    ];
    rows.extend(model_facts(&config.model));
    if let Some(quantization) = &quantization {
        rows.extend(quantization_facts(quantization));
    }
    if let Some(quality) = &config.quality {
        rows.push((
            "quality",
            format!(
                "mean KL {:.5} nats, same first token {:.1} %, {} positions of {}",
                quality.mean_kl,
                100.0 * quality.top_1_agreement,
                quality.positions,
                quality.data
            ),
        ));
    }
    facts(rows)?;
    output::line("")?;
    match quantization {
        Some(quantization) if args.units => units(&quantization),
        None if args.units => {
            Err(Failure::new(format!("{} does not say how it was quantised", args.path.display()))
                .hint("pack the model again"))
        }
        _ if args.tensors => bundle_tensors(&info),
        _ => bundle_blobs(&info),
    }
}

/// A bundle's facts as JSON.
#[derive(Serialize)]
struct WithQuantization<'a> {
    #[serde(flatten)]
    info: &'a BundleInfo,
    #[serde(skip_serializing_if = "Option::is_none")]
    quantization: Option<&'a Quantization>,
}

/// What the bundle says was done to it. A document that this program does not understand is no reason to show nothing of
/// the bundle, unless it is what was asked for.
fn quantization(path: &Path, asked: bool) -> Result<Option<Quantization>, Failure> {
    let document = Bundle::read_document(path, QUANTIZATION_TYPE).or_fail(unreadable(path))?;
    let Some(json) = document else { return Ok(None) };
    match Quantization::parse(&json) {
        Err(fault) if !asked => {
            output::note(format_args!("warning: cannot show how the model was quantised: {fault}"));
            Ok(None)
        }
        parsed => parsed.map(Some).or_fail(unreadable(path)),
    }
}

fn quantization_facts(quantization: &Quantization) -> Vec<Fact> {
    let Quantization { rotation, calibration, sensitivity, .. } = quantization;
    let mut rows = vec![
        ("block bits", format!("{:.3} per weight", quantization.body_bits)),
        ("rotations", rotation.description.clone()),
    ];
    if let Some(strength) = quantization.smooth {
        rows.push(("smoothing", format!("strength {strength}, before rotation")));
    }
    if quantization.untied_head {
        rows.push((
            "untied",
            "the head is no longer the embedding: rotation folds the last norm into it".to_owned(),
        ));
    }
    if let Some(budget) = quantization.budget {
        rows.push(("budget", budget.to_string()));
    }
    if !quantization.pins.is_empty() {
        let pins: Vec<String> = quantization.pins.iter().map(ToString::to_string).collect();
        rows.push(("pins", pins.join(" ")));
    }
    if let Some(text) = calibration {
        let whose = if text.built_in { "built-in text" } else { "given text" };
        let tokens = output::grouped(text.tokens as u64);
        rows.push((
            "calibration",
            format!("{tokens} tokens in sequences of {}, {whose} ({})", text.sequence, text.digest),
        ));
    }
    if let Some(measured) = sensitivity {
        let positions = output::grouped(measured.positions as u64);
        rows.push((
            "sensitivity",
            format!("{positions} positions of {} tokens", output::grouped(measured.tokens as u64)),
        ));
    }
    if let Some(kl) = quantization.predicted_kl {
        let kept = quantization.units.iter().filter(|unit| unit.precision == Precision::W8).count();
        let all = quantization.units.len();
        rows.push((
            "choice",
            format!("{kept} of {all} units at w8, predicted divergence {kl:.5} nats beyond all-w8's"),
        ));
    }
    rows
}

/// What could be chosen, as a table.
fn units(quantization: &Quantization) -> Result<(), Failure> {
    if quantization.units.is_empty() {
        return output::line("nothing was chosen: every tensor has the precision that the recipe gives it");
    }
    let mut table = Table::new(&["TENSOR", ">ROWS", ">W8", ">W4", ">KL AT W4", ">KL PER MB", "CHOICE"]);
    for unit in &quantization.units {
        let saved = unit.w8_bytes.saturating_sub(unit.w4_bytes).max(1) as f64 / 1e6;
        let share = if unit.shared { "~" } else { "" };
        table.row([
            unit.tensor.to_string(),
            format!("{}–{}", unit.first_row, unit.first_row + unit.rows - 1),
            output::bytes(unit.w8_bytes),
            output::bytes(unit.w4_bytes),
            format!("{share}{:.6}", unit.kl),
            format!("{:.6}", unit.kl / saved),
            unit.precision.to_string(),
        ]);
    }
    output::write(&table.render())?;
    let shared = quantization.units.iter().any(|unit| unit.shared);
    if shared { output::line("~ shared out of its matrix's divergence by rounding errors") } else { Ok(()) }
}

fn model_facts(model: &ModelConfig) -> Vec<Fact> {
    let rope = match (&model.rope_factors, model.rope_position_scale) {
        (Some(_), _) => format!("theta {}, llama3 scaling", model.rope_theta),
        (None, scale) if scale != 1.0 => format!("theta {}, positions × {scale}", model.rope_theta),
        (None, _) => format!("theta {}", model.rope_theta),
    };
    vec![
        ("architecture", model.architecture.to_string()),
        ("layers", model.layers.to_string()),
        ("hidden", model.hidden.to_string()),
        (
            "attention",
            format!("{} heads of {}, {} for keys and values", model.heads, model.head_dim, model.kv_heads),
        ),
        ("feed-forward", model.ffn.to_string()),
        ("vocabulary", output::grouped(model.vocab as u64)),
        ("context", output::grouped(model.context as u64)),
        ("rope", rope),
        ("head", if model.tied_head { "tied to the embedding" } else { "separate" }.to_owned()),
    ]
}

fn bundle_blobs(info: &BundleInfo) -> Result<(), Failure> {
    let mut table = Table::new(&["BLOB", ">SIZE", "DIGEST"]);
    for blob in &info.blobs {
        table.row([
            blob.title.clone(),
            output::bytes(blob.size),
            blob.digest.to_string().chars().take(19).collect(),
        ]);
    }
    output::write(&table.render())
}

fn bundle_tensors(info: &BundleInfo) -> Result<(), Failure> {
    let mut table = Table::new(&["TENSOR", ">ROWS", ">COLUMNS", "PRECISION"]);
    for tensor in &info.config.tensors {
        let precisions: Vec<String> = match tensor.segments.as_slice() {
            [one] => vec![one.precision.to_string()],
            many => many.iter().map(|s| format!("{}×{}", s.rows, s.precision)).collect(),
        };
        table.row([
            tensor.name.to_string(),
            tensor.rows.to_string(),
            tensor.cols.to_string(),
            precisions.join(" "),
        ]);
    }
    output::write(&table.render())?;
    let mut rows: BTreeMap<Precision, u64> = BTreeMap::new();
    for tensor in &info.config.tensors {
        for segment in &tensor.segments {
            *rows.entry(segment.precision).or_default() += (segment.rows * tensor.cols) as u64;
        }
    }
    let shares: Vec<String> =
        rows.iter().map(|(precision, count)| format!("{} at {precision}", output::grouped(*count))).collect();
    output::line(format!("weights: {}", shares.join(", ")))
}

fn gguf(args: &InspectArgs) -> Result<(), Failure> {
    let file = GgufFile::open(&args.path).or_fail(unreadable(&args.path))?;
    if args.json {
        let metadata: serde_json::Map<String, serde_json::Value> =
            file.metadata().iter().map(|(key, value)| (key.to_owned(), value_json(value))).collect();
        let tensors: Vec<_> = file
            .tensors()
            .map(|(name, tensor)| json!({ "name": name, "shape": tensor.shape, "type": format!("{:?}", tensor.storage) }))
            .collect();
        return output::json(&json!({ "metadata": metadata, "tensors": tensors }));
    }
    let mut table = Table::new(&["KEY", "VALUE"]);
    for (key, value) in file.metadata().iter() {
        table.row([key.to_owned(), value_text(value)]);
    }
    output::write(&table.render())?;
    output::line("")?;
    if args.tensors {
        let mut table = Table::new(&["TENSOR", ">ROWS", ">COLUMNS", "TYPE"]);
        for (name, tensor) in file.tensors() {
            let storage = format!("{:?}", tensor.storage);
            table.row([name.to_owned(), tensor.rows.to_string(), tensor.columns.to_string(), storage]);
        }
        return output::write(&table.render());
    }
    let mut kinds: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for (_, tensor) in file.tensors() {
        let (count, weights) = kinds.entry(format!("{:?}", tensor.storage)).or_default();
        *count += 1;
        *weights += (tensor.rows * tensor.columns) as u64;
    }
    let mut table = Table::new(&["TYPE", ">TENSORS", ">WEIGHTS"]);
    for (kind, (count, weights)) in kinds {
        table.row([kind, count.to_string(), output::grouped(weights)]);
    }
    output::write(&table.render())
}

/// A value on one line, long ones cut short.
fn value_text(value: &Value) -> String {
    const WIDTH: usize = 72;
    let text = match value {
        Value::Unsigned(number) => number.to_string(),
        Value::Signed(number) => number.to_string(),
        Value::Float(number) => number.to_string(),
        Value::Bool(truth) => truth.to_string(),
        Value::String(text) => text.escape_debug().to_string(),
        Value::Array(array) => format!("{} values", output::grouped(array.len() as u64)),
    };
    if text.chars().count() <= WIDTH {
        return text;
    }
    text.chars().take(WIDTH - 1).chain(['…']).collect()
}

fn value_json(value: &Value) -> serde_json::Value {
    match value {
        Value::Unsigned(number) => json!(number),
        Value::Signed(number) => json!(number),
        Value::Float(number) => json!(number),
        Value::Bool(truth) => json!(truth),
        Value::String(text) => json!(text),
        // Vocabularies have a hundred thousand entries; their length says enough.
        Value::Array(array) => json!({ "values": array.len() }),
    }
}
