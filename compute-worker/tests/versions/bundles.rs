//! Versions of a tiny model, good and bad.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, LazyLock, Mutex},
};

use rookery_compute_worker::{
    engine::EngineConfig,
    probes::{ProbeSet, Prompt, TITLE, Topic, record},
};
use rookery_model::{
    bundle::{Bundle, Digest, NoProgress, PROBES_TYPE, check_manifest},
    pack::{Draft, ExistingTarget, PackOptions, Recipe, pack},
    source,
};
use rookery_proto::v1;
use tempfile::TempDir;

/// Name of the model in assignments.
pub(crate) const MODEL: &str = "tiny";

/// A version as a control plane would have it.
#[derive(Clone)]
pub(crate) struct Version {
    pub(crate) digest: Digest,
    pub(crate) manifest: Vec<u8>,
    /// Contents by digest, the manifest aside.
    pub(crate) blobs: BTreeMap<Digest, Vec<u8>>,
}

/// Settings of the engines of all tests.
pub(crate) fn engine_config() -> EngineConfig {
    EngineConfig {
        threads: 1,
        kv_cache_bytes: 4 << 20,
        max_batch: 4,
        max_step_tokens: 64,
        ..Default::default()
    }
}

impl Version {
    /// What a bundle's folder holds.
    pub(crate) fn of(folder: &Path) -> Self {
        let info = Bundle::inspect(folder).unwrap();
        let manifest = fs::read(folder.join(info.digest.path())).unwrap();
        let read = |digest: &Digest| (digest.clone(), fs::read(folder.join(digest.path())).unwrap());
        let blobs = info.blobs.iter().map(|blob| read(&blob.digest)).collect();
        Self { digest: info.digest, manifest, blobs }
    }

    /// The version with one blob's contents changed, and every digest made to fit: only probes can tell.
    pub(crate) fn repacked(&self, title: &str, change: impl FnOnce(&mut Vec<u8>)) -> Self {
        let blob =
            check_manifest(&self.manifest).unwrap().into_iter().find(|blob| blob.title == title).unwrap();
        let mut bytes = self.blobs[&blob.digest].clone();
        change(&mut bytes);
        let digest = Digest::of(&bytes);
        let text = String::from_utf8(self.manifest.clone()).unwrap();
        let manifest = text.replace(blob.digest.as_str(), digest.as_str()).into_bytes();
        let mut blobs = self.blobs.clone();
        blobs.remove(&blob.digest);
        blobs.insert(digest, bytes);
        Self { digest: Digest::of(&manifest), manifest, blobs }
    }

    /// What the control plane sends to have it served.
    pub(crate) fn wanted(&self) -> v1::VersionAssignment {
        v1::VersionAssignment {
            model: MODEL.to_owned(),
            version: "v".to_owned() + &self.digest.hex()[..6],
            digest: self.digest.to_string(),
            manifest: self.manifest.clone(),
            min_speed_percent: 0.0,
            ..v1::VersionAssignment::default()
        }
    }

    /// Alone in an assignment.
    pub(crate) fn assigned(&self, generation: u64) -> v1::Assignment {
        v1::Assignment { generation, versions: vec![self.wanted()], acknowledged_sequence: 0 }
    }
}

/// A good version with probes; each name makes another one, and all share their weights.
pub(crate) fn version(name: &str) -> Version {
    with_probes(name, |_| {})
}

/// One whose probes were changed after they were recorded.
pub(crate) fn with_probes(name: &str, change: impl FnOnce(&mut ProbeSet)) -> Version {
    let folder = TempDir::new().unwrap();
    let plain = packed(name);
    let bundle = Bundle::open(&plain, &NoProgress).unwrap();
    let mut set = record(&bundle, &prompts(), &engine_config()).unwrap();
    change(&mut set);
    let out = folder.path().join("bundle");
    let mut draft = Draft::create(&out, ExistingTarget::Refuse, "probes").unwrap();
    let config = &bundle.info().config;
    config.parts().for_each(|part| draft.copy_part(&bundle, part).unwrap());
    draft.document(PROBES_TYPE, TITLE, &set.to_json()).unwrap();
    draft.publish(config, source::open(&fixture()).unwrap().as_ref()).unwrap();
    Version::of(&out)
}

fn prompts() -> Vec<Prompt> {
    let prompt = |(index, text): (usize, &&str)| Prompt {
        name: format!("text/{index}"),
        topic: Topic::Text,
        text: (*text).to_owned(),
        answer: None,
        tokens: 6,
    };
    ["one two three", "def add(a, b):"].iter().enumerate().map(prompt).collect()
}

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tiny/qwen2.gguf")
}

/// The tiny model, packed once for each name and test process.
fn packed(name: &str) -> PathBuf {
    static PACKED: LazyLock<Mutex<BTreeMap<String, TempDir>>> = LazyLock::new(Mutex::default);
    let mut packed = PACKED.lock().unwrap();
    let folder = packed.entry(name.to_owned()).or_insert_with(|| {
        let folder = TempDir::new().unwrap();
        let source = source::open(&fixture()).unwrap();
        let options =
            PackOptions { name: name.to_owned(), recipe: Recipe::W8, threads: 1, ..PackOptions::default() };
        pack(source.as_ref(), &options, &folder.path().join("bundle"), &NoProgress).unwrap();
        folder
    });
    folder.path().join("bundle")
}

/// All blobs of some versions.
pub(crate) fn all(versions: &[&Version]) -> Arc<BTreeMap<Digest, Vec<u8>>> {
    Arc::new(versions.iter().flat_map(|version| version.blobs.clone()).collect())
}
