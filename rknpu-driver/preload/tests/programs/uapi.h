/* The two kernel interfaces of the RK3588's NPU as a C program sees them: what rknpu_ioctl.h and rocket_accel.h declare, as far as
 * it is used here. DRM's own part comes from the system's headers where they are installed. */
#ifndef UAPI_H
#define UAPI_H

#include <stdint.h>
#include <sys/ioctl.h>

#if defined(__has_include)
#if __has_include(<drm/drm.h>)
#include <drm/drm.h>
#endif
#endif

#ifndef DRM_IOCTL_BASE
#define DRM_IOCTL_BASE 'd'
#define DRM_COMMAND_BASE 0x40
#define DRM_IOW(nr, type) _IOW(DRM_IOCTL_BASE, nr, type)
#define DRM_IOWR(nr, type) _IOWR(DRM_IOCTL_BASE, nr, type)

struct drm_version {
  int version_major, version_minor, version_patchlevel;
  size_t name_len;
  char *name;
  size_t date_len;
  char *date;
  size_t desc_len;
  char *desc;
};
struct drm_gem_close {
  uint32_t handle, pad;
};
struct drm_prime_handle {
  uint32_t handle, flags;
  int32_t fd;
};
#define DRM_IOCTL_VERSION DRM_IOWR(0x00, struct drm_version)
#define DRM_IOCTL_GEM_CLOSE DRM_IOW(0x09, struct drm_gem_close)
#define DRM_IOCTL_PRIME_HANDLE_TO_FD DRM_IOWR(0x2d, struct drm_prime_handle)
#define DRM_IOCTL_PRIME_FD_TO_HANDLE DRM_IOWR(0x2e, struct drm_prime_handle)
#define DRM_CLOEXEC 02000000
#define DRM_RDWR 02
#endif

/* Rockchip's rknpu 0.9.8, DRM build. */

enum { RKNPU_GET_HW_VERSION = 0, RKNPU_GET_DRV_VERSION = 1, RKNPU_SET_FREQ = 3, RKNPU_ACT_RESET = 6, RKNPU_GET_DT_RD_AMOUNT = 15 };
enum { RKNPU_MEM_NON_CONTIGUOUS = 1, RKNPU_MEM_CACHEABLE = 2, RKNPU_MEM_KERNEL_MAPPING = 8, RKNPU_MEM_IOMMU = 0x10 };
enum { RKNPU_MEM_SYNC_TO_DEVICE = 1, RKNPU_MEM_SYNC_FROM_DEVICE = 2 };
enum { RKNPU_JOB_PC = 1, RKNPU_JOB_NONBLOCK = 2, RKNPU_JOB_PINGPONG = 4 };

struct rknpu_action {
  uint32_t flags, value;
};
struct rknpu_mem_create {
  uint32_t handle, flags;
  uint64_t size, obj_addr, dma_addr, sram_size;
  int32_t iommu_domain_id;
  uint32_t core_mask;
};
struct rknpu_mem_map {
  uint32_t handle, reserved;
  uint64_t offset;
};
struct rknpu_mem_destroy {
  uint32_t handle, reserved;
  uint64_t obj_addr;
};
struct rknpu_mem_sync {
  uint32_t flags, reserved;
  uint64_t obj_addr, offset, size;
};
struct rknpu_task {
  uint32_t flags, op_idx, enable_mask, int_mask, int_clear, int_status, regcfg_amount, regcfg_offset;
  uint64_t regcmd_addr;
} __attribute__((packed));
struct rknpu_subcore_task {
  uint32_t task_start, task_number;
};
struct rknpu_submit {
  uint32_t flags, timeout, task_start, task_number, task_counter;
  int32_t priority;
  uint64_t task_obj_addr;
  uint32_t iommu_domain_id, reserved;
  uint64_t task_base_addr;
  int64_t hw_elapse_time;
  uint32_t core_mask;
  int32_t fence_fd;
  struct rknpu_subcore_task subcore_task[5];
};
#define DRM_IOCTL_RKNPU_ACTION DRM_IOWR(DRM_COMMAND_BASE + 0, struct rknpu_action)
#define DRM_IOCTL_RKNPU_SUBMIT DRM_IOWR(DRM_COMMAND_BASE + 1, struct rknpu_submit)
#define DRM_IOCTL_RKNPU_MEM_CREATE DRM_IOWR(DRM_COMMAND_BASE + 2, struct rknpu_mem_create)
#define DRM_IOCTL_RKNPU_MEM_MAP DRM_IOWR(DRM_COMMAND_BASE + 3, struct rknpu_mem_map)
#define DRM_IOCTL_RKNPU_MEM_DESTROY DRM_IOWR(DRM_COMMAND_BASE + 4, struct rknpu_mem_destroy)
#define DRM_IOCTL_RKNPU_MEM_SYNC DRM_IOWR(DRM_COMMAND_BASE + 5, struct rknpu_mem_sync)

/* Mainline's rocket. */

struct drm_rocket_create_bo {
  uint32_t size, handle;
  uint64_t dma_address, offset;
};
struct drm_rocket_task {
  uint32_t regcmd, regcmd_count;
};
struct drm_rocket_job {
  uint64_t tasks, in_bo_handles, out_bo_handles;
  uint32_t task_count, task_struct_size, in_bo_handle_count, out_bo_handle_count;
};
struct drm_rocket_submit {
  uint64_t jobs;
  uint32_t job_count, job_struct_size;
  uint64_t reserved;
};
struct drm_rocket_prep_bo {
  uint32_t handle, reserved;
  int64_t timeout_ns;
};
struct drm_rocket_fini_bo {
  uint32_t handle, reserved;
};
#define DRM_IOCTL_ROCKET_CREATE_BO DRM_IOWR(DRM_COMMAND_BASE + 0, struct drm_rocket_create_bo)
#define DRM_IOCTL_ROCKET_SUBMIT DRM_IOW(DRM_COMMAND_BASE + 1, struct drm_rocket_submit)
#define DRM_IOCTL_ROCKET_PREP_BO DRM_IOW(DRM_COMMAND_BASE + 2, struct drm_rocket_prep_bo)
#define DRM_IOCTL_ROCKET_FINI_BO DRM_IOW(DRM_COMMAND_BASE + 3, struct drm_rocket_fini_bo)

#endif
