//! Every system call on a device node: ioctls wrapped once behind [`BorrowedFd`], and the kernel's calls over
//! an open node.
#![expect(unsafe_code, reason = "ioctls; each block has its proof")]

mod rocket;
mod vendor_drm;
mod vendor_heap;

use std::fs::OpenOptions;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;

pub(crate) use rocket::RocketNode;
pub(crate) use vendor_drm::VendorDrmNode;
pub(crate) use vendor_heap::VendorHeapNode;

use crate::uapi::{DriverVersion, drm, rocket as rk, vendor};

/// Tries that an interrupted call gets. A signal every time would otherwise hold a caller for ever.
const TRIES: u32 = 1000;

/// Repeats a call that the kernel says did nothing, at most [`TRIES`] times.
pub(crate) fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    let mut last = Errno::EINTR;
    for _ in 0..TRIES {
        match call() {
            Err(errno @ (Errno::EINTR | Errno::EAGAIN)) => last = errno,
            result => return result,
        }
    }
    Err(last)
}

/// Opens a node for reading and writing, closed on exec.
pub(crate) fn open(path: &Path) -> Result<OwnedFd, Errno> {
    let opened = OpenOptions::new().read(true).write(true).open(path);
    opened.map(OwnedFd::from).map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
}

/// The unsafe functions that nix makes of request numbers; nothing but the wrappers below calls them.
mod raw {
    use crate::uapi::{drm, rocket, vendor};

    nix::ioctl_readwrite!(drm_version, drm::DRM_IOCTL_BASE, 0x00, drm::drm_version);
    nix::ioctl_write_ptr!(gem_close, drm::DRM_IOCTL_BASE, 0x09, drm::drm_gem_close);
    nix::ioctl_readwrite!(prime_handle_to_fd, drm::DRM_IOCTL_BASE, 0x2d, drm::drm_prime_handle);
    nix::ioctl_readwrite!(prime_fd_to_handle, drm::DRM_IOCTL_BASE, 0x2e, drm::drm_prime_handle);

    nix::ioctl_readwrite!(drm_action, drm::DRM_IOCTL_BASE, drm::DRM_COMMAND_BASE, vendor::rknpu_action);
    nix::ioctl_readwrite!(drm_submit, drm::DRM_IOCTL_BASE, drm::DRM_COMMAND_BASE + 1, vendor::rknpu_submit);
    nix::ioctl_readwrite!(
        drm_create,
        drm::DRM_IOCTL_BASE,
        drm::DRM_COMMAND_BASE + 2,
        vendor::rknpu_mem_create
    );
    nix::ioctl_readwrite!(drm_map, drm::DRM_IOCTL_BASE, drm::DRM_COMMAND_BASE + 3, vendor::rknpu_mem_map);
    nix::ioctl_readwrite!(
        drm_destroy,
        drm::DRM_IOCTL_BASE,
        drm::DRM_COMMAND_BASE + 4,
        vendor::rknpu_mem_destroy
    );
    nix::ioctl_readwrite!(drm_sync, drm::DRM_IOCTL_BASE, drm::DRM_COMMAND_BASE + 5, vendor::rknpu_mem_sync);

    nix::ioctl_readwrite!(heap_action, vendor::RKNPU_IOC_MAGIC, 0, vendor::rknpu_action);
    nix::ioctl_readwrite!(heap_submit, vendor::RKNPU_IOC_MAGIC, 1, vendor::rknpu_submit);
    nix::ioctl_readwrite!(heap_create, vendor::RKNPU_IOC_MAGIC, 2, vendor::rknpu_mem_create);
    nix::ioctl_readwrite!(heap_destroy, vendor::RKNPU_IOC_MAGIC, 4, vendor::rknpu_mem_destroy);
    nix::ioctl_readwrite!(heap_sync, vendor::RKNPU_IOC_MAGIC, 5, vendor::rknpu_mem_sync);

    nix::ioctl_write_ptr!(dma_buf_sync, b'b', 0, u64);

    nix::ioctl_readwrite!(
        create_bo,
        drm::DRM_IOCTL_BASE,
        drm::DRM_COMMAND_BASE,
        rocket::drm_rocket_create_bo
    );
    nix::ioctl_write_ptr!(submit, drm::DRM_IOCTL_BASE, drm::DRM_COMMAND_BASE + 1, rocket::drm_rocket_submit);
    nix::ioctl_write_ptr!(
        prep_bo,
        drm::DRM_IOCTL_BASE,
        drm::DRM_COMMAND_BASE + 2,
        rocket::drm_rocket_prep_bo
    );
    nix::ioctl_write_ptr!(
        fini_bo,
        drm::DRM_IOCTL_BASE,
        drm::DRM_COMMAND_BASE + 3,
        rocket::drm_rocket_fini_bo
    );
}

