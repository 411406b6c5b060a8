//! One NPU address space: 32-bit addresses (IOVA) of buffers, their bytes, and which of them were ever written.
//!
//! A job reaches memory through a [`Window`]: the buffer that its base address lies in. What leaves that buffer is an
//! error even where another buffer happens to lie next to it, and errors name the register that held the base.

mod backing;
mod written;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, RwLock};

use thiserror::Error;

use backing::PAGE;
pub use backing::{Backing, BackingError};

use super::error::{MemoryFault, RegisterId, SimError};
use super::options::Unwritten;

/// Why a buffer cannot be mapped at an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum MapError {
    /// The address is not a multiple of 4096.
    #[error("{0:#010x} is not on a page boundary")]
    Unaligned(u32),
    /// The buffer would reach beyond the 4 GB of the address space.
    #[error("{bytes:#x} bytes at {at:#010x} exceed the 32-bit address space")]
    TooLong {
        /// Where it was to begin.
        at: u32,
        /// Its length.
        bytes: usize,
    },
    /// Another buffer lies there.
    #[error("{at:#010x} lies within the buffer mapped at {other:#010x}")]
    Overlap {
        /// Where it was to begin.
        at: u32,
        /// The buffer in the way.
        other: u32,
    },
}

/// An NPU address space. Shared by the threads of all cores; mapping and unmapping may happen between jobs.
#[derive(Debug, Default)]
pub struct Memory {
    regions: RwLock<BTreeMap<u32, Arc<Backing>>>,
    zero_unwritten: bool,
}

impl Memory {
    /// An empty address space.
    pub fn new(unwritten: Unwritten) -> Self {
        Self { regions: RwLock::default(), zero_unwritten: unwritten == Unwritten::Zero }
    }

    /// Maps a buffer at a page-aligned address.
    pub fn map(&self, at: u32, backing: Arc<Backing>) -> Result<(), MapError> {
        if !(at as usize).is_multiple_of(PAGE) {
            return Err(MapError::Unaligned(at));
        }
        let end = u64::from(at) + backing.len() as u64;
        if end > 1 << 32 {
            return Err(MapError::TooLong { at, bytes: backing.len() });
        }
        let mut regions = self.regions.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        let before = regions.range(..=at).next_back().filter(|(start, b)| overlaps(**start, b, at));
        let after = regions.range(at..).next().filter(|(start, _)| u64::from(**start) < end);
        if let Some((other, _)) = before.or(after) {
            return Err(MapError::Overlap { at, other: *other });
        }
        regions.insert(at, backing);
        Ok(())
    }

    /// Removes the buffer mapped at exactly this address.
    pub fn unmap(&self, at: u32) -> Option<Arc<Backing>> {
        self.regions.write().unwrap_or_else(|poisoned| poisoned.into_inner()).remove(&at)
    }

    /// Records that the CPU wrote `bytes` (addresses of one buffer).
    pub fn mark_written(&self, bytes: Range<u32>) -> Result<(), MemoryFault> {
        let length = bytes.len();
        let (start, backing) = self.region(bytes.start, length)?;
        let from = (bytes.start - start) as usize;
        if from + length > backing.len() {
            return Err(outside(i64::from(bytes.start), length, start, &backing));
        }
        backing.mark_written(from..from + length);
        Ok(())
    }

    /// Reads bytes of one buffer.
    pub fn read(&self, at: u32, into: &mut [u8]) -> Result<(), MemoryFault> {
        self.plain_window(at, into.len())?.try_read(0, into)
    }

    /// Writes bytes of one buffer and remembers that they were.
    pub fn write(&self, at: u32, from: &[u8]) -> Result<(), MemoryFault> {
        self.plain_window(at, from.len())?.try_write(0, from)
    }

    /// The buffer that `base`, the value of `register`, lies in.
    pub(crate) fn window(&self, register: impl Into<RegisterId>, base: u32) -> Result<Window, SimError> {
        let register = register.into();
        self.plain_window(base, 0)
            .map(|window| Window { register, ..window })
            .map_err(|source| SimError::Memory { register, source })
    }

    fn plain_window(&self, base: u32, length: usize) -> Result<Window, MemoryFault> {
        let (start, backing) = self.region(base, length)?;
        Ok(Window { register: RegisterId(0), base, start, backing, zero_unwritten: self.zero_unwritten })
    }

    fn region(&self, at: u32, length: usize) -> Result<(u32, Arc<Backing>), MemoryFault> {
        let regions = self.regions.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        regions
            .range(..=at)
            .next_back()
            .filter(|(start, backing)| overlaps(**start, backing, at))
            .map(|(start, backing)| (*start, Arc::clone(backing)))
            .ok_or(MemoryFault::Unmapped { at: i64::from(at), length })
    }
}

fn overlaps(start: u32, backing: &Backing, at: u32) -> bool {
    u64::from(start) + backing.len() as u64 > u64::from(at)
}

fn outside(at: i64, length: usize, start: u32, backing: &Backing) -> MemoryFault {
    MemoryFault::OutOfBuffer { at, length, buffer: start, buffer_length: backing.len() as u64 }
}

