//! The kernel's calls as traits.
//!
//! The real ones are ioctls on a descriptor; the simulator's models of both drivers implement the same
//! traits, so that all code above is the same code on a board and without one. A method does what the kernel
//! does, no more: it checks nothing that the kernel would not check, and gives back the errno that the kernel
//! would give. What each must do where callers rely on it is said at the method.
//!
//! Methods may be called from several threads at once.

use std::fmt::Debug;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use nix::errno::Errno;

use super::{rocket, vendor};
use crate::buffer::Mapping;
use crate::timing::TaskWork;

/// What `DRM_IOCTL_VERSION` says (or, on the DMA-heap build, `RKNPU_GET_DRV_VERSION`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DriverVersion {
    /// The driver's name, `rknpu` or `rocket`.
    pub name: String,
    /// Major version.
    pub major: u32,
    /// Minor version.
    pub minor: u32,
    /// Patch level.
    pub patch: u32,
    /// Date as the driver writes it; empty where it has none.
    pub date: String,
    /// The driver's description of itself. A simulator's contains the word "simulated", so that nobody takes
    /// its times for a board's.
    pub description: String,
}

/// What a node is, beside what the kernel says of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeDescription {
    /// Path of the node; none for a simulator inside the process.
    pub node: Option<PathBuf>,
    /// True where the work is simulated inside this process.
    pub simulated: bool,
}

/// What a simulator did in the jobs it finished since it was last asked.
#[derive(Clone, Debug, Default)]
pub struct SimulatedWork {
    /// The time the jobs would have taken on the device, by the timing model.
    pub elapsed: Duration,
    /// The work of each core's tasks, `[core][task]`.
    pub chains: Vec<Vec<TaskWork>>,
}

/// Calls of Rockchip's `rknpu` driver on one open descriptor. See docs/npu.md, "Kernel interfaces".
///
/// Errno common to all methods: `ENODEV` the device is gone and every later call fails too; `EINTR`/`EAGAIN`
/// the call did nothing and may be repeated.
pub trait VendorKernel: Send + Sync + Debug {
    /// Node and whether it is simulated.
    fn describe(&self) -> NodeDescription;

    /// Name and version of the driver.
    ///
    /// # Errors
    /// `ENOTTY`: not a DRM node.
    fn version(&self) -> Result<DriverVersion, Errno>;

    /// `RKNPU_ACTION`. In: `flags` (which action) and, for orders, `value`. Out: `value`.
    ///
    /// Needed: `RKNPU_GET_HW_VERSION`, `RKNPU_GET_DRV_VERSION`, `RKNPU_GET_IOMMU_EN`,
    /// `RKNPU_GET_TOTAL_SRAM_SIZE`, `RKNPU_GET_FREE_SRAM_SIZE`, `RKNPU_ACT_RESET` (ends every job on every
    /// core; submits that wait return `ETIMEDOUT`; memory stays, and no job touches it any more).
    ///
    /// # Errors
    /// `EINVAL`: an action the driver does not have.
    fn action(&self, args: &mut vendor::rknpu_action) -> Result<(), Errno>;

    /// `RKNPU_MEM_CREATE`. In: `flags`, `size`, `sram_size`, `iommu_domain_id`, and `handle`: 0 makes memory;
    /// a live handle makes nothing and returns that object. Out: `handle`, `size` (whole pages), `obj_addr`,
    /// `dma_addr`, `sram_size`.
    ///
    /// # Errors
    /// `ENOMEM`: no memory, or no address space in the domain. `EINVAL`: size 0 or flags.
    /// `EBUSY`/`ETIMEDOUT`: the domain could not be switched in because the device does not drain.
    fn mem_create(&self, args: &mut vendor::rknpu_mem_create) -> Result<(), Errno>;

    /// `RKNPU_MEM_MAP`. In: `handle`. Out: `offset`, to be given to [`VendorKernel::mmap`].
    ///
    /// # Errors
    /// `EINVAL`/`ENOENT`: no such handle.
    fn mem_map(&self, args: &mut vendor::rknpu_mem_map) -> Result<(), Errno>;

    /// `RKNPU_MEM_DESTROY`. In: `handle`, `obj_addr`. Mappings keep their pages; addresses on the bus are
    /// free again.
    ///
    /// # Errors
    /// `EINVAL`: no such handle.
    fn mem_destroy(&self, args: &mut vendor::rknpu_mem_destroy) -> Result<(), Errno>;

    /// `RKNPU_MEM_SYNC`. In: `flags` (`RKNPU_MEM_SYNC_*`, both may be set), `obj_addr`, `offset`, `size`.
    ///
    /// # Errors
    /// `EINVAL`: the memory is not cacheable, or no such object.
    fn mem_sync(&self, args: &mut vendor::rknpu_mem_sync) -> Result<(), Errno>;

    /// `RKNPU_SUBMIT`, blocking (`RKNPU_JOB_PC | RKNPU_JOB_BLOCK | RKNPU_JOB_PINGPONG`). In: everything but
    /// `task_counter` and `hw_elapse_time`. Each core of `core_mask` runs its range of `subcore_task` (entry
    /// `core`, or `core + 2` with three cores) of the tasks in the object `task_obj_addr`, in slices of at
    /// most [`vendor::RKNPU_MAX_SUBMIT_NUMBER`]. A core's range is done when the status, with the bits of
    /// each pair set where either is, equals `int_mask` of its last task. Out: `task_counter` = `task_number`
    /// and `hw_elapse_time` on success; in the task object `int_status` of one core's last task (the driver
    /// keeps one last task per job, not per core).
    ///
    /// # Errors
    /// `ETIMEDOUT`: not done within up to three times `timeout` of device time; the driver has tried a soft
    /// reset. `EINVAL`: not `RKNPU_JOB_PC`, cores that do not exist, no tasks. `EBUSY`: the domain could not
    /// be switched in.
    fn submit(&self, args: &mut vendor::rknpu_submit) -> Result<(), Errno>;

