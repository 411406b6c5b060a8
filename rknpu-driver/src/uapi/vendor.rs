//! Rockchip's `rknpu` driver, 0.9.8: requests, flags and structs under their kernel names (`rknpu_ioctl.h`).
//!
//! Two builds of it exist. The DRM one makes `/dev/dri/renderD*` and its requests are in DRM's group; the
//! DMA-heap one makes `/dev/rknpu` with the same structs in a group of its own, and its handles are dma-buf
//! descriptors.

use super::{assert_layout, assert_request};

/// The driver's name as `DRM_IOCTL_VERSION` gives it.
pub const DRIVER_NAME: &str = "rknpu";
/// Group letter of the DMA-heap build (`RKNPU_IOC_MAGIC`).
pub const RKNPU_IOC_MAGIC: u8 = b'r';

/// `RKNPU_ACTION` of the DRM build.
pub const DRM_IOCTL_RKNPU_ACTION: u32 = 0xc008_6440;
/// `RKNPU_SUBMIT` of the DRM build.
pub const DRM_IOCTL_RKNPU_SUBMIT: u32 = 0xc068_6441;
/// `RKNPU_MEM_CREATE` of the DRM build.
pub const DRM_IOCTL_RKNPU_MEM_CREATE: u32 = 0xc030_6442;
/// `RKNPU_MEM_MAP` of the DRM build.
pub const DRM_IOCTL_RKNPU_MEM_MAP: u32 = 0xc010_6443;
/// `RKNPU_MEM_DESTROY` of the DRM build.
pub const DRM_IOCTL_RKNPU_MEM_DESTROY: u32 = 0xc010_6444;
/// `RKNPU_MEM_SYNC` of the DRM build.
pub const DRM_IOCTL_RKNPU_MEM_SYNC: u32 = 0xc020_6445;

/// `RKNPU_ACTION` of the DMA-heap build.
pub const IOCTL_RKNPU_ACTION: u32 = 0xc008_7200;
/// `RKNPU_SUBMIT` of the DMA-heap build.
pub const IOCTL_RKNPU_SUBMIT: u32 = 0xc068_7201;
/// `RKNPU_MEM_CREATE` of the DMA-heap build.
pub const IOCTL_RKNPU_MEM_CREATE: u32 = 0xc030_7202;
/// `RKNPU_MEM_MAP` of the DMA-heap build.
pub const IOCTL_RKNPU_MEM_MAP: u32 = 0xc010_7203;
/// `RKNPU_MEM_DESTROY` of the DMA-heap build.
pub const IOCTL_RKNPU_MEM_DESTROY: u32 = 0xc010_7204;
/// `RKNPU_MEM_SYNC` of the DMA-heap build.
pub const IOCTL_RKNPU_MEM_SYNC: u32 = 0xc020_7205;

/// Pages need not be physically contiguous.
pub const RKNPU_MEM_NON_CONTIGUOUS: u32 = 1 << 0;
/// The CPU's mapping is cached; only such memory may be synced.
pub const RKNPU_MEM_CACHEABLE: u32 = 1 << 1;
/// The CPU's mapping is write-combined.
pub const RKNPU_MEM_WRITE_COMBINE: u32 = 1 << 2;
/// The kernel maps the memory too: it reads task objects through that mapping.
pub const RKNPU_MEM_KERNEL_MAPPING: u32 = 1 << 3;
/// The memory is mapped through the IOMMU.
pub const RKNPU_MEM_IOMMU: u32 = 1 << 4;
/// The memory is zeroed when made.
pub const RKNPU_MEM_ZEROING: u32 = 1 << 5;
/// Secure memory.
pub const RKNPU_MEM_SECURE: u32 = 1 << 6;
/// Physical addresses below 4 GB.
pub const RKNPU_MEM_DMA32: u32 = 1 << 7;
/// On-chip SRAM first, DRAM for the rest.
pub const RKNPU_MEM_TRY_ALLOC_SRAM: u32 = 1 << 8;
/// The NPU's own buffer first; the RK3588 has none and ignores this.
pub const RKNPU_MEM_TRY_ALLOC_NBUF: u32 = 1 << 9;
/// I/O addresses are not aligned to the size, which would waste address space.
pub const RKNPU_MEM_IOMMU_LIMIT_IOVA_ALIGNMENT: u32 = 1 << 10;

/// `rknpu_mem_sync::flags`: what the CPU wrote goes to memory.
pub const RKNPU_MEM_SYNC_TO_DEVICE: u32 = 1 << 0;
/// `rknpu_mem_sync::flags`: what the device wrote becomes visible to the CPU.
pub const RKNPU_MEM_SYNC_FROM_DEVICE: u32 = 1 << 1;

