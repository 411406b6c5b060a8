//! The tiny models of `tests/fixtures/tiny`, packed.

use std::{
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError, Weak},
};

use anyhow::Context;
use rookery_model::{
    bundle::NoProgress,
    pack::{PackOptions, Recipe, pack},
    source,
};
use tempfile::TempDir;

pub use std::sync::Arc;

/// Name of the model in the bundles made here.
pub const MODEL: &str = "tiny";

/// Longest prompt plus answer of the tiny models, in tokens.
pub const CONTEXT_TOKENS: usize = 512;

/// Size of their vocabulary.
pub const VOCABULARY: u32 = 512;

/// A packed tiny model, deleted when the last user drops it.
pub struct Packed {
    _folder: TempDir,
    path: PathBuf,
}

impl Packed {
    /// The bundle's folder.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

static SHARED: Mutex<Weak<Packed>> = Mutex::new(Weak::new());

/// The tiny qwen2 model as a w8 bundle named [`MODEL`], shared by everything in this process that uses it now.
///
/// # Errors
/// When importing or packing fails.
pub fn tiny() -> anyhow::Result<Arc<Packed>> {
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(packed) = shared.upgrade() {
        return Ok(packed);
    }
    let packed = Arc::new(pack_tiny("qwen2", MODEL)?);
    *shared = Arc::downgrade(&packed);
    Ok(packed)
}

/// Packs the tiny model of `architecture` under `name`.
///
/// # Errors
/// When importing or packing fails.
pub fn pack_tiny(architecture: &str, name: &str) -> anyhow::Result<Packed> {
    pack_recipe(architecture, name, Recipe::W8)
}

/// The same by another recipe.
///
/// # Errors
/// When importing or packing fails.
pub fn pack_recipe(architecture: &str, name: &str, recipe: Recipe) -> anyhow::Result<Packed> {
    let fixture =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/tiny").join(architecture).with_extension("gguf");
    let source = source::open(&fixture).with_context(|| format!("import {fixture:?}"))?;
    let folder = TempDir::with_prefix("rookery-tests-")?;
    let path = folder.path().join(name);
    let options = PackOptions { name: name.to_owned(), recipe, threads: 2, ..PackOptions::default() };
    pack(source.as_ref(), &options, &path, &NoProgress).with_context(|| format!("pack {fixture:?}"))?;
    Ok(Packed { _folder: folder, path })
}
