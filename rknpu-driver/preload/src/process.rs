//! What the library knows in one process: its device and which descriptors are the device's.

use std::collections::HashMap;
use std::ffi::{CStr, c_int};
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use rknpu_driver::device::Interface;
use rknpu_driver::sim::kernel::{RocketFile, Simulation, VendorFile};
use rknpu_driver::uapi::Errno;

use crate::settings::{self, Which};
use crate::user::UserMemory;

/// What one of the library's descriptors is.
#[derive(Debug)]
pub(crate) enum Open {
    Vendor(VendorFile),
    Rocket(RocketFile),
    /// An exported buffer.
    DmaBuf,
}

/// One process's state. Made when first needed and never freed: descriptors are closed until the very end of a program.
#[derive(Default)]
pub(crate) struct Process {
    open: RwLock<HashMap<c_int, Arc<Open>>>,
    /// How many of the above, so that calls on other descriptors pass without the lock.
    count: AtomicUsize,
    which: OnceLock<Option<Which>>,
    device: OnceLock<Option<Simulation>>,
    user: OnceLock<Option<UserMemory>>,
}

static PROCESS: AtomicPtr<Process> = AtomicPtr::new(std::ptr::null_mut());
/// Whose state that is. A child made by `vfork` runs in its parent's memory with descriptors of its own: what it closes and duplicates must not
/// be entered there.
static OWNER: AtomicI32 = AtomicI32::new(0);

/// Runs when the library is loaded, before anything can have been forked.
#[used]
#[unsafe(link_section = ".init_array")]
static AT_LOAD: extern "C" fn() = {
    extern "C" fn at_load() {
        process();
    }
    at_load
};

fn take_ownership() {
    // SAFETY: a system call that cannot fail.
    OWNER.store(unsafe { libc::getpid() }, Ordering::Release);
}

fn is_owner() -> bool {
    // SAFETY: a system call that cannot fail.
    OWNER.load(Ordering::Acquire) == unsafe { libc::getpid() }
}

/// This process's state.
pub(crate) fn process() -> &'static Process {
    let mut known = PROCESS.load(Ordering::Acquire);
    if known.is_null() {
        forget_on_fork();
        let new = Box::into_raw(Box::<Process>::default());
        let raced = PROCESS.compare_exchange(std::ptr::null_mut(), new, Ordering::AcqRel, Ordering::Acquire);
        known = match raced {
            Ok(_) => new,
            Err(first) => {
                // SAFETY: `new` is the box made above, which no other thread has seen.
                drop(unsafe { Box::from_raw(new) });
                first
            }
        };
    }
    // SAFETY: what is stored here comes from a box and is never freed.
    unsafe { &*known }
}

/// A forked child begins anew: the parent's locks may have been held by threads that the child has not, so its state cannot be used.
/// It is left to lie in memory.
fn forget_on_fork() {
    static REGISTERED: AtomicBool = AtomicBool::new(false);
    extern "C" fn forget() {
        PROCESS.store(std::ptr::null_mut(), Ordering::Release);
        take_ownership();
    }
    if !REGISTERED.swap(true, Ordering::AcqRel) {
        take_ownership();
        // SAFETY: the handler is a function of the type asked for that asks for a number and stores two, which is safe between fork and exec.
        // If it cannot be registered, children have no device.
        let _ = unsafe { libc::pthread_atfork(None, None, Some(forget)) };
    }
}

impl Process {
    /// Whether the path is the node's.
    pub(crate) fn is_node(&self, path: &CStr) -> bool {
        // Most paths are ruled out without looking at the environment.
        path.to_bytes().starts_with(b"/")
            && self.which().is_some_and(|which| which.path.as_c_str() == path)
            && is_owner()
    }

    fn which(&self) -> Option<&Which> {
        self.which.get_or_init(|| Which::from_environment().map_err(complain).ok()).as_ref()
    }

    /// True for Rockchip's driver, false for mainline's.
    pub(crate) fn is_vendor(&self) -> bool {
        self.which().is_some_and(|which| which.interface == Interface::Vendor)
    }

    fn device(&self) -> Result<&Simulation, Errno> {
        let which = self.which().ok_or(Errno::ENOENT)?;
        let make = || settings::config(which.interface).map_err(complain).ok().map(Simulation::new);
        self.device.get_or_init(make).as_ref().ok_or(Errno::ENODEV)
    }

    /// The calling program's memory.
    pub(crate) fn user(&self) -> Result<&UserMemory, Errno> {
        self.user.get_or_init(|| UserMemory::new().ok()).as_ref().ok_or(Errno::ENOMEM)
    }

    /// Opens the node, and gives it a descriptor.
    pub(crate) fn open_node(&self, flags: c_int) -> Result<c_int, Errno> {
        let open = match self.device()? {
            Simulation::Vendor(node) => Open::Vendor(node.open()?),
            Simulation::Rocket(node) => Open::Rocket(node.open()?),
        };
        let mut timer = 0;
        for (flag, same) in [(libc::O_CLOEXEC, libc::TFD_CLOEXEC), (libc::O_NONBLOCK, libc::TFD_NONBLOCK)] {
            timer |= if flags & flag != 0 { same } else { 0 };
        }
        // SAFETY: a system call without pointers.
        let fd = unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, timer) };
        if fd < 0 {
            return Err(Errno::last());
        }
        self.insert(fd, Arc::new(open));
        Ok(fd)
    }

    /// What a descriptor is, if it is one of the library's.
    pub(crate) fn get(&self, fd: c_int) -> Option<Arc<Open>> {
        if self.count.load(Ordering::Acquire) == 0 || !is_owner() {
            return None;
        }
        self.open.read().unwrap_or_else(PoisonError::into_inner).get(&fd).cloned()
    }

    /// Enters a descriptor; what had its number before is given back, to be dropped outside of the lock.
    pub(crate) fn insert(&self, fd: c_int, open: Arc<Open>) {
        let mut table = self.open.write().unwrap_or_else(PoisonError::into_inner);
        let before = table.insert(fd, open);
        self.count.store(table.len(), Ordering::Release);
        drop(table);
        drop(before);
    }

    /// Forgets a descriptor that is about to be closed or replaced. The device closes with the last of its duplicates.
    pub(crate) fn remove(&self, fd: c_int) -> Option<Arc<Open>> {
        self.get(fd)?;
        let mut table = self.open.write().unwrap_or_else(PoisonError::into_inner);
        let open = table.remove(&fd);
        self.count.store(table.len(), Ordering::Release);
        open
    }

    /// The descriptors from `first` to `last`.
    pub(crate) fn range(&self, first: u32, last: u32) -> Vec<c_int> {
        if self.count.load(Ordering::Acquire) == 0 || !is_owner() {
            return Vec::new();
        }
        let table = self.open.read().unwrap_or_else(PoisonError::into_inner);
        let inside = |fd: &&c_int| u32::try_from(**fd).is_ok_and(|fd| (first..=last).contains(&fd));
        table.keys().filter(inside).copied().collect()
    }
}

fn complain(wrong: String) {
    eprintln!("rknpu_sim: {wrong}; there is no simulated NPU");
}

/// Takes a descriptor that this library made.
///
/// # Safety
/// The descriptor is open and nobody else's.
pub(crate) unsafe fn own(fd: c_int) -> OwnedFd {
    // SAFETY: this function's contract.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
