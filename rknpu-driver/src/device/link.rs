//! One open descriptor and what is counted over all of a device's descriptors.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::errno::Errno;

use crate::error::Fault;
use crate::uapi::{RocketKernel, SimulatedWork, VendorKernel};

/// The kernel behind a descriptor.
#[derive(Clone, Debug)]
pub(crate) enum Kernel {
    Vendor(Arc<dyn VendorKernel>),
    Rocket(Arc<dyn RocketKernel>),
}

impl Kernel {
    pub(crate) fn take_simulated(&self) -> Option<SimulatedWork> {
        match self {
            Kernel::Vendor(kernel) => kernel.take_simulated(),
            Kernel::Rocket(kernel) => kernel.take_simulated(),
        }
    }
}

/// An open descriptor. Every object made through it keeps it open.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) kernel: Kernel,
    pub(crate) shared: Arc<Shared>,
    /// Handles of objects that live. MEM_CREATE with a live handle returns that object instead of making one,
    /// and importing a buffer of our own gives its handle again: either way two owners would destroy one
    /// object.
    handles: Mutex<HashSet<u32>>,
    /// A reset replaced this descriptor by another: its objects are not the device's any more.
    retired: AtomicBool,
}

impl Link {
    pub(crate) fn new(kernel: Kernel, shared: Arc<Shared>) -> Arc<Self> {
        Arc::new(Self { kernel, shared, handles: Mutex::default(), retired: AtomicBool::new(false) })
    }

    /// Notes a handle; false if it lives already.
    pub(crate) fn claim(&self, handle: u32) -> bool {
        lock(&self.handles).insert(handle)
    }

    /// Destroys an object and forgets its handle. The kernel may give the handle to another thread's object as soon
    /// as `destroy` returns, and that thread's claim waits here until the old one is forgotten.
    pub(crate) fn release<T>(&self, handle: u32, destroy: impl FnOnce() -> T) -> T {
        let mut handles = lock(&self.handles);
        let result = destroy();
        handles.remove(&handle);
        result
    }

    pub(crate) fn retire(&self) {
        self.retired.store(true, Ordering::Release);
    }

    pub(crate) fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Acquire)
    }

    /// Sees to it that an errno which means "no such device" sets the device aside. A retired descriptor may
    /// say so: it is of no matter.
    pub(crate) fn note(&self, errno: Errno) -> Errno {
        if is_gone(errno) && !self.is_retired() {
            self.shared.set_fault(Fault::Gone);
        }
        errno
    }
}

/// Whether an errno says that there is no device any more.
pub(crate) fn is_gone(errno: Errno) -> bool {
    matches!(errno, Errno::ENODEV | Errno::ENXIO)
}

/// How long a guard or a job waits for others to leave a buffer, if nobody says otherwise. Jobs have
/// time-outs of their own and guards are short, so whoever waits longer has most likely been forgotten by the
/// holder (a guard that the waiting thread holds itself, for one).
const ACCESS_WAIT: Duration = Duration::from_secs(30);

/// Whether an errno says that the kernel cannot do this at all.
pub(crate) fn is_unsupported(errno: Errno) -> bool {
    matches!(errno, Errno::EOPNOTSUPP | Errno::ENOSYS)
}

/// What all descriptors of a device share.
#[derive(Debug)]
pub(crate) struct Shared {
    fault: Mutex<Option<Fault>>,
    access_wait: Mutex<Duration>,
    pub(crate) buffers: AtomicUsize,
    pub(crate) buffer_bytes: AtomicU64,
    pub(crate) jobs_done: AtomicU64,
    pub(crate) jobs_failed: AtomicU64,
    pub(crate) resets: AtomicU64,
    pub(crate) leaked: AtomicUsize,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            fault: Mutex::default(),
            access_wait: Mutex::new(ACCESS_WAIT),
            buffers: AtomicUsize::default(),
            buffer_bytes: AtomicU64::default(),
            jobs_done: AtomicU64::default(),
            jobs_failed: AtomicU64::default(),
            resets: AtomicU64::default(),
            leaked: AtomicUsize::default(),
        }
    }
}

impl Shared {
    pub(crate) fn access_wait(&self) -> Duration {
        *lock(&self.access_wait)
    }

    pub(crate) fn set_access_wait(&self, wait: Duration) {
        *lock(&self.access_wait) = wait;
    }

    pub(crate) fn fault(&self) -> Option<Fault> {
        *lock(&self.fault)
    }

    /// Sets the device aside. The first reason stays, but for a device that is gone.
    pub(crate) fn set_fault(&self, fault: Fault) {
        let mut current = lock(&self.fault);
        if current.is_none() || fault == Fault::Gone {
            *current = Some(fault);
        }
    }

    pub(crate) fn clear_fault(&self) {
        *lock(&self.fault) = None;
    }
}

/// A mutex whose data stays valid whatever panicked while it was held: all changes under these locks are
/// single assignments.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
