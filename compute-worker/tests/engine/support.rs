//! Bundles of the tiny models, and a driver that steps an engine and keeps everything it says.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, LazyLock, Mutex};

use rookery_compute_worker::engine::{
    EngineConfig, EngineCore, Event, FinishReason, Generation, GenerationError, Request, Sampling, Stop,
    Usage,
};
use rookery_model::bundle::{Bundle, NoProgress, Part, Precision, SegmentEntry, TensorEntry};
use rookery_model::names::{LayerTensor, TensorName};
use rookery_model::pack::{Content, Draft, ExistingTarget, PackOptions, Recipe, describe, pack};
use rookery_model::rotate::{RotateOptions, RotatedSource};
use rookery_model::source::ModelSource;
use tempfile::TempDir;

/// Architectures of the tiny models.
pub(crate) const MODELS: [&str; 3] = ["llama3", "qwen2", "qwen3"];

/// Tokens of the tiny models' vocabularies, and their contexts.
pub(crate) const VOCABULARY: u32 = 512;
pub(crate) const CONTEXT: usize = 512;

/// How a tiny model is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packing {
    /// Blocks at one precision.
    Plain(Recipe),
    /// With rotations folded in and a Hadamard transform before `down`; the heads of q, k and v and parts of `up` take turns
    /// in precision, and so do other matrices from layer to layer.
    Mixed,
}

impl From<Recipe> for Packing {
    fn from(recipe: Recipe) -> Self {
        Self::Plain(recipe)
    }
}

type Bundles = HashMap<String, (Arc<Bundle>, TempDir)>;

/// A tiny model, packed once per test process.
pub(crate) fn bundle(model: &str, packing: impl Into<Packing>) -> Arc<Bundle> {
    static BUNDLES: LazyLock<Mutex<Bundles>> = LazyLock::new(Mutex::default);
    let packing = packing.into();
    let mut bundles = BUNDLES.lock().unwrap();
    let (bundle, _) = bundles.entry(format!("{model} {packing:?}")).or_insert_with(|| {
        let source = source(model);
        match packing {
            Packing::Plain(recipe) => packed(source.as_ref(), recipe),
            Packing::Mixed => {
                packed_mixed(&RotatedSource::new(source.as_ref(), RotateOptions::default()).unwrap())
            }
        }
    });
    Arc::clone(bundle)
}

/// A tiny model as it was made.
pub(crate) fn source(model: &str) -> Box<dyn ModelSource> {
    let fixtures = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tiny");
    rookery_model::source::open(&fixtures.join(format!("{model}.gguf"))).unwrap()
}

/// A model rounded plainly, and the folder that it lives in.
pub(crate) fn packed(source: &dyn ModelSource, recipe: Recipe) -> (Arc<Bundle>, TempDir) {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("bundle");
    let options =
        PackOptions { name: "tiny".to_owned(), recipe, threads: 2, existing: ExistingTarget::Refuse };
    pack(source, &options, &out, &NoProgress).unwrap();
    (Bundle::open(&out, &NoProgress).unwrap(), folder)
}

/// See [`Packing::Mixed`].
fn packed_mixed(source: &dyn ModelSource) -> (Arc<Bundle>, TempDir) {
    let model = source.config();
    assert!(model.ffn_hadamard.is_some(), "a model to test the transform with");
    let entry = |name: TensorName| {
        let (rows, cols) = model.shape(name);
        TensorEntry { name, rows, cols, segments: segments(name, rows, model.head_dim) }
    };
    let tensors: Vec<_> = model.tensor_names().into_iter().map(entry).collect();
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("bundle");
    let config = describe(source, "tiny", "mixed", tensors).unwrap();
    let mut draft = Draft::create(&out, ExistingTarget::Refuse, "mixed").unwrap();
    for part in config.parts() {
        let of_part = |entry: &&TensorEntry| Part::of(entry.name, model.tied_head) == part;
        let entries: Vec<_> = config.tensors.iter().filter(of_part).cloned().collect();
        draft.part(part, source, &entries, &mut |_| Ok(Content::Round), 2, &NoProgress).unwrap();
    }
    draft.publish(&config, source).unwrap();
    (Bundle::open(&out, &NoProgress).unwrap(), folder)
}

/// Rows of a tensor and their precisions, for [`Packing::Mixed`].
fn segments(name: TensorName, rows: usize, head_dim: usize) -> Vec<SegmentEntry> {
    let TensorName::Layer(layer, tensor) = name else {
        let precision = if name.is_linear() { Precision::W8 } else { Precision::F32 };
        return vec![SegmentEntry { first_row: 0, rows, precision }];
    };
    let by_head = [LayerTensor::AttnQ, LayerTensor::AttnK, LayerTensor::AttnV].contains(&tensor);
    let step = match by_head {
        true => head_dim,
        false if tensor == LayerTensor::FfnUp => 80,
        false => rows,
    };
    let precision = |part: usize| match (name.is_linear(), (layer + part).is_multiple_of(2)) {
        (false, _) => Precision::F32,
        (true, true) => Precision::W8,
        (true, false) => Precision::W4,
    };
    let starts = (0..rows).step_by(step).enumerate();
    starts
        .map(|(part, first_row)| SegmentEntry {
            first_row,
            rows: step.min(rows - first_row),
            precision: precision(part),
        })
        .collect()
}

