//! Requests: what DRM does before and after a driver's function, and the functions' numbers.

use std::ffi::c_int;
use std::os::fd::BorrowedFd;

use rknpu_driver::sim::kernel::{RocketFile, VendorFile};
use rknpu_driver::uapi::drm::*;
use rknpu_driver::uapi::rocket::*;
use rknpu_driver::uapi::vendor::*;
use rknpu_driver::uapi::{DriverVersion, Errno, IOC_READ, IOC_WRITE, RocketKernel, VendorKernel};

use crate::calls::hand_out;
use crate::process::{Open, process};

/// `DRM_IOCTL_GET_CAP`'s struct.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct drm_get_cap {
    capability: u64,
    value: u64,
}

const DRM_IOCTL_GET_CAP: u32 = 0xc010_640c;
const DRM_CAP_PRIME: u64 = 5;
/// Both import and export.
const DRM_PRIME_CAP_BOTH: u64 = 3;
const DRM_CAP_TIMESTAMP_MONOTONIC: u64 = 6;
const DRM_CAP_SYNCOBJ: u64 = 0x13;
const DRM_CAP_SYNCOBJ_TIMELINE: u64 = 0x14;
/// `DMA_BUF_IOCTL_SYNC`, the one request of a dma-buf that needs an answer: memory here is coherent.
const DMA_BUF_IOCTL_SYNC: u32 = 0x4008_6200;
/// The kernel refuses lists of this length for want of memory.
const MOST_JOBS: u32 = 1 << 16;

/// The struct of a request: integers only, without padding, so that any bytes are a value and a value is bytes.
trait Plain: Copy + Default {}
impl Plain for rknpu_action {}
impl Plain for rknpu_submit {}
impl Plain for rknpu_mem_create {}
impl Plain for rknpu_mem_map {}
impl Plain for rknpu_mem_destroy {}
impl Plain for rknpu_mem_sync {}
impl Plain for drm_rocket_create_bo {}
impl Plain for drm_rocket_submit {}
impl Plain for drm_rocket_prep_bo {}
impl Plain for drm_rocket_fini_bo {}
impl Plain for drm_rocket_job {}
impl Plain for drm_rocket_task {}
impl Plain for u32 {}
impl Plain for drm_version {}
impl Plain for drm_get_cap {}
impl Plain for drm_gem_close {}
impl Plain for drm_prime_handle {}

fn bytes_of<T: Plain>(value: &mut T) -> &mut [u8] {
    // SAFETY: `Plain` types are integers without padding: all their bytes are initialised, and any bytes are a value.
    unsafe { std::slice::from_raw_parts_mut(std::ptr::from_mut(value).cast(), size_of::<T>()) }
}

/// One request and its argument.
#[derive(Clone, Copy)]
struct Request {
    number: u32,
    argument: u64,
}

/// Answers a request on one of the library's descriptors.
///
/// # Safety
/// `argument` is what the caller of `ioctl` gave for this request: the bytes that the request's number says the kernel writes are the kernel's to write
/// while the call lasts.
pub(crate) unsafe fn handle(open: &Open, number: u32, argument: u64) -> Result<c_int, Errno> {
    let request = Request { number, argument };
    let group = (number >> 8) as u8;
    match open {
        Open::DmaBuf if number == DMA_BUF_IOCTL_SYNC => Ok(0),
        Open::DmaBuf => Err(Errno::ENOTTY),
        _ if group != DRM_IOCTL_BASE => Err(Errno::ENOTTY),
        Open::Vendor(file) => request.vendor(file),
        Open::Rocket(file) => request.rocket(file),
    }
}

