//! Versions of a tiny model with probes, good ones and bad ones.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context;
use rookery_compute_worker::{
    engine::{EngineConfig, EngineCore},
    probes::{ANY_BOARD, ProbeSet, Prompt, TITLE, Topic, decode_speed, record},
    versions::memory::Demand,
};
use rookery_model::{
    bundle::{Bundle, Digest, NoProgress, PROBES_TYPE, WEIGHTS_TYPE},
    pack::{Draft, ExistingTarget, Recipe},
    source,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::bundles::pack_recipe;

/// A bundle that carries probes; deleted when dropped.
pub struct Version {
    _folder: TempDir,
    path: PathBuf,
    digest: String,
}

/// Settings of every gateway's engines.
pub fn engine_config() -> EngineConfig {
    EngineConfig {
        threads: 1,
        kv_cache_bytes: 4 << 20,
        max_batch: 4,
        max_step_tokens: 64,
        ..EngineConfig::default()
    }
}

impl Version {
    /// Packs the tiny model of `architecture` by `recipe`, records its probes, and lets `change` have them. It promises one
    /// token a second.
    ///
    /// # Errors
    /// When packing fails.
    pub fn pack(
        architecture: &str,
        recipe: Recipe,
        change: impl FnOnce(&mut ProbeSet),
    ) -> anyhow::Result<Self> {
        let plain = pack_recipe(architecture, "packed", recipe)?;
        let bundle = Bundle::open(plain.path(), &NoProgress)?;
        let mut set = record(&bundle, &prompts(), &engine_config())?;
        set.profile.insert(ANY_BOARD.to_owned(), 1.0);
        change(&mut set);
        let folder = TempDir::with_prefix("rookery-tests-")?;
        let path = folder.path().join("bundle");
        let mut draft = Draft::create(&path, ExistingTarget::Refuse, "probes")?;
        let config = &bundle.info().config;
        for part in config.parts() {
            draft.copy_part(&bundle, part)?;
        }
        draft.document(PROBES_TYPE, TITLE, &set.to_json())?;
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/tiny").join(architecture);
        draft.publish(config, source::open(&fixture.with_extension("gguf"))?.as_ref())?;
        Self::at(folder, path)
    }

    /// This one with the lowest bit of a tensor's first number flipped, and every digest made to fit, as somebody would who
    /// wants it to pass.
    ///
    /// # Errors
    /// When it cannot be read or written.
    pub fn with_flipped_bit(&self, tensor: &str) -> anyhow::Result<Self> {
        let folder = TempDir::with_prefix("rookery-tests-")?;
        let path = folder.path().join("bundle");
        copy(&self.path, &path)?;
        let info = Bundle::inspect(&path)?;
        let weights = info.blobs.iter().filter(|blob| blob.media_type == WEIGHTS_TYPE);
        let mut found = weights.filter_map(|blob| {
            let bytes = fs::read(path.join(blob.path())).ok()?;
            let at = first_byte(&bytes, tensor)?;
            Some((blob, bytes, at))
        });
        let (blob, mut bytes, at) = found.next_back().with_context(|| format!("there is no {tensor}"))?;
        bytes[at] ^= 1;
        let altered = Digest::of(&bytes);
        fs::remove_file(path.join(blob.path()))?;
        fs::write(path.join(altered.path()), &bytes)?;
        let manifest = fs::read_to_string(path.join(info.digest.path()))?;
        let manifest = manifest.replace(blob.digest.as_str(), altered.as_str()).into_bytes();
        let digest = Digest::of(&manifest);
        fs::write(path.join(digest.path()), &manifest)?;
        let index = path.join("index.json");
        let mut document: Value = serde_json::from_slice(&fs::read(&index)?)?;
        document["manifests"][0]["digest"] = json!(digest);
        fs::remove_file(&index)?;
        fs::write(&index, document.to_string())?;
        Self::at(folder, path)
    }

    fn at(folder: TempDir, path: PathBuf) -> anyhow::Result<Self> {
        let digest = Bundle::inspect(&path)?.digest.to_string();
        Ok(Self { _folder: folder, path, digest })
    }

    /// The bundle's folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its identity, "sha256:…".
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Bytes that a gateway's engine of it takes.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn memory(&self) -> anyhow::Result<u64> {
        Ok(Demand::of(&Bundle::inspect(&self.path)?.config, &engine_config())?.total())
    }

    /// Tokens a second that an engine of it decodes on this machine when nothing disturbs it: the best of some tries.
    ///
    /// # Errors
    /// When it cannot be measured.
    pub fn speed(&self) -> anyhow::Result<f64> {
        let bundle = Bundle::open(&self.path, &NoProgress)?;
        let set = ProbeSet::of(&bundle)?.context("it carries probes")?;
        let mut best = 0.0_f64;
        for _ in 0..8 {
            let mut core = EngineCore::new(&bundle, engine_config())?;
            best = best.max(decode_speed(&mut core, &set, 48)?.context("its probes fit")?);
        }
        Ok(best)
    }
}

/// Where a tensor begins in a file of safetensors.
fn first_byte(bytes: &[u8], tensor: &str) -> Option<usize> {
    let header = usize::try_from(u64::from_le_bytes(*bytes.first_chunk()?)).ok()?;
    let document: Value = serde_json::from_slice(bytes.get(8..8 + header)?).ok()?;
    Some(8 + header + usize::try_from(document.get(tensor)?["data_offsets"][0].as_u64()?).ok()?)
}

fn prompts() -> Vec<Prompt> {
    let prompt = |(index, text): (usize, &&str)| Prompt {
        name: format!("text/{index}"),
        topic: Topic::Text,
        text: (*text).to_owned(),
        answer: None,
        tokens: 8,
    };
    ["one two three", "def add(a, b):", "the first of all"].iter().enumerate().map(prompt).collect()
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}
