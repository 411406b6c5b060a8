//! Read-only memory maps and the casts that make typed slices of them. The only `unsafe` of this crate.

#![expect(unsafe_code, reason = "memory maps and plain-old-data casts, proved below")]

use std::fs::File;
use std::io;
use std::ops::Range;

use memmap2::{Mmap, MmapMut, UncheckedAdvice};

#[cfg(not(target_endian = "little"))]
compile_error!(
    "bundles store little-endian numbers that are used in place; a big-endian host would misread them"
);

/// A whole file, mapped read-only and shared, or memory of no file. The start is page-aligned.
///
/// # Invariant (kept by the caller)
///
/// A mapped file's bytes do not change and the file is not truncated while the map lives. [`crate::bundle`] keeps it
/// by mapping only blobs named by the digest of their contents, from folders that the packer writes once and renames
/// into place, or from the packer's own before that. Replacing a bundle swaps folders: the mapped inode stays.
#[derive(Debug)]
pub(crate) struct Mapping {
    /// `None` for no bytes.
    map: Option<Mmap>,
    of_file: bool,
}

impl Mapping {
    /// Maps all of `file`. An empty file gives an empty slice.
    ///
    /// # Errors
    ///
    /// Whatever the operating system says to `mmap`.
    pub(crate) fn new(file: &File) -> io::Result<Self> {
        if file.metadata()?.len() == 0 {
            return Ok(Self { map: None, of_file: true }); // mmap refuses length 0
        }
        // SAFETY: the map is private to this value, read-only, and unmapped on drop, which `bytes` outlives by
        // no borrow. That nobody writes to the file while it is mapped is the type's stated invariant: bundle
        // blobs are written once under a temporary name, and never opened for writing again once they have their
        // digest's.
        let map = unsafe { Mmap::map(file)? };
        Ok(Self { map: Some(map), of_file: true })
    }

    /// Memory with the bytes of all `parts`, one behind the other.
    ///
    /// # Errors
    ///
    /// When there is no memory.
    pub(crate) fn of_bytes(parts: &[&[u8]]) -> io::Result<Self> {
        let length = parts.iter().map(|part| part.len()).sum();
        if length == 0 {
            return Ok(Self { map: None, of_file: false });
        }
        let mut map = MmapMut::map_anon(length)?;
        let mut rest = &mut map[..];
        for part in parts {
            let (place, behind) = rest.split_at_mut(part.len());
            place.copy_from_slice(part);
            rest = behind;
        }
        Ok(Self { map: Some(map.make_read_only()?), of_file: false })
    }

    /// Tells the system that the bytes of `range` will not be needed soon, so that it takes their memory back. Reading them
    /// all the same reads the file again. Memory of no file stays.
    pub(crate) fn release(&self, range: Range<usize>) {
        let Some(map) = self.map.as_ref().filter(|_| self.of_file) else { return };
        let (start, end) = (range.start.min(map.len()), range.end.min(map.len()));
        // SAFETY: dropping pages loses what was written to them, and nobody writes: the map is of a file, read-only, and by the
        // type's invariant neither does anybody write to the file. The next read finds the same bytes in it.
        let advised = unsafe {
            map.unchecked_advise_range(UncheckedAdvice::DontNeed, start, end.saturating_sub(start))
        };
        if let Err(error) = advised {
            // It costs memory and nothing else.
            tracing::debug!(%error, "mapped weights could not be released");
        }
    }

    /// The mapped bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.map.as_deref().unwrap_or(&[])
    }
}

/// The same bytes as signed integers.
pub(crate) fn as_i8(bytes: &[u8]) -> &[i8] {
    // SAFETY: u8 and i8 have the same size and alignment, and every bit pattern is valid for both. The result
    // borrows `bytes`.
    unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast::<i8>(), bytes.len()) }
}

/// Little-endian f32 values in place, or `None` if `bytes` is not 4-aligned or not a multiple of 4 long.
pub(crate) fn as_f32(bytes: &[u8]) -> Option<&[f32]> {
    // SAFETY: every bit pattern is a valid f32, and `align_to` yields only properly aligned elements inside
    // `bytes`.
    let (head, values, tail) = unsafe { bytes.align_to::<f32>() };
    (head.is_empty() && tail.is_empty()).then_some(values)
}

/// Little-endian i32 values in place, or `None` if `bytes` is not 4-aligned or not a multiple of 4 long.
pub(crate) fn as_i32(bytes: &[u8]) -> Option<&[i32]> {
    // SAFETY: every bit pattern is a valid i32, and `align_to` yields only properly aligned elements inside
    // `bytes`.
    let (head, values, tail) = unsafe { bytes.align_to::<i32>() };
    (head.is_empty() && tail.is_empty()).then_some(values)
}
