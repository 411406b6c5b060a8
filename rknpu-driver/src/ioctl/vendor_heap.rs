//! The vendor driver's DMA-heap build: `/dev/rknpu`.
//!
//! Handles are dma-buf descriptors of this process, memory is mapped through them, and there is no IOMMU
//! behind it: memory is physically contiguous, and `NON_CONTIGUOUS` is refused.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;

use crate::buffer::Mapping;
use crate::uapi::{DriverVersion, NodeDescription, VendorKernel, vendor};

/// An open `/dev/rknpu`.
#[derive(Debug)]
pub(crate) struct VendorHeapNode {
    path: PathBuf,
    fd: OwnedFd,
    /// The dma-bufs behind the handles: the kernel leaves closing them to the process.
    memory: Mutex<HashMap<u32, OwnedFd>>,
}

impl VendorHeapNode {
    pub(crate) fn new(path: PathBuf, fd: OwnedFd) -> Self {
        Self { path, fd, memory: Mutex::default() }
    }

    fn memory(&self) -> MutexGuard<'_, HashMap<u32, OwnedFd>> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl VendorKernel for VendorHeapNode {
    fn describe(&self) -> NodeDescription {
        NodeDescription { node: Some(self.path.clone()), simulated: false }
    }

    fn version(&self) -> Result<DriverVersion, Errno> {
        let mut args = vendor::rknpu_action { flags: vendor::RKNPU_GET_DRV_VERSION, value: 0 };
        super::heap_action(self.fd.as_fd(), &mut args)?;
        let code = args.value;
        Ok(DriverVersion {
            name: vendor::DRIVER_NAME.to_owned(),
            major: code / 10_000,
            minor: code / 100 % 100,
            patch: code % 100,
            description: "DMA-heap build".to_owned(),
            ..DriverVersion::default()
        })
    }

    fn action(&self, args: &mut vendor::rknpu_action) -> Result<(), Errno> {
        super::heap_action(self.fd.as_fd(), args)
    }

    fn mem_create(&self, args: &mut vendor::rknpu_mem_create) -> Result<(), Errno> {
        let made = args.handle == 0;
        super::heap_create(self.fd.as_fd(), args)?;
        if made {
            let fd = i32::try_from(args.handle).map_err(|_| Errno::EBADF)?;
            self.memory().insert(args.handle, super::adopt(fd)?);
        }
        Ok(())
    }

    fn mem_map(&self, args: &mut vendor::rknpu_mem_map) -> Result<(), Errno> {
        // This build has no such call: the memory is mapped through its own descriptor, which the offset
        // names for `mmap` below.
        if !self.memory().contains_key(&args.handle) {
            return Err(Errno::EINVAL);
        }
        args.offset = u64::from(args.handle) << 32;
        Ok(())
    }

    fn mem_destroy(&self, args: &mut vendor::rknpu_mem_destroy) -> Result<(), Errno> {
        let result = super::heap_destroy(self.fd.as_fd(), args);
        self.memory().remove(&args.handle);
        result
    }

    fn mem_sync(&self, args: &mut vendor::rknpu_mem_sync) -> Result<(), Errno> {
        super::heap_sync(self.fd.as_fd(), args)
    }

    fn submit(&self, args: &mut vendor::rknpu_submit) -> Result<(), Errno> {
        super::heap_submit(self.fd.as_fd(), args)
    }

    fn mmap(&self, offset: u64, len: usize) -> Result<Mapping, Errno> {
        let handle = u32::try_from(offset >> 32).map_err(|_| Errno::EINVAL)?;
        let memory = self.memory();
        let fd = memory.get(&handle).ok_or(Errno::EINVAL)?;
        Mapping::shared(fd.as_fd(), 0, len)
    }

    fn export_dma_buf(&self, handle: u32) -> Result<OwnedFd, Errno> {
        let memory = self.memory();
        duplicate(memory.get(&handle).ok_or(Errno::ENOENT)?.as_fd())
    }

    fn import_dma_buf(&self, fd: BorrowedFd<'_>) -> Result<u32, Errno> {
        let own = duplicate(fd)?;
        let handle = u32::try_from(own.as_raw_fd()).map_err(|_| Errno::EBADF)?;
        self.memory().insert(handle, own);
        Ok(handle)
    }

    fn reopen(&self) -> Result<Arc<dyn VendorKernel>, Errno> {
        let fd = super::open(&self.path)?;
        Ok(Arc::new(Self::new(self.path.clone(), fd)))
    }
}

fn duplicate(fd: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    fd.try_clone_to_owned().map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
}