/// `rknpu_submit::flags`: the program counter fetches the commands. Without it a blocking submit is `EINVAL`.
pub const RKNPU_JOB_PC: u32 = 1 << 0;
/// `rknpu_submit::flags`: submit returns at once.
pub const RKNPU_JOB_NONBLOCK: u32 = 1 << 1;
/// `rknpu_submit::flags`: tasks alternate between a block's two register banks.
pub const RKNPU_JOB_PINGPONG: u32 = 1 << 2;
/// `rknpu_submit::flags`: wait for the fence `fence_fd` first.
pub const RKNPU_JOB_FENCE_IN: u32 = 1 << 3;
/// `rknpu_submit::flags`: give a fence in `fence_fd`.
pub const RKNPU_JOB_FENCE_OUT: u32 = 1 << 4;

/// `rknpu_action::flags`: the hardware's version register.
pub const RKNPU_GET_HW_VERSION: u32 = 0;
/// `rknpu_action::flags`: the driver's version as `major·10000 + minor·100 + patch`.
pub const RKNPU_GET_DRV_VERSION: u32 = 1;
/// `rknpu_action::flags`: the clock in Hz.
pub const RKNPU_GET_FREQ: u32 = 2;
/// `rknpu_action::flags`: the supply in µV.
pub const RKNPU_GET_VOLT: u32 = 4;
/// `rknpu_action::flags`: soft reset of all cores.
pub const RKNPU_ACT_RESET: u32 = 6;
/// `rknpu_action::flags`: 1 where the IOMMU is on.
pub const RKNPU_GET_IOMMU_EN: u32 = 18;
/// `rknpu_action::flags`: SRAM granted by the device tree, bytes.
pub const RKNPU_GET_TOTAL_SRAM_SIZE: u32 = 22;
/// `rknpu_action::flags`: SRAM not yet allocated, bytes.
pub const RKNPU_GET_FREE_SRAM_SIZE: u32 = 23;
/// `rknpu_action::flags`: the IOMMU domain that is switched in now.
pub const RKNPU_GET_IOMMU_DOMAIN_ID: u32 = 24;

/// IOMMU domains of one device (`RKNPU_MAX_IOMMU_DOMAIN_NUM`), each 4 GB.
pub const RKNPU_MAX_IOMMU_DOMAIN_NUM: u32 = 16;
/// Cores an RK3588 has.
pub const RKNPU_CORES: u8 = 3;
/// Tasks the driver hands to the hardware at once; more are committed again after these.
pub const RKNPU_MAX_SUBMIT_NUMBER: u32 = (1 << 12) - 1;
/// Entries of `rknpu_submit::subcore_task`.
pub const RKNPU_SUBCORE_TASKS: usize = 5;

/// A question to the driver, or an order.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct rknpu_action {
    /// In: which action.
    pub flags: u32,
    /// In or out: its value.
    pub value: u32,
}

/// Makes memory, or finds the object of a handle that lives.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct rknpu_mem_create {
    /// In: 0, or a live handle, whose object is then returned and nothing made. Out: the handle.
    pub handle: u32,
    /// In: `RKNPU_MEM_*`.
    pub flags: u32,
    /// In: bytes wanted. Out: bytes made, whole pages.
    pub size: u64,
    /// Out: the kernel's address of the object. Never interpreted, only handed back.
    pub obj_addr: u64,
    /// Out: address on the NPU's bus.
    pub dma_addr: u64,
    /// In: bytes wanted in SRAM with `RKNPU_MEM_TRY_ALLOC_SRAM`. Out: bytes that lie there.
    pub sram_size: u64,
    /// In: IOMMU domain, 0–15.
    pub iommu_domain_id: i32,
    /// In: cores that will use it (of no effect on the RK3588).
    pub core_mask: u32,
}

/// Asks where in the node's file a handle's memory can be mapped.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct rknpu_mem_map {
    /// In: the handle.
    pub handle: u32,
    /// Zero.
    pub reserved: u32,
    /// Out: offset for mmap.
    pub offset: u64,
}

/// Gives memory back.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct rknpu_mem_destroy {
    /// In: the handle.
    pub handle: u32,
    /// Zero.
    pub reserved: u32,
    /// In: the object's address as `rknpu_mem_create` gave it.
    pub obj_addr: u64,
}

/// Cache maintenance of a range.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct rknpu_mem_sync {
    /// In: `RKNPU_MEM_SYNC_*`.
    pub flags: u32,
    /// Zero.
    pub reserved: u32,
    /// In: the object's address as `rknpu_mem_create` gave it.
    pub obj_addr: u64,
    /// In: first byte.
    pub offset: u64,
    /// In: bytes.
    pub size: u64,
}

