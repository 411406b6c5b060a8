//! Mainline's driver: `/dev/accel/accel*`.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use nix::errno::Errno;

use crate::buffer::Mapping;
use crate::uapi::{DriverVersion, NodeDescription, RocketKernel, drm, rocket};

/// One open descriptor of an accel node: one address space, one queue.
#[derive(Debug)]
pub(crate) struct RocketNode {
    path: PathBuf,
    fd: OwnedFd,
}

impl RocketNode {
    pub(crate) fn new(path: PathBuf, fd: OwnedFd) -> Self {
        Self { path, fd }
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl RocketKernel for RocketNode {
    fn describe(&self) -> NodeDescription {
        NodeDescription { node: Some(self.path.clone()), simulated: false }
    }

    fn version(&self) -> Result<DriverVersion, Errno> {
        super::drm_version(self.fd())
    }

    fn create_bo(&self, args: &mut rocket::drm_rocket_create_bo) -> Result<(), Errno> {
        super::create_bo(self.fd(), args)
    }

    fn submit(
        &self,
        tasks: &[rocket::drm_rocket_task],
        in_handles: &[u32],
        out_handles: &[u32],
    ) -> Result<(), Errno> {
        super::rocket_submit(self.fd(), tasks, in_handles, out_handles)
    }

    fn prep_bo(&self, args: &mut rocket::drm_rocket_prep_bo) -> Result<(), Errno> {
        super::prep_bo(self.fd(), args)
    }

    fn fini_bo(&self, args: &mut rocket::drm_rocket_fini_bo) -> Result<(), Errno> {
        super::fini_bo(self.fd(), args)
    }

    fn gem_close(&self, handle: u32) -> Result<(), Errno> {
        super::gem_close(self.fd(), &drm::drm_gem_close { handle, pad: 0 })
    }

    fn mmap(&self, offset: u64, len: usize) -> Result<Mapping, Errno> {
        Mapping::shared(self.fd(), offset, len)
    }

    fn export_dma_buf(&self, handle: u32) -> Result<OwnedFd, Errno> {
        super::export(self.fd(), handle)
    }

    fn reopen(&self) -> Result<Arc<dyn RocketKernel>, Errno> {
        let fd = super::open(&self.path)?;
        Ok(Arc::new(Self { path: self.path.clone(), fd }))
    }
}
