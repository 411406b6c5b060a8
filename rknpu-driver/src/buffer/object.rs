//! The kernel's side of a buffer: its object, cache maintenance, and giving it back.

use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use nix::errno::Errno;
use nix::time::{ClockId, clock_gettime};

use crate::device::link::{Kernel, Link, is_gone};
use crate::error::SyncError;
use crate::ioctl::{self, retry};
use crate::uapi::{rocket, vendor};

/// How CPU and device agree on an object's bytes.
#[derive(Debug)]
pub(crate) enum Caching {
    /// Cached by the CPU: the kernel cleans and invalidates lines when asked.
    Cached,
    /// Only CPUs touch it (task objects): nothing to do. On memory that is not cached, MEM_SYNC would be
    /// `EINVAL`, so it is never asked for.
    CpuOnly,
    /// Another's memory: its exporter keeps it in order, through its descriptor.
    Exporter(OwnedFd),
}

/// An object of the kernel, destroyed on drop. Keeps its descriptor open.
#[derive(Debug)]
pub(crate) struct Object {
    pub(crate) link: Arc<Link>,
    pub(crate) handle: u32,
    /// The vendor driver's own address of the object, which it follows unchecked: it never leaves this struct
    /// but for the kernel. 0 on rocket.
    pub(crate) obj_addr: u64,
    pub(crate) caching: Caching,
}

impl Object {
    /// True where the kernel syncs objects as a whole, not by range: one sync before the first access and one
    /// after the last.
    pub(crate) fn syncs_whole(&self) -> bool {
        matches!(self.link.kernel, Kernel::Rocket(_)) || matches!(self.caching, Caching::Exporter(_))
    }

    /// Makes what the device wrote visible to the CPU. Memory that a reset took from the device is the CPU's
    /// alone. Rocket waits for the jobs that write the object first, at most `wait`.
    pub(crate) fn begin_access(&self, bytes: &Range<usize>) -> Result<(), SyncError> {
        match (&self.link.kernel, &self.caching) {
            _ if self.link.is_retired() => Ok(()),
            (_, Caching::CpuOnly) => Ok(()),
            (_, Caching::Exporter(fd)) => {
                self.told("DMA_BUF_IOCTL_SYNC", ioctl::dma_buf_sync(fd.as_fd(), ioctl::DMA_BUF_SYNC_START))
            }
            (Kernel::Vendor(_), Caching::Cached) => self.sync(vendor::RKNPU_MEM_SYNC_FROM_DEVICE, bytes),
            (Kernel::Rocket(_), Caching::Cached) => {
                self.told("DRM_IOCTL_ROCKET_PREP_BO", self.prep(self.link.shared.access_wait()))
            }
        }
    }

    /// Makes what the CPU wrote visible to the device.
    pub(crate) fn end_access(&self, bytes: &Range<usize>) -> Result<(), SyncError> {
        match (&self.link.kernel, &self.caching) {
            _ if self.link.is_retired() => Ok(()),
            (_, Caching::CpuOnly) => Ok(()),
            (_, Caching::Exporter(fd)) => {
                self.told("DMA_BUF_IOCTL_SYNC", ioctl::dma_buf_sync(fd.as_fd(), ioctl::DMA_BUF_SYNC_END))
            }
            (Kernel::Vendor(_), Caching::Cached) => self.sync(vendor::RKNPU_MEM_SYNC_TO_DEVICE, bytes),
            (Kernel::Rocket(kernel), Caching::Cached) => {
                let mut args = rocket::drm_rocket_fini_bo { handle: self.handle, reserved: 0 };
                self.told("DRM_IOCTL_ROCKET_FINI_BO", retry(|| kernel.fini_bo(&mut args)))
            }
        }
    }

    /// Rocket: waits for the jobs that write the object, then syncs it for the CPU. Jobs that only read it
    /// are not waited for: the driver attaches a job's fence to what it writes alone.
    pub(crate) fn prep(&self, wait: Duration) -> Result<(), Errno> {
        let Kernel::Rocket(kernel) = &self.link.kernel else { return Ok(()) };
        // The kernel compares with CLOCK_MONOTONIC: a duration, or the time of day, would end the wait at
        // once or never.
        let timeout_ns = deadline(wait)?;
        let mut args = rocket::drm_rocket_prep_bo { handle: self.handle, reserved: 0, timeout_ns };
        retry(|| kernel.prep_bo(&mut args))
    }

    /// The vendor's cache maintenance. It also switches to the object's IOMMU domain, so it waits for jobs of
    /// other domains.
    fn sync(&self, flags: u32, bytes: &Range<usize>) -> Result<(), SyncError> {
        let Kernel::Vendor(kernel) = &self.link.kernel else { return Ok(()) };
        if bytes.is_empty() {
            return Ok(());
        }
        let mut args = vendor::rknpu_mem_sync {
            flags,
            reserved: 0,
            obj_addr: self.obj_addr,
            offset: bytes.start as u64,
            size: bytes.len() as u64,
        };
        self.told("RKNPU_MEM_SYNC", retry(|| kernel.mem_sync(&mut args)))
    }

    fn told(&self, call: &'static str, result: Result<(), Errno>) -> Result<(), SyncError> {
        result.map_err(|errno| {
            let source = self.link.note(errno);
            if is_gone(source) { SyncError::Gone } else { SyncError::Call { call, source } }
        })
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        let result = self.link.release(self.handle, || match &self.link.kernel {
            Kernel::Vendor(kernel) => {
                let mut args =
                    vendor::rknpu_mem_destroy { handle: self.handle, reserved: 0, obj_addr: self.obj_addr };
                retry(|| kernel.mem_destroy(&mut args))
            }
            Kernel::Rocket(kernel) => retry(|| kernel.gem_close(self.handle)),
        });
        // Nobody can be told here. The kernel frees what is left when the descriptor closes; until then it
        // counts as leaked.
        if result.is_err_and(|errno| !is_gone(self.link.note(errno))) {
            self.link.shared.leaked.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// `wait` from now on as absolute CLOCK_MONOTONIC nanoseconds.
pub(crate) fn deadline(wait: Duration) -> Result<i64, Errno> {
    let now = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?);
    Ok(i64::try_from(now.saturating_add(wait).as_nanos()).unwrap_or(i64::MAX))
}
