//! Copies between the simulated kernel and its caller's memory, with `EFAULT` where a kernel gives it.
//!
//! Addresses come from whoever makes the call and may be anything. No pointer is followed here: the operating system
//! copies between the address and a memfd of ours, checking every page as for any other system call.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use libc::c_void;
use rknpu_driver::uapi::Errno;

/// The most bytes one copy may move: far above every structure and list of the two interfaces.
const MOST: usize = 1 << 24;

/// The caller's memory, as a kernel sees it.
#[derive(Debug)]
pub(crate) struct UserMemory {
    scratch: Mutex<OwnedFd>,
}

impl UserMemory {
    /// Fails only where no memfd can be made.
    pub(crate) fn new() -> Result<Self, Errno> {
        // SAFETY: a string that ends in NUL.
        let fd = unsafe { libc::memfd_create(c"rknpu-sim-copies".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(Errno::last());
        }
        // SAFETY: the descriptor was just made.
        Ok(Self { scratch: Mutex::new(unsafe { OwnedFd::from_raw_fd(fd) }) })
    }

    /// Copies from the caller's `address`; `EFAULT` if not every byte there is readable.
    pub(crate) fn copy_from(&self, address: u64, into: &mut [u8]) -> Result<(), Errno> {
        let (scratch, address, length) = self.begin(address, into.len())?;
        // SAFETY: the system only reads at `address`, `length` bytes, and answers EFAULT where that is not possible.
        let put = unsafe { libc::pwrite(scratch.as_raw_fd(), address as *const c_void, length, 0) };
        whole(put, length)?;
        // SAFETY: `into` is `length` bytes that are ours to write.
        whole(unsafe { libc::pread(scratch.as_raw_fd(), into.as_mut_ptr().cast(), length, 0) }, length)
    }

    /// Copies to the caller's `address`; `EFAULT` if not every byte there is writable.
    ///
    /// # Safety
    /// The caller of the simulated kernel call gave this address for this answer, so the bytes there are for the kernel to
    /// write while the call lasts.
    pub(crate) unsafe fn copy_to(&self, address: u64, from: &[u8]) -> Result<(), Errno> {
        let (scratch, address, length) = self.begin(address, from.len())?;
        // SAFETY: `from` is `length` readable bytes.
        whole(unsafe { libc::pwrite(scratch.as_raw_fd(), from.as_ptr().cast(), length, 0) }, length)?;
        // SAFETY: the system writes at `address` and answers EFAULT where it cannot; this function's contract gives it
        // the right to.
        whole(unsafe { libc::pread(scratch.as_raw_fd(), address as *mut c_void, length, 0) }, length)
    }

    fn begin(&self, address: u64, length: usize) -> Result<(MutexGuard<'_, OwnedFd>, usize, usize), Errno> {
        if length > MOST {
            return Err(Errno::ENOMEM);
        }
        let address = usize::try_from(address).map_err(|_| Errno::EFAULT)?;
        // A panic between two copies leaves only stale scratch bytes, which the next copy overwrites.
        Ok((self.scratch.lock().unwrap_or_else(PoisonError::into_inner), address, length))
    }
}

/// A copy that stopped half-way met a page it may not touch.
fn whole(moved: isize, length: usize) -> Result<(), Errno> {
    match usize::try_from(moved) {
        Err(_) => Err(Errno::last()),
        Ok(moved) if moved == length => Ok(()),
        Ok(_) => Err(Errno::EFAULT),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_arrive_and_wild_addresses_fault() {
        let user = UserMemory::new().unwrap();
        let source = [1u8, 2, 3, 4, 5];
        let mut back = [0; 5];
        user.copy_from(source.as_ptr() as u64, &mut back).unwrap();
        assert_eq!(back, source);
        // SAFETY: `back` is alive and ours.
        unsafe { user.copy_to(back.as_mut_ptr() as u64, &[9, 8, 7]) }.unwrap();
        assert_eq!(back, [9, 8, 7, 4, 5]);
        for wild in [0, 1, 1 << 63, u64::MAX] {
            assert_eq!(user.copy_from(wild, &mut back), Err(Errno::EFAULT), "{wild:#x}");
        }
        // SAFETY: the program's text is read-only, so the system refuses the write.
        let text = unsafe { user.copy_to(whole as *const () as u64, &[0]) };
        assert_eq!(text, Err(Errno::EFAULT));
        user.copy_from(0, &mut []).unwrap();
    }
}