/// A job's view of one buffer from a base address on. Offsets may be negative: strides are signed.
#[derive(Clone, Debug)]
pub(crate) struct Window {
    register: RegisterId,
    base: u32,
    start: u32,
    backing: Arc<Backing>,
    zero_unwritten: bool,
}

impl Window {
    /// Reads the bytes at `base + offset`.
    pub(crate) fn read(&self, offset: i64, into: &mut [u8]) -> Result<(), SimError> {
        self.try_read(offset, into).map_err(|source| self.fault(source))
    }

    /// Writes the bytes at `base + offset`.
    pub(crate) fn write(&self, offset: i64, from: &[u8]) -> Result<(), SimError> {
        self.try_write(offset, from).map_err(|source| self.fault(source))
    }

    fn fault(&self, source: MemoryFault) -> SimError {
        SimError::Memory { register: self.register, source }
    }

    fn try_read(&self, offset: i64, into: &mut [u8]) -> Result<(), MemoryFault> {
        let from = self.locate(offset, into.len())?;
        if !self.zero_unwritten
            && let Some(byte) = self.backing.first_unwritten(from..from + into.len())
        {
            let at = i64::from(self.base).saturating_add(offset);
            let byte = i64::from(self.start) + byte as i64;
            return Err(MemoryFault::Unwritten { at, length: into.len(), byte });
        }
        self.backing.copy_out(from, into);
        Ok(())
    }

    fn try_write(&self, offset: i64, from: &[u8]) -> Result<(), MemoryFault> {
        let to = self.locate(offset, from.len())?;
        self.backing.copy_in(to, from);
        self.backing.mark_written(to..to + from.len());
        Ok(())
    }

    /// Offset within the buffer, if all `length` bytes lie in it.
    fn locate(&self, offset: i64, length: usize) -> Result<usize, MemoryFault> {
        let at = i64::from(self.base).saturating_add(offset);
        let within = at.saturating_sub(i64::from(self.start));
        match usize::try_from(within) {
            Ok(within) if within.saturating_add(length) <= self.backing.len() => Ok(within),
            _ => Err(outside(at, length, self.start, &self.backing)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space() -> Memory {
        let memory = Memory::new(Unwritten::Error);
        memory.map(0x10000, Arc::new(Backing::new(2 * PAGE).unwrap())).unwrap();
        memory.map(0x12000, Arc::new(Backing::new(PAGE).unwrap())).unwrap();
        memory
    }

    #[test]
    fn bytes_come_back_and_unwritten_ones_do_not() {
        let memory = space();
        let bytes: Vec<u8> = (0..200).collect();
        memory.write(0x10003, &bytes).unwrap();
        let mut back = [0; 200];
        memory.read(0x10003, &mut back).unwrap();
        assert_eq!(back[..], bytes[..]);
        let fault = memory.read(0x10001, &mut back).unwrap_err();
        assert_eq!(fault, MemoryFault::Unwritten { at: 0x10001, length: 200, byte: 0x10001 });
        let fault = memory.read(0x10004, &mut back).unwrap_err();
        assert_eq!(fault, MemoryFault::Unwritten { at: 0x10004, length: 200, byte: 0x100cb });
        memory.mark_written(0x10000..0x12000).unwrap();
        memory.read(0x10001, &mut back).unwrap();
        assert_eq!((back[0], back[1], back[2]), (0, 0, 0));
    }

    #[test]
    fn an_access_stays_in_the_buffer_of_its_base() {
        let memory = space();
        memory.mark_written(0x10000..0x12000).unwrap();
        memory.mark_written(0x12000..0x13000).unwrap();
        let window = memory.window(RegisterId(0x1070), 0x11ff0).unwrap();
        let mut bytes = [0; 32];
        window.read(-16, &mut bytes).unwrap();
        let text = window.read(0, &mut bytes).unwrap_err();
        let SimError::Memory { source: MemoryFault::OutOfBuffer { buffer, .. }, .. } = text else {
            panic!("{text}")
        };
        assert_eq!(buffer, 0x10000);
        for offset in [i64::MAX, i64::MIN, -0x11ff1] {
            window.read(offset, &mut bytes).unwrap_err();
        }
        assert!(memory.window(RegisterId(0x1070), 0x13000).is_err());
    }

    #[test]
    fn buffers_do_not_overlap() {
        let memory = space();
        let page = Arc::new(Backing::new(PAGE).unwrap());
        assert_eq!(memory.map(0x11000, page.clone()), Err(MapError::Overlap { at: 0x11000, other: 0x10000 }));
        assert_eq!(memory.map(0x11800, page.clone()), Err(MapError::Unaligned(0x11800)));
        let long = Arc::new(Backing::new(3 * PAGE).unwrap());
        assert_eq!(memory.map(0xf000, long.clone()), Err(MapError::Overlap { at: 0xf000, other: 0x10000 }));
        assert!(matches!(memory.map(0xffff_f000, long), Err(MapError::TooLong { .. })));
        memory.unmap(0x12000).unwrap();
        memory.map(0x12000, page).unwrap();
    }
}
