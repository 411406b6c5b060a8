//! A thread that runs jobs while the engine's own computes the rest of the same call.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use rknpu_driver::device::Device;
use rknpu_driver::error::JobError;
use rknpu_driver::job::{JobReport, PreparedJob};

use super::NpuError;

type Outcome = Result<Vec<JobReport>, JobError>;

/// Runs one batch of jobs at a time. It ends when this is dropped; jobs are bounded in time, so that takes no longer.
#[derive(Debug)]
pub(super) struct Waiter {
    /// None only while dropping.
    jobs: Option<SyncSender<Vec<PreparedJob>>>,
    outcomes: Receiver<Outcome>,
    thread: Option<JoinHandle<()>>,
}

impl Waiter {
    /// Starts the thread.
    pub(super) fn new(device: Device) -> Result<Self, NpuError> {
        // One batch is on its way at a time, and so is one outcome.
        let (jobs, batches) = sync_channel::<Vec<PreparedJob>>(1);
        let (sender, outcomes) = sync_channel(1);
        let main = move || {
            for batch in batches {
                let outcome = device.run(&batch.iter().collect::<Vec<_>>());
                if sender.send(outcome).is_err() {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("npu-waiter".to_owned()).spawn(main);
        Ok(Self { jobs: Some(jobs), outcomes, thread: Some(thread.map_err(|_| NpuError::Waiter)?) })
    }

    /// Hands jobs over; [`Waiter::wait`] must follow.
    pub(super) fn start(&self, jobs: Vec<PreparedJob>) -> Result<(), NpuError> {
        self.jobs.as_ref().ok_or(NpuError::Waiter)?.send(jobs).map_err(|_| NpuError::Waiter)
    }

    /// What became of them.
    pub(super) fn wait(&self) -> Result<Vec<JobReport>, NpuError> {
        Ok(self.outcomes.recv().map_err(|_| NpuError::Waiter)??)
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // A panic in it has been printed; the outcome it owes is an error at `wait`.
            let _ = thread.join();
        }
    }
}