impl Request {
    fn vendor(self, file: &VendorFile) -> Result<c_int, Errno> {
        match self.function() {
            0x40 => self.call(DRM_IOCTL_RKNPU_ACTION, |args| file.action(args)),
            0x41 => self.call(DRM_IOCTL_RKNPU_SUBMIT, |args| file.submit(args)),
            0x42 => self.call(DRM_IOCTL_RKNPU_MEM_CREATE, |args| file.mem_create(args)),
            0x43 => self.call(DRM_IOCTL_RKNPU_MEM_MAP, |args| file.mem_map(args)),
            0x44 => self.call(DRM_IOCTL_RKNPU_MEM_DESTROY, |args| file.mem_destroy(args)),
            0x45 => self.call(DRM_IOCTL_RKNPU_MEM_SYNC, |args| file.mem_sync(args)),
            0x00 => self.version(file.version()?),
            0x09 => self.call(DRM_IOCTL_GEM_CLOSE, |args: &mut drm_gem_close| file.gem_close(args.handle)),
            0x0c => self.call(DRM_IOCTL_GET_CAP, capability),
            0x2d => self.call(DRM_IOCTL_PRIME_HANDLE_TO_FD, |args| {
                export(args, |handle| file.export_dma_buf(handle))
            }),
            0x2e => {
                self.call(DRM_IOCTL_PRIME_FD_TO_HANDLE, |args| import(args, |fd| file.import_dma_buf(fd)))
            }
            // The other requests of DRM's own are not for render nodes.
            0x01..0x40 => Err(Errno::EACCES),
            _ => Err(Errno::EINVAL),
        }
    }

    fn rocket(self, file: &RocketFile) -> Result<c_int, Errno> {
        match self.function() {
            0x40 => self.call(DRM_IOCTL_ROCKET_CREATE_BO, |args| file.create_bo(args)),
            0x41 => self.call(DRM_IOCTL_ROCKET_SUBMIT, |args| submit(file, args)),
            0x42 => self.call(DRM_IOCTL_ROCKET_PREP_BO, |args| file.prep_bo(args)),
            0x43 => self.call(DRM_IOCTL_ROCKET_FINI_BO, |args| file.fini_bo(args)),
            0x00 => self.version(file.version()?),
            0x09 => self.call(DRM_IOCTL_GEM_CLOSE, |args: &mut drm_gem_close| file.gem_close(args.handle)),
            0x0c => self.call(DRM_IOCTL_GET_CAP, capability),
            0x2d => self.call(DRM_IOCTL_PRIME_HANDLE_TO_FD, |args| {
                export(args, |handle| file.export_dma_buf(handle))
            }),
            0x2e => {
                self.call(DRM_IOCTL_PRIME_FD_TO_HANDLE, |args| import(args, |fd| file.import_dma_buf(fd)))
            }
            _ => Err(Errno::EINVAL),
        }
    }

    fn function(self) -> u32 {
        self.number & 0xff
    }

    /// Calls a driver's function the way DRM does: the caller's number says how many bytes are copied in and out, the driver's own in which directions;
    /// what the caller leaves out is zero; bytes go out even where the function failed.
    fn call<T: Plain>(
        self,
        known: u32,
        function: impl FnOnce(&mut T) -> Result<(), Errno>,
    ) -> Result<c_int, Errno> {
        let user = process().user()?;
        let size = (self.number >> 16 & 0x3fff) as usize;
        let copied = |direction: u32| if self.number & known & direction << 30 != 0 { size } else { 0 };
        let mut args = T::default();
        let mut bytes = vec![0; size.max(size_of::<T>())];
        user.copy_from(self.argument, &mut bytes[..copied(IOC_WRITE)])?;
        bytes_of(&mut args).copy_from_slice(&bytes[..size_of::<T>()]);
        let result = function(&mut args);
        bytes[..size_of::<T>()].copy_from_slice(bytes_of(&mut args));
        // SAFETY: `handle`'s contract: the number says that this many bytes are written there.
        unsafe { user.copy_to(self.argument, &bytes[..copied(IOC_READ)]) }?;
        result.map(|()| 0)
    }

    fn version(self, version: DriverVersion) -> Result<c_int, Errno> {
        self.call(DRM_IOCTL_VERSION, |args: &mut drm_version| {
            args.version_major = version.major as i32;
            args.version_minor = version.minor as i32;
            args.version_patchlevel = version.patch as i32;
            put_text(&version.name, args.name, &mut args.name_len)?;
            put_text(&version.date, args.date, &mut args.date_len)?;
            put_text(&version.description, args.desc, &mut args.desc_len)
        })
    }
}