/// A wrapper of a call whose struct holds no pointers that the kernel follows as user addresses.
macro_rules! plain {
    ($name:ident($type:ty) reads and writes) => {
        pub(crate) fn $name(fd: BorrowedFd<'_>, args: &mut $type) -> Result<(), Errno> {
            // SAFETY: the descriptor is open for the call (it is borrowed). The request number encodes the
            // struct's size (asserted in `uapi`), so the kernel reads and writes exactly the struct, which
            // `args` borrows exclusively. All bit patterns are valid in it, and no field is a user address.
            unsafe { raw::$name(fd.as_raw_fd(), args) }.map(drop)
        }
    };
    ($name:ident($type:ty) reads) => {
        pub(crate) fn $name(fd: BorrowedFd<'_>, args: &$type) -> Result<(), Errno> {
            // SAFETY: the descriptor is open for the call (it is borrowed). The request number encodes the
            // struct's size (asserted in `uapi`) and says that the kernel only reads it. No field is a user
            // address.
            unsafe { raw::$name(fd.as_raw_fd(), args) }.map(drop)
        }
    };
}

plain!(gem_close(drm::drm_gem_close) reads);
plain!(prime_handle_to_fd(drm::drm_prime_handle) reads and writes);
plain!(prime_fd_to_handle(drm::drm_prime_handle) reads and writes);
plain!(drm_action(vendor::rknpu_action) reads and writes);
plain!(drm_create(vendor::rknpu_mem_create) reads and writes);
plain!(drm_map(vendor::rknpu_mem_map) reads and writes);
plain!(heap_action(vendor::rknpu_action) reads and writes);
plain!(heap_create(vendor::rknpu_mem_create) reads and writes);
plain!(create_bo(rk::drm_rocket_create_bo) reads and writes);
plain!(prep_bo(rk::drm_rocket_prep_bo) reads);
plain!(fini_bo(rk::drm_rocket_fini_bo) reads);

/// A wrapper of a vendor call that hands back a kernel address (`obj_addr`). The driver follows it unchecked,
/// so a wrong one harms the kernel, not this process's memory: [`Object`](crate::buffer) keeps the address
/// beside the handle it came with, and nobody else makes one.
macro_rules! object {
    ($name:ident($type:ty)) => {
        pub(crate) fn $name(fd: BorrowedFd<'_>, args: &mut $type) -> Result<(), Errno> {
            // SAFETY: as for the plain calls; the kernel address in the struct is one that this descriptor's
            // MEM_CREATE gave for an object that is alive, which the callers in `buffer` and `device` see to.
            // User memory is touched in the struct only.
            unsafe { raw::$name(fd.as_raw_fd(), args) }.map(drop)
        }
    };
}

object!(drm_submit(vendor::rknpu_submit));
object!(drm_destroy(vendor::rknpu_mem_destroy));
object!(drm_sync(vendor::rknpu_mem_sync));
object!(heap_submit(vendor::rknpu_submit));
object!(heap_destroy(vendor::rknpu_mem_destroy));
object!(heap_sync(vendor::rknpu_mem_sync));

/// Name and version of a DRM node's driver. A node that is no DRM node gives an error or an empty name: the
/// DMA-heap build of the vendor's driver looks at the request's number alone, takes this call for an action
/// and succeeds.
pub(crate) fn drm_version(fd: BorrowedFd<'_>) -> Result<DriverVersion, Errno> {
    let (mut name, mut date, mut description) = ([0u8; 64], [0u8; 64], [0u8; 128]);
    let mut args = drm::drm_version {
        name_len: name.len() as u64,
        name: name.as_mut_ptr() as u64,
        date_len: date.len() as u64,
        date: date.as_mut_ptr() as u64,
        desc_len: description.len() as u64,
        desc: description.as_mut_ptr() as u64,
        ..drm::drm_version::default()
    };
    // SAFETY: the descriptor is open for the call and the struct as long as the request says. The three
    // addresses are those of arrays that live until after the call and that nothing else uses meanwhile; the
    // kernel writes at most the length given beside each.
    unsafe { raw::drm_version(fd.as_raw_fd(), &mut args) }?;
    Ok(DriverVersion {
        name: text(&name, args.name_len),
        major: args.version_major.try_into().unwrap_or(0),
        minor: args.version_minor.try_into().unwrap_or(0),
        patch: args.version_patchlevel.try_into().unwrap_or(0),
        date: text(&date, args.date_len),
        description: text(&description, args.desc_len),
    })
}

