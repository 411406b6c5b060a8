//! Buffer objects, the address spaces they are mapped into, and the books kept of both.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::address::{AddressSpace, PAGE, Placement};
use crate::sim::{Backing, Memory, Unwritten};

/// 32-bit bus addresses.
const SPACE_BYTES: u64 = 1 << 32;
/// DRM hands out mmap offsets above what a 32-bit file could have (`DRM_FILE_PAGE_OFFSET_START`).
const FIRST_OFFSET: u64 = 1 << 32;
/// Room for mmap offsets.
const OFFSET_BYTES: u64 = 1 << 44;

/// What a simulated device holds at a moment. Leaks show here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Descriptors that are open.
    pub files: u64,
    /// Buffer objects that live.
    pub buffers: u64,
    /// Bytes of them, which are the bytes mapped for the NPU.
    pub bytes: u64,
    /// Jobs that are queued or running.
    pub jobs: u64,
}

/// The running count behind [`Usage`].
#[derive(Debug, Default)]
pub(super) struct Books {
    pub(super) files: AtomicU64,
    pub(super) jobs: AtomicU64,
    buffers: AtomicU64,
    bytes: AtomicU64,
}

impl Books {
    pub(super) fn usage(&self) -> Usage {
        Usage {
            files: self.files.load(Relaxed),
            buffers: self.buffers.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
            jobs: self.jobs.load(Relaxed),
        }
    }
}

/// What all spaces of one device share.
#[derive(Debug)]
pub(super) struct Store {
    pub(super) books: Books,
    offsets: Mutex<AddressSpace>,
    /// Every living object by its serial number.
    objects: Mutex<BTreeMap<u64, Weak<Object>>>,
    next_serial: AtomicU64,
    sram_free: Mutex<u64>,
}

impl Store {
    pub(super) fn new(sram_bytes: u64) -> Arc<Self> {
        Arc::new(Self {
            books: Books::default(),
            offsets: Mutex::new(AddressSpace::new(OFFSET_BYTES)),
            objects: Mutex::default(),
            next_serial: AtomicU64::new(1),
            sram_free: Mutex::new(sram_bytes),
        })
    }

    pub(super) fn sram_free(&self) -> u64 {
        *lock(&self.sram_free)
    }

    /// The living object with this serial number.
    pub(super) fn object(&self, serial: u64) -> Option<Arc<Object>> {
        lock(&self.objects).get(&serial)?.upgrade()
    }

    /// The living object whose pages this descriptor (an exported dma-buf) holds.
    pub(super) fn object_of(&self, fd: impl std::os::fd::AsFd) -> Option<Arc<Object>> {
        let wanted = nix::sys::stat::fstat(fd).ok()?;
        let objects: Vec<_> = lock(&self.objects).values().filter_map(Weak::upgrade).collect();
        objects.into_iter().find(|object| {
            let pages = nix::sys::stat::fstat(object.backing.fd());
            pages.is_ok_and(|pages| (pages.st_dev, pages.st_ino) == (wanted.st_dev, wanted.st_ino))
        })
    }
}

/// One address space of the NPU.
#[derive(Debug)]
pub(super) struct Space {
    pub(super) memory: Memory,
    addresses: Mutex<AddressSpace>,
    store: Arc<Store>,
}

/// What a buffer object is to be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    pub(super) bytes: u64,
    pub(super) placement: Placement,
    /// The vendor driver's `RKNPU_MEM_*`; 0 with rocket.
    pub(super) flags: u32,
    /// Most bytes of it that may lie in SRAM.
    pub(super) sram: u64,
    /// The vendor driver's domain.
    pub(super) domain: u32,
}

/// Why there is no buffer object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoObject {
    /// The address space has no gap that large.
    NoAddress,
    /// The system has no pages.
    NoPages(Errno),
}

impl Space {
    pub(super) fn new(unwritten: Unwritten, store: &Arc<Store>) -> Arc<Self> {
        Arc::new(Self {
            memory: Memory::new(unwritten),
            addresses: Mutex::new(AddressSpace::new(SPACE_BYTES)),
            store: Arc::clone(store),
        })
    }

