//! Mainline Linux's `rocket` driver (6.18 on): requests and structs under their kernel names
//! (`rocket_accel.h`).

use super::{assert_layout, assert_request};

/// The driver's name as `DRM_IOCTL_VERSION` gives it.
pub const DRIVER_NAME: &str = "rocket";

/// `DRM_IOCTL_ROCKET_CREATE_BO`
pub const DRM_IOCTL_ROCKET_CREATE_BO: u32 = 0xc018_6440;
/// `DRM_IOCTL_ROCKET_SUBMIT`
pub const DRM_IOCTL_ROCKET_SUBMIT: u32 = 0x4018_6441;
/// `DRM_IOCTL_ROCKET_PREP_BO`
pub const DRM_IOCTL_ROCKET_PREP_BO: u32 = 0x4010_6442;
/// `DRM_IOCTL_ROCKET_FINI_BO`
pub const DRM_IOCTL_ROCKET_FINI_BO: u32 = 0x4008_6443;

/// The kernel ends a job after this many milliseconds on the hardware (`JOB_TIMEOUT_MS`).
pub const JOB_TIMEOUT_MS: u64 = 500;

/// Makes a buffer object.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct drm_rocket_create_bo {
    /// In: bytes.
    pub size: u32,
    /// Out: the handle.
    pub handle: u32,
    /// Out: address on the NPU's bus, in this descriptor's own 4 GB space; the first object may get 0.
    pub dma_address: u64,
    /// Out: offset for mmap.
    pub offset: u64,
}

/// A task: one run of the program counter over one stream of commands.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct drm_rocket_task {
    /// Bus address of the commands.
    pub regcmd: u32,
    /// Commands (8 bytes each), tail included.
    pub regcmd_count: u32,
}

/// A job: tasks that run one after another on one core.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct drm_rocket_job {
    /// User address of an array of [`drm_rocket_task`].
    pub tasks: u64,
    /// User address of an array of handles that the job reads.
    pub in_bo_handles: u64,
    /// User address of an array of handles that the job writes.
    pub out_bo_handles: u64,
    /// Tasks.
    pub task_count: u32,
    /// Size of a task's struct: 8.
    pub task_struct_size: u32,
    /// Handles in `in_bo_handles`.
    pub in_bo_handle_count: u32,
    /// Handles in `out_bo_handles`.
    pub out_bo_handle_count: u32,
}

/// Queues jobs.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct drm_rocket_submit {
    /// User address of an array of [`drm_rocket_job`].
    pub jobs: u64,
    /// Jobs.
    pub job_count: u32,
    /// Size of a job's struct: 40.
    pub job_struct_size: u32,
    /// Zero.
    pub reserved: u64,
}

/// Waits for the jobs that use a buffer object and makes what they wrote visible to the CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct drm_rocket_prep_bo {
    /// In: the handle.
    pub handle: u32,
    /// Zero, or the call fails.
    pub reserved: u32,
    /// In: when to give up, absolute CLOCK_MONOTONIC nanoseconds.
    pub timeout_ns: i64,
}

/// Hands a buffer object back to the device after CPU access.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct drm_rocket_fini_bo {
    /// In: the handle.
    pub handle: u32,
    /// Zero, or the call fails.
    pub reserved: u32,
}

assert_layout!(drm_rocket_create_bo, size 24, align 8, { size 0, handle 4, dma_address 8, offset 16 });
assert_layout!(drm_rocket_task, size 8, align 4, { regcmd 0, regcmd_count 4 });
assert_layout!(drm_rocket_job, size 40, align 8, {
    tasks 0, in_bo_handles 8, out_bo_handles 16, task_count 24, task_struct_size 28, in_bo_handle_count 32,
    out_bo_handle_count 36,
});
assert_layout!(drm_rocket_submit, size 24, align 8, { jobs 0, job_count 8, job_struct_size 12, reserved 16 });
assert_layout!(drm_rocket_prep_bo, size 16, align 8, { handle 0, reserved 4, timeout_ns 8 });
assert_layout!(drm_rocket_fini_bo, size 8, align 4, { handle 0, reserved 4 });
assert_request!(DRM_IOCTL_ROCKET_CREATE_BO, IOC_READ_WRITE, b'd', 0x40, drm_rocket_create_bo);
assert_request!(DRM_IOCTL_ROCKET_SUBMIT, IOC_WRITE, b'd', 0x41, drm_rocket_submit);
assert_request!(DRM_IOCTL_ROCKET_PREP_BO, IOC_WRITE, b'd', 0x42, drm_rocket_prep_bo);
assert_request!(DRM_IOCTL_ROCKET_FINI_BO, IOC_WRITE, b'd', 0x43, drm_rocket_fini_bo);
