/*
 * Prints where a C compiler puts the fields of the kernel's structs and which request numbers the kernel's own macros make of them, one
 * `name value` a line, for a test to compare with the Rust side.
 */
#include <stddef.h>
#include <stdio.h>

#include "rknpu.h"
#include "rocket.h"

#define SIZE(type) printf("%s %zu\n", #type, sizeof(struct type))
#define FIELD(type, field) printf("%s.%s %zu\n", #type, #field, offsetof(struct type, field))
#define REQUEST(name) printf("%s %lu\n", #name, (unsigned long)(name))

int main(void)
{
	SIZE(rknpu_action);
	FIELD(rknpu_action, flags);
	FIELD(rknpu_action, value);

	SIZE(rknpu_mem_create);
	FIELD(rknpu_mem_create, handle);
	FIELD(rknpu_mem_create, flags);
	FIELD(rknpu_mem_create, size);
	FIELD(rknpu_mem_create, obj_addr);
	FIELD(rknpu_mem_create, dma_addr);
	FIELD(rknpu_mem_create, sram_size);
	FIELD(rknpu_mem_create, iommu_domain_id);
	FIELD(rknpu_mem_create, core_mask);

	SIZE(rknpu_mem_map);
	FIELD(rknpu_mem_map, handle);
	FIELD(rknpu_mem_map, reserved);
	FIELD(rknpu_mem_map, offset);

	SIZE(rknpu_mem_destroy);
	FIELD(rknpu_mem_destroy, handle);
	FIELD(rknpu_mem_destroy, reserved);
	FIELD(rknpu_mem_destroy, obj_addr);

	SIZE(rknpu_mem_sync);
	FIELD(rknpu_mem_sync, flags);
	FIELD(rknpu_mem_sync, reserved);
	FIELD(rknpu_mem_sync, obj_addr);
	FIELD(rknpu_mem_sync, offset);
	FIELD(rknpu_mem_sync, size);

	SIZE(rknpu_task);
	FIELD(rknpu_task, flags);
	FIELD(rknpu_task, op_idx);
	FIELD(rknpu_task, enable_mask);
	FIELD(rknpu_task, int_mask);
	FIELD(rknpu_task, int_clear);
	FIELD(rknpu_task, int_status);
	FIELD(rknpu_task, regcfg_amount);
	FIELD(rknpu_task, regcfg_offset);
	FIELD(rknpu_task, regcmd_addr);

	SIZE(rknpu_subcore_task);
	FIELD(rknpu_subcore_task, task_start);
	FIELD(rknpu_subcore_task, task_number);

	SIZE(rknpu_submit);
	FIELD(rknpu_submit, flags);
	FIELD(rknpu_submit, timeout);
	FIELD(rknpu_submit, task_start);
	FIELD(rknpu_submit, task_number);
	FIELD(rknpu_submit, task_counter);
	FIELD(rknpu_submit, priority);
	FIELD(rknpu_submit, task_obj_addr);
	FIELD(rknpu_submit, iommu_domain_id);
	FIELD(rknpu_submit, reserved);
	FIELD(rknpu_submit, task_base_addr);
	FIELD(rknpu_submit, hw_elapse_time);
	FIELD(rknpu_submit, core_mask);
	FIELD(rknpu_submit, fence_fd);
	FIELD(rknpu_submit, subcore_task);

	SIZE(drm_rocket_create_bo);
	FIELD(drm_rocket_create_bo, size);
	FIELD(drm_rocket_create_bo, handle);
	FIELD(drm_rocket_create_bo, dma_address);
	FIELD(drm_rocket_create_bo, offset);

	SIZE(drm_rocket_task);
	FIELD(drm_rocket_task, regcmd);
	FIELD(drm_rocket_task, regcmd_count);

	SIZE(drm_rocket_job);
	FIELD(drm_rocket_job, tasks);
	FIELD(drm_rocket_job, in_bo_handles);
	FIELD(drm_rocket_job, out_bo_handles);
	FIELD(drm_rocket_job, task_count);
	FIELD(drm_rocket_job, task_struct_size);
	FIELD(drm_rocket_job, in_bo_handle_count);
	FIELD(drm_rocket_job, out_bo_handle_count);

	SIZE(drm_rocket_submit);
	FIELD(drm_rocket_submit, jobs);
	FIELD(drm_rocket_submit, job_count);
	FIELD(drm_rocket_submit, job_struct_size);
	FIELD(drm_rocket_submit, reserved);

	SIZE(drm_rocket_prep_bo);
	FIELD(drm_rocket_prep_bo, handle);
	FIELD(drm_rocket_prep_bo, reserved);
	FIELD(drm_rocket_prep_bo, timeout_ns);

	SIZE(drm_rocket_fini_bo);
	FIELD(drm_rocket_fini_bo, handle);
	FIELD(drm_rocket_fini_bo, reserved);

	SIZE(drm_version);
	FIELD(drm_version, version_major);
	FIELD(drm_version, version_minor);
	FIELD(drm_version, version_patchlevel);
	FIELD(drm_version, name_len);
	FIELD(drm_version, name);
	FIELD(drm_version, date_len);
	FIELD(drm_version, date);
	FIELD(drm_version, desc_len);
	FIELD(drm_version, desc);

	SIZE(drm_gem_close);
	FIELD(drm_gem_close, handle);
	FIELD(drm_gem_close, pad);

	SIZE(drm_prime_handle);
	FIELD(drm_prime_handle, handle);
	FIELD(drm_prime_handle, flags);
	FIELD(drm_prime_handle, fd);

	REQUEST(DRM_IOCTL_RKNPU_ACTION);
	REQUEST(DRM_IOCTL_RKNPU_SUBMIT);
	REQUEST(DRM_IOCTL_RKNPU_MEM_CREATE);
	REQUEST(DRM_IOCTL_RKNPU_MEM_MAP);
	REQUEST(DRM_IOCTL_RKNPU_MEM_DESTROY);
	REQUEST(DRM_IOCTL_RKNPU_MEM_SYNC);
	REQUEST(IOCTL_RKNPU_ACTION);
	REQUEST(IOCTL_RKNPU_SUBMIT);
	REQUEST(IOCTL_RKNPU_MEM_CREATE);
	REQUEST(IOCTL_RKNPU_MEM_MAP);
	REQUEST(IOCTL_RKNPU_MEM_DESTROY);
	REQUEST(IOCTL_RKNPU_MEM_SYNC);
	REQUEST(DRM_IOCTL_ROCKET_CREATE_BO);
	REQUEST(DRM_IOCTL_ROCKET_SUBMIT);
	REQUEST(DRM_IOCTL_ROCKET_PREP_BO);
	REQUEST(DRM_IOCTL_ROCKET_FINI_BO);
	REQUEST(DRM_IOCTL_VERSION);
	REQUEST(DRM_IOCTL_GEM_CLOSE);
	REQUEST(DRM_IOCTL_PRIME_HANDLE_TO_FD);
	REQUEST(DRM_IOCTL_PRIME_FD_TO_HANDLE);
	return 0;
}
