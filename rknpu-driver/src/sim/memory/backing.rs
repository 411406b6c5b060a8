//! The pages behind a buffer: a memfd that this process and its clients map.
#![expect(unsafe_code, reason = "the pages are a shared mapping, which std has no safe type for")]

use std::ffi::c_void;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use thiserror::Error;

use super::written::Written;

/// Bytes of a page; lengths and addresses of buffers are multiples of it.
pub(super) const PAGE: usize = 4096;

/// Why no pages could be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("{call} for a buffer of {bytes} bytes: {errno}")]
pub struct BackingError {
    /// The system call that refused.
    pub call: &'static str,
    /// Bytes that were asked for.
    pub bytes: usize,
    /// Its reason.
    pub errno: Errno,
}

/// The pages behind one buffer, zero at first. Bytes are copied in and out, never lent: clients map the same pages.
#[derive(Debug)]
pub struct Backing {
    fd: OwnedFd,
    base: NonNull<c_void>,
    len: usize,
    written: Written,
}

// SAFETY: `base` is a mapping that this value alone owns (made in `new`, unmapped in `drop`); it may be used and unmapped
// from any thread, and all access to its bytes goes through `words`, whose atomics may be shared.
unsafe impl Send for Backing {}
// SAFETY: as above: `&Backing` gives out nothing but atomics.
unsafe impl Sync for Backing {}

impl Backing {
    /// Pages for `bytes` bytes, rounded up to whole ones.
    pub fn new(bytes: usize) -> Result<Self, BackingError> {
        let fail = |call| move |errno| BackingError { call, bytes, errno };
        let len = bytes.checked_next_multiple_of(PAGE).and_then(NonZeroUsize::new).ok_or(Errno::EINVAL);
        let len = len.map_err(fail("size"))?;
        let size = i64::try_from(len.get()).map_err(|_| fail("size")(Errno::EFBIG))?;
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let fd = memfd_create(c"rknpu-sim", flags).map_err(fail("memfd_create"))?;
        nix::unistd::ftruncate(&fd, size).map_err(fail("ftruncate"))?;
        // Clients get descriptors of it that can be written: without seals one of them could cut the pages off.
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&fd, FcntlArg::F_ADD_SEALS(seals)).map_err(fail("fcntl"))?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a fresh mapping at an address the kernel chooses, of a descriptor we own and whose size was just set to
        // `len`; nothing else can refer to it yet.
        let base = unsafe { mmap(None, len, access, MapFlags::MAP_SHARED, &fd, 0) }.map_err(fail("mmap"))?;
        Ok(Self { fd, base, len: len.get(), written: Written::new(len.get()) })
    }

    /// Length in bytes, a multiple of 4096.
    #[expect(clippy::len_without_is_empty, reason = "a buffer has at least one page")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// The memfd, for clients to map. Seals keep its length as it is, whoever has the descriptor.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Records that the CPU wrote these bytes. What reaches beyond the buffer is cut off.
    pub fn mark_written(&self, bytes: Range<usize>) {
        self.written.mark(bytes.start.min(self.len)..bytes.end.min(self.len));
    }

    /// The first of these bytes that was never written.
    pub fn first_unwritten(&self, bytes: Range<usize>) -> Option<usize> {
        self.written.first_gap(bytes.start.min(self.len)..bytes.end.min(self.len))
    }

    /// Copies bytes out of the buffer.
    ///
    /// # Panics
    /// If they are not all within it.
    pub fn copy_out(&self, from: usize, into: &mut [u8]) {
        let words = self.span(from, into.len());
        let (head, rest) = into.split_at_mut(into.len().min((8 - from % 8) % 8));
        let mut words = words.iter();
        if !head.is_empty() {
            copy_part(&mut words, from % 8, head);
        }
        let mut chunks = rest.chunks_exact_mut(8);
        for (chunk, word) in (&mut chunks).zip(&mut words) {
            chunk.copy_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes());
        }
        copy_part(&mut words, 0, chunks.into_remainder());
    }

    /// Copies bytes into the buffer, without a record of it.
    ///
    /// # Panics
    /// If they are not all within it.
    pub fn copy_in(&self, to: usize, from: &[u8]) {
        let mut words = self.span(to, from.len()).iter();
        let (head, rest) = from.split_at(from.len().min((8 - to % 8) % 8));
        store_part(&mut words, to % 8, head);
        let chunks = rest.chunks_exact(8);
        store_part_after(&mut words, chunks);
    }

    /// The words that hold `length` bytes from `from` on.
    fn span(&self, from: usize, length: usize) -> &[AtomicU64] {
        assert!(from <= self.len && length <= self.len - from, "{length} bytes at {from} of {}", self.len);
        &self.words()[from / 8..(from + length).div_ceil(8)]
    }

    fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is page aligned, `len` bytes long (a multiple of 8), zero-initialised and lives as long as
        // `self`; the memfd never shrinks, though clients hold it for writing: `new` sealed its length for good. Within
        // this process every access is one of these atomics or a client's own mapping of the pages, whose users the
        // driver's buffer guards keep away while a job runs; other processes may write at any time, which atomics allow.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr().cast(), self.len / 8) }
    }
}

fn copy_part(words: &mut std::slice::Iter<'_, AtomicU64>, skip: usize, into: &mut [u8]) {
    if into.is_empty() {
        return;
    }
    if let Some(word) = words.next() {
        let bytes = word.load(Ordering::Relaxed).to_ne_bytes();
        into.copy_from_slice(&bytes[skip..skip + into.len()]);
    }
}

/// Replaces some bytes of a word whose others another thread may be writing.
fn store_part(words: &mut std::slice::Iter<'_, AtomicU64>, skip: usize, from: &[u8]) {
    if from.is_empty() {
        return;
    }
    let Some(word) = words.next() else { return };
    let (mut bytes, mut mask) = ([0; 8], [0; 8]);
    bytes[skip..skip + from.len()].copy_from_slice(from);
    mask[skip..skip + from.len()].fill(0xff);
    let (bytes, mask) = (u64::from_ne_bytes(bytes), u64::from_ne_bytes(mask));
    let mut old = word.load(Ordering::Relaxed);
    while let Err(now) =
        word.compare_exchange_weak(old, old & !mask | bytes, Ordering::Relaxed, Ordering::Relaxed)
    {
        old = now;
    }
}

fn store_part_after(words: &mut std::slice::Iter<'_, AtomicU64>, chunks: std::slice::ChunksExact<'_, u8>) {
    let tail = chunks.remainder();
    for (chunk, word) in chunks.zip(&mut *words) {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(chunk);
        word.store(u64::from_ne_bytes(bytes), Ordering::Relaxed);
    }
    store_part(words, 0, tail);
}

impl Drop for Backing {
    fn drop(&mut self) {
        // SAFETY: `base` and `len` are the mapping made in `new`, which nothing else unmaps; borrows of its words end with
        // `self`. A failure would leave the pages mapped, which harms nobody.
        let _ = unsafe { munmap(self.base, self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_client_changes_the_length() {
        let backing = Backing::new(5000).unwrap();
        let client = backing.fd().try_clone_to_owned().unwrap();
        for size in [0, 4096, 1 << 20] {
            assert_eq!(nix::unistd::ftruncate(&client, size), Err(Errno::EPERM));
        }
        let more = fcntl(&client, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_WRITE));
        assert_eq!(more, Err(Errno::EPERM), "nor is it made read-only");
        backing.copy_in(8190, &[7; 2]);
        let mut end = [0; 2];
        backing.copy_out(8190, &mut end);
        assert_eq!(end, [7; 2]);
    }
}