    /// Makes an object and maps it.
    pub(super) fn allocate(self: &Arc<Self>, wanted: Wanted) -> Result<Arc<Object>, NoObject> {
        let Some(bytes) = wanted.bytes.checked_next_multiple_of(PAGE) else {
            return Err(NoObject::NoAddress);
        };
        let iova = lock(&self.addresses).take(bytes, wanted.placement).ok_or(NoObject::NoAddress)?;
        let pages = usize::try_from(bytes).map_err(|_| Errno::ENOMEM);
        let backing = pages.and_then(|pages| {
            let made = Backing::new(pages).map_err(|error| error.errno);
            // A real buffer takes no descriptor. These do, and programs may have more buffers than descriptors by default.
            if matches!(made, Err(Errno::EMFILE)) && raise_descriptor_limit() {
                return Backing::new(pages).map_err(|error| error.errno);
            }
            made
        });
        // Addresses below 4 GB by the space's size, free by its books: mapping cannot fail where they are right.
        let mapped = backing.and_then(|backing| {
            let (backing, at) = (Arc::new(backing), u32::try_from(iova).map_err(|_| Errno::ENOMEM)?);
            self.memory.map(at, Arc::clone(&backing)).map_err(|_| Errno::ENOMEM)?;
            Ok((backing, at))
        });
        let (backing, iova) = mapped.map_err(|errno| {
            lock(&self.addresses).give_back(iova);
            NoObject::NoPages(errno)
        })?;
        Ok(self.enter(backing, iova, bytes, wanted))
    }

    fn enter(self: &Arc<Self>, backing: Arc<Backing>, iova: u32, bytes: u64, wanted: Wanted) -> Arc<Object> {
        let store = &self.store;
        let sram = {
            let mut free = lock(&store.sram_free);
            let taken = wanted.sram.min(*free).min(bytes);
            *free -= taken;
            taken
        };
        // 16 TB of offsets for at most 4 GB in each of a few spaces.
        let offset = lock(&store.offsets).take(bytes, Placement::Bottom).unwrap_or(0);
        store.books.buffers.fetch_add(1, Relaxed);
        store.books.bytes.fetch_add(bytes, Relaxed);
        let serial = store.next_serial.fetch_add(1, Relaxed);
        let object = Arc::new(Object {
            serial,
            backing,
            iova,
            bytes,
            flags: wanted.flags,
            domain: wanted.domain,
            sram,
            offset: FIRST_OFFSET + offset,
            writer: Mutex::default(),
            space: Arc::clone(self),
        });
        lock(&store.objects).insert(serial, Arc::downgrade(&object));
        object
    }
}

/// A buffer object: pages, mapped for the NPU as long as the object lives. Handles and jobs keep it alive; CPU mappings
/// keep the pages alone.
#[derive(Debug)]
pub(super) struct Object {
    /// Unlike all others of the device, ever.
    pub(super) serial: u64,
    pub(super) backing: Arc<Backing>,
    pub(super) iova: u32,
    pub(super) bytes: u64,
    pub(super) flags: u32,
    pub(super) domain: u32,
    pub(super) sram: u64,
    /// Where mmap finds it in the device's file.
    pub(super) offset: u64,
    /// The last queued job that writes it (rocket).
    pub(super) writer: Mutex<Option<Arc<super::fence::Fence>>>,
    space: Arc<Space>,
}

impl Object {
    /// A dma-buf: a descriptor of the pages.
    pub(super) fn export(&self) -> Result<OwnedFd, Errno> {
        self.backing
            .fd()
            .try_clone_to_owned()
            .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(Errno::EMFILE as i32)))
    }

    /// The CPU writes these bytes without a word to the driver, and must be taken to have.
    pub(super) fn mark_written(&self, from: u64, bytes: u64) {
        self.backing.mark_written(self.within(from, bytes));
    }

    /// The CPU hands these bytes over: those count as written that it can have written.
    pub(super) fn mark_touched(&self, from: u64, bytes: u64) {
        let bytes = self.within(from, bytes);
        // Most syncs are of memory that was written long ago.
        if let Some(first) = self.backing.first_unwritten(bytes.clone()) {
            super::touched::each(self.backing.fd(), first..bytes.end, |part| self.backing.mark_written(part));
        }
    }

    fn within(&self, from: u64, bytes: u64) -> std::ops::Range<usize> {
        let end = from.saturating_add(bytes).min(self.bytes);
        from.min(end) as usize..end as usize
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        let store = &self.space.store;
        self.space.memory.unmap(self.iova);
        lock(&self.space.addresses).give_back(u64::from(self.iova));
        lock(&store.offsets).give_back(self.offset - FIRST_OFFSET);
        lock(&store.objects).remove(&self.serial);
        *lock(&store.sram_free) += self.sram;
        store.books.buffers.fetch_sub(1, Relaxed);
        store.books.bytes.fetch_sub(self.bytes, Relaxed);
    }
}

