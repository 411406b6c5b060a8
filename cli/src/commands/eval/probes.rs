//! `rookery eval --probes`: whether this machine answers bit by bit what the packer's answered.

use rookery_compute_worker::engine::EngineConfig;
use rookery_compute_worker::probes::{ProbeSet, SelfCheck, replay_bundle};
use serde::Serialize;

use super::models::{Form, Opened, kv_type};
use super::{EvalArgs, Setting};
use crate::error::{Failure, OrFail};
use crate::output::{self, Table};

/// One bundle with one type of cache.
#[derive(Serialize)]
struct Replayed {
    model: String,
    backend: String,
    kv_cache_type: String,
    probes: usize,
    /// Generated tokens whose logits were compared.
    positions: usize,
    /// Names of probes that do not fit the engine's context.
    skipped: Vec<String>,
    /// Where each probe that differs does so first, in words.
    differing: Vec<String>,
    seconds: f64,
}

/// Replays every probe of every bundle.
///
/// # Errors
/// When a bundle has none, they cannot be replayed, or an answer differs.
pub(super) fn run(
    args: &EvalArgs,
    setting: &Setting,
    models: &[Opened],
    engine: &EngineConfig,
) -> Result<(), Failure> {
    let mut all = Vec::new();
    for model in models {
        let Form::Bundle(bundle) = &model.form else {
            return Err(Failure::usage(format!("{} is not a bundle; only bundles carry probes", model.name)));
        };
        let set = ProbeSet::of(bundle).or_fail(|| format!("could not read the probes of {}", model.name))?;
        let set = set.ok_or_else(|| {
            Failure::new(format!("{} carries no probes", model.name))
                .hint("`rookery pack` records them unless --no-probes is given")
        })?;
        for cache in &args.kv_cache_type {
            let engine = EngineConfig { kv_type: kv_type(*cache), ..engine.clone() };
            let backend = setting.backends.backend(setting.kernels);
            let name = backend.name();
            let replay = replay_bundle(bundle, &set, &engine, backend, SelfCheck::Full)
                .or_fail(|| format!("could not replay the probes of {}", model.name))?;
            all.push(Replayed {
                model: model.name.clone(),
                backend: name,
                kv_cache_type: replay.kv_type.to_string(),
                probes: replay.probes,
                positions: replay.positions,
                skipped: replay.skipped,
                differing: replay.differing.iter().map(ToString::to_string).collect(),
                seconds: replay.elapsed.as_secs_f64(),
            });
        }
    }
    if args.json {
        output::json(&all)?;
    } else {
        output::write(&render(&all))?;
    }
    let wrong: Vec<String> = all
        .iter()
        .filter(|replayed| !replayed.differing.is_empty() || replayed.positions == 0)
        .map(|replayed| format!("{} ({} cache)", replayed.model, replayed.kv_cache_type))
        .collect();
    if wrong.is_empty() {
        return Ok(());
    }
    Err(Failure::new(format!("other answers than recorded, or none: {}", wrong.join(", "))))
}

fn render(all: &[Replayed]) -> String {
    let mut table =
        Table::new(&["MODEL", "BACKEND", "KV", ">PROBES", ">TOKENS", ">DIFFER", ">SKIPPED", ">SECONDS"]);
    for replayed in all {
        table.row([
            replayed.model.clone(),
            replayed.backend.clone(),
            replayed.kv_cache_type.clone(),
            replayed.probes.to_string(),
            replayed.positions.to_string(),
            replayed.differing.len().to_string(),
            replayed.skipped.len().to_string(),
            format!("{:.1}", replayed.seconds),
        ]);
    }
    let mut text = table.render();
    for line in all.iter().flat_map(|replayed| &replayed.differing) {
        text.push_str(line);
        text.push('\n');
    }
    text
}
