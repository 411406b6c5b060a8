//! What the engine tells operators: metrics by the global meter. Spans are made where phases begin and end, in
//! [`super::sequence`]; nothing here is recorded per token.

use std::sync::{Arc, Weak};
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Histogram, Meter};
use rookery_proto::semconv::{attribute, metric, span};
use rookery_proto::status::Reason;
use tracing::{Span, info_span};

use crate::backend::npu::StepReport;

use super::admission::Admission;
use super::request::{Timings, Usage};
use super::{Load, SubmitError};

/// A gauge's name and where its value is.
type Gauge = (&'static str, fn(&Load) -> u64);

/// The engine's counters and histograms.
pub(crate) struct Instruments {
    meter: Meter,
    model: KeyValue,
    input: [KeyValue; 2],
    output: [KeyValue; 2],
    tokens: Counter<u64>,
    steps: Counter<u64>,
    preemptions: Counter<u64>,
    refusals: Counter<u64>,
    first_token: Histogram<f64>,
    per_token: Histogram<f64>,
    npu: NpuInstruments,
}

/// What an accelerator did.
struct NpuInstruments {
    jobs: Counter<u64>,
    busy: Counter<f64>,
    transferred: Counter<u64>,
    faults: Counter<u64>,
    resets: Counter<u64>,
    fallbacks: Counter<u64>,
}

impl Instruments {
    /// Instruments whose values carry the model's name.
    pub(crate) fn new(model: &str) -> Arc<Self> {
        let meter = opentelemetry::global::meter("rookery-compute-worker");
        let model = KeyValue::new(attribute::RESPONSE_MODEL, model.to_owned());
        let tokens = |kind: &'static str| [model.clone(), KeyValue::new(attribute::TOKEN_TYPE, kind)];
        Arc::new(Self {
            input: tokens("input"),
            output: tokens("output"),
            tokens: meter.u64_counter(metric::TOKENS).with_unit("{token}").build(),
            steps: meter.u64_counter(metric::STEPS).with_unit("{step}").build(),
            preemptions: meter.u64_counter(metric::PREEMPTIONS).with_unit("{preemption}").build(),
            refusals: meter.u64_counter(metric::REFUSALS).with_unit("{request}").build(),
            first_token: meter.f64_histogram(metric::TIME_TO_FIRST_TOKEN).with_unit("s").build(),
            per_token: meter.f64_histogram(metric::TIME_PER_OUTPUT_TOKEN).with_unit("s").build(),
            npu: NpuInstruments {
                jobs: meter.u64_counter(metric::NPU_JOBS).with_unit("{job}").build(),
                busy: meter.f64_counter(metric::NPU_BUSY).with_unit("s").build(),
                transferred: meter.u64_counter(metric::NPU_TRANSFERRED).with_unit("By").build(),
                faults: meter.u64_counter(metric::NPU_FAULTS).with_unit("{fault}").build(),
                resets: meter.u64_counter(metric::NPU_RESETS).with_unit("{reset}").build(),
                fallbacks: meter.u64_counter(metric::NPU_FALLBACKS).with_unit("{call}").build(),
            },
            meter,
            model,
        })
    }

    /// Publishes gauges of queue, batch and cache, read from `load` whenever metrics are collected, until the
    /// engine behind `admission` is gone.
    pub(crate) fn observe(&self, admission: &Arc<Admission>, load: &tokio::sync::watch::Receiver<Load>) {
        let gauges: [Gauge; 6] = [
            (metric::BATCH_REQUESTS, |load| load.running.into()),
            (metric::QUEUE_REQUESTS, |load| load.queued.into()),
            (metric::QUEUE_TOKENS, |load| load.queued_tokens),
            (metric::CACHE_BLOCKS_FREE, |load| load.free_blocks.into()),
            (metric::CACHE_BLOCKS, |load| load.total_blocks.into()),
            (metric::DEGRADED, |load| load.degraded.is_some().into()),
        ];
        for (name, read) in gauges {
            let (admission, load): (Weak<Admission>, _) = (Arc::downgrade(admission), load.clone());
            let model = self.model.clone();
            let gauge = self.meter.u64_observable_gauge(name).with_callback(move |observer| {
                if let Some(admission) = admission.upgrade() {
                    let load = admission.current(*load.borrow());
                    observer.observe(read(&load), std::slice::from_ref(&model));
                }
            });
            gauge.build();
        }
    }

    /// A request was refused.
    pub(crate) fn refused(&self, error: &SubmitError) {
        let reason = match error {
            SubmitError::QueueFull { .. } => Reason::QueueFull,
            SubmitError::PromptTooLong { .. } => Reason::PromptTooLong,
            SubmitError::InvalidToken { .. }
            | SubmitError::EmptyPrompt
            | SubmitError::Continuation { .. } => Reason::InvalidField,
            SubmitError::Stopped => Reason::EngineFailed,
        };
        let reason = KeyValue::new(attribute::REFUSAL_REASON, reason.as_str());
        self.refusals.add(1, &[self.model.clone(), reason]);
    }

    /// A step was committed, which read `prompt_tokens` for the first time (not from the cache, and not again after
    /// preemption) and preempted `preemptions` generations.
    pub(crate) fn stepped(&self, prompt_tokens: usize, generated_tokens: usize, preemptions: usize) {
        self.steps.add(1, std::slice::from_ref(&self.model));
        self.tokens.add(prompt_tokens as u64, &self.input);
        self.tokens.add(generated_tokens as u64, &self.output);
        if preemptions > 0 {
            self.preemptions.add(preemptions as u64, std::slice::from_ref(&self.model));
        }
    }

    /// What an accelerator did in a step.
    pub(crate) fn npu_step(&self, report: &StepReport) {
        let model = std::slice::from_ref(&self.model);
        self.npu.jobs.add(report.jobs, model);
        self.npu.busy.add(report.busy.as_secs_f64(), model);
        self.npu.transferred.add(report.bytes, model);
        if report.resets > 0 {
            self.npu.resets.add(report.resets, model);
        }
        if report.fallbacks > 0 {
            self.npu.fallbacks.add(report.fallbacks, model);
        }
        for kind in &report.faults {
            let kind = KeyValue::new(attribute::NPU_FAULT, kind.as_str());
            self.npu.faults.add(1, &[self.model.clone(), kind]);
        }
    }

    /// A generation got its first token.
    pub(crate) fn first_token(&self, after: Duration) {
        self.first_token.record(after.as_secs_f64(), std::slice::from_ref(&self.model));
    }

    /// A generation is complete.
    pub(crate) fn finished(&self, usage: &Usage, timings: &Timings) {
        if usage.generated_tokens > 1 {
            let seconds = timings.decode.as_secs_f64() / f64::from(usage.generated_tokens - 1);
            self.per_token.record(seconds, std::slice::from_ref(&self.model));
        }
    }
}

/// The probes of `model` were replayed before it is served.
pub(crate) fn self_checked(model: &str, took: Duration) {
    let meter = opentelemetry::global::meter("rookery-compute-worker");
    let histogram = meter.f64_histogram(metric::SELF_CHECK_DURATION).with_unit("s").build();
    histogram.record(took.as_secs_f64(), &[KeyValue::new(attribute::RESPONSE_MODEL, model.to_owned())]);
}

/// A span for what an accelerator does in one step: child of the phase of the step's first generation, linked to the phases
/// of the others.
pub(crate) fn step_span<'s>(mut phases: impl Iterator<Item = &'s Span>) -> Span {
    let span = info_span!(parent: phases.next().unwrap_or(&Span::none()), span::NPU_STEP);
    phases.for_each(|phase| {
        span.follows_from(phase);
    });
    span
}
