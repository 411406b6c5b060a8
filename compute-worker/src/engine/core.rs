//! The engine's step, synchronous and without a thread of its own.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use rookery_kernels::AttentionQuery;
use rookery_model::bundle::Bundle;
use rookery_model::tokenizer::{Tokenizer, TokenizerConfig};
use rookery_proto::semconv::attribute;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::admission::{Admission, Submission};
use super::block_pool::BlockPool;
use super::sampler::{SampleError, Sampled, Sampler};
use super::scheduler::{Limits, Plan, Scheduler, Ticket, Work};
use super::sequence::Sequence;
use super::telemetry::{self, Instruments};
use super::transcript::Replay;
use super::{EngineConfig, EngineError, Generation, GenerationError, Load, ModelInfo, Request, SubmitError};
use crate::backend::{Backend, CpuBackend};
use crate::model::forward::{Batch, Forward, ForwardError, ForwardLimits};
use crate::model::weights::ModelWeights;

/// Sees the raw logits `[vocabulary]` of every sampled position: request id, position, logits.
pub type LogitsObserver = Box<dyn FnMut(&str, usize, &[f32]) + Send>;

/// An engine that its owner drives step by step. [`super::Engine::start`] drives one on a thread; tests and
/// measurements that must control every step drive their own.
pub struct EngineCore {
    pub(crate) info: ModelInfo,
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) admission: Arc<Admission>,
    pub(crate) instruments: Arc<Instruments>,
    pub(crate) max_queued_requests: usize,
    scheduler: Scheduler,
    sequences: BTreeMap<Ticket, Sequence>,
    plan: Plan,
    pub(crate) forward: Forward,
    pub(crate) backend: Box<dyn Backend>,
    inputs: Inputs,
    observer: Option<LogitsObserver>,
    failed: bool,
}

/// What a step feeds to the forward pass. Reused from step to step.
#[derive(Default)]
struct Inputs {
    tokens: Vec<u32>,
    /// Rows whose logits are wanted.
    sampled_rows: Vec<usize>,
}

impl EngineCore {
    /// An engine that computes on this machine's processor.
    ///
    /// # Errors
    /// When settings, weights or tokenizer are not to be had.
    pub fn new(bundle: &Bundle, config: EngineConfig) -> Result<Self, EngineError> {
        let backend = CpuBackend::new(config.kernels()?);
        Self::with_backend(bundle, config, Box::new(backend))
    }

    /// An engine that computes linear layers on `backend`.
    ///
    /// # Errors
    /// As [`EngineCore::new`].
    pub fn with_backend(
        bundle: &Bundle,
        config: EngineConfig,
        mut backend: Box<dyn Backend>,
    ) -> Result<Self, EngineError> {
        config.validate()?;
        let kernels = config.kernels()?;
        let tokenizer = Arc::new(bundle.tokenizer().map_err(EngineError::Bundle)?);
        let mut weights = ModelWeights::resolve(bundle).map_err(EngineError::Bundle)?;
        check_tokenizer(tokenizer.vocabulary(), tokenizer.config(), weights.config.vocab)?;
        let block_bytes = weights.block_bytes(config.kv_type);
        let (blocks, context_tokens) = config.cache_geometry(weights.config.context, block_bytes)?;
        let limits = ForwardLimits {
            threads: config.threads,
            blocks,
            kv_type: config.kv_type,
            positions: context_tokens,
            max_rows: config.max_step_tokens,
            max_logit_rows: config.max_batch,
        };
        backend.adopt(&mut weights).map_err(EngineError::Backend)?;
        let info = ModelInfo::new(bundle, &config, context_tokens, kernels.isa(), backend.name());
        let instruments = Instruments::new(&info.name);
        let admission = Admission::new(&config, info.vocabulary, context_tokens, Arc::clone(&instruments));
        let limits_of_steps = Limits { max_batch: config.max_batch, max_step_tokens: config.max_step_tokens };
        Ok(Self {
            info,
            tokenizer,
            admission,
            instruments,
            max_queued_requests: config.max_queued_requests,
            scheduler: Scheduler::new(BlockPool::new(blocks), limits_of_steps),
            sequences: BTreeMap::new(),
            plan: Plan::default(),
            forward: Forward::new(weights, kernels, &limits),
            backend,
            inputs: Inputs::default(),
            observer: None,
            failed: false,
        })
    }

    /// What the engine serves.
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// The model's tokenizer.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    /// Lets `observer` see the logits of every sampled position.
    pub fn observe_logits(&mut self, observer: LogitsObserver) {
        self.observer = Some(observer);
    }

    /// Puts a request into the queue.
    ///
    /// # Errors
    /// When the request cannot run on this model, or the queue is full.
    pub fn submit(&mut self, request: Request) -> Result<Generation, SubmitError> {
        let replay = |request: &Request| Replay::of(request, &self.tokenizer, self.info.context_tokens);
        let (submission, generation) = self.admission.admit(request, replay)?;
        self.enqueue(submission);
        Ok(generation)
    }