/// Small, one thread.
pub(crate) fn config() -> EngineConfig {
    EngineConfig {
        threads: 1,
        kv_cache_bytes: 64 << 20,
        max_step_tokens: 64,
        max_queued_requests: 64,
        ..EngineConfig::default()
    }
}

/// A greedy request that goes on until `max_tokens`.
pub(crate) fn request(id: &str, prompt: Vec<u32>, max_tokens: u32) -> Request {
    Request {
        id: id.to_owned(),
        prompt,
        sampling: Sampling { max_tokens: Some(max_tokens), ..Sampling::default() },
        stop: Stop { ignore_eos: true, ..Stop::default() },
        continuation: None,
        logprobs: None,
        priority: 0,
        deadline: None,
        span: tracing::Span::none(),
    }
}

/// `count` tokens that depend on `salt`, without the special ones at the end of the vocabulary.
pub(crate) fn prompt(count: usize, salt: u32) -> Vec<u32> {
    let mut state = salt.wrapping_mul(2_654_435_761).wrapping_add(12_345);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 16) % (VOCABULARY - 16)
    };
    (0..count).map(|_| next()).collect()
}

/// All that one generation said.
#[derive(Debug, Default, Clone, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) started: Option<(u32, u32)>,
    pub(crate) tokens: Vec<u32>,
    pub(crate) text: String,
    pub(crate) deltas: usize,
    pub(crate) logprobs: Vec<rookery_compute_worker::engine::PositionLogprobs>,
    pub(crate) reason: Option<FinishReason>,
    pub(crate) stop_string: Option<String>,
    pub(crate) usage: Usage,
    pub(crate) error: Option<GenerationError>,
}

impl Outcome {
    /// Takes an event in, and checks the order of events.
    pub(crate) fn add(&mut self, event: Event) {
        assert!(!self.ended(), "{event:?} after the end");
        match event {
            Event::Started { prompt_tokens, cached_tokens } => {
                assert!(self.started.is_none() && self.tokens.is_empty(), "started once, first");
                self.started = Some((prompt_tokens, cached_tokens));
            }
            Event::Delta(delta) => {
                assert!(self.started.is_some(), "a delta before the start");
                self.text.push_str(&delta.text);
                self.tokens.extend(delta.token_ids);
                self.logprobs.extend(delta.logprobs);
                self.deltas += 1;
            }
            Event::Finished(finished) => {
                self.reason = Some(finished.reason);
                self.stop_string = finished.stop_string;
                self.usage = finished.usage;
            }
            Event::Failed(error) => self.error = Some(error),
        }
    }

    pub(crate) fn ended(&self) -> bool {
        self.reason.is_some() || self.error.is_some()
    }
}

/// Bits of the logits of every sampled position: (request, position) → logits.
pub(crate) type Trace = BTreeMap<(String, usize), Vec<u32>>;

/// An engine, its generations, and what came out of them.
pub(crate) struct Driver {
    pub(crate) core: EngineCore,
    pub(crate) generations: BTreeMap<String, Generation>,
    pub(crate) outcomes: BTreeMap<String, Outcome>,
    trace: Arc<Mutex<Trace>>,
}

impl Driver {
    pub(crate) fn new(bundle: &Bundle, config: EngineConfig) -> Self {
        Self::of(EngineCore::new(bundle, config).unwrap())
    }

    pub(crate) fn of(mut core: EngineCore) -> Self {
        let trace = Arc::new(Mutex::new(Trace::new()));
        let sink = Arc::clone(&trace);
        core.observe_logits(Box::new(move |id, position, logits| {
            let bits = logits.iter().map(|logit| logit.to_bits()).collect();
            let old = sink.lock().unwrap().insert((id.to_owned(), position), bits);
            assert!(old.is_none(), "position {position} of {id} was sampled twice");
        }));
        Self { core, generations: BTreeMap::new(), outcomes: BTreeMap::new(), trace }
    }

    pub(crate) fn submit(&mut self, request: Request) {
        let id = request.id.clone();
        let generation = self.core.submit(request).unwrap();
        self.generations.insert(id.clone(), generation);
        self.outcomes.insert(id, Outcome::default());
    }

    pub(crate) fn step(&mut self) {
        self.core.step().unwrap();
        for (id, generation) in &mut self.generations {
            let outcome = self.outcomes.get_mut(id).unwrap();
            while let Some(event) = generation.try_next() {
                outcome.add(event);
            }
        }
    }

    /// Steps until nothing is left to do.
    pub(crate) fn finish(&mut self) {
        let mut steps = 0;
        while !self.core.is_idle() {
            self.step();
            steps += 1;
            assert!(steps < 100_000, "the engine does not come to an end");
        }
        let load = self.core.load();
        assert_eq!((load.running, load.queued, load.queued_tokens), (0, 0, 0));
        assert_eq!(load.free_blocks, load.total_blocks, "all blocks come back");
    }

    /// Runs one request to its end.
    pub(crate) fn run(&mut self, request: Request) -> Outcome {
        let id = request.id.clone();
        self.submit(request);
        self.finish();
        self.generations.remove(&id);
        self.outcomes.remove(&id).unwrap()
    }

    pub(crate) fn take_trace(&mut self) -> Trace {
        std::mem::take(&mut *self.trace.lock().unwrap())
    }
}