    /// Maps memory, shared and for reading and writing. `offset` comes from [`VendorKernel::mem_map`].
    ///
    /// # Errors
    /// What mmap gives.
    fn mmap(&self, offset: u64, len: usize) -> Result<Mapping, Errno>;

    /// A dma-buf of a handle's memory, for other devices or processes.
    ///
    /// # Errors
    /// `EOPNOTSUPP`: not with this kernel or model. `ENOENT`: no such handle.
    fn export_dma_buf(&self, handle: u32) -> Result<OwnedFd, Errno>;

    /// A handle for another's dma-buf; [`VendorKernel::mem_create`] with that handle then gives its
    /// addresses.
    ///
    /// # Errors
    /// `EOPNOTSUPP`: not with this kernel or model. `EINVAL`: not a dma-buf. Importing what this descriptor
    /// exported gives the handle it has.
    fn import_dma_buf(&self, fd: BorrowedFd<'_>) -> Result<u32, Errno>;

    /// Opens the same node once more, with no memory of its own.
    ///
    /// # Errors
    /// What open gives; `ENODEV` or `ENOENT` where the device is gone.
    fn reopen(&self) -> Result<Arc<dyn VendorKernel>, Errno>;

    /// The work simulated since the last call; `None` on hardware.
    fn take_simulated(&self) -> Option<SimulatedWork> {
        None
    }
}

/// Calls of mainline's `rocket` driver on one open descriptor: an address space of 4 GB and one queue of
/// jobs.
///
/// Errno common to all methods: `ENODEV` the device is gone and every later call fails too; `EINTR`/`EAGAIN`
/// the call did nothing and may be repeated.
pub trait RocketKernel: Send + Sync + Debug {
    /// Node and whether it is simulated.
    fn describe(&self) -> NodeDescription;

    /// Name and version of the driver.
    ///
    /// # Errors
    /// `ENOTTY`: not a DRM node.
    fn version(&self) -> Result<DriverVersion, Errno>;

    /// `DRM_IOCTL_ROCKET_CREATE_BO`. In: `size`. Out: `handle`, `dma_address` (the first may be 0), `offset`
    /// for mmap.
    ///
    /// # Errors
    /// `ENOMEM`: no memory. `ENOSPC`: no address space. `EINVAL`: size 0.
    fn create_bo(&self, args: &mut rocket::drm_rocket_create_bo) -> Result<(), Errno>;

    /// `DRM_IOCTL_ROCKET_SUBMIT` with one job: `tasks` run one after another, each by a kick of its own, with
    /// the interrupt mask of both DPU groups (0x300). Returns when the job is queued. Errors of single jobs
    /// are not reported: a job with a handle in both lists runs nothing and the call still succeeds. A task
    /// that is not done after [`rocket::JOB_TIMEOUT_MS`] of device time ends its job with the rest of the
    /// tasks not run; waiting for the buffers then succeeds, and nothing tells.
    ///
    /// # Errors
    /// `EINVAL`: struct sizes. `ENOENT`: no such handle (not on every kernel).
    fn submit(
        &self,
        tasks: &[rocket::drm_rocket_task],
        in_handles: &[u32],
        out_handles: &[u32],
    ) -> Result<(), Errno>;

    /// `DRM_IOCTL_ROCKET_PREP_BO`. In: `handle`, `reserved` = 0, `timeout_ns` absolute CLOCK_MONOTONIC. Waits
    /// for the queued jobs that use the object, then makes all of it visible to the CPU. A simulator computes
    /// as long as it needs, and gives up only where a fault was injected.
    ///
    /// # Errors
    /// `ETIMEDOUT` or `EBUSY`: the jobs are not done at that time. `EINVAL`: `reserved`. `ENOENT`: no such
    /// handle.
    fn prep_bo(&self, args: &mut rocket::drm_rocket_prep_bo) -> Result<(), Errno>;

    /// `DRM_IOCTL_ROCKET_FINI_BO`. In: `handle`, `reserved` = 0. Makes all of the object visible to the
    /// device.
    ///
    /// # Errors
    /// `EINVAL`: `reserved`. `ENOENT`: no such handle.
    fn fini_bo(&self, args: &mut rocket::drm_rocket_fini_bo) -> Result<(), Errno>;

    /// `DRM_IOCTL_GEM_CLOSE`: gives a handle back. Queued jobs keep the object until they are done; mappings
    /// keep its pages.
    ///
    /// # Errors
    /// `EINVAL`: no such handle.
    fn gem_close(&self, handle: u32) -> Result<(), Errno>;

    /// Maps memory, shared and for reading and writing. `offset` comes from [`RocketKernel::create_bo`].
    ///
    /// # Errors
    /// What mmap gives.
    fn mmap(&self, offset: u64, len: usize) -> Result<Mapping, Errno>;

    /// A dma-buf of a handle's memory, for other devices or processes.
    ///
    /// # Errors
    /// `EOPNOTSUPP`: not with this kernel or model. `ENOENT`: no such handle.
    fn export_dma_buf(&self, handle: u32) -> Result<OwnedFd, Errno>;

    /// Opens the same node once more: an empty address space with a queue of its own.
    ///
    /// # Errors
    /// What open gives; `ENODEV` or `ENOENT` where the device is gone.
    fn reopen(&self) -> Result<Arc<dyn RocketKernel>, Errno>;

    /// The work simulated since the last call; `None` on hardware.
    fn take_simulated(&self) -> Option<SimulatedWork> {
        None
    }
}
