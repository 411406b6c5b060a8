//! What the NPU did in one step of the engine: summed over its calls, so that nothing is told per matrix.

use std::time::Duration;

use opentelemetry::{Array, StringValue, Value};
use rookery_proto::semconv::attribute;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::FaultKind;

/// What the NPU did since the last report.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StepReport {
    /// Calls of the backend, each one or more products over the same activations.
    pub calls: u64,
    /// Of those, computed by the CPU alone because the policy says so.
    pub cpu_calls: u64,
    /// Of those, computed by both, each a part.
    pub split_calls: u64,
    /// Jobs that were submitted.
    pub jobs: u64,
    /// Tasks of those jobs.
    pub tasks: u64,
    /// Most cores that worked at the same time.
    pub cores: u32,
    /// Bytes that cross the memory interface, as planned.
    pub bytes: u64,
    /// Time to bring activations into the device's layout and to prepare jobs.
    pub submit: Duration,
    /// Time from submitting jobs until the last one ended.
    pub wait: Duration,
    /// Time to check results and turn them into outputs.
    pub finish: Duration,
    /// Time that the device says it worked; simulated time on the simulator.
    pub busy: Duration,
    /// Cycles of the multiply-accumulators, by the model that the simulator counts with.
    pub cycles: u64,
    /// The device is simulated.
    pub simulated: bool,
    /// Calls that the CPU computed because the device failed or is out of use.
    pub fallbacks: u64,
    /// Faults in the order in which they happened.
    pub faults: Vec<FaultKind>,
    /// Resets that succeeded.
    pub resets: u64,
}

impl StepReport {
    /// Whether anything happened that is worth telling.
    pub fn is_empty(&self) -> bool {
        self.calls == 0 && self.faults.is_empty()
    }

    /// Writes it to a span.
    pub fn describe(&self, span: &Span) {
        let count = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        let numbers = [
            (attribute::NPU_CALLS, self.calls),
            (attribute::NPU_CPU_CALLS, self.cpu_calls),
            (attribute::NPU_SPLIT_CALLS, self.split_calls),
            (attribute::NPU_JOBS, self.jobs),
            (attribute::NPU_TASKS, self.tasks),
            (attribute::NPU_CORES, self.cores.into()),
            (attribute::NPU_BYTES, self.bytes),
            (attribute::NPU_FALLBACKS, self.fallbacks),
        ];
        for (name, number) in numbers {
            span.set_attribute(name, count(number));
        }
        let times = [
            (attribute::NPU_SUBMIT, self.submit),
            (attribute::NPU_WAIT, self.wait),
            (attribute::NPU_FINISH, self.finish),
            (attribute::NPU_BUSY, self.busy),
        ];
        for (name, time) in times {
            span.set_attribute(name, time.as_secs_f64());
        }
        if self.simulated {
            span.set_attribute(attribute::NPU_SIMULATED_CYCLES, count(self.cycles));
        }
        if !self.faults.is_empty() {
            let names = self.faults.iter().map(|kind| StringValue::from(kind.as_str())).collect();
            span.set_attribute(attribute::NPU_FAULT, Value::Array(Array::String(names)));
        }
    }
}
