//! What the NPU did in one step of the engine: summed over its calls, so that nothing is told per matrix.

use std::time::Duration;

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
    /// Time to bring activations into the device's layout.
    pub pack: Duration,
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
}
