//! The replaced functions, but those that ask about files. Each is what its manual page says; arguments are the caller's and are only
//! passed on.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::os::fd::AsRawFd;
use std::sync::Arc;

use libc::{c_ulong, mode_t, off64_t, size_t};
use rknpu_driver::uapi::Errno;

use crate::process::{Open, process};
use crate::{ioctl as requests, real};

/// Sets errno where the result says so.
pub(crate) fn answer(result: Result<c_int, Errno>) -> c_int {
    result.unwrap_or_else(|errno| {
        errno.set();
        -1
    })
}

/// Whether the program names the simulated node.
///
/// # Safety
/// `path` is null or a string.
pub(crate) unsafe fn is_node(path: *const c_char) -> bool {
    // SAFETY: a string by this function's contract.
    !path.is_null() && process().is_node(unsafe { CStr::from_ptr(path) })
}

fn open_node(flags: c_int) -> c_int {
    let exclusive = flags & (libc::O_CREAT | libc::O_EXCL) == libc::O_CREAT | libc::O_EXCL;
    answer(match flags {
        _ if exclusive => Err(Errno::EEXIST),
        flags if flags & libc::O_DIRECTORY != 0 => Err(Errno::ENOTDIR),
        flags => process().open_node(flags),
    })
}

/// Defines the open functions, each with its path and its flags named: the simulated node, or the next definition.
macro_rules! open_functions {
    ($(fn $name:ident($($arg:ident: $type:ty),*) opens $path:ident with $flags:ident;)*) => {
        $(
            #[unsafe(no_mangle)]
            unsafe extern "C" fn $name($($arg: $type),*) -> c_int {
                // SAFETY: the caller gives a string, as the function's manual page demands.
                if unsafe { is_node($path) } {
                    return open_node($flags);
                }
                // SAFETY: the caller's arguments.
                unsafe { real::$name($($arg),*) }
            }
        )*
    };
}

open_functions! {
    fn open(path: *const c_char, flags: c_int, mode: mode_t) opens path with flags;
    fn open64(path: *const c_char, flags: c_int, mode: mode_t) opens path with flags;
    fn openat(at: c_int, path: *const c_char, flags: c_int, mode: mode_t) opens path with flags;
    fn openat64(at: c_int, path: *const c_char, flags: c_int, mode: mode_t) opens path with flags;
    fn __open_2(path: *const c_char, flags: c_int) opens path with flags;
    fn __open64_2(path: *const c_char, flags: c_int) opens path with flags;
    fn __openat_2(at: c_int, path: *const c_char, flags: c_int) opens path with flags;
    fn __openat64_2(at: c_int, path: *const c_char, flags: c_int) opens path with flags;
}

#[unsafe(no_mangle)]
unsafe extern "C" fn close(fd: c_int) -> c_int {
    // The device is closed after its number is free, and outside of every lock.
    let open = process().remove(fd);
    // SAFETY: the caller's argument.
    let result = unsafe { real::close(fd) };
    drop(open);
    result
}

#[unsafe(no_mangle)]
unsafe extern "C" fn close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int {
    const CLOEXEC_ONLY: c_int = 1 << 2; // CLOSE_RANGE_CLOEXEC
    let mut opens = Vec::new();
    if flags & CLOEXEC_ONLY == 0 {
        opens.extend(process().range(first, last).into_iter().filter_map(|fd| process().remove(fd)));
    }
    // SAFETY: the caller's arguments.
    let result = unsafe { real::close_range(first, last, flags) };
    drop(opens);
    result
}

/// Enters the duplicate `new` of `old`, whose number may have been another's before.
fn duplicated(old: c_int, new: c_int) -> c_int {
    if new >= 0 && new != old {
        match process().get(old) {
            Some(open) => process().insert(new, open),
            None => drop(process().remove(new)),
        }
    }
    new
}

