//! What the control plane counts. Names are in [`semconv`].

use std::{sync::Arc, time::Duration};

use opentelemetry::{
    KeyValue, global,
    metrics::{Counter, Histogram},
};
use rookery_proto::{
    semconv::{self, attribute},
    status,
};
use tonic::Status;

use crate::{domain::GatewayState, fleet::Fleet};

/// The instruments of one control plane, on the process's meter provider. Clones share them.
#[derive(Clone)]
pub(crate) struct Metrics(Arc<Instruments>);

struct Instruments {
    attempts: Counter<u64>,
    refusals: Counter<u64>,
    first_event: Histogram<f64>,
}

impl Metrics {
    /// Registers the instruments, and a gauge that counts the fleet.
    pub(crate) fn new(fleet: &Fleet) -> Self {
        let meter = global::meter(semconv::PROVIDER);
        let gauge = |name, counts: fn(&GatewayState) -> bool| {
            let fleet = fleet.clone();
            let count = move || fleet.gateways().iter().filter(|(_, _, state)| counts(state)).count() as u64;
            meter
                .u64_observable_gauge(name)
                .with_callback(move |observer| observer.observe(count(), &[]))
                .build();
        };
        gauge(semconv::metric::GATEWAYS, |_| true);
        gauge(semconv::metric::GATEWAYS_DEGRADED, |state| state.degraded().is_some());
        Self(Arc::new(Instruments {
            attempts: meter.u64_counter(semconv::metric::ATTEMPTS).with_unit("{attempt}").build(),
            refusals: meter.u64_counter(semconv::metric::REFUSALS).with_unit("{request}").build(),
            first_event: meter
                .f64_histogram(semconv::metric::ROUTE_TIME_TO_FIRST_EVENT)
                .with_unit("s")
                .build(),
        }))
    }

    pub(super) fn attempt(&self, outcome: &'static str) {
        self.0.attempts.add(1, &[KeyValue::new(attribute::ATTEMPT_OUTCOME, outcome)]);
    }

    pub(super) fn refused(&self, status: &Status) {
        self.0.refusals.add(1, &[KeyValue::new(attribute::REFUSAL_REASON, status::error_type(status))]);
    }

    pub(super) fn first_event(&self, after: Duration) {
        self.0.first_event.record(after.as_secs_f64(), &[]);
    }
}
