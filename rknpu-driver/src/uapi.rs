//! What the kernel says: the C structs of both NPU drivers under their kernel names, and the calls over them
//! as traits.
//!
//! Structs here are `#[repr(C)]`, hold no padding that the kernel could read uninitialised, and carry
//! compile-time assertions of size, offsets and request numbers (docs/npu.md, "Kernel interfaces"). Nothing
//! above this module uses kernel names.

pub mod drm;
pub mod kernel;
pub mod rocket;
pub mod vendor;

pub use kernel::{DriverVersion, Errno, NodeDescription, RocketKernel, SimulatedWork, VendorKernel};

/// Asserts at compile time where each named field of a struct lies and how long the struct is.
macro_rules! assert_layout {
    ($type:ty, size $size:literal, align $align:literal, { $($field:ident $offset:literal),* $(,)? }) => {
        const _: () = {
            assert!(::core::mem::size_of::<$type>() == $size);
            assert!(::core::mem::align_of::<$type>() == $align);
            $(assert!(::core::mem::offset_of!($type, $field) == $offset);)*
        };
    };
}

/// Asserts at compile time that a request number is what `_IOC(direction, type, number, size)` gives.
macro_rules! assert_request {
    ($name:ident, $direction:ident, $group:literal, $number:expr, $type:ty) => {
        const _: () = assert!(
            $name as u64
                == crate::uapi::request(crate::uapi::$direction, $group, $number, size_of::<$type>()) as u64
        );
    };
}

pub(crate) use {assert_layout, assert_request};

/// `_IOC_WRITE`: the kernel reads the struct.
pub const IOC_WRITE: u32 = 1;
/// `_IOC_READ`: the kernel writes the struct.
pub const IOC_READ: u32 = 2;
/// Both ways.
pub const IOC_READ_WRITE: u32 = 3;

/// A request number as asm-generic/ioctl.h composes it: direction in bits 31:30, size in 29:16, group in
/// 15:8, number in 7:0. x86-64 and aarch64 share this layout.
#[must_use]
pub const fn request(direction: u32, group: u8, number: u8, size: usize) -> u32 {
    assert!(size < 1 << 14);
    direction << 30 | (size as u32) << 16 | (group as u32) << 8 | number as u32
}
