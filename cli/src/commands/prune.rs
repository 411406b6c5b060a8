//! `rookery prune`: a model becomes a smaller one, before it is packed.

use std::path::PathBuf;

use clap::Args;
use rookery_quantizer::eval::{Measured, Report};
use rookery_quantizer::prune::{DropLayers, PruneError, PruneOptions, PruneReport, Shape, prune};

use crate::error::Failure;
use crate::output::{self, Table};
use crate::progress::TerminalProgress;

/// Drops layers of a model or narrows its feed-forwards, refits what is beside the cuts, and writes a GGUF file in f16.
#[derive(Args, Debug)]
#[command(
    after_help = "The file that is written packs like any other. Divergence (KL, in nats) and perplexity are measured on text that comes
with this program and was not calibrated on, against the source, with and without recovery.

Examples:
  rookery prune model.gguf --drop-layers auto:4 --output model-20l.gguf
  rookery prune model.gguf --drop-layers 10,11 --ffn-width 4096 --output small.gguf
  rookery prune model.gguf --ffn-width 8192 --calibrate code.rs notes.txt --calibration-tokens 16384 -o narrow.gguf"
)]
#[group(id = "what", required = true, multiple = true, args = ["drop_layers", "ffn_width"])]
pub struct PruneArgs {
    /// A .gguf file.
    model: PathBuf,
    /// Layers to drop: auto:N for the N that change their input least, or numbers counted from 0, such as 3,7,11.
    #[arg(long, value_name = "LAYERS")]
    drop_layers: Option<DropLayers>,
    /// Channels that each feed-forward keeps, a multiple of 256 (of 32 in models for tests).
    #[arg(long, value_name = "WIDTH")]
    ffn_width: Option<usize>,
    /// The GGUF file to write.
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    /// Text to calibrate on, such as the model will see. Default: code, prose and dialogue that come with this program.
    #[arg(long, value_name = "TEXT", num_args = 1..)]
    calibrate: Vec<PathBuf>,
    /// Tokens to calibrate on, at most; more recover more, and take time and memory.
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(64..=1 << 17))]
    calibration_tokens: u32,
    /// Refit nothing.
    #[arg(long)]
    no_recover: bool,
    /// Tokens to measure on, at most; 0 measures nothing.
    #[arg(long, value_name = "N", default_value_t = 4096)]
    eval_tokens: u32,
    /// Put the new file in the place of one that is there.
    #[arg(long)]
    replace: bool,
    /// Write what was done and measured as JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// If the model cannot be read, what is asked for does not fit it, or the file cannot be written.
pub fn run(args: &PruneArgs) -> Result<(), Failure> {
    let options = PruneOptions {
        layers: args.drop_layers.clone().unwrap_or(DropLayers::These(Vec::new())),
        ffn_width: args.ffn_width,
        texts: args.calibrate.clone(),
        calibration_tokens: args.calibration_tokens as usize,
        recover: !args.no_recover,
        eval_tokens: args.eval_tokens as usize,
        replace: args.replace,
    };
    let report = prune(&args.model, &options, &args.output, &TerminalProgress::new());
    let report = report.map_err(|error| failure(&args.model, error))?;
    if args.json {
        return output::json(&report);
    }
    describe(&report);
    if let Some(evaluation) = &report.evaluation {
        output::write(&render(&report, evaluation))?;
    }
    output::line(report.output.display())
}

fn failure(model: &std::path::Path, error: PruneError) -> Failure {
    let hint = match &error {
        PruneError::Exists { .. } => Some("--replace puts the new file in its place"),
        PruneError::Fit { .. } => Some("--no-recover refits nothing"),
        PruneError::NotGguf { .. }
        | PruneError::Nothing
        | PruneError::NoSuchLayer { .. }
        | PruneError::TooManyLayers { .. }
        | PruneError::Width { .. }
        | PruneError::NotFinite { .. }
        | PruneError::Import(_)
        | PruneError::Calibration(_)
        | PruneError::Reference(_)
        | PruneError::NoSpace { .. }
        | PruneError::Io { .. }
        | PruneError::Write(_)
        | PruneError::Eval(_) => None,
    };
    let failure = Failure::new(format!("could not prune {}", model.display())).caused_by(error);
    match hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

/// What went, and how well it was made up for, in a few lines.
fn describe(report: &PruneReport) {
    if !report.dropped.is_empty() {
        let layer = |&layer: &usize| match &report.influence {
            Some(influence) => format!("{layer} (influence {:.4})", influence[layer]),
            None => layer.to_string(),
        };
        let layers: Vec<String> = report.dropped.iter().map(layer).collect();
        output::note(format_args!("dropped layers {}", layers.join(", ")));
    }
    for fit in &report.fits {
        let outcome = match fit.left_held_out {
            Some(left) => {
                format!(
                    "{:.4} refitted ({:.0} % of its square left on text held out)",
                    fit.error_after,
                    100.0 * left
                )
            }
            None => "no change of it helps text that was held out".to_owned(),
        };
        output::note(format_args!(
            "layer {}: stream off by {:.4} of its size, {outcome}",
            fit.layer, fit.error_before
        ));
    }
}

/// What was measured on, then the source and what became of it.
fn render(report: &PruneReport, evaluation: &Report) -> String {
    let mut text = format!(
        "{} tokens of {}, {:.0} s\n\n",
        output::grouped(evaluation.tokens as u64),
        evaluation.texts.join(", "),
        evaluation.seconds
    );
    let mut table = Table::new(&[
        "MODEL",
        ">LAYERS",
        ">FFN",
        ">PARAMETERS",
        ">SIZE",
        ">PERPLEXITY",
        ">±",
        ">KL MEAN",
        ">±",
        ">TOP-1 %",
    ]);
    let cells = |name: &str, shape: &Shape, perplexity: &Measured| {
        let mut row = vec![
            name.to_owned(),
            shape.layers.to_string(),
            shape.ffn.to_string(),
            output::grouped(shape.parameters),
            output::bytes(shape.bytes),
        ];
        row.extend(measured(perplexity, 4));
        row
    };
    if let Some(reference) = &evaluation.reference {
        let mut row = cells(&reference.name, &report.source, &reference.perplexity);
        row.extend(["0", "", "100.00"].map(str::to_owned));
        table.row(row);
    }
    for candidate in &evaluation.candidates {
        let mut row = cells(&candidate.name, &report.pruned, &candidate.perplexity);
        if let (Some(kl), Some(top)) = (&candidate.kl, &candidate.top_1_agreement) {
            row.extend(measured(&kl.mean, 5));
            row.push(format!("{:.2}", 100.0 * top.value));
        }
        table.row(row);
    }
    text.push_str(&table.render());
    text
}

/// The value and its error; no error with a single sequence.
fn measured(measured: &Measured, digits: usize) -> [String; 2] {
    let error = measured.standard_error.map(|error| format!("{error:.digits$}"));
    [format!("{:.digits$}", measured.value), error.unwrap_or_default()]
}