/// One task as it lies in the memory `rknpu_submit::task_obj_addr` names.
#[repr(C, packed)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct rknpu_task {
    /// Zero.
    pub flags: u32,
    /// Zero.
    pub op_idx: u32,
    /// Blocks that are enabled; the driver does not use it where the program counter fetches.
    pub enable_mask: u32,
    /// Interrupts that say the task is done.
    pub int_mask: u32,
    /// Interrupts cleared before it starts.
    pub int_clear: u32,
    /// Out, in one last task of a job: the interrupt status seen.
    pub int_status: u32,
    /// Register commands (8 bytes each) without the four words of the tail.
    pub regcfg_amount: u32,
    /// Zero.
    pub regcfg_offset: u32,
    /// Bus address of the commands.
    pub regcmd_addr: u64,
}

/// A core's part of the tasks.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct rknpu_subcore_task {
    /// Index of the first task.
    pub task_start: u32,
    /// Tasks.
    pub task_number: u32,
}

/// Runs tasks.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct rknpu_submit {
    /// In: `RKNPU_JOB_*`.
    pub flags: u32,
    /// In: time-out in milliseconds.
    pub timeout: u32,
    /// In: index of the first task.
    pub task_start: u32,
    /// In: tasks in all.
    pub task_number: u32,
    /// Out: tasks done.
    pub task_counter: u32,
    /// In: priority.
    pub priority: i32,
    /// In: `obj_addr` of the memory that holds the tasks.
    pub task_obj_addr: u64,
    /// In: IOMMU domain of every address in the job.
    pub iommu_domain_id: u32,
    /// Zero.
    pub reserved: u32,
    /// In: address added to every `regcmd_addr` (0).
    pub task_base_addr: u64,
    /// Out: time on the hardware in nanoseconds.
    pub hw_elapse_time: i64,
    /// In: cores.
    pub core_mask: u32,
    /// In or out: fence descriptor.
    pub fence_fd: i32,
    /// In: each core's part; entry `core` with one or two cores in the mask, `core + 2` with three.
    pub subcore_task: [rknpu_subcore_task; RKNPU_SUBCORE_TASKS],
}

assert_layout!(rknpu_action, size 8, align 4, { flags 0, value 4 });
assert_layout!(rknpu_mem_create, size 48, align 8, {
    handle 0, flags 4, size 8, obj_addr 16, dma_addr 24, sram_size 32, iommu_domain_id 40, core_mask 44,
});
assert_layout!(rknpu_mem_map, size 16, align 8, { handle 0, reserved 4, offset 8 });
assert_layout!(rknpu_mem_destroy, size 16, align 8, { handle 0, reserved 4, obj_addr 8 });
assert_layout!(rknpu_mem_sync, size 32, align 8, { flags 0, reserved 4, obj_addr 8, offset 16, size 24 });
assert_layout!(rknpu_task, size 40, align 1, {
    flags 0, op_idx 4, enable_mask 8, int_mask 12, int_clear 16, int_status 20, regcfg_amount 24,
    regcfg_offset 28, regcmd_addr 32,
});
assert_layout!(rknpu_subcore_task, size 8, align 4, { task_start 0, task_number 4 });
assert_layout!(rknpu_submit, size 104, align 8, {
    flags 0, timeout 4, task_start 8, task_number 12, task_counter 16, priority 20, task_obj_addr 24,
    iommu_domain_id 32, reserved 36, task_base_addr 40, hw_elapse_time 48, core_mask 56,
    fence_fd 60, subcore_task 64,
});
assert_request!(DRM_IOCTL_RKNPU_ACTION, IOC_READ_WRITE, b'd', 0x40, rknpu_action);
assert_request!(DRM_IOCTL_RKNPU_SUBMIT, IOC_READ_WRITE, b'd', 0x41, rknpu_submit);
assert_request!(DRM_IOCTL_RKNPU_MEM_CREATE, IOC_READ_WRITE, b'd', 0x42, rknpu_mem_create);
assert_request!(DRM_IOCTL_RKNPU_MEM_MAP, IOC_READ_WRITE, b'd', 0x43, rknpu_mem_map);
assert_request!(DRM_IOCTL_RKNPU_MEM_DESTROY, IOC_READ_WRITE, b'd', 0x44, rknpu_mem_destroy);
assert_request!(DRM_IOCTL_RKNPU_MEM_SYNC, IOC_READ_WRITE, b'd', 0x45, rknpu_mem_sync);
assert_request!(IOCTL_RKNPU_ACTION, IOC_READ_WRITE, b'r', 0, rknpu_action);
assert_request!(IOCTL_RKNPU_SUBMIT, IOC_READ_WRITE, b'r', 1, rknpu_submit);
assert_request!(IOCTL_RKNPU_MEM_CREATE, IOC_READ_WRITE, b'r', 2, rknpu_mem_create);
assert_request!(IOCTL_RKNPU_MEM_MAP, IOC_READ_WRITE, b'r', 3, rknpu_mem_map);
assert_request!(IOCTL_RKNPU_MEM_DESTROY, IOC_READ_WRITE, b'r', 4, rknpu_mem_destroy);
assert_request!(IOCTL_RKNPU_MEM_SYNC, IOC_READ_WRITE, b'r', 5, rknpu_mem_sync);
