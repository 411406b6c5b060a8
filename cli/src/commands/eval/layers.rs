//! `rookery eval --by-layer`: which tensor is wrong, and how.

use rookery_kernels::KvType;
use rookery_model::bundle::Bundle;
use rookery_model::source::ModelSource;
use rookery_quantizer::eval::layers::{LayerOptions, LayerReport, by_layer};
use serde::Serialize;

use super::meter::EvalMeter;
use super::models::{Form, Opened, kv_type};
use super::{EvalArgs, Setting};
use crate::error::{Failure, OrFail};
use crate::output::{self, Table};

/// Rows of the table of tensors.
const SHOWN: usize = 12;

/// One bundle's report with its name.
#[derive(Serialize)]
struct Named<'a> {
    model: &'a str,
    backend: String,
    #[serde(flatten)]
    report: LayerReport,
}

/// Judges every bundle.
///
/// # Errors
/// When something cannot be read, or something is wrong with a bundle.
pub(super) fn run(
    args: &EvalArgs,
    setting: &Setting,
    models: &[Opened],
    reference: &Opened,
) -> Result<(), Failure> {
    let Form::Source(source) = &reference.form else {
        return Err(Failure::usage("--by-layer compares with a .gguf file or a Hugging Face folder")
            .hint("give the model that the bundle was packed from as --reference"));
    };
    let mut reports = Vec::with_capacity(models.len());
    for model in models {
        let Form::Bundle(bundle) = &model.form else {
            return Err(Failure::usage(format!("{} is not a bundle; --by-layer judges bundles", model.name)));
        };
        let backend = setting.backends.backend(setting.kernels);
        let name = backend.name();
        let options = LayerOptions {
            tokens: tokens(bundle, setting, args.layer_tokens as usize)?,
            kv_type: args.kv_cache_type.first().map_or(KvType::F16, |cache| kv_type(*cache)),
            threads: setting.threads,
        };
        let meter = EvalMeter::new("comparing layers");
        let report = by_layer(bundle, source.as_ref() as &dyn ModelSource, backend, &options, &meter);
        let report = report.or_fail(|| format!("could not compare {} with its source", model.name))?;
        meter.finish();
        if !args.json {
            output::write(&render(&model.name, &report))?;
        }
        reports.push(Named { model: &model.name, backend: name, report });
    }
    if args.json {
        output::json(&reports)?;
    }
    let wrong: Vec<&str> =
        reports.iter().filter(|named| !named.report.findings.is_empty()).map(|named| named.model).collect();
    if wrong.is_empty() {
        Ok(())
    } else {
        Err(Failure::new(format!("something is wrong with {}", wrong.join(", "))))
    }
}

/// The beginnings of all texts, equally long.
fn tokens(bundle: &Bundle, setting: &Setting, count: usize) -> Result<Vec<u32>, Failure> {
    let tokenizer = bundle.tokenizer().or_fail(|| "the bundle's tokenizer cannot be used".to_owned())?;
    let share = count.div_ceil(setting.texts.len());
    let mut tokens = Vec::with_capacity(count);
    for text in &setting.texts {
        let read =
            tokenizer.encode_text(&text.text).or_fail(|| format!("could not tokenise {}", text.name))?;
        tokens.extend(read.into_iter().take(share));
    }
    tokens.truncate(count);
    Ok(tokens)
}

/// What is wrong, in the order of the forward pass, then the tensors that add most error.
fn render(name: &str, report: &LayerReport) -> String {
    let mut text = format!("{name}: {} tokens, {:.0} s\n", report.tokens, report.seconds);
    if !report.same_source {
        text.push_str(
            "note: the bundle was packed from another file; what differs between the two counts as error\n",
        );
    }
    if report.findings.is_empty() {
        text.push_str("nothing wrong found\n");
    } else {
        text.push_str("\nWrong, in the order of the forward pass:\n");
        let mut table = Table::new(&[">", ">SEVERITY", "WHAT"]);
        for (index, finding) in report.findings.iter().enumerate() {
            table.row([(index + 1).to_string(), format!("{:.4}", finding.severity), finding.message.clone()]);
        }
        text.push_str(&table.render());
    }
    text.push_str("\nTensors by the error that they add to their outputs:\n");
    let mut tensors: Vec<_> = report.tensors.iter().collect();
    tensors.sort_by(|a, b| b.relative_error.total_cmp(&a.relative_error));
    let headings = [
        "TENSOR",
        "PRECISION",
        ">ERROR",
        ">BY WEIGHTS",
        ">BIAS %",
        ">SLOPE",
        ">MEDIAN",
        ">SPREAD",
        ">FURTHEST",
        ">CHANNEL",
    ];
    let mut table = Table::new(&headings);
    for tensor in tensors.into_iter().take(SHOWN) {
        table.row([
            tensor.tensor.to_string(),
            tensor.precision.clone(),
            format!("{:.4}", tensor.relative_error),
            format!("{:.4}", tensor.weight_error),
            format!("{:.1}", 100.0 * tensor.bias_share),
            format!("{:.5}", tensor.slope),
            format!("{:.5}", tensor.median_slope),
            format!("{:.5}", tensor.slope_spread),
            format!("{:.4}", tensor.furthest_slope),
            tensor.furthest_channel.to_string(),
        ]);
    }
    text.push_str(&table.render());
    text
}