/// One descriptor's handles: small numbers from 1, the lowest free one first.
#[derive(Debug, Default)]
pub(super) struct Handles {
    objects: Mutex<BTreeMap<u32, Arc<Object>>>,
}

impl Handles {
    pub(super) fn get(&self, handle: u32) -> Option<Arc<Object>> {
        lock(&self.objects).get(&handle).cloned()
    }

    /// A handle for the object: the one it has here already, or a new one.
    pub(super) fn insert(&self, object: Arc<Object>) -> u32 {
        let mut objects = lock(&self.objects);
        if let Some((handle, _)) = objects.iter().find(|(_, known)| known.serial == object.serial) {
            return *handle;
        }
        let handle = (1..).zip(objects.keys()).find(|(free, taken)| free != *taken).map(|(free, _)| free);
        let handle = handle.unwrap_or(objects.len() as u32 + 1);
        objects.insert(handle, object);
        handle
    }

    pub(super) fn remove(&self, handle: u32) -> Option<Arc<Object>> {
        lock(&self.objects).remove(&handle)
    }

    /// The object whose mmap offset this is: exactly its start, as DRM looks it up.
    pub(super) fn at_offset(&self, offset: u64, bytes: u64) -> Result<Arc<Object>, Errno> {
        let objects = lock(&self.objects);
        let object = objects.values().find(|object| object.offset == offset).ok_or(Errno::EINVAL)?;
        if bytes > object.bytes { Err(Errno::EINVAL) } else { Ok(Arc::clone(object)) }
    }
}

/// Raises this process's limit of descriptors to the most it may have; whether that is more than before.
fn raise_descriptor_limit() -> bool {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .map(|(soft, hard)| soft < hard && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok());
    raised.unwrap_or(false)
}

/// The books are plain data, consistent after every statement: a panic elsewhere does not spoil them.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(bytes: u64) -> Wanted {
        Wanted { bytes, placement: Placement::Bottom, flags: 0, sram: 0, domain: 0 }
    }

    #[test]
    fn objects_are_booked_while_they_live() {
        let store = Store::new(3 * PAGE);
        let space = Space::new(Unwritten::Error, &store);
        let one = space.allocate(wanted(1)).unwrap();
        let two = space.allocate(Wanted { sram: 2 * PAGE, ..wanted(5 * PAGE) }).unwrap();
        assert_eq!((one.iova, two.iova), (0, PAGE as u32));
        assert_eq!((two.sram, store.sram_free()), (2 * PAGE, PAGE));
        assert_eq!(store.books.usage(), Usage { buffers: 2, bytes: 6 * PAGE, ..Usage::default() });
        assert_ne!(one.offset, two.offset);
        let exported = two.export().unwrap();
        assert_eq!(store.object_of(&exported).unwrap().serial, two.serial);
        drop((one, two));
        assert_eq!(store.books.usage(), Usage::default());
        assert_eq!(store.sram_free(), 3 * PAGE);
        assert!(store.object_of(&exported).is_none());
        assert_eq!(space.allocate(wanted(PAGE)).unwrap().iova, 0);
    }

    #[test]
    fn a_space_ends_at_4_gb() {
        let space = Space::new(Unwritten::Error, &Store::new(0));
        assert_eq!(space.allocate(wanted((4 << 30) + 1)).unwrap_err(), NoObject::NoAddress);
        assert_eq!(space.allocate(wanted(u64::MAX)).unwrap_err(), NoObject::NoAddress);
        assert_eq!(space.store.books.usage(), Usage::default());
    }

    #[test]
    fn handles_are_the_lowest_free_numbers() {
        let space = Space::new(Unwritten::Error, &Store::new(0));
        let handles = Handles::default();
        let objects: Vec<_> = (0..3).map(|_| space.allocate(wanted(1)).unwrap()).collect();
        let numbers: Vec<_> = objects.iter().map(|object| handles.insert(Arc::clone(object))).collect();
        assert_eq!(numbers, [1, 2, 3]);
        assert_eq!(handles.insert(Arc::clone(&objects[1])), 2);
        handles.remove(1).unwrap();
        handles.remove(2).unwrap();
        assert_eq!(handles.insert(Arc::clone(&objects[1])), 1);
        assert!(handles.get(2).is_none());
        let at = objects[2].offset;
        assert_eq!(handles.at_offset(at, PAGE).unwrap().serial, objects[2].serial);
        assert_eq!(handles.at_offset(at, PAGE + 1).unwrap_err(), Errno::EINVAL);
        assert_eq!(handles.at_offset(at + 1, 1).unwrap_err(), Errno::EINVAL);
    }
}
