//! What the worker counts. Names are in [`semconv`].

use std::{sync::Arc, time::Duration};

use opentelemetry::{
    KeyValue, global,
    metrics::{Counter, Histogram, Meter},
};
use rookery_proto::{
    semconv::{self, attribute},
    status,
};
use tokio::sync::watch;
use tonic::Status;

use crate::engine::{EngineHandle, Load, Usage};

/// The instruments of one worker, on the process's meter provider. Clones share them.
#[derive(Clone)]
pub(crate) struct Metrics(Arc<Instruments>);

struct Instruments {
    duration: Histogram<f64>,
    first_token: Histogram<f64>,
    per_token: Histogram<f64>,
    tokens: Counter<u64>,
    refusals: Counter<u64>,
}

impl Metrics {
    /// Registers the instruments, and gauges that read the engines' loads.
    pub(crate) fn new<'a>(engines: impl Iterator<Item = &'a EngineHandle>) -> Self {
        let meter = global::meter(semconv::PROVIDER);
        let seconds = |name: &'static str| meter.f64_histogram(name).with_unit("s").build();
        let instruments = Instruments {
            duration: seconds(semconv::metric::REQUEST_DURATION),
            first_token: seconds(semconv::metric::TIME_TO_FIRST_TOKEN),
            per_token: seconds(semconv::metric::TIME_PER_OUTPUT_TOKEN),
            tokens: meter.u64_counter(semconv::metric::TOKENS).with_unit("{token}").build(),
            refusals: meter.u64_counter(semconv::metric::REFUSALS).with_unit("{request}").build(),
        };
        observe_loads(&meter, engines.map(|engine| (engine.info().name.clone(), engine.load_changes())).collect());
        Self(Arc::new(instruments))
    }

    pub(super) fn refused(&self, status: &Status) {
        self.0.refusals.add(1, &[KeyValue::new(attribute::REFUSAL_REASON, status::error_type(status))]);
    }

    pub(super) fn first_token(&self, model: &str, after: Duration) {
        self.0.first_token.record(after.as_secs_f64(), &[model_attribute(model)]);
    }

    /// A stream ended, `outcome` being its finish reason or the reason of its failure.
    pub(super) fn ended(&self, model: &str, outcome: &str, after: Duration) {
        let attributes = [model_attribute(model), KeyValue::new(attribute::OUTCOME, outcome.to_owned())];
        self.0.duration.record(after.as_secs_f64(), &attributes);
    }

    pub(super) fn used(&self, model: &str, usage: Usage, decode: Duration) {
        let by = |kind: &'static str| [model_attribute(model), KeyValue::new(attribute::TOKEN_TYPE, kind)];
        self.0.tokens.add(u64::from(usage.prompt_tokens), &by("input"));
        self.0.tokens.add(u64::from(usage.generated_tokens), &by("output"));
        if usage.generated_tokens > 1 {
            let each = decode.as_secs_f64() / f64::from(usage.generated_tokens - 1);
            self.0.per_token.record(each, &[model_attribute(model)]);
        }
    }
}

fn model_attribute(model: &str) -> KeyValue {
    KeyValue::new(attribute::RESPONSE_MODEL, model.to_owned())
}

/// Callbacks live as long as the process's meter provider, so they hold receivers and not the engines themselves.
fn observe_loads(meter: &Meter, loads: Vec<(String, watch::Receiver<Load>)>) {
    let gauges: [(&'static str, fn(&Load) -> u64); 5] = [
        (semconv::metric::BATCH_REQUESTS, |load| u64::from(load.running)),
        (semconv::metric::QUEUE_REQUESTS, |load| u64::from(load.queued)),
        (semconv::metric::QUEUE_TOKENS, |load| load.queued_tokens),
        (semconv::metric::CACHE_BLOCKS_FREE, |load| u64::from(load.free_blocks)),
        (semconv::metric::CACHE_BLOCKS, |load| u64::from(load.total_blocks)),
    ];
    for (name, value) in gauges {
        let loads = loads.clone();
        let observe = meter.u64_observable_gauge(name).with_callback(move |observer| {
            for (model, load) in &loads {
                observer.observe(value(&load.borrow()), &[model_attribute(model)]);
            }
        });
        observe.build();
    }
}
