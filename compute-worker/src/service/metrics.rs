//! What the service counts. The engine counts tokens, its latencies, its load and its own refusals itself.

use std::{sync::Arc, time::Duration};

use opentelemetry::{
    KeyValue, global,
    metrics::{Counter, Histogram},
};
use rookery_proto::{
    semconv::{attribute, metric},
    status,
};
use tonic::Status;

/// The instruments of one worker's service, on the process's meter provider. Clones share them.
#[derive(Clone)]
pub(crate) struct Metrics(Arc<Instruments>);

struct Instruments {
    duration: Histogram<f64>,
    refusals: Counter<u64>,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let meter = global::meter("rookery-compute-worker");
        Self(Arc::new(Instruments {
            duration: meter.f64_histogram(metric::REQUEST_DURATION).with_unit("s").build(),
            refusals: meter.u64_counter(metric::REFUSALS).with_unit("{request}").build(),
        }))
    }

    /// A request was refused before it reached an engine.
    pub(super) fn refused(&self, status: &Status) {
        self.0.refusals.add(1, &[KeyValue::new(attribute::REFUSAL_REASON, status::error_type(status))]);
    }

    /// A stream ended, `outcome` being its finish reason or the reason of its failure.
    pub(super) fn ended(&self, model: &str, outcome: &str, after: Duration) {
        let attributes = [
            KeyValue::new(attribute::RESPONSE_MODEL, model.to_owned()),
            KeyValue::new(attribute::OUTCOME, outcome.to_owned()),
        ];
        self.0.duration.record(after.as_secs_f64(), &attributes);
    }
}
