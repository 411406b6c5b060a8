//! What the rest of the worker holds of an engine.

use std::sync::mpsc::{SyncSender, TrySendError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use rookery_kernels::{Isa, KvType};
use rookery_model::bundle::Bundle;
use rookery_model::tokenizer::Tokenizer;
use tokio::sync::watch;

use super::admission::{Admission, Submission};
use super::transcript::Replay;
use super::{EngineConfig, EngineCore, EngineError, Generation, Request, SubmitError, thread};
use crate::backend::{Backend, npu::FaultKind};

/// Starts engines.
pub struct Engine;

impl Engine {
    /// Resolves the bundle's weights, reserves cache and scratch, and starts the engine's thread, computing on
    /// this machine's processor.
    ///
    /// # Errors
    /// When settings, weights, tokenizer or thread are not to be had.
    pub fn start(bundle: Arc<Bundle>, config: EngineConfig) -> Result<EngineHandle, EngineError> {
        thread::spawn(EngineCore::new(&bundle, config)?)
    }

    /// As [`Engine::start`], computing linear layers on `backend`.
    ///
    /// # Errors
    /// As [`Engine::start`].
    pub fn start_with_backend(
        bundle: Arc<Bundle>,
        config: EngineConfig,
        backend: Box<dyn Backend>,
    ) -> Result<EngineHandle, EngineError> {
        Self::start_core(EngineCore::with_backend(&bundle, config, backend)?)
    }

    /// Starts the thread of an engine that is made already.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start_core(core: EngineCore) -> Result<EngineHandle, EngineError> {
        thread::spawn(core)
    }
}

/// How busy an engine is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    /// Generations in the current batch.
    pub running: u32,
    /// Generations that wait to run, or to run again after preemption.
    pub queued: u32,
    /// Their tokens that wait to be read: prompts, and after preemption the answers so far.
    pub queued_tokens: u64,
    /// Cache blocks that are free or hold only reusable prefixes.
    pub free_blocks: u32,
    /// All cache blocks.
    pub total_blocks: u32,
    /// The engine has failed or was shut down; it takes nothing in any more.
    pub failed: bool,
    /// Why it computes slower than it should: its accelerator failed, and the processor does its work.
    pub degraded: Option<FaultKind>,
}

/// What an engine serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelInfo {
    /// Name of the model.
    pub name: String,
    /// Digest of the bundle's manifest, `sha256:…`.
    pub digest: String,
    /// Architecture, for example `qwen2`.
    pub architecture: String,
    /// Packing recipe, for example `w8`.
    pub recipe: String,
    /// Number of weights.
    pub parameters: u64,
    /// Longest prompt plus answer in tokens.
    pub context_tokens: usize,
    /// Size of the vocabulary.
    pub vocabulary: usize,
    /// Instruction set of the kernels in use.
    pub isa: Isa,
    /// Where linear layers are computed, for example `cpu/avx512-vnni`, and what makes answers other than those of most
    /// gateways: `+fused(…)`, `+kv(int8)`.
    pub backend: String,
    /// How the key/value cache stores its numbers.
    pub kv_type: KvType,
}

impl ModelInfo {
    /// What an engine of this configuration says of itself; `backend` is the backend's own name.
    pub(crate) fn new(
        bundle: &Bundle,
        engine: &EngineConfig,
        context_tokens: usize,
        isa: Isa,
        backend: String,
    ) -> Self {
        let kv_type = engine.kv_type;
        let answers = match kv_type {
            KvType::F16 => String::new(),
            KvType::Int8 => format!("+kv({kv_type})"),
        };
        let config = &bundle.info().config;
        Self {
            name: config.name.clone(),
            digest: bundle.digest().to_owned(),
            architecture: config.model.architecture.to_string(),
            recipe: config.recipe.clone(),
            parameters: config.parameters,
            context_tokens,
            vocabulary: config.model.vocab,
            isa,
            backend: backend + &answers,
            kv_type,
        }
    }
}

/// A cheap handle to an engine. When the last one is dropped, the engine completes what it has and ends.
#[derive(Clone)]
pub struct EngineHandle {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) admission: Arc<Admission>,
    pub(crate) commands: SyncSender<Command>,
    pub(crate) thread: Mutex<Option<JoinHandle<()>>>,
    pub(crate) load: watch::Receiver<Load>,
    pub(crate) info: ModelInfo,
    pub(crate) tokenizer: Arc<Tokenizer>,
}

/// What handles tell the engine thread.
pub(crate) enum Command {
    /// A request that was let in.
    Submit(Box<Submission>),
    /// Admission was stopped; end.
    Shutdown,
}

impl EngineHandle {
    pub(crate) fn new(inner: Inner) -> Self {
        Self { inner: Arc::new(inner) }
    }

    /// Puts a request into the queue. Never waits.
    ///
    /// # Errors
    /// When the request cannot run on this model, the queue is full, or the engine has stopped.
    pub fn submit(&self, request: Request) -> Result<Generation, SubmitError> {
        let Inner { admission, tokenizer, info, .. } = &*self.inner;
        let replay = |request: &Request| Replay::of(request, tokenizer, info.context_tokens);
        let (submission, generation) = admission.admit(request, replay)?;
        // The channel has a place for every place of the queue, so a full one means that the thread is gone.
        match self.inner.commands.try_send(Command::Submit(Box::new(submission))) {
            Ok(()) => Ok(generation),
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => Err(SubmitError::Stopped),
        }
    }

    /// How busy the engine is now.
    pub fn load(&self) -> Load {
        self.inner.admission.current(*self.inner.load.borrow())
    }

    /// Follows the engine's load: it changes with steps in which something came, left, or took or freed blocks.
    pub fn load_changes(&self) -> watch::Receiver<Load> {
        self.inner.load.clone()
    }

    /// What the engine serves.
    pub fn info(&self) -> &ModelInfo {
        &self.inner.info
    }

    /// The model's tokenizer.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.inner.tokenizer
    }

    /// Refuses new requests from now on and ends the engine after its current step, as [`EngineHandle::shutdown`] does,
    /// without waiting for that. [`Load::failed`] is set when it has ended.
    pub fn stop_admitting(&self) {
        self.inner.admission.stop();
        // A full or closed channel is fine: the thread reads the stop flag after every command and step.
        let _ = self.inner.commands.try_send(Command::Shutdown);
    }

    /// Ends the engine after its current step: whatever waits or runs fails with
    /// [`super::GenerationError::Stopped`]. Returns when its thread has ended; blocks for up to a step.
    pub fn shutdown(&self) {
        self.stop_admitting();
        let thread = self.inner.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // The thread catches panics of steps; one beyond that was already printed by the panic hook.
            let _ = thread.join();
        }
    }
}
