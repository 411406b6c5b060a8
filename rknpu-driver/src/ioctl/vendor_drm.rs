//! The vendor driver's DRM build: `/dev/dri/renderD*`.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use nix::errno::Errno;

use crate::buffer::Mapping;
use crate::uapi::{DriverVersion, NodeDescription, VendorKernel, drm, vendor};

/// An open render node of the vendor's driver.
#[derive(Debug)]
pub(crate) struct VendorDrmNode {
    path: PathBuf,
    fd: OwnedFd,
}

impl VendorDrmNode {
    pub(crate) fn new(path: PathBuf, fd: OwnedFd) -> Self {
        Self { path, fd }
    }
}

impl VendorKernel for VendorDrmNode {
    fn describe(&self) -> NodeDescription {
        NodeDescription { node: Some(self.path.clone()), simulated: false }
    }

    fn version(&self) -> Result<DriverVersion, Errno> {
        super::drm_version(self.fd.as_fd())
    }

    fn action(&self, args: &mut vendor::rknpu_action) -> Result<(), Errno> {
        super::drm_action(self.fd.as_fd(), args)
    }

    fn mem_create(&self, args: &mut vendor::rknpu_mem_create) -> Result<(), Errno> {
        super::drm_create(self.fd.as_fd(), args)
    }

    fn mem_map(&self, args: &mut vendor::rknpu_mem_map) -> Result<(), Errno> {
        super::drm_map(self.fd.as_fd(), args)
    }

    fn mem_destroy(&self, args: &mut vendor::rknpu_mem_destroy) -> Result<(), Errno> {
        super::drm_destroy(self.fd.as_fd(), args)
    }

    fn mem_sync(&self, args: &mut vendor::rknpu_mem_sync) -> Result<(), Errno> {
        super::drm_sync(self.fd.as_fd(), args)
    }

    fn submit(&self, args: &mut vendor::rknpu_submit) -> Result<(), Errno> {
        super::drm_submit(self.fd.as_fd(), args)
    }

    fn mmap(&self, offset: u64, len: usize) -> Result<Mapping, Errno> {
        Mapping::shared(self.fd.as_fd(), offset, len)
    }

    fn export_dma_buf(&self, handle: u32) -> Result<OwnedFd, Errno> {
        super::export(self.fd.as_fd(), handle)
    }

    fn import_dma_buf(&self, fd: BorrowedFd<'_>) -> Result<u32, Errno> {
        let mut args = drm::drm_prime_handle { handle: 0, flags: 0, fd: fd.as_raw_fd() };
        super::prime_fd_to_handle(self.fd.as_fd(), &mut args)?;
        Ok(args.handle)
    }

    fn reopen(&self) -> Result<Arc<dyn VendorKernel>, Errno> {
        let fd = super::open(&self.path)?;
        Ok(Arc::new(Self { path: self.path.clone(), fd }))
    }
}
