//! The functions that the library's own hide.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::atomic::{AtomicPtr, Ordering};

use libc::{c_ulong, mode_t, off64_t, size_t};
use rknpu_driver::uapi::Errno;

/// `real::NAME(…)`: the next definition of NAME, or failure with `ENOSYS` where the C library has none, as some of these are younger than others
/// (`close_range`: glibc 2.34). Parameters in a second pair of brackets are the variadic ones.
macro_rules! next {
    ($(fn $name:ident($($arg:ident: $type:ty),*) $(($extra:ident: $extra_type:ty))? -> $result:ty;)*) => {
        $(
            /// # Safety
            /// As for the C function.
            pub(crate) unsafe fn $name($($arg: $type,)* $($extra: $extra_type)?) -> $result {
                static NEXT: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());
                let Some(next) = look_up(&NEXT, concat!(stringify!($name), "\0").as_bytes()) else {
                    Errno::ENOSYS.set();
                    return Failure::FAILURE;
                };
                // SAFETY: the next definition of this name in a C library has the type of its manual page, which is the one
                // named here, and the caller's arguments are what that function demands.
                unsafe { next!(@call next, ($($arg: $type),*), $($extra)?) }
            }
        )*
    };
    (@call $next:ident, ($($arg:ident: $type:ty),*),) => {
        std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($type),*) -> _>($next)($($arg),*)
    };
    (@call $next:ident, ($($arg:ident: $type:ty),*), $extra:ident) => {
        std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($type),*, ...) -> _>($next)($($arg,)* $extra)
    };
}

next! {
    fn open(path: *const c_char, flags: c_int) (mode: mode_t) -> c_int;
    fn open64(path: *const c_char, flags: c_int) (mode: mode_t) -> c_int;
    fn openat(at: c_int, path: *const c_char, flags: c_int) (mode: mode_t) -> c_int;
    fn openat64(at: c_int, path: *const c_char, flags: c_int) (mode: mode_t) -> c_int;
    fn __open_2(path: *const c_char, flags: c_int) -> c_int;
    fn __open64_2(path: *const c_char, flags: c_int) -> c_int;
    fn __openat_2(at: c_int, path: *const c_char, flags: c_int) -> c_int;
    fn __openat64_2(at: c_int, path: *const c_char, flags: c_int) -> c_int;
    fn close(fd: c_int) -> c_int;
    fn close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int;
    fn dup(fd: c_int) -> c_int;
    fn dup2(old: c_int, new: c_int) -> c_int;
    fn dup3(old: c_int, new: c_int, flags: c_int) -> c_int;
    fn fcntl(fd: c_int, command: c_int) (argument: *mut c_void) -> c_int;
    fn fcntl64(fd: c_int, command: c_int) (argument: *mut c_void) -> c_int;
    fn ioctl(fd: c_int, request: c_ulong) (argument: *mut c_void) -> c_int;
    fn mmap64(at: *mut c_void, length: size_t, access: c_int, flags: c_int, fd: c_int, offset: off64_t) -> *mut c_void;
    fn stat64(path: *const c_char, into: *mut libc::stat64) -> c_int;
    fn lstat64(path: *const c_char, into: *mut libc::stat64) -> c_int;
    fn fstat64(fd: c_int, into: *mut libc::stat64) -> c_int;
    fn fstatat64(at: c_int, path: *const c_char, into: *mut libc::stat64, flags: c_int) -> c_int;
    fn statx(at: c_int, path: *const c_char, flags: c_int, mask: c_uint, into: *mut libc::statx) -> c_int;
    fn access(path: *const c_char, mode: c_int) -> c_int;
    fn faccessat(at: c_int, path: *const c_char, mode: c_int, flags: c_int) -> c_int;
}

/// What a function returns that failed.
trait Failure {
    const FAILURE: Self;
}

impl Failure for c_int {
    const FAILURE: Self = -1;
}

impl Failure for *mut c_void {
    const FAILURE: Self = libc::MAP_FAILED;
}

/// A function's next definition, if there is one, remembered in `known`; `name` ends in NUL.
fn look_up(known: &AtomicPtr<c_void>, name: &[u8]) -> Option<*mut c_void> {
    let address = known.load(Ordering::Relaxed);
    if !address.is_null() {
        return Some(address);
    }
    let name = CStr::from_bytes_with_nul(name).unwrap_or_default();
    // SAFETY: looking a symbol up has no conditions beyond a name that ends in NUL.
    let found = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) };
    known.store(found, Ordering::Relaxed);
    (!found.is_null()).then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    next! {
        fn no_library_has_this(number: c_int) (more: c_int) -> c_int;
        fn nor_this(number: c_int) -> *mut c_void;
    }

    #[test]
    fn what_the_c_library_lacks_fails_and_what_it_has_is_remembered() {
        Errno::clear();
        // SAFETY: there are no such functions to be called.
        assert_eq!(unsafe { no_library_has_this(1, 2) }, -1);
        assert_eq!(Errno::last(), Errno::ENOSYS);
        // SAFETY: as above.
        assert_eq!(unsafe { nor_this(1) }, libc::MAP_FAILED);
        let known = AtomicPtr::new(std::ptr::null_mut());
        let found = look_up(&known, b"close\0");
        assert!(found.is_some());
        assert_eq!(look_up(&known, b"another name by now\0"), found);
    }
}
