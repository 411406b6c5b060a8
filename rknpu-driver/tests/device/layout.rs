//! The structs and request numbers against a C compiler and the kernel's own ioctl macros.

use std::collections::BTreeMap;
use std::mem::offset_of;
use std::path::Path;
use std::process::Command;

use rknpu_driver::uapi::{drm, rocket, vendor};

/// Rust's layouts under the names that `header-check/layouts.c` prints.
fn ours() -> BTreeMap<String, u64> {
    let mut ours = BTreeMap::new();
    macro_rules! layout {
        ($module:ident::$type:ident { $($field:ident),* }) => {
            ours.insert(stringify!($type).to_owned(), size_of::<$module::$type>() as u64);
            $(ours.insert(
                concat!(stringify!($type), ".", stringify!($field)).to_owned(),
                offset_of!($module::$type, $field) as u64,
            );)*
        };
    }
    macro_rules! requests {
        ($($module:ident::$name:ident),* $(,)?) => {
            $(ours.insert(stringify!($name).to_owned(), u64::from($module::$name));)*
        };
    }
    layout!(vendor::rknpu_action { flags, value });
    layout!(vendor::rknpu_mem_create {
        handle,
        flags,
        size,
        obj_addr,
        dma_addr,
        sram_size,
        iommu_domain_id,
        core_mask
    });
    layout!(vendor::rknpu_mem_map { handle, reserved, offset });
    layout!(vendor::rknpu_mem_destroy { handle, reserved, obj_addr });
    layout!(vendor::rknpu_mem_sync { flags, reserved, obj_addr, offset, size });
    layout!(vendor::rknpu_task {
        flags,
        op_idx,
        enable_mask,
        int_mask,
        int_clear,
        int_status,
        regcfg_amount,
        regcfg_offset,
        regcmd_addr
    });
    layout!(vendor::rknpu_subcore_task { task_start, task_number });
    layout!(vendor::rknpu_submit {
        flags,
        timeout,
        task_start,
        task_number,
        task_counter,
        priority,
        task_obj_addr,
        iommu_domain_id,
        reserved,
        task_base_addr,
        hw_elapse_time,
        core_mask,
        fence_fd,
        subcore_task
    });
    layout!(rocket::drm_rocket_create_bo { size, handle, dma_address, offset });
    layout!(rocket::drm_rocket_task { regcmd, regcmd_count });
    layout!(rocket::drm_rocket_job {
        tasks,
        in_bo_handles,
        out_bo_handles,
        task_count,
        task_struct_size,
        in_bo_handle_count,
        out_bo_handle_count
    });
    layout!(rocket::drm_rocket_submit { jobs, job_count, job_struct_size, reserved });
    layout!(rocket::drm_rocket_prep_bo { handle, reserved, timeout_ns });
    layout!(rocket::drm_rocket_fini_bo { handle, reserved });
    layout!(drm::drm_version {
        version_major,
        version_minor,
        version_patchlevel,
        name_len,
        name,
        date_len,
        date,
        desc_len,
        desc
    });
    layout!(drm::drm_gem_close { handle, pad });
    layout!(drm::drm_prime_handle { handle, flags, fd });
    requests!(
        vendor::DRM_IOCTL_RKNPU_ACTION,
        vendor::DRM_IOCTL_RKNPU_SUBMIT,
        vendor::DRM_IOCTL_RKNPU_MEM_CREATE,
        vendor::DRM_IOCTL_RKNPU_MEM_MAP,
        vendor::DRM_IOCTL_RKNPU_MEM_DESTROY,
        vendor::DRM_IOCTL_RKNPU_MEM_SYNC,
        vendor::IOCTL_RKNPU_ACTION,
        vendor::IOCTL_RKNPU_SUBMIT,
        vendor::IOCTL_RKNPU_MEM_CREATE,
        vendor::IOCTL_RKNPU_MEM_MAP,
        vendor::IOCTL_RKNPU_MEM_DESTROY,
        vendor::IOCTL_RKNPU_MEM_SYNC,
        rocket::DRM_IOCTL_ROCKET_CREATE_BO,
        rocket::DRM_IOCTL_ROCKET_SUBMIT,
        rocket::DRM_IOCTL_ROCKET_PREP_BO,
        rocket::DRM_IOCTL_ROCKET_FINI_BO,
        drm::DRM_IOCTL_VERSION,
        drm::DRM_IOCTL_GEM_CLOSE,
        drm::DRM_IOCTL_PRIME_HANDLE_TO_FD,
        drm::DRM_IOCTL_PRIME_FD_TO_HANDLE,
    );
    ours
}

#[test]
fn a_c_compiler_lays_the_structs_out_alike() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("header-check/layouts.c");
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("rknpu-layouts");
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let compiled =
        Command::new(&compiler).args(["-Wall", "-Werror", "-o"]).arg(&program).arg(&source).status();
    let status = compiled.unwrap_or_else(|error| panic!("a C compiler is needed, {compiler:?}: {error}"));
    assert!(status.success(), "{} does not compile", source.display());
    // Built for another machine, it runs where these tests do: in the emulator.
    let runner = std::env::var("RKNPU_SIM_TEST_RUNNER").unwrap_or_default();
    let command: Vec<&str> = runner.split_whitespace().chain(program.to_str()).collect();
    let output = Command::new(command[0]).args(&command[1..]).env_remove("LD_LIBRARY_PATH").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let line = |line: &str| {
        let (name, value) = line.split_once(' ').unwrap();
        (name.to_owned(), value.parse().unwrap())
    };
    let theirs: BTreeMap<String, u64> = text.lines().map(line).collect();
    let ours = ours();
    assert!(ours.len() > 100);
    for (name, value) in &theirs {
        assert_eq!(ours.get(name), Some(value), "{name}");
    }
    assert_eq!(ours.len(), theirs.len());
}
