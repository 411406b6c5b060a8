//! Making buffers.

use std::sync::Arc;

use nix::errno::Errno;

use super::DomainId;
use super::link::{Kernel, Link, is_gone};
use crate::buffer::object::{Caching, Object};
use crate::buffer::{Buffer, BufferKind, Inner, Mapping, Place};
use crate::error::{AllocateError, SyncError};
use crate::ioctl::retry;
use crate::uapi::{rocket, vendor};

/// Pages of both kernels as far as this code relies on them.
pub(crate) const PAGE: usize = 4096;
/// Addresses of the NPU have 32 bits.
pub(crate) const SPACE_BYTES: u64 = 1 << 32;

/// What the memory is for, the driver's own uses included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Someone's buffer.
    Buffer(BufferKind),
    /// Task objects, which the vendor's driver reads with the CPU.
    Tasks,
    /// The page that keeps address 0 from being anyone's.
    Scratch,
}

/// Where and how to allocate.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    pub(crate) domain: DomainId,
    pub(crate) bytes: usize,
    pub(crate) purpose: Purpose,
    /// Whether the vendor's device sits behind its IOMMU.
    pub(crate) iommu: bool,
}

/// Makes a buffer.
pub(crate) fn allocate(link: &Arc<Link>, request: Request) -> Result<Buffer, AllocateError> {
    let Request { bytes, .. } = request;
    if bytes == 0 || bytes as u64 > SPACE_BYTES - PAGE as u64 {
        return Err(AllocateError::Size(bytes));
    }
    let made = match &link.kernel {
        Kernel::Vendor(_) => vendor_object(link, request)?,
        Kernel::Rocket(_) => rocket_object(link, request)?,
    };
    let buffer = assemble(made, request)?;
    if let (Kernel::Vendor(_), Caching::Cached) = (&link.kernel, &buffer.0.object.caching) {
        // With LIMIT_IOVA_ALIGNMENT the driver maps the pages into the IOMMU without cleaning them. Their
        // zeroes may still sit in the CPU's caches, and would one day be written over what the device wrote
        // (source-read, not seen on a board).
        let cleaned = buffer.0.object.end_access(&(0..bytes));
        cleaned.map_err(|error| match error {
            SyncError::Call { call, source } => failed(link, call, request, source),
            SyncError::Gone
            | SyncError::Range { .. }
            | SyncError::Busy { .. }
            | SyncError::Sealed
            | SyncError::Quarantined => AllocateError::Gone,
        })?;
    }
    Ok(buffer)
}

/// A kernel object before it is a buffer.
pub(crate) struct Made {
    pub(crate) object: Object,
    /// Where it lies on the NPU's bus.
    pub(crate) address: u64,
    /// Bytes that the kernel says it has.
    pub(crate) bytes: u64,
    pub(crate) mapping: Mapping,
}

/// The vendor's flags for a purpose.
pub(crate) fn vendor_flags(request: Request) -> u32 {
    // Without an IOMMU memory must be contiguous (the DRM build quietly makes it so, the DMA-heap build
    // refuses the flag) and lie below 4 GB, as the NPU's addresses have 32 bits.
    let place = if request.iommu {
        vendor::RKNPU_MEM_NON_CONTIGUOUS
            | vendor::RKNPU_MEM_IOMMU
            | vendor::RKNPU_MEM_IOMMU_LIMIT_IOVA_ALIGNMENT
    } else {
        vendor::RKNPU_MEM_DMA32
    };
    // All memory is cacheable. For task objects that is a must: the driver reads them through a cached
    // mapping of its own (KERNEL_MAPPING), which would not see what an uncached mapping writes. SRAM is only
    // synced by kernels built with NO_GKI, as board kernels are.
    let extra = match request.purpose {
        Purpose::Tasks => vendor::RKNPU_MEM_KERNEL_MAPPING,
        Purpose::Buffer(BufferKind::Sram) => vendor::RKNPU_MEM_TRY_ALLOC_SRAM,
        Purpose::Buffer(BufferKind::Data | BufferKind::Commands) | Purpose::Scratch => 0,
    };
    place | vendor::RKNPU_MEM_CACHEABLE | extra
}