/// As much of the text as there is room for, without a NUL; the length it would need.
fn put_text(text: &str, to: u64, length: &mut u64) -> Result<(), Errno> {
    let room = usize::try_from(*length).unwrap_or(usize::MAX).min(text.len());
    *length = text.len() as u64;
    if to == 0 {
        return Ok(());
    }
    // SAFETY: `handle`'s contract: the request's struct names this buffer for this text.
    unsafe { process().user()?.copy_to(to, &text.as_bytes()[..room]) }
}

fn capability(args: &mut drm_get_cap) -> Result<(), Errno> {
    args.value = match args.capability {
        DRM_CAP_PRIME => DRM_PRIME_CAP_BOTH,
        DRM_CAP_TIMESTAMP_MONOTONIC => 1,
        DRM_CAP_SYNCOBJ | DRM_CAP_SYNCOBJ_TIMELINE => 0,
        // All others are those of displays.
        _ => return Err(Errno::EOPNOTSUPP),
    };
    Ok(())
}

fn export(
    args: &mut drm_prime_handle,
    export: impl FnOnce(u32) -> Result<std::os::fd::OwnedFd, Errno>,
) -> Result<(), Errno> {
    if args.flags & !(DRM_CLOEXEC | DRM_RDWR) != 0 {
        return Err(Errno::EINVAL);
    }
    args.fd = hand_out(export(args.handle)?, args.flags & DRM_CLOEXEC != 0)?;
    Ok(())
}

fn import(
    args: &mut drm_prime_handle,
    import: impl FnOnce(BorrowedFd<'_>) -> Result<u32, Errno>,
) -> Result<(), Errno> {
    if args.fd < 0 {
        return Err(Errno::EBADF);
    }
    // SAFETY: only asked about, and only now: a number that is closed meanwhile, or never was open, gives an error.
    let fd = unsafe { BorrowedFd::borrow_raw(args.fd) };
    args.handle = import(fd)?;
    Ok(())
}

/// `DRM_IOCTL_ROCKET_SUBMIT` over the caller's lists. What is wrong with the list of jobs fails the call; what is wrong with a job is passed over.
fn submit(file: &RocketFile, args: &mut drm_rocket_submit) -> Result<(), Errno> {
    if args.job_count == 0 {
        return Ok(());
    }
    if (args.job_struct_size as usize) < size_of::<drm_rocket_job>() || args.reserved != 0 {
        return Err(Errno::EINVAL);
    }
    let jobs: Vec<drm_rocket_job> = list(args.jobs, args.job_count, args.job_struct_size)?;
    for job in jobs {
        if submit_job(file, &job) == Err(Errno::ENODEV) {
            return Err(Errno::ENODEV);
        }
    }
    Ok(())
}

fn submit_job(file: &RocketFile, job: &drm_rocket_job) -> Result<(), Errno> {
    if (job.task_struct_size as usize) < size_of::<drm_rocket_task>() {
        return Err(Errno::EINVAL);
    }
    let tasks: Vec<drm_rocket_task> = list(job.tasks, job.task_count, job.task_struct_size)?;
    let reads: Vec<u32> = list(job.in_bo_handles, job.in_bo_handle_count, 4)?;
    let writes: Vec<u32> = list(job.out_bo_handles, job.out_bo_handle_count, 4)?;
    file.submit(&tasks, &reads, &writes)
}

/// The caller's list of structs, each at the start of `stride` bytes.
fn list<T: Plain>(at: u64, count: u32, stride: u32) -> Result<Vec<T>, Errno> {
    if count > MOST_JOBS {
        return Err(Errno::ENOMEM);
    }
    let user = process().user()?;
    let stride = stride as usize;
    if stride == size_of::<T>() {
        let mut bytes = vec![0; count as usize * stride];
        user.copy_from(at, &mut bytes)?;
        return Ok(bytes.chunks_exact(stride).map(value).collect());
    }
    let mut bytes = vec![0; size_of::<T>()];
    let each = |index: u32| {
        user.copy_from(at.wrapping_add(u64::from(index) * stride as u64), &mut bytes)?;
        Ok(value(&bytes))
    };
    (0..count).map(each).collect()
}

fn value<T: Plain>(bytes: &[u8]) -> T {
    let mut value = T::default();
    bytes_of(&mut value).copy_from_slice(bytes);
    value
}
