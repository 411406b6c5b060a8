//! Kernels by shape.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::device::{Device, DomainId};
use crate::error::JobError;
use crate::job::JobReport;

use super::error::FusedError;
use super::{Binary, BinaryKernel, Function, FunctionKernel, RmsNormKernel, SiluMulKernel, SoftmaxKernel};

/// Kernels kept of each kind; the one unused for longest goes first. A model has a handful of widths, a batch a
/// handful of sizes.
const KEPT: usize = 8;

/// The fused operations over plain row-major slices, with kernels made when a shape first comes and kept.
///
/// Rows are rounded up (to 4; from 17 on to 16, from 65 on to 64), so that few kernels serve all batches. Threads may
/// share it; operations that need the same kernel wait for each other.
#[derive(Debug)]
pub struct FusedOps {
    device: Device,
    domain: DomainId,
    softmax: Cache<(), SoftmaxKernel>,
    rms_norm: Cache<(), RmsNormKernel>,
    silu_mul: Cache<(), SiluMulKernel>,
    binary: Cache<Binary, BinaryKernel>,
    function: Cache<Function, FunctionKernel>,
}

impl FusedOps {
    /// Operations in an address space of a device.
    pub fn new(device: Device, domain: DomainId) -> FusedOps {
        FusedOps {
            device,
            domain,
            softmax: Cache::new(),
            rms_norm: Cache::new(),
            silu_mul: Cache::new(),
            binary: Cache::new(),
            function: Cache::new(),
        }
    }

    /// Softmax of every row: see [`SoftmaxKernel::run`].
    ///
    /// # Errors
    /// [`FusedError`].
    pub fn softmax(&self, x: &[f32], columns: usize, out: &mut [f32]) -> Result<JobReport, FusedError> {
        let (device, domain) = (&self.device, self.domain);
        let make = |rows| SoftmaxKernel::new(device, domain, rows, columns);
        self.softmax.run((), x.len(), columns, make, |kernel| kernel.run(x, out))
    }

    /// RMSNorm of every row of `gain.len()` columns: see [`RmsNormKernel::run`].
    ///
    /// # Errors
    /// [`FusedError`].
    pub fn rms_norm(
        &self,
        x: &[f32],
        gain: &[f32],
        epsilon: f32,
        out: &mut [f32],
    ) -> Result<JobReport, FusedError> {
        let (device, domain, columns) = (&self.device, self.domain, gain.len());
        let make = |rows| RmsNormKernel::new(device, domain, rows, columns);
        self.rms_norm.run((), x.len(), columns, make, |kernel| kernel.run(x, gain, epsilon, out))
    }

    /// `silu(gate) · up`: see [`SiluMulKernel::run`].
    ///
    /// # Errors
    /// [`FusedError`].
    pub fn silu_mul(
        &self,
        gate: &[f32],
        up: &[f32],
        columns: usize,
        out: &mut [f32],
    ) -> Result<JobReport, FusedError> {
        let (device, domain) = (&self.device, self.domain);
        let make = |rows| SiluMulKernel::new(device, domain, rows, columns);
        self.silu_mul.run((), gate.len(), columns, make, |kernel| kernel.run(gate, up, out))
    }

    /// Sum or product of two matrices: see [`BinaryKernel::run`].
    ///
    /// # Errors
    /// [`FusedError`].
    pub fn binary(
        &self,
        operation: Binary,
        a: &[f32],
        b: &[f32],
        columns: usize,
        out: &mut [f32],
    ) -> Result<JobReport, FusedError> {
        let (device, domain) = (&self.device, self.domain);
        let make = |rows| BinaryKernel::new(device, domain, operation, rows, columns);
        self.binary.run(operation, a.len(), columns, make, |kernel| kernel.run(a, b, out))
    }

    /// A function of every element: see [`FunctionKernel::run`].
    ///
    /// # Errors
    /// [`FusedError`].
    pub fn function(
        &self,
        function: Function,
        x: &[f32],
        columns: usize,
        out: &mut [f32],
    ) -> Result<JobReport, FusedError> {
        let (device, domain) = (&self.device, self.domain);
        let make = |rows| FunctionKernel::new(device, domain, function, rows, columns);
        self.function.run(function, x.len(), columns, make, |kernel| kernel.run(x, out))
    }
}

/// Kernels of one kind, the one used last at the end.
#[derive(Debug)]
struct Cache<O, K> {
    kernels: Mutex<Vec<Entry<O, K>>>,
}

#[derive(Debug)]
struct Entry<O, K> {
    operation: O,
    rows: usize,
    columns: usize,
    kernel: Arc<Mutex<K>>,
}

impl<O: Copy + PartialEq, K> Cache<O, K> {
    fn new() -> Self {
        Cache { kernels: Mutex::new(Vec::new()) }
    }

    /// Runs the kernel for `elements` in rows of `columns`, made by `make(rows)` if there is none yet.
    fn run(
        &self,
        operation: O,
        elements: usize,
        columns: usize,
        make: impl Fn(usize) -> Result<K, FusedError>,
        run: impl FnOnce(&mut K) -> Result<JobReport, FusedError>,
    ) -> Result<JobReport, FusedError> {
        if elements == 0 {
            return Ok(JobReport::default());
        }
        let rows = rounded(elements.div_ceil(columns.max(1)));
        let found = {
            let mut kernels = lock(&self.kernels);
            let same = |entry: &Entry<O, K>| {
                (entry.operation, entry.rows, entry.columns) == (operation, rows, columns)
            };
            let entry = match kernels.iter().position(same) {
                Some(at) => kernels.remove(at),
                None => Entry { operation, rows, columns, kernel: Arc::new(Mutex::new(make(rows)?)) },
            };
            if kernels.len() == KEPT {
                kernels.remove(0);
            }
            let kernel = Arc::clone(&entry.kernel);
            kernels.push(entry);
            kernel
        };
        let result = run(&mut lock(&found));
        if let Err(FusedError::Job(JobError::Stale(_))) = result {
            // The device was reset and took the buffers; the next call makes new ones.
            lock(&self.kernels).retain(|entry| !Arc::ptr_eq(&entry.kernel, &found));
        }
        result
    }
}

/// Rows that a kernel is made for.
fn rounded(rows: usize) -> usize {
    rows.next_multiple_of(match rows {
        0..=16 => 4,
        17..=64 => 16,
        _ => 64,
    })
}

/// A panic while a kernel ran leaves it usable: every run writes all of its inputs.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