fn vendor_object(link: &Arc<Link>, request: Request) -> Result<Made, AllocateError> {
    let Kernel::Vendor(kernel) = &link.kernel else { return Err(AllocateError::Domain(request.domain)) };
    let mut args = vendor::rknpu_mem_create {
        // A live handle here would make nothing and return its object.
        handle: 0,
        flags: vendor_flags(request),
        size: request.bytes.next_multiple_of(PAGE) as u64,
        iommu_domain_id: i32::from(request.domain.0),
        ..vendor::rknpu_mem_create::default()
    };
    retry(|| kernel.mem_create(&mut args))
        .map_err(|errno| failed(link, "RKNPU_MEM_CREATE", request, errno))?;
    if !link.claim(args.handle) {
        return Err(AllocateError::LiveHandle { handle: args.handle });
    }
    let caching = if request.purpose == Purpose::Tasks { Caching::CpuOnly } else { Caching::Cached };
    // From here on dropping the object gives the memory back.
    let object = Object { link: link.clone(), handle: args.handle, obj_addr: args.obj_addr, caching };
    let mapping = vendor_mapping(link, &object, request)?;
    Ok(Made { object, address: args.dma_addr, bytes: args.size, mapping })
}

fn vendor_mapping(link: &Link, object: &Object, request: Request) -> Result<Mapping, AllocateError> {
    let Kernel::Vendor(kernel) = &link.kernel else { return Err(AllocateError::Domain(request.domain)) };
    let mut map = vendor::rknpu_mem_map { handle: object.handle, ..vendor::rknpu_mem_map::default() };
    retry(|| kernel.mem_map(&mut map)).map_err(|errno| failed(link, "RKNPU_MEM_MAP", request, errno))?;
    let len = request.bytes.next_multiple_of(PAGE);
    retry(|| kernel.mmap(map.offset, len)).map_err(|errno| failed(link, "mmap", request, errno))
}

fn rocket_object(link: &Arc<Link>, request: Request) -> Result<Made, AllocateError> {
    let Kernel::Rocket(kernel) = &link.kernel else { return Err(AllocateError::Domain(request.domain)) };
    let len = request.bytes.next_multiple_of(PAGE);
    let size = u32::try_from(len).map_err(|_| AllocateError::Size(request.bytes))?;
    let mut args = rocket::drm_rocket_create_bo { size, ..rocket::drm_rocket_create_bo::default() };
    let created = retry(|| kernel.create_bo(&mut args));
    created.map_err(|errno| failed(link, "DRM_IOCTL_ROCKET_CREATE_BO", request, errno))?;
    if !link.claim(args.handle) {
        return Err(AllocateError::LiveHandle { handle: args.handle });
    }
    let object = Object { link: link.clone(), handle: args.handle, obj_addr: 0, caching: Caching::Cached };
    let mapped = retry(|| kernel.mmap(args.offset, len));
    let mapping = mapped.map_err(|errno| failed(link, "mmap", request, errno))?;
    Ok(Made { object, address: args.dma_address, bytes: u64::from(size), mapping })
}

/// A buffer of a kernel object, if the NPU can use it.
pub(crate) fn assemble(made: Made, request: Request) -> Result<Buffer, AllocateError> {
    let Made { object, address, bytes, mapping } = made;
    let unusable = AllocateError::Address { bytes, address };
    let end = address.checked_add(bytes).ok_or(unusable)?;
    let iova = u32::try_from(address).map_err(|_| unusable)?;
    if end > SPACE_BYTES || bytes < request.bytes as u64 || mapping.len() < request.bytes {
        return Err(unusable);
    }
    let (kind, counted) = match request.purpose {
        Purpose::Buffer(kind) => (kind, true),
        Purpose::Tasks | Purpose::Scratch => (BufferKind::Data, false),
    };
    let place = Place { iova, len: request.bytes, domain: request.domain, kind, counted };
    Ok(Buffer(Arc::new(Inner::new(object, mapping, place))))
}

fn failed(link: &Link, call: &'static str, request: Request, errno: Errno) -> AllocateError {
    let Request { bytes, domain, .. } = request;
    let source = link.note(errno);
    if is_gone(source) {
        AllocateError::Gone
    } else if matches!(source, Errno::ENOMEM | Errno::ENOSPC) {
        AllocateError::NoMemory { bytes, domain, source }
    } else {
        AllocateError::Call { call, bytes, domain, source }
    }
}
