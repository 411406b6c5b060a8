//! Memory of other devices and processes.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;

use super::allocate::{self, Made, PAGE, Purpose, Request};
use super::link::{Kernel, Link, is_unsupported};
use super::{Device, DomainId};
use crate::buffer::object::{Caching, Object};
use crate::buffer::{Buffer, BufferKind, Mapping};
use crate::error::{AllocateError, ShareError};
use crate::ioctl::retry;
use crate::uapi::vendor;

impl Device {
    /// A buffer over the first `bytes` bytes of another's dma-buf.
    ///
    /// # Errors
    /// [`ShareError`]: not with this interface, too short, the device's own memory, or a call failed.
    ///
    /// # Safety
    /// While a guard of the buffer lives, and for ever once it is sealed, nobody outside this device writes
    /// the memory; while a [`WriteGuard`](crate::buffer::WriteGuard) lives nobody reads it. The exporter must
    /// keep its length.
    #[expect(unsafe_code, reason = "unsafe to call: others may write the memory; no block here")]
    pub unsafe fn import(
        &self,
        domain: DomainId,
        fd: BorrowedFd<'_>,
        bytes: usize,
    ) -> Result<Buffer, ShareError> {
        let request =
            Request { domain, bytes, purpose: Purpose::Buffer(BufferKind::Data), iommu: self.0.iommu };
        let link = self.link(domain).ok_or(ShareError::Memory(AllocateError::Domain(domain)))?;
        // Rocket gives imported memory no address on the NPU's bus: only CREATE_BO does, and that makes new
        // memory.
        let Kernel::Vendor(kernel) = &link.kernel else {
            return Err(ShareError::Unsupported { interface: "rocket", what: "import" });
        };
        let exporter = File::from(fd.try_clone_to_owned().map_err(|error| system("dup", &error))?);
        let len = (&exporter).seek(SeekFrom::End(0)).map_err(|error| system("lseek", &error))?;
        if bytes == 0 || len < bytes as u64 {
            return Err(ShareError::Memory(AllocateError::Size(bytes)));
        }
        let mapped = bytes.next_multiple_of(PAGE);
        // Mapped through its own descriptor: DRM gives no offset for objects that were imported.
        let mapping = Mapping::shared(exporter.as_fd(), 0, mapped)
            .map_err(|source| ShareError::Call { call: "mmap", source })?;
        let handle = retry(|| kernel.import_dma_buf(fd))
            .map_err(|errno| failed(&link, "DRM_IOCTL_PRIME_FD_TO_HANDLE", errno))?;
        if !link.claim(handle) {
            return Err(ShareError::Memory(AllocateError::LiveHandle { handle }));
        }
        let mut args = vendor::rknpu_mem_create {
            // With a live handle MEM_CREATE makes nothing: it tells the addresses of what was imported.
            handle,
            flags: allocate::vendor_flags(request),
            size: mapped as u64,
            iommu_domain_id: i32::from(domain.0),
            ..vendor::rknpu_mem_create::default()
        };
        let found = retry(|| kernel.mem_create(&mut args));
        // What was imported has no CACHEABLE flag, so MEM_SYNC would refuse it: its exporter keeps caches in
        // order.
        let caching = Caching::Exporter(exporter.into());
        let object = Object { link: link.clone(), handle, obj_addr: args.obj_addr, caching };
        found.map_err(|errno| failed(&link, "RKNPU_MEM_CREATE", errno))?;
        let made = Made { object, address: args.dma_addr, bytes: args.size, mapping };
        allocate::assemble(made, request).map_err(ShareError::Memory)
    }
}

fn system(call: &'static str, error: &std::io::Error) -> ShareError {
    ShareError::Call { call, source: error.raw_os_error().map_or(Errno::EIO, Errno::from_raw) }
}

fn failed(link: &Link, call: &'static str, errno: Errno) -> ShareError {
    let source = link.note(errno);
    if is_unsupported(source) {
        ShareError::Unsupported { interface: "rknpu", what: "import" }
    } else {
        ShareError::Call { call, source }
    }
}