#[unsafe(no_mangle)]
unsafe extern "C" fn dup(fd: c_int) -> c_int {
    // SAFETY: the caller's argument.
    duplicated(fd, unsafe { real::dup(fd) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn dup2(old: c_int, new: c_int) -> c_int {
    // SAFETY: the caller's arguments.
    duplicated(old, unsafe { real::dup2(old, new) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn dup3(old: c_int, new: c_int, flags: c_int) -> c_int {
    // SAFETY: the caller's arguments.
    duplicated(old, unsafe { real::dup3(old, new, flags) })
}

fn is_duplication(command: c_int) -> bool {
    command == libc::F_DUPFD || command == libc::F_DUPFD_CLOEXEC
}

#[unsafe(no_mangle)]
unsafe extern "C" fn fcntl(fd: c_int, command: c_int, argument: *mut c_void) -> c_int {
    // SAFETY: the caller's arguments.
    let result = unsafe { real::fcntl(fd, command, argument) };
    if is_duplication(command) { duplicated(fd, result) } else { result }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn fcntl64(fd: c_int, command: c_int, argument: *mut c_void) -> c_int {
    // SAFETY: the caller's arguments.
    let result = unsafe { real::fcntl64(fd, command, argument) };
    if is_duplication(command) { duplicated(fd, result) } else { result }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ioctl(fd: c_int, request: c_ulong, argument: *mut c_void) -> c_int {
    match process().get(fd) {
        // The kernel looks at the request's lower half alone.
        // SAFETY: the caller says with the request what the kernel may do at the argument.
        Some(open) => answer(unsafe { requests::handle(&open, request as u32, argument as u64) }),
        // SAFETY: the caller's arguments.
        None => unsafe { real::ioctl(fd, request, argument) },
    }
}

unsafe fn map(
    at: *mut c_void,
    length: size_t,
    access: c_int,
    flags: c_int,
    fd: c_int,
    offset: off64_t,
) -> *mut c_void {
    let anonymous = flags & libc::MAP_ANONYMOUS != 0;
    let open = if anonymous { None } else { process().get(fd) };
    let pages = match open.as_deref() {
        // An exported buffer's descriptor is its pages'.
        None | Some(Open::DmaBuf) => {
            // SAFETY: the caller's arguments.
            return unsafe { real::mmap64(at, length, access, flags, fd, offset) };
        }
        Some(Open::Vendor(file)) => file.pages(offset as u64, length as u64),
        Some(Open::Rocket(file)) => file.pages(offset as u64, length as u64),
    };
    match pages {
        // SAFETY: the caller's arguments, but that the object's pages stand in for the device's file, from their start. They are at least `length` bytes.
        Ok(pages) => unsafe { real::mmap64(at, length, access, flags, pages.as_raw_fd(), 0) },
        Err(errno) => {
            errno.set();
            libc::MAP_FAILED
        }
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn mmap(
    at: *mut c_void,
    length: size_t,
    access: c_int,
    flags: c_int,
    fd: c_int,
    offset: off64_t,
) -> *mut c_void {
    // SAFETY: the caller's arguments.
    unsafe { map(at, length, access, flags, fd, offset) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn mmap64(
    at: *mut c_void,
    length: size_t,
    access: c_int,
    flags: c_int,
    fd: c_int,
    offset: off64_t,
) -> *mut c_void {
    // SAFETY: the caller's arguments.
    unsafe { map(at, length, access, flags, fd, offset) }
}

/// Gives a descriptor of pages to the program, as a dma-buf.
pub(crate) fn hand_out(fd: std::os::fd::OwnedFd, close_on_exec: bool) -> Result<c_int, Errno> {
    use std::os::fd::IntoRawFd;
    let fd = fd.into_raw_fd();
    let flags: usize = if close_on_exec { libc::FD_CLOEXEC as usize } else { 0 };
    // SAFETY: a call without pointers on a descriptor that is ours.
    if unsafe { real::fcntl(fd, libc::F_SETFD, flags as *mut c_void) } < 0 {
        // SAFETY: ours, and not handed out.
        drop(unsafe { crate::process::own(fd) });
        return Err(Errno::last());
    }
    process().insert(fd, Arc::new(Open::DmaBuf));
    Ok(fd)
}
