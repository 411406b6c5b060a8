//! One NPU, whatever drives it.
//!
//! A [`Device`] is a handle, cheap to clone and shared by threads. It owns one address space per [`Domain`]; buffers and jobs belong to a
//! domain. When a job hangs or ends wrongly the device counts as faulted: it refuses jobs, and the memory of a job that may still run is kept,
//! until [`Device::reset`] succeeds.

mod ids;

use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::Arc;

pub use ids::{CoreId, CoreMask, Domain, DomainId};

use crate::buffer::{Buffer, BufferKind};
use crate::error::{AllocateError, Fault, JobError, OpenError, ResetError, ShareError};
use crate::job::{Job, JobReport, PreparedJob};
use crate::uapi::{DriverVersion, RocketKernel, VendorKernel};

/// Which kernel interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum InterfaceChoice {
    /// Whichever is found, the vendor's first.
    #[default]
    Auto,
    /// Rockchip's `rknpu`.
    Vendor,
    /// Mainline's `rocket`.
    Rocket,
}

/// What drives the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Interface {
    /// Rockchip's `rknpu`.
    Vendor,
    /// Mainline's `rocket`.
    Rocket,
}

/// How to open a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpenOptions {
    /// Which interface.
    pub interface: InterfaceChoice,
    /// The node; the usual places are tried otherwise.
    pub node: Option<PathBuf>,
}

/// What a device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// What drives it.
    pub interface: Interface,
    /// Its node; none for a simulator inside the process.
    pub node: Option<PathBuf>,
    /// Name and version of the driver.
    pub driver: DriverVersion,
    /// The hardware's version register; rocket does not tell.
    pub hardware_version: Option<u32>,
    /// Cores.
    pub cores: u8,
    /// On-chip SRAM that the device tree grants, bytes.
    pub sram_bytes: u64,
    /// True where results and times are a simulator's.
    pub simulated: bool,
}

/// How a device is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// Why it is set aside, if it is.
    pub fault: Option<Fault>,
    /// Buffers alive, those of the driver itself not counted.
    pub buffers: usize,
    /// Their bytes.
    pub buffer_bytes: u64,
    /// Buffers that a job which could not be stopped may still use.
    pub quarantined_buffers: usize,
    /// Jobs that completed.
    pub jobs_done: u64,
    /// Jobs that failed.
    pub jobs_failed: u64,
    /// Resets that succeeded.
    pub resets: u64,
}

/// What a reset left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Recovery {
    /// Buffers and prepared jobs can be used as before.
    Kept,
    /// The node was opened anew: buffers of some domains are stale and must be allocated again ([`Buffer::is_stale`]).
    BuffersLost,
}

/// One NPU.
#[derive(Clone, Debug)]
pub struct Device(Arc<DeviceInner>);

#[derive(Debug)]
struct DeviceInner {}

impl Device {
    /// Finds and opens an NPU: the node that is named, or the first that works of /dev/dri/renderD128–135, /dev/rknpu and /dev/accel/accel0–7.
    ///
    /// # Errors
    /// [`OpenError`]: what was found and what to do.
    pub fn open(_options: &OpenOptions) -> Result<Device, OpenError> {
        unimplemented!()
    }

    /// A device over the vendor driver's calls.
    ///
    /// # Errors
    /// [`OpenError`]: version, layout, or a question failed.
    pub fn over_vendor(_kernel: Arc<dyn VendorKernel>) -> Result<Device, OpenError> {
        unimplemented!()
    }

    /// A device over rocket's calls, one descriptor a core: 1–3.
    ///
    /// # Errors
    /// [`OpenError`]: version, layout, or a question failed.
    pub fn over_rocket(_kernels: Vec<Arc<dyn RocketKernel>>) -> Result<Device, OpenError> {
        unimplemented!()
    }

    /// What it is.
    #[must_use]
    pub fn info(&self) -> &DeviceInfo {
        unimplemented!()
    }

    /// Its address spaces. Vendor: 16 IOMMU domains, each for all cores, and using another than the last one drains the device. Rocket: one a
    /// descriptor, of one core each.
    #[must_use]
    pub fn domains(&self) -> &[Domain] {
        unimplemented!()
    }

    /// Makes a buffer of at least one byte.
    ///
    /// # Errors
    /// [`AllocateError`]: no such domain, no memory, no addresses.
    pub fn allocate(&self, _domain: DomainId, _bytes: usize, _kind: BufferKind) -> Result<Buffer, AllocateError> {
        unimplemented!()
    }

    /// A buffer over another's dma-buf of `bytes` bytes.
    ///
    /// # Errors
    /// [`ShareError`]: not with this interface, or the call failed.
    pub fn import(&self, _domain: DomainId, _fd: BorrowedFd<'_>, _bytes: usize) -> Result<Buffer, ShareError> {
        unimplemented!()
    }

    /// Checks a job and builds its task objects.
    ///
    /// # Errors
    /// [`JobError`]: which rule the job breaks.
    pub fn prepare(&self, _job: Job) -> Result<PreparedJob, JobError> {
        unimplemented!()
    }

    /// Runs jobs and waits for all, bounded by their time-outs. Rocket's domains run at the same time, and so do a job's chains; jobs of one
    /// domain run in the order given, so a later one may read what an earlier one wrote. Reports are in the order of the jobs. On an error no result can be used.
    ///
    /// # Errors
    /// [`JobError`]: the first thing that went wrong.
    pub fn run(&self, _jobs: &[&PreparedJob]) -> Result<Vec<JobReport>, JobError> {
        unimplemented!()
    }

    /// True while the device refuses jobs.
    #[must_use]
    pub fn is_faulted(&self) -> bool {
        unimplemented!()
    }

    /// Brings a faulted device back and frees what was quarantined. Harmless on one that works.
    ///
    /// # Errors
    /// [`ResetError`]: the device stays faulted.
    pub fn reset(&self) -> Result<Recovery, ResetError> {
        unimplemented!()
    }

    /// How it is.
    #[must_use]
    pub fn health(&self) -> Health {
        unimplemented!()
    }
}
