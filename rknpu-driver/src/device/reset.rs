//! Bringing a device back.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use nix::errno::Errno;

use super::allocate::{self, Purpose, Request};
use super::link::{Kernel, Link, lock};
use super::{DeviceInner, DomainId, Interface, Recovery};
use crate::error::{Fault, ResetError};
use crate::ioctl::retry;
use crate::uapi::{VendorKernel, vendor};

/// How long jobs that did not end in time get to end after all: the kernel resets the hardware on its own
/// after half a second.
const LAST_WAIT: Duration = Duration::from_secs(2);

/// Resets the device, once no thread of this process runs a job.
pub(super) fn reset(device: &DeviceInner) -> Result<Recovery, ResetError> {
    let _turns: Vec<_> = device.turns.iter().map(|turn| lock(turn)).collect();
    let recovery = match device.info.interface {
        Interface::Vendor => reset_vendor(device)?,
        Interface::Rocket => reset_rocket(device)?,
    };
    device.shared.clear_fault();
    device.shared.resets.fetch_add(1, Ordering::Relaxed);
    Ok(recovery)
}

/// The vendor's driver: the reset action stops all cores of the device, so no job is at work in any memory
/// afterwards. It is never skipped: where it fails the node is opened anew and must carry it out, since
/// closing a descriptor stops no job, nor do jobs keep their memory.
fn reset_vendor(device: &DeviceInner) -> Result<Recovery, ResetError> {
    let old = device.link(DomainId(0)).ok_or(ResetError::Silent { source: Errno::ENODEV })?;
    let Kernel::Vendor(kernel) = &old.kernel else {
        return Err(ResetError::Silent { source: Errno::ENODEV });
    };
    let reset = match act(&**kernel, vendor::RKNPU_ACT_RESET) {
        Ok(_) => match answers(device, &**kernel) {
            Ok(()) => {
                device.release_quarantine(None);
                return Ok(Recovery::Kept);
            }
            Err(errno) => errno,
        },
        Err(errno) => errno,
    };
    let fresh = retry(|| kernel.reopen()).map_err(|reopen| ResetError::Failed { reset, reopen })?;
    act(&*fresh, vendor::RKNPU_ACT_RESET).map_err(|reopen| ResetError::Failed { reset, reopen })?;
    answers(device, &*fresh).map_err(|source| ResetError::Silent { source })?;
    let link = Link::new(Kernel::Vendor(fresh), device.shared.clone());
    device.replace_links(|_| Some(link.clone()));
    device.release_quarantine(None);
    Ok(Recovery::BuffersLost)
}

fn act(kernel: &dyn VendorKernel, flags: u32) -> Result<u32, Errno> {
    let mut args = vendor::rknpu_action { flags, value: 0 };
    retry(|| kernel.action(&mut args)).map(|()| args.value)
}

/// Whether the hardware answers as it did when it was opened.
fn answers(device: &DeviceInner, kernel: &dyn VendorKernel) -> Result<(), Errno> {
    let version = act(kernel, vendor::RKNPU_GET_HW_VERSION)?;
    if Some(version) == device.info.hardware_version { Ok(()) } else { Err(Errno::EIO) }
}

/// Rocket: there is no reset to call; the kernel does it when a job's time is over. Domains whose jobs are
/// waited for in vain, and all that do not answer, get a new descriptor. The kernel's jobs hold the old one's
/// memory and address space until they are done, and may write until then: nobody learns when, so that
/// memory stays closed.
fn reset_rocket(device: &DeviceInner) -> Result<Recovery, ResetError> {
    let gone = device.shared.fault() == Some(Fault::Gone);
    let mut lost = false;
    for domain in &device.domains {
        let Some(old) = device.link(domain.id) else { continue };
        let Kernel::Rocket(kernel) = &old.kernel else { continue };
        let reset = match retry(|| kernel.version()) {
            Ok(_) if gone => Errno::ENODEV,
            Ok(_) if device.await_quarantined(domain.id, LAST_WAIT) => {
                device.release_quarantine(Some(domain.id));
                continue;
            }
            Ok(_) => Errno::ETIMEDOUT,
            Err(errno) => errno,
        };
        let fresh = retry(|| kernel.reopen()).map_err(|reopen| ResetError::Failed { reset, reopen })?;
        let silent = |source| ResetError::Silent { source };
        retry(|| fresh.version()).map_err(silent)?;
        let link = Link::new(Kernel::Rocket(fresh), device.shared.clone());
        let scratch = device.scratch(&link, domain.id).map_err(|_| silent(Errno::ENOMEM))?;
        device.replace_links(|id| (id == domain.id).then(|| link.clone()));
        lock(&device.scratch).push(scratch);
        device.abandon_quarantine(domain.id);
        lost = true;
    }
    Ok(if lost { Recovery::BuffersLost } else { Recovery::Kept })
}

impl DeviceInner {
    /// The page that keeps address 0 from being anyone's: rocket's first object may get it, and tasks that
    /// only load tables copy sixteen bytes from and to it.
    pub(super) fn scratch(
        &self,
        link: &Arc<Link>,
        domain: DomainId,
    ) -> Result<crate::buffer::Buffer, crate::error::AllocateError> {
        let request = Request { domain, bytes: allocate::PAGE, purpose: Purpose::Scratch, iommu: self.iommu };
        allocate::allocate(link, request)
    }
}
