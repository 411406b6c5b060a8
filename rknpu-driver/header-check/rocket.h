/*
 * Interface of mainline Linux's rocket driver, and the parts of DRM's that go with it, as far as this project uses them: written down
 * from the layout in docs/npu.md, so that a C compiler can be asked where it puts things.
 */
#ifndef ROOKERY_ROCKET_H
#define ROOKERY_ROCKET_H

#include <linux/ioctl.h>
#include <linux/types.h>

struct drm_rocket_create_bo {
	__u32 size;
	__u32 handle;
	__u64 dma_address;
	__u64 offset;
};

struct drm_rocket_task {
	__u32 regcmd;
	__u32 regcmd_count;
};

struct drm_rocket_job {
	__u64 tasks;
	__u64 in_bo_handles;
	__u64 out_bo_handles;
	__u32 task_count;
	__u32 task_struct_size;
	__u32 in_bo_handle_count;
	__u32 out_bo_handle_count;
};

struct drm_rocket_submit {
	__u64 jobs;
	__u32 job_count;
	__u32 job_struct_size;
	__u64 reserved;
};

struct drm_rocket_prep_bo {
	__u32 handle;
	__u32 reserved;
	__s64 timeout_ns;
};

struct drm_rocket_fini_bo {
	__u32 handle;
	__u32 reserved;
};

#define DRM_IOCTL_ROCKET_CREATE_BO _IOWR('d', 0x40, struct drm_rocket_create_bo)
#define DRM_IOCTL_ROCKET_SUBMIT _IOW('d', 0x41, struct drm_rocket_submit)
#define DRM_IOCTL_ROCKET_PREP_BO _IOW('d', 0x42, struct drm_rocket_prep_bo)
#define DRM_IOCTL_ROCKET_FINI_BO _IOW('d', 0x43, struct drm_rocket_fini_bo)

/* Lengths and addresses of texts, as C has them where both have 64 bits. */
struct drm_version {
	int version_major;
	int version_minor;
	int version_patchlevel;
	unsigned long name_len;
	char *name;
	unsigned long date_len;
	char *date;
	unsigned long desc_len;
	char *desc;
};

struct drm_gem_close {
	__u32 handle;
	__u32 pad;
};

struct drm_prime_handle {
	__u32 handle;
	__u32 flags;
	__s32 fd;
};

#define DRM_IOCTL_VERSION _IOWR('d', 0x00, struct drm_version)
#define DRM_IOCTL_GEM_CLOSE _IOW('d', 0x09, struct drm_gem_close)
#define DRM_IOCTL_PRIME_HANDLE_TO_FD _IOWR('d', 0x2d, struct drm_prime_handle)
#define DRM_IOCTL_PRIME_FD_TO_HANDLE _IOWR('d', 0x2e, struct drm_prime_handle)

#endif
