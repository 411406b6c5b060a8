//! `rookery pack`: a model becomes a bundle.

use std::path::{Path, PathBuf};

use clap::Args;
use rookery_model::bundle::{Precision, Progress};
use rookery_model::pack::{ExistingTarget, PackError};
use rookery_model::source;
use rookery_quantizer::pack::{PackReport, QuantizeError, QuantizeOptions, pack};
use rookery_quantizer::recipe::{Bits, Budget, HeadSensitivity, Pin, Recipe, RecipeError};

use crate::error::{Failure, OrFail};
use crate::output;
use crate::progress::TerminalProgress;

/// Quantises a GGUF file or a Hugging Face folder into a bundle, and prints the bundle's folder.
#[derive(Args, Debug)]
#[command(after_help = "Recipes:
  w8     int8 weights, one scale per output channel: close to the source, half of 16-bit size
  w4     int4 weights, an integer multiplier per 128 inputs, rounded by GPTQ on calibration text: half of that again
  mixed  w8 or w4 for each matrix and attention head, whichever is worth its bytes: what w4 costs is measured, and the
         choice with the least predicted divergence that fits --budget is taken
  FILE   a TOML file; all of it may be left out:

           bits = \"mixed\"              # w8, w4 or mixed
           budget = \"5.0bits\"          # mixed: body bits, or the size of all weights such as \"4.6GiB\"
           embedding = \"w8\"            # w8 or w4
           head = \"w8\"                 # w8 or w4; at 4 bits it costs as much as all else
           w4-rounding = \"gptq\"        # gptq or nearest
           w8-rounding = \"nearest\"     # likewise
           pins = [\"blk.0.*=w8\"]       # the last that fits a tensor decides
           smooth = 0.5                 # 0 to 1: outliers of activations move into weights; left out: none
           [rotate]                     # orthogonal transforms that spread outliers
           residual = true              # between layers, folded into weights
           heads = true                 # between v and o, folded into weights
           ffn = true                   # before down, computed by the engine
           [calibration]
           texts = []                   # files, relative to this one; none: built in
           tokens = 8192
           sequence = 512               # tokens that see each other
           [sensitivity]                # mixed: how the cost of w4 is measured
           tokens = 1024
           sequence = 256
           stride = 4                   # logits are compared at every so many positions
           heads = \"shared\"            # measured (four times as long), or shared by rounding errors

An interrupted run goes on where it was when the same command is given again. The same source, name, recipe and text
give the same bytes, hence the same digest, on any machine.

Examples:
  rookery pack model.gguf
  rookery pack ./Qwen3-0.6B --recipe w4 --name qwen3-0.6b --output bundles/qwen3-w4
  rookery pack model.gguf --recipe mixed --budget 4.6GiB --calibrate code.rs notes.txt
  rookery pack model.gguf --recipe mixed --budget 5.0bits --pin 'blk.*.ffn_down=w8' --sensitivity-tokens 256")]
pub struct PackArgs {
    /// A .gguf file, or a folder with config.json, tokenizer.json and safetensors.
    model: PathBuf,
    /// How to quantise: w8, w4, mixed, or a TOML file.
    #[arg(long, default_value = "w8")]
    recipe: String,
    /// What a mixed bundle may take: a size of all weights such as 4.6GiB, or bits per weight of the blocks such as
    /// 5.0bits. Default: 5.0bits.
    #[arg(long, value_name = "SIZE|BITS")]
    budget: Option<Budget>,
    /// A precision that is given, for tensors whose name fits: PATTERN=w8 or PATTERN=w4. May be repeated; the last that
    /// fits a tensor decides.
    #[arg(long, value_name = "PATTERN=PRECISION")]
    pin: Vec<Pin>,
    /// Text to calibrate and measure on, such as the model will see. Default: code, prose and dialogue that come with
    /// this program.
    #[arg(long, value_name = "TEXT", num_args = 1..)]
    calibrate: Vec<PathBuf>,
    /// Tokens to calibrate on. Default: 8192.
    #[arg(long, value_name = "N")]
    calibration_tokens: Option<usize>,
    /// Tokens to measure the cost of w4 on. Default: 1024; a quarter of that is rough, and four times as fast.
    #[arg(long, value_name = "N")]
    sensitivity_tokens: Option<usize>,
    /// Measure every attention head by itself, instead of sharing its matrix's cost out by rounding errors.
    #[arg(long)]
    measure_heads: bool,
    /// Refuse a bundle that gives more wrong answers than this to probes that the source answers right.
    #[arg(long, value_name = "N", conflicts_with = "no_probes")]
    max_lost_probes: Option<usize>,
    /// Record no probes; workers then cannot check themselves against the machine that packed.
    #[arg(long)]
    no_probes: bool,
    /// Speed that the bundle promises, so that a gateway can refuse it where it is slower: tokens a second of one
    /// generation alone on a board of this name, as `rookery bench` measures them there; * stands for any other board.
    /// May be repeated.
    #[arg(long, value_name = "BOARD=TOK/S", value_parser = promise, conflicts_with = "no_probes")]
    profile: Vec<(String, f64)>,
    /// What to call the model in requests. Default: from the file's name.
    #[arg(long)]
    name: Option<String>,
    /// Folder to write. Default: NAME-RECIPE in the current folder.
    #[arg(long, short, value_name = "FOLDER")]
    output: Option<PathBuf>,
    /// Put the new bundle in the place of one that is there.
    #[arg(long)]
    replace: bool,
    /// Threads that compute. Default: one per processor.
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    threads: usize,
    /// Write what was packed as JSON.
    #[arg(long)]
    json: bool,
}

impl PackArgs {
    /// The recipe named or read, with what the other flags say.
    fn recipe(&self) -> Result<Recipe, Failure> {
        let wrong = |error: RecipeError| {
            let unknown = matches!(error, RecipeError::Unknown(_));
            let failure = Failure::usage("the recipe cannot be used").caused_by(error);
            if unknown {
                failure.hint("`rookery pack --help` shows what a recipe file holds")
            } else {
                failure
            }
        };
        let mut recipe = Recipe::open(&self.recipe).map_err(wrong)?;
        if let Some(budget) = self.budget {
            if recipe.bits != Bits::Mixed {
                return Err(Failure::usage(format!(
                    "--budget is for mixed bundles, and {} is none",
                    self.recipe
                ))
                .hint("--recipe mixed"));
            }
            recipe.budget = Some(budget);
        }
        recipe.pins.extend(self.pin.iter().cloned());
        if !self.calibrate.is_empty() {
            recipe.calibration.texts.clone_from(&self.calibrate);
        }
        if let Some(tokens) = self.calibration_tokens {
            recipe.calibration.tokens = tokens;
            recipe.calibration.sequence = recipe.calibration.sequence.min(tokens);
        }
        if let Some(tokens) = self.sensitivity_tokens {
            recipe.sensitivity.tokens = tokens;
            recipe.sensitivity.sequence = recipe.sensitivity.sequence.min(tokens);
        }
        if self.measure_heads {
            recipe.sensitivity.heads = HeadSensitivity::Measured;
        }
        recipe.check().map_err(wrong)?;
        Ok(recipe)
    }
}

/// Runs the command.
///
/// # Errors
/// If the model cannot be read or the bundle cannot be written.
pub fn run(args: &PackArgs) -> Result<(), Failure> {
    let recipe = args.recipe()?;
    let name = args.name.clone().unwrap_or_else(|| name_from(&args.model));
    let output = args.output.clone().unwrap_or_else(|| PathBuf::from(format!("{name}-{}", recipe.label())));
    let options = QuantizeOptions {
        threads: args.threads,
        existing: if args.replace { ExistingTarget::Replace } else { ExistingTarget::Refuse },
        probes: !args.no_probes,
        max_lost_probes: args.max_lost_probes,
        profile: args.profile.iter().cloned().collect(),
        ..QuantizeOptions::new(name, recipe)
    };
    let report = pack_model(&args.model, &options, &output, &TerminalProgress::new())?;
    if args.json {
        return output::json(&report);
    }
    describe(&report);
    output::line(output.display())
}

/// Reads `BOARD=TOK/S`.
fn promise(text: &str) -> Result<(String, f64), String> {
    let (board, speed) =
        text.rsplit_once('=').ok_or("is not BOARD=TOK/S, such as 'Radxa ROCK 5B=6.5' or '*=4'")?;
    match speed.parse::<f64>() {
        Ok(speed) if speed.is_finite() && speed > 0.0 && !board.is_empty() => Ok((board.to_owned(), speed)),
        Ok(_) | Err(_) => Err(format!("{speed:?} is not a positive number of tokens a second for a board")),
    }
}

/// What was packed and chosen, in a few lines.
fn describe(report: &PackReport) {
    let (info, quantization) = (&report.bundle, &report.quantization);
    output::note(format_args!(
        "{}: {} parameters, {}, {:.2} bits per weight ({:.2} in the blocks), {}",
        info.config.name,
        output::grouped(info.config.parameters),
        output::bytes(info.total_bytes),
        info.bits_per_weight,
        quantization.body_bits,
        info.digest
    ));
    if quantization.untied_head {
        output::note("the head is stored beside the embedding: rotation folds the last norm into it");
    }
    if !quantization.units.is_empty() {
        let kept = quantization.units.iter().filter(|unit| unit.precision == Precision::W8);
        let kl = quantization.predicted_kl.unwrap_or_default();
        output::note(format_args!(
            "{} of {} matrices and heads kept at w8, predicted divergence {kl:.4} nats beyond w8's; `rookery inspect \
             --units` lists them",
            kept.count(),
            quantization.units.len()
        ));
    }
    if let Some(answers) = &report.answers {
        output::note(format_args!(
            "probes: {} of {} answered right, {} in f32; {} lost, {} gained",
            answers.packed, answers.asked, answers.reference, answers.lost, answers.gained
        ));
    }
}

/// Packs the model at `path` into the bundle folder `output`.
///
/// # Errors
/// If the model cannot be read or the bundle cannot be written.
pub fn pack_model(
    path: &Path,
    options: &QuantizeOptions,
    output: &Path,
    progress: &dyn Progress,
) -> Result<PackReport, Failure> {
    let source = source::open(path).or_fail(|| format!("could not import {}", path.display()))?;
    pack(source.as_ref(), options, output, progress).map_err(|error| {
        let exists = matches!(error, QuantizeError::Pack(PackError::TargetExists { .. }));
        let failure = Failure::new(format!("could not pack {}", path.display())).caused_by(error);
        if exists { failure.hint("--replace puts the new bundle in its place") } else { failure }
    })
}

/// A model name from a file name: `Some Model.Q8_0.gguf` → `Some-Model.Q8_0`.
fn name_from(path: &Path) -> String {
    let file = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let stem = if file.extension().is_some_and(|extension| extension == "gguf") {
        file.file_stem()
    } else {
        file.file_name()
    };
    let stem = stem.map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let plain = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' };
    let name: String = stem.chars().map(plain).collect();
    if name.is_empty() { "model".to_owned() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_from_files_and_folders() {
        assert_eq!(name_from(Path::new("/x/Some Model.Q8_0.gguf")), "Some-Model.Q8_0");
        assert_eq!(name_from(Path::new("/x/Qwen3-0.6B")), "Qwen3-0.6B");
    }
}