    /// Takes a request in that was let in already.
    pub(crate) fn enqueue(&mut self, submission: Submission) {
        let priority = submission.request.priority;
        let complete = submission.replay.as_ref().and_then(|replay| replay.ending.clone());
        let (sequence, tokens) = Sequence::new(submission, &self.tokenizer, self.info.context_tokens);
        if let Some(ending) = complete {
            return sequence.finish_replayed(Instant::now(), ending);
        }
        let ticket = self.scheduler.add(priority, tokens);
        self.sequences.insert(ticket, sequence);
    }

    /// Nothing waits and nothing runs.
    pub fn is_idle(&self) -> bool {
        self.sequences.is_empty()
    }

    /// How busy the engine is.
    pub fn load(&self) -> Load {
        let pool = self.scheduler.pool();
        self.admission.current(Load {
            running: self.scheduler.running() as u32,
            free_blocks: pool.available() as u32,
            total_blocks: pool.total() as u32,
            failed: self.failed,
            degraded: self.backend.degraded(),
            ..Load::default()
        })
    }

    /// One step: those that left leave, then schedule, execute, commit.
    ///
    /// # Errors
    /// When the forward pass failed. The engine's state is then only good for [`EngineCore::fail`].
    pub fn step(&mut self) -> Result<(), ForwardError> {
        let began = Instant::now();
        self.reap(began);
        let mut plan = std::mem::take(&mut self.plan);
        self.scheduler.schedule(&mut plan);
        let preemptions = self.note_moves(&plan, began);
        if !plan.work.is_empty() {
            let sampled = self.execute(&plan)?;
            let prompt_rows = plan.rows() - sampled.len();
            self.admission.observe_pace(prompt_rows, began.elapsed());
            let read = self.note_computed(&plan);
            self.instruments.stepped(read, sampled.iter().flatten().count(), preemptions);
            self.commit(&plan, sampled);
        }
        self.plan = plan;
        Ok(())
    }

    /// Ends every generation with `error` and takes nothing in any more.
    pub fn fail(&mut self, error: &GenerationError) {
        self.failed = true;
        self.admission.stop();
        for (ticket, sequence) in std::mem::take(&mut self.sequences) {
            self.scheduler.remove(ticket);
            sequence.fail(error.clone());
        }
    }

    /// Lets go of generations whose reader is gone or whose deadline has passed.
    fn reap(&mut self, now: Instant) {
        let leaves = |sequence: &Sequence| sequence.cancelled() || sequence.overdue(now);
        let leaving = self.sequences.iter().filter(|(_, sequence)| leaves(sequence));
        let leaving: Vec<Ticket> = leaving.map(|(ticket, _)| *ticket).collect();
        for ticket in leaving {
            self.scheduler.remove(ticket);
            if let Some(sequence) = self.sequences.remove(&ticket) {
                let generated_tokens = sequence.generated_tokens();
                sequence.fail(GenerationError::DeadlineExceeded { generated_tokens });
            }
        }
    }

    /// Tells sequences what a plan did to them. Returns how many lost their blocks.
    fn note_moves(&mut self, plan: &Plan, now: Instant) -> usize {
        let mut preemptions = 0;
        for ticket in &plan.preempted {
            if let Some(sequence) = self.sequences.get_mut(ticket) {
                preemptions += usize::from(sequence.preempted());
            }
        }
        // One that was admitted and had to give way in the same plan waits as before.
        let staying = plan.admitted.iter().filter(|admitted| self.scheduler.is_running(admitted.ticket));
        for admitted in staying {
            if let Some(sequence) = self.sequences.get_mut(&admitted.ticket) {
                sequence.admitted(now, admitted.cached_tokens);
            }
        }
        for reused in &plan.reused {
            if let Some(sequence) = self.sequences.get_mut(&reused.ticket) {
                sequence.reused(reused.tokens);
            }
        }
        preemptions
    }

    /// Tells sequences that the plan's rows are computed. Returns the prompt tokens that were read for the first time.
    fn note_computed(&mut self, plan: &Plan) -> usize {
        let mut read = 0;
        for work in &plan.work {
            if let Some(sequence) = self.sequences.get_mut(&work.ticket) {
                read += sequence.computed(work.start..work.start + work.count);
            }
        }
        read
    }

    /// Computes all rows of the plan and chooses tokens, one for each piece of work that samples, in order.
    fn execute(&mut self, plan: &Plan) -> Result<Vec<Result<Sampled, SampleError>>, ForwardError> {
        let inputs = &mut self.inputs;
        inputs.tokens.clear();
        inputs.sampled_rows.clear();
        let mut queries = Vec::with_capacity(plan.rows());
        for work in &plan.work {
            let rows = work.start..work.start + work.count;
            inputs.tokens.extend_from_slice(&self.scheduler.tokens(work.ticket)[rows.clone()]);
            let blocks = self.scheduler.blocks(work.ticket);
            queries.extend(rows.map(|position| AttentionQuery { blocks, len: position + 1 }));
            if work.sample {
                inputs.sampled_rows.push(queries.len() - 1);
            }
        }
        if self.backend.wants_weights() {
            self.backend.adopt(self.forward.weights_mut()).map_err(ForwardError::Backend)?;
        }
        let step = self.backend.reports_steps().then(|| {
            telemetry::step_span(
                plan.work.iter().filter_map(|work| Some(self.sequences.get(&work.ticket)?.phase())),
            )
        });
        let batch = Batch { tokens: &inputs.tokens, queries: &queries, logits_of: &inputs.sampled_rows };
        let computed = self.forward.run(self.backend.as_mut(), &batch);
        if let (Some(span), Some(report)) = (step, self.backend.take_step_report()) {
            span.set_attribute(attribute::BACKEND, self.info.backend.clone());
            span.set_attribute(attribute::STEP_ROWS, plan.rows() as i64);
            report.describe(&span);
            self.instruments.npu_step(&report);
        }
        computed?;
        self.observe(plan);
        Ok(self.sample(plan))
    }

