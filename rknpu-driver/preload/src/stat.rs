//! Questions about files: the node and its descriptors are character devices, as programs check that look for them.

use std::ffi::{c_char, c_int, c_uint};

use rknpu_driver::uapi::Errno;

use crate::calls::{answer, is_node};
use crate::process::{Open, process};
use crate::real;

/// `crw-rw----`.
const MODE: u32 = libc::S_IFCHR | 0o660;
const BLOCK: i64 = 4096;

/// Major and minor number of the node: DRM's first render node, or the first accelerator.
fn device_number() -> (u32, u32) {
    if process().is_vendor() { (226, 128) } else { (261, 0) }
}

fn node_stat() -> libc::stat64 {
    // SAFETY: a struct of integers, for which zeros are a value.
    let mut stat: libc::stat64 = unsafe { std::mem::zeroed() };
    let (major, minor) = device_number();
    stat.st_mode = MODE;
    stat.st_nlink = 1;
    stat.st_rdev = libc::makedev(major, minor);
    stat.st_blksize = BLOCK as _;
    stat
}

/// Gives the node's answer.
///
/// # Safety
/// `into` is null or valid for a write.
unsafe fn tell(into: *mut libc::stat64) -> c_int {
    if into.is_null() {
        return answer(Err(Errno::EFAULT));
    }
    // SAFETY: valid by this function's contract.
    unsafe { into.write(node_stat()) };
    0
}

fn is_device(fd: c_int) -> bool {
    matches!(process().get(fd).as_deref(), Some(Open::Vendor(_) | Open::Rocket(_)))
}

/// Defines the questions that name a path, in both of glibc's names: on 64-bit machines the structs are one.
macro_rules! path_question {
    ($($name:ident, $name64:ident;)*) => {
        $(
            #[unsafe(no_mangle)]
            unsafe extern "C" fn $name(path: *const c_char, into: *mut libc::stat64) -> c_int {
                // SAFETY: the caller's arguments, as the manual page demands them.
                unsafe { if is_node(path) { tell(into) } else { real::$name64(path, into) } }
            }

            #[unsafe(no_mangle)]
            unsafe extern "C" fn $name64(path: *const c_char, into: *mut libc::stat64) -> c_int {
                // SAFETY: the caller's arguments, as the manual page demands them.
                unsafe { if is_node(path) { tell(into) } else { real::$name64(path, into) } }
            }
        )*
    };
}

path_question! {
    stat, stat64;
    lstat, lstat64;
}

#[unsafe(no_mangle)]
unsafe extern "C" fn fstat(fd: c_int, into: *mut libc::stat64) -> c_int {
    // SAFETY: the caller's arguments, as the manual page demands them.
    unsafe { if is_device(fd) { tell(into) } else { real::fstat64(fd, into) } }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn fstat64(fd: c_int, into: *mut libc::stat64) -> c_int {
    // SAFETY: the caller's arguments, as the manual page demands them.
    unsafe { if is_device(fd) { tell(into) } else { real::fstat64(fd, into) } }
}

/// Whether a path relative to a descriptor is the node, or empty and the descriptor the node's.
///
/// # Safety
/// `path` is null or a string.
unsafe fn is_node_at(at: c_int, path: *const c_char, flags: c_int) -> bool {
    // SAFETY: a string by this function's contract; its first byte is its NUL or within it.
    let empty = path.is_null() || unsafe { *path } == 0;
    // SAFETY: as above.
    if empty { flags & libc::AT_EMPTY_PATH != 0 && is_device(at) } else { unsafe { is_node(path) } }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn fstatat(at: c_int, path: *const c_char, into: *mut libc::stat64, flags: c_int) -> c_int {
    // SAFETY: the caller's arguments, as the manual page demands them.
    unsafe { if is_node_at(at, path, flags) { tell(into) } else { real::fstatat64(at, path, into, flags) } }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn fstatat64(
    at: c_int,
    path: *const c_char,
    into: *mut libc::stat64,
    flags: c_int,
) -> c_int {
    // SAFETY: the caller's arguments, as the manual page demands them.
    unsafe { if is_node_at(at, path, flags) { tell(into) } else { real::fstatat64(at, path, into, flags) } }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn statx(
    at: c_int,
    path: *const c_char,
    flags: c_int,
    mask: c_uint,
    into: *mut libc::statx,
) -> c_int {
    // SAFETY: the caller's arguments, as the manual page demands them.
    unsafe {
        if !is_node_at(at, path, flags) {
            return real::statx(at, path, flags, mask, into);
        }
        if into.is_null() {
            return answer(Err(Errno::EFAULT));
        }
        into.write(node_statx());
    }
    0
}

fn node_statx() -> libc::statx {
    // SAFETY: a struct of integers, for which zeros are a value.
    let mut stat: libc::statx = unsafe { std::mem::zeroed() };
    (stat.stx_rdev_major, stat.stx_rdev_minor) = device_number();
    stat.stx_mask = libc::STATX_BASIC_STATS;
    stat.stx_mode = MODE as u16;
    stat.stx_nlink = 1;
    stat.stx_blksize = BLOCK as u32;
    stat
}

/// Everybody may read and write the node, nobody may execute it.
fn may(mode: c_int) -> c_int {
    answer(if mode & libc::X_OK != 0 { Err(Errno::EACCES) } else { Ok(0) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn access(path: *const c_char, mode: c_int) -> c_int {
    // SAFETY: the caller's arguments, as the manual page demands them.
    unsafe { if is_node(path) { may(mode) } else { real::access(path, mode) } }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn faccessat(at: c_int, path: *const c_char, mode: c_int, flags: c_int) -> c_int {
    // SAFETY: the caller's arguments, as the manual page demands them.
    unsafe { if is_node_at(at, path, flags) { may(mode) } else { real::faccessat(at, path, mode, flags) } }
}