/// The text the kernel wrote: `len` is what it has, which may be more than fits.
fn text(bytes: &[u8], len: u64) -> String {
    let len = usize::try_from(len).unwrap_or(usize::MAX).min(bytes.len());
    let bytes = bytes[..len].split(|&byte| byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(bytes).into_owned()
}

/// `DMA_BUF_SYNC_READ | DMA_BUF_SYNC_WRITE` with `DMA_BUF_SYNC_START`: the CPU begins to read and write.
pub(crate) const DMA_BUF_SYNC_START: u64 = 3;
/// The same with `DMA_BUF_SYNC_END`: the CPU is done.
pub(crate) const DMA_BUF_SYNC_END: u64 = 3 | 1 << 2;

/// `DMA_BUF_IOCTL_SYNC`: brackets CPU access to another's memory. A descriptor that is no dma-buf (`ENOTTY`,
/// as a model of a kernel may hand out; `ENOSYS` where an emulator translates requests, and knows none on it) needs
/// no such bracket. A kernel that has dma-bufs has this request.
pub(crate) fn dma_buf_sync(fd: BorrowedFd<'_>, flags: u64) -> Result<(), Errno> {
    let sync = || {
        // SAFETY: the descriptor is open for the call (it is borrowed); the struct is one u64 of flags, which
        // the kernel only reads.
        unsafe { raw::dma_buf_sync(fd.as_raw_fd(), &flags) }.map(drop)
    };
    match retry(sync) {
        Err(Errno::ENOTTY | Errno::ENOSYS) => Ok(()),
        result => result,
    }
}

/// Queues one job on rocket.
pub(crate) fn rocket_submit(
    fd: BorrowedFd<'_>,
    tasks: &[rk::drm_rocket_task],
    in_handles: &[u32],
    out_handles: &[u32],
) -> Result<(), Errno> {
    let count = |len: usize| u32::try_from(len).map_err(|_| Errno::E2BIG);
    let job = rk::drm_rocket_job {
        tasks: tasks.as_ptr() as u64,
        in_bo_handles: in_handles.as_ptr() as u64,
        out_bo_handles: out_handles.as_ptr() as u64,
        task_count: count(tasks.len())?,
        task_struct_size: size_of::<rk::drm_rocket_task>() as u32,
        in_bo_handle_count: count(in_handles.len())?,
        out_bo_handle_count: count(out_handles.len())?,
    };
    let args = rk::drm_rocket_submit {
        jobs: (&raw const job) as u64,
        job_count: 1,
        job_struct_size: size_of::<rk::drm_rocket_job>() as u32,
        reserved: 0,
    };
    // SAFETY: the descriptor is open for the call and the struct as long as the request says. `jobs` is the
    // address of one job struct, and the job's three addresses are those of slices with the counts beside
    // them; all outlive the call, in which the kernel copies them and writes none.
    unsafe { raw::submit(fd.as_raw_fd(), &args) }.map(drop)
}

/// A descriptor for a handle's memory.
fn export(fd: BorrowedFd<'_>, handle: u32) -> Result<OwnedFd, Errno> {
    let mut args = drm::drm_prime_handle { handle, flags: drm::DRM_CLOEXEC | drm::DRM_RDWR, fd: -1 };
    prime_handle_to_fd(fd, &mut args)?;
    adopt(args.fd)
}

/// Takes over a descriptor that the kernel has just made for this process.
fn adopt(fd: i32) -> Result<OwnedFd, Errno> {
    if fd < 0 {
        return Err(Errno::EBADF);
    }
    // SAFETY: the kernel gave this number as a new descriptor in the call that just returned, and nobody else
    // has been told of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interrupted_calls_are_repeated_with_a_bound() {
        let mut calls = 0;
        let third = retry(|| {
            calls += 1;
            if calls < 3 { Err(Errno::EINTR) } else { Ok(calls) }
        });
        assert_eq!(third, Ok(3));
        let mut calls = 0;
        let never: Result<(), Errno> = retry(|| {
            calls += 1;
            Err(Errno::EAGAIN)
        });
        assert_eq!((never, calls), (Err(Errno::EAGAIN), TRIES));
        let mut calls = 0;
        let other: Result<(), Errno> = retry(|| {
            calls += 1;
            Err(Errno::EINVAL)
        });
        assert_eq!((other, calls), (Err(Errno::EINVAL), 1));
    }

    #[test]
    fn a_file_that_is_no_device_is_told_by_its_errno() {
        let file = open(Path::new("/dev/null")).unwrap();
        assert_eq!(drm_version(std::os::fd::AsFd::as_fd(&file)), Err(Errno::ENOTTY));
        assert_eq!(open(Path::new("/dev/no such node")).unwrap_err(), Errno::ENOENT);
    }

    #[test]
    fn text_ends_where_the_kernel_says_or_at_a_zero() {
        assert_eq!(text(b"rknpu\0\0\0", 5), "rknpu");
        assert_eq!(text(b"rknpu\0\0\0", 8), "rknpu");
        assert_eq!(text(b"rk", 9000), "rk");
    }
}
