//! The parts of the DRM core's interface (`drm.h`) that both drivers share: version, closing handles,
//! dma-buf.

use super::{assert_layout, assert_request};

/// Group letter of every DRM request (`DRM_IOCTL_BASE`).
pub const DRM_IOCTL_BASE: u8 = b'd';
/// Number of the first request that belongs to the driver (`DRM_COMMAND_BASE`).
pub const DRM_COMMAND_BASE: u8 = 0x40;

/// `DRM_IOCTL_VERSION`
pub const DRM_IOCTL_VERSION: u32 = 0xc040_6400;
/// `DRM_IOCTL_GEM_CLOSE`
pub const DRM_IOCTL_GEM_CLOSE: u32 = 0x4008_6409;
/// `DRM_IOCTL_PRIME_HANDLE_TO_FD`
pub const DRM_IOCTL_PRIME_HANDLE_TO_FD: u32 = 0xc00c_642d;
/// `DRM_IOCTL_PRIME_FD_TO_HANDLE`
pub const DRM_IOCTL_PRIME_FD_TO_HANDLE: u32 = 0xc00c_642e;

/// The exported descriptor is closed on exec.
pub const DRM_CLOEXEC: u32 = 0o2_000_000;
/// The exported descriptor may be mapped for writing.
pub const DRM_RDWR: u32 = 2;

/// Asks who drives a node. Pointers are user addresses of buffers whose lengths go in and whose wanted
/// lengths come out.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
#[expect(missing_docs, reason = "drm.h documents the fields")]
pub struct drm_version {
    pub version_major: i32,
    pub version_minor: i32,
    pub version_patchlevel: i32,
    /// Padding that C has here on 64-bit machines.
    pub padding: u32,
    pub name_len: u64,
    pub name: u64,
    pub date_len: u64,
    pub date: u64,
    pub desc_len: u64,
    pub desc: u64,
}

/// Gives a handle back.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "drm.h documents the fields")]
pub struct drm_gem_close {
    pub handle: u32,
    pub pad: u32,
}

/// Turns a handle into a dma-buf descriptor or the other way round.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "drm.h documents the fields")]
pub struct drm_prime_handle {
    pub handle: u32,
    pub flags: u32,
    pub fd: i32,
}

assert_layout!(drm_version, size 64, align 8, {
    version_major 0, version_minor 4, version_patchlevel 8, name_len 16, name 24, date_len 32,
    date 40, desc_len 48, desc 56,
});
assert_layout!(drm_gem_close, size 8, align 4, { handle 0, pad 4 });
assert_layout!(drm_prime_handle, size 12, align 4, { handle 0, flags 4, fd 8 });
assert_request!(DRM_IOCTL_VERSION, IOC_READ_WRITE, b'd', 0x00, drm_version);
assert_request!(DRM_IOCTL_GEM_CLOSE, IOC_WRITE, b'd', 0x09, drm_gem_close);
assert_request!(DRM_IOCTL_PRIME_HANDLE_TO_FD, IOC_READ_WRITE, b'd', 0x2d, drm_prime_handle);
assert_request!(DRM_IOCTL_PRIME_FD_TO_HANDLE, IOC_READ_WRITE, b'd', 0x2e, drm_prime_handle);
