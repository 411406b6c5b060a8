//! A backend that can be held: an engine that stands still in the middle of a step, for as long as a test wants.

use std::{
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use rookery_compute_worker::backend::{Backend, BackendError, CpuBackend};
use rookery_kernels::{Activations, Kernels, LinearJob, Pool};

/// Holds and releases the engines whose backends it made. Dropping it releases them.
#[derive(Default)]
pub struct Hold {
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    /// Linear layers that may still be computed; `None`: any number.
    left: Mutex<Option<u32>>,
    /// Engines that stand still.
    waiting: AtomicU32,
    /// Microseconds that each linear layer takes besides.
    pace: AtomicU64,
    changed: Condvar,
}

impl Hold {
    /// A backend under this hold.
    pub fn backend(&self) -> Box<dyn Backend> {
        Box::new(HeldBackend { inner: CpuBackend::new(Kernels::detect()), state: Arc::clone(&self.state) })
    }

    /// Stops the engines at their next linear layer.
    pub fn hold(&self) {
        self.state.set(Some(0));
    }

    /// Stops the engines after a few more steps: enough for the first tokens of a generation, far from enough for
    /// its end.
    pub fn hold_soon(&self) {
        // A step of the tiny model computes about nine linear layers.
        self.state.set(Some(60));
    }

    /// Makes each linear layer, of which a step of the tiny model has about nine, take so much longer: a model that is as slow
    /// as a real one, without using the processor.
    pub fn pace(&self, layer: Duration) {
        self.state.pace.store(layer.as_micros() as u64, Ordering::SeqCst);
    }

    /// Whether an engine stands still now: it has work, and is in the middle of a step.
    pub fn is_holding(&self) -> bool {
        self.state.waiting.load(Ordering::SeqCst) > 0
    }

    /// Lets them go on.
    pub fn release(&self) {
        self.state.set(None);
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.release();
    }
}

impl State {
    fn set(&self, left: Option<u32>) {
        *self.left.lock().unwrap_or_else(PoisonError::into_inner) = left;
        self.changed.notify_all();
    }
}

struct HeldBackend {
    inner: CpuBackend,
    state: Arc<State>,
}

impl Backend for HeldBackend {
    fn linear(
        &mut self,
        pool: &Pool,
        a: &Activations,
        jobs: &mut [LinearJob<'_>],
    ) -> Result<(), BackendError> {
        let left = self.state.left.lock().unwrap_or_else(PoisonError::into_inner);
        self.state.waiting.fetch_add(1, Ordering::SeqCst);
        let left = self.state.changed.wait_while(left, |left| *left == Some(0));
        self.state.waiting.fetch_sub(1, Ordering::SeqCst);
        if let Some(left) = left.unwrap_or_else(PoisonError::into_inner).as_mut() {
            *left -= 1;
        }
        let pace = self.state.pace.load(Ordering::SeqCst);
        if pace > 0 {
            std::thread::sleep(Duration::from_micros(pace));
        }
        self.inner.linear(pool, a, jobs)
    }

    fn name(&self) -> String {
        "held".to_owned()
    }
}
