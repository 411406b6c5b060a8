//! `rookery pack`: a model becomes a bundle.

use std::path::{Path, PathBuf};

use clap::Args;
use rookery_model::bundle::{BundleInfo, Progress};
use rookery_model::pack::{ExistingTarget, PackError, PackOptions, Recipe, pack};
use rookery_model::source;

use crate::error::{Failure, OrFail};
use crate::output;
use crate::progress::TerminalProgress;

/// Quantises a GGUF file or a Hugging Face folder into a bundle, and prints the bundle's folder.
#[derive(Args, Debug)]
#[command(after_help = "Recipes:
  w8    int8 weights, one scale per output channel: close to the source, half of 16-bit size
  w4    int4 weights, an integer multiplier per 128 inputs: half of that again

The same source, name and recipe give the same bytes, hence the same digest, on any machine.

Examples:
  rookery pack model.gguf
  rookery pack ./Qwen3-0.6B --recipe w4 --name qwen3-0.6b --output bundles/qwen3-w4")]
pub struct PackArgs {
    /// A .gguf file, or a folder with config.json, tokenizer.json and safetensors.
    model: PathBuf,
    /// How to quantise.
    #[arg(long, default_value = "w8", value_parser = parse_recipe)]
    recipe: Recipe,
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

fn parse_recipe(text: &str) -> Result<Recipe, String> {
    text.parse().map_err(|error: rookery_model::pack::UnknownRecipe| error.to_string())
}

/// Runs the command.
///
/// # Errors
/// If the model cannot be read or the bundle cannot be written.
pub fn run(args: &PackArgs) -> Result<(), Failure> {
    let name = args.name.clone().unwrap_or_else(|| name_from(&args.model));
    let output = args.output.clone().unwrap_or_else(|| PathBuf::from(format!("{name}-{}", args.recipe)));
    let existing = if args.replace { ExistingTarget::Replace } else { ExistingTarget::Refuse };
    let options = PackOptions { name, recipe: args.recipe, threads: args.threads, existing };
    let info = pack_model(&args.model, &options, &output, &TerminalProgress::new())?;
    if args.json {
        return output::json(&info);
    }
    output::note(format_args!(
        "{}: {} parameters, {}, {:.2} bits per weight, {}",
        info.config.name,
        output::grouped(info.config.parameters),
        output::bytes(info.total_bytes),
        info.bits_per_weight,
        info.digest
    ));
    output::line(output.display())
}

/// Packs the model at `path` into the bundle folder `output`.
///
/// # Errors
/// If the model cannot be read or the bundle cannot be written.
pub fn pack_model(
    path: &Path,
    options: &PackOptions,
    output: &Path,
    progress: &dyn Progress,
) -> Result<BundleInfo, Failure> {
    let source = source::open(path).or_fail(|| format!("could not import {}", path.display()))?;
    pack(source.as_ref(), options, output, progress).map_err(|error| {
        let exists = matches!(error, PackError::TargetExists { .. });
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
