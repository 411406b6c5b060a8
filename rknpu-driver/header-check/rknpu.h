/*
 * Interface of Rockchip's rknpu driver, 0.9.8, as far as this project uses it: written down from the layout in docs/npu.md, so that a C
 * compiler can be asked where it puts things.
 */
#ifndef ROOKERY_RKNPU_H
#define ROOKERY_RKNPU_H

#include <linux/ioctl.h>
#include <linux/types.h>

struct rknpu_action {
	__u32 flags;
	__u32 value;
};

struct rknpu_mem_create {
	__u32 handle;
	__u32 flags;
	__u64 size;
	__u64 obj_addr;
	__u64 dma_addr;
	__u64 sram_size;
	__s32 iommu_domain_id;
	__u32 core_mask;
};

struct rknpu_mem_map {
	__u32 handle;
	__u32 reserved;
	__u64 offset;
};

struct rknpu_mem_destroy {
	__u32 handle;
	__u32 reserved;
	__u64 obj_addr;
};

struct rknpu_mem_sync {
	__u32 flags;
	__u32 reserved;
	__u64 obj_addr;
	__u64 offset;
	__u64 size;
};

struct rknpu_task {
	__u32 flags;
	__u32 op_idx;
	__u32 enable_mask;
	__u32 int_mask;
	__u32 int_clear;
	__u32 int_status;
	__u32 regcfg_amount;
	__u32 regcfg_offset;
	__u64 regcmd_addr;
} __attribute__((packed));

struct rknpu_subcore_task {
	__u32 task_start;
	__u32 task_number;
};

struct rknpu_submit {
	__u32 flags;
	__u32 timeout;
	__u32 task_start;
	__u32 task_number;
	__u32 task_counter;
	__s32 priority;
	__u64 task_obj_addr;
	__u32 iommu_domain_id;
	__u32 reserved;
	__u64 task_base_addr;
	__s64 hw_elapse_time;
	__u32 core_mask;
	__s32 fence_fd;
	struct rknpu_subcore_task subcore_task[5];
};

#define DRM_IOCTL_RKNPU_ACTION _IOWR('d', 0x40, struct rknpu_action)
#define DRM_IOCTL_RKNPU_SUBMIT _IOWR('d', 0x41, struct rknpu_submit)
#define DRM_IOCTL_RKNPU_MEM_CREATE _IOWR('d', 0x42, struct rknpu_mem_create)
#define DRM_IOCTL_RKNPU_MEM_MAP _IOWR('d', 0x43, struct rknpu_mem_map)
#define DRM_IOCTL_RKNPU_MEM_DESTROY _IOWR('d', 0x44, struct rknpu_mem_destroy)
#define DRM_IOCTL_RKNPU_MEM_SYNC _IOWR('d', 0x45, struct rknpu_mem_sync)

/* The DMA-heap build's group of its own. */
#define IOCTL_RKNPU_ACTION _IOWR('r', 0, struct rknpu_action)
#define IOCTL_RKNPU_SUBMIT _IOWR('r', 1, struct rknpu_submit)
#define IOCTL_RKNPU_MEM_CREATE _IOWR('r', 2, struct rknpu_mem_create)
#define IOCTL_RKNPU_MEM_MAP _IOWR('r', 3, struct rknpu_mem_map)
#define IOCTL_RKNPU_MEM_DESTROY _IOWR('r', 4, struct rknpu_mem_destroy)
#define IOCTL_RKNPU_MEM_SYNC _IOWR('r', 5, struct rknpu_mem_sync)

#endif