    fn observe(&mut self, plan: &Plan) {
        let Some(observer) = &mut self.observer else { return };
        let sampling = plan.work.iter().filter(|work| work.sample);
        for (work, logits) in sampling.zip(self.forward.logits()) {
            if let Some(sequence) = self.sequences.get(&work.ticket) {
                observer(sequence.id(), work.start + work.count, logits);
            }
        }
    }

    /// Chooses the tokens of all sampling rows, side by side on the compute threads.
    fn sample(&mut self, plan: &Plan) -> Vec<Result<Sampled, SampleError>> {
        let sampling = plan.work.iter().filter(|work| work.sample);
        let jobs: Vec<(usize, &Sampler)> = sampling
            .filter_map(|work| Some((work.start + work.count, self.sequences.get(&work.ticket)?.sampler())))
            .collect();
        let chosen: Vec<OnceLock<Result<Sampled, SampleError>>> =
            jobs.iter().map(|_| OnceLock::new()).collect();
        let kernels = self.forward.kernels();
        self.forward.for_each_logits_row(&|row, logits| {
            let (position, sampler) = jobs[row];
            // Each row is visited once, so the cell is empty.
            let _ = chosen[row].set(sampler.sample(kernels, position, logits));
        });
        chosen.into_iter().map(|cell| cell.into_inner().unwrap_or(Err(SampleError::NotFinite))).collect()
    }

    fn commit(&mut self, plan: &Plan, sampled: Vec<Result<Sampled, SampleError>>) {
        let now = Instant::now();
        let mut sampled = sampled.into_iter();
        for work in &plan.work {
            if !work.sample {
                self.scheduler.commit(work, None);
                continue;
            }
            match sampled.next() {
                Some(Ok(sampled)) => self.commit_token(work, now, sampled),
                Some(Err(error)) => self.end_with_error(work.ticket, error),
                None => {}
            }
        }
    }

    fn commit_token(&mut self, work: &Work, now: Instant, sampled: Sampled) {
        self.scheduler.commit(work, Some(sampled.token));
        let Some(sequence) = self.sequences.get_mut(&work.ticket) else { return };
        let ending = sequence.push(now, sampled);
        if let (1, Some(after)) = (sequence.new_tokens(), sequence.time_to_first_token()) {
            self.instruments.first_token(after);
        }
        if let Some(ending) = ending {
            self.scheduler.remove(work.ticket);
            if let Some(sequence) = self.sequences.remove(&work.ticket) {
                let (usage, timings) = sequence.finish(ending);
                self.instruments.finished(&usage, &timings);
            }
        }
    }

    fn end_with_error(&mut self, ticket: Ticket, error: SampleError) {
        self.scheduler.remove(ticket);
        if let Some(sequence) = self.sequences.remove(&ticket) {
            tracing::warn!(request_id = sequence.id(), %error, "no token could be chosen");
            sequence.fail(match error {
                SampleError::NotFinite => GenerationError::NotFinite,
                SampleError::AllForbidden => GenerationError::AllForbidden,
            });
        }
    }
}

/// That every token that the tokenizer has or its settings name has a row in the model's `vocabulary`.
fn check_tokenizer(tokens: usize, special: &TokenizerConfig, vocabulary: usize) -> Result<(), EngineError> {
    let last = u32::try_from(tokens).unwrap_or(u32::MAX).checked_sub(1);
    let highest = special.eos.iter().copied().chain(special.bos).chain(last).max();
    match highest {
        Some(token_id) if token_id as usize >= vocabulary => {
            Err(EngineError::Tokenizer { token_id, vocabulary })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_that_the_model_does_not_have_are_refused() {
        let special = |bos, eos| TokenizerConfig { add_bos: true, bos, eos, chat_template: None };
        let refused = |tokens, bos, eos| match check_tokenizer(tokens, &special(bos, eos), 10) {
            Err(EngineError::Tokenizer { token_id, vocabulary: 10 }) => Some(token_id),
            result => result.map(|()| None).unwrap(),
        };
        assert_eq!(refused(10, Some(9), vec![8, 9]), None);
        assert_eq!(refused(8, None, Vec::new()), None, "a model may have rows that are no tokens");
        assert_eq!(refused(11, None, Vec::new()), Some(10));
        assert_eq!(refused(8, Some(10), Vec::new()), Some(10));
        assert_eq!(refused(8, None, vec![3, 12]), Some(12));
    }
}
