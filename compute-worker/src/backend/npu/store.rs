//! Weights in the NPU's memory: copied there once, read there by both.
//!
//! Matrices that a forward pass multiplies with the same activations (q, k, v; gate, up) form a group. On a device whose
//! address spaces belong to all cores (the vendor's driver), a group lies in one run of tiles, so that it is one product
//! and one job: tiles `[N/32][K/32]…` of matrices one after another are the tiles of the matrices stacked along N. Where each
//! core has an address space of its own (rocket), the matrices of a group go to different ones, so that cores work at
//! once.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use rknpu_driver::buffer::{BufferKind, SealedBuffer};
use rknpu_driver::device::{Device, Domain, DomainId};
use rknpu_driver::error::AllocateError;
use rookery_model::bundle::{LinearWeights, Segment, TileStorage};

use super::NpuError;
use super::error::is_shortage;
use crate::model::weights::ModelWeights;

/// Bytes of a buffer that several matrices share; a larger group has one of its own. Kernels give memory in pages, and the
/// fewer buffers, the fewer mappings.
const BUFFER_BYTES: usize = 64 << 20;
/// What stays free in each address space for activations, results and register commands.
const RESERVED_BYTES: u64 = 768 << 20;

/// Where a segment's tiles are.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) buffer: SealedBuffer,
    pub(super) domain: DomainId,
    /// First byte in the buffer.
    pub(super) offset: usize,
    pub(super) bytes: usize,
}

/// A sealed buffer as the bundle's segments read it.
#[derive(Debug)]
struct Storage(SealedBuffer);

impl TileStorage for Storage {
    fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// What weights take of each address space of a device, over all engines that share it.
#[derive(Clone, Debug, Default)]
pub struct Ledger(Arc<Mutex<BTreeMap<DomainId, u64>>>);

impl Ledger {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<DomainId, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn used(&self, domain: DomainId) -> u64 {
        self.lock().get(&domain).copied().unwrap_or(0)
    }
}

/// The tiles of a model that are in the NPU's memory, by their address in this process.
#[derive(Debug)]
pub(super) struct Store {
    places: BTreeMap<usize, Place>,
    /// The same segments with their tiles in the bundle's file.
    originals: HashMap<usize, Segment>,
    /// Tiles were overwritten: none may be used.
    spoilt: bool,
    ledger: Ledger,
    /// Bytes that did not fit and stay where they were.
    pub(super) left: usize,
}

impl Drop for Store {
    fn drop(&mut self) {
        self.forget(|_| true);
    }
}

/// Segments that go into one buffer, one after another.
struct Batch<'w> {
    domain: DomainId,
    segments: Vec<&'w mut Segment>,
    bytes: usize,
}

impl Store {
    /// An empty one.
    pub(super) fn new(ledger: Ledger) -> Self {
        let (places, originals) = (BTreeMap::new(), HashMap::new());
        Self { places, originals, spoilt: false, ledger, left: 0 }
    }

    /// Where these tiles are, if they are in the NPU's memory.
    pub(super) fn find(&self, tiles: &[u8]) -> Option<&Place> {
        self.places.get(&tiles.as_ptr().addr()).filter(|place| place.bytes == tiles.len())
    }

    /// The segment of these tiles with its tiles in the bundle's file.
    pub(super) fn original(&self, tiles: &[u8]) -> Option<&Segment> {
        self.originals.get(&tiles.as_ptr().addr())
    }

    /// Bytes that are in the NPU's memory.
    pub(super) fn held(&self) -> usize {
        self.places.values().map(|place| place.bytes).sum()
    }

    /// Tiles were found overwritten.
    pub(super) fn spoil(&mut self) {
        self.spoilt = true;
    }

    /// Whether tiles were overwritten, so that none may be used.
    pub(super) fn is_spoilt(&self) -> bool {
        self.spoilt
    }

    /// Whether the device can use none of it: a reset took the memory from it, or tiles were overwritten.
    pub(super) fn is_lost(&self) -> bool {
        self.spoilt || self.places.values().any(|place| place.buffer.is_stale())
    }

    /// Lets go of places, and of their room in the ledger.
    fn forget(&mut self, which: impl Fn(&Place) -> bool) {
        let mut used = self.ledger.lock();
        self.places.retain(|_, place| {
            let goes = which(place);
            if goes && let Some(used) = used.get_mut(&place.domain) {
                *used = used.saturating_sub(place.bytes as u64);
            }
            !goes
        });
    }

    /// Copies all matrices that linear layers use and that are not there yet into the device's memory; a tied embedding
    /// follows its head. What the device has no room for stays where it is, to be computed by the processor; the last
    /// refusal is told. Without a device only takes back what was overwritten.
    pub(super) fn adopt(
        &mut self,
        device: Option<&Device>,
        weights: &mut ModelWeights,
    ) -> Option<AllocateError> {
        let ModelWeights { layers, head, embedding, .. } = weights;
        let mut groups: Vec<Vec<&mut Segment>> = Vec::new();
        for layer in layers {
            let [q, k, v] = &mut layer.qkv;
            groups.push(segments([&mut q.weights, &mut k.weights, &mut v.weights]));
            groups.push(segments([&mut layer.attn_output]));
            groups.push(segments([&mut layer.ffn_gate, &mut layer.ffn_up]));
            groups.push(segments([&mut layer.ffn_down]));
        }
        groups.push(segments([head]));
        if std::mem::take(&mut self.spoilt) {
            for segment in groups.iter_mut().flatten().map(|s| &mut **s).chain(&mut embedding.segments) {
                if let Some(original) = self.originals.get(&segment.tiles().as_ptr().addr()) {
                    *segment = original.clone();
                }
            }
            self.forget(|_| true);
            self.originals.clear();
        }
        self.forget(|place| place.buffer.is_stale());
        for group in &mut groups {
            group.retain(|segment| self.find(segment.tiles()).is_none());
        }
        groups.retain(|group| !group.is_empty());
        self.left = groups.iter().flatten().map(|segment| segment.tiles().len()).sum();
        // Old address → where the tiles are now, for a tied embedding.
        let mut moved = HashMap::new();
        let refusal = device.and_then(|device| self.fill_all(device, groups, &mut moved));
        for segment in &mut embedding.segments {
            if let Some((storage, start)) = moved.get(&segment.tiles().as_ptr().addr()) {
                segment.move_tiles(Arc::clone(storage), *start);
            }
        }
        refusal
    }

    /// Copies groups. The last refusal is told.
    fn fill_all(
        &mut self,
        device: &Device,
        groups: Vec<Vec<&mut Segment>>,
        moved: &mut HashMap<usize, (Arc<dyn TileStorage>, usize)>,
    ) -> Option<AllocateError> {
        let mut refusal = None;
        // What was refused everywhere is not asked for again with each batch.
        let mut too_large = usize::MAX;
        for mut batch in batches(device.domains(), &self.ledger, groups) {
            if batch.bytes >= too_large {
                continue;
            }
            match self.fill_somewhere(device, &mut batch, moved) {
                Ok(()) => self.left -= batch.bytes,
                Err(error) => {
                    too_large = if is_shortage(&error) { batch.bytes } else { 0 };
                    refusal = Some(error);
                }
            }
        }
        refusal
    }

    /// Copies a batch into its domain or, if others took the room there, into the next one that has some.
    fn fill_somewhere(
        &mut self,
        device: &Device,
        batch: &mut Batch<'_>,
        moved: &mut HashMap<usize, (Arc<dyn TileStorage>, usize)>,
    ) -> Result<(), AllocateError> {
        let domains = device.domains();
        let first = domains.iter().position(|domain| domain.id == batch.domain).unwrap_or(0);
        let mut result = self.fill(device, batch, moved);
        for domain in domains.iter().cycle().skip(first + 1).take(domains.len().saturating_sub(1)) {
            if !matches!(&result, Err(error) if is_shortage(error)) {
                break;
            }
            if self.ledger.used(domain.id) + batch.bytes as u64 <= room(domain) {
                batch.domain = domain.id;
                result = self.fill(device, batch, moved);
            }
        }
        result
    }

    /// Copies tiles into a buffer of their own in `domain`, and gives that back.
    pub(super) fn insert(
        &mut self,
        device: &Device,
        domain: DomainId,
        tiles: &[u8],
    ) -> Result<SealedBuffer, NpuError> {
        let buffer = device.allocate(domain, tiles.len(), BufferKind::Data)?;
        let mut guard = buffer.write(..)?;
        guard[..tiles.len()].copy_from_slice(tiles);
        guard.finish()?;
        let buffer = buffer.seal()?;
        let place = Place { buffer: buffer.clone(), domain, offset: 0, bytes: tiles.len() };
        self.places.insert(buffer.as_ptr().addr(), place);
        Ok(buffer)
    }

    /// Copies the segments of a batch into a buffer of their own.
    fn fill(
        &mut self,
        device: &Device,
        batch: &mut Batch<'_>,
        moved: &mut HashMap<usize, (Arc<dyn TileStorage>, usize)>,
    ) -> Result<(), AllocateError> {
        let &mut Batch { domain, ref mut segments, bytes } = batch;
        let buffer = device.allocate(domain, bytes, BufferKind::Data)?;
        let in_use = |_| AllocateError::NoMemory { bytes, domain, source: Errno::EBUSY };
        let mut guard = buffer.write(..).map_err(in_use)?;
        let mut offset = 0;
        for segment in segments.iter() {
            let tiles = segment.tiles();
            guard[offset..offset + tiles.len()].copy_from_slice(tiles);
            offset += tiles.len();
        }
        guard.finish().map_err(in_use)?;
        let buffer = buffer.seal().map_err(in_use)?;
        let storage: Arc<dyn TileStorage> = Arc::new(Storage(buffer.clone()));
        *self.ledger.lock().entry(domain).or_default() += bytes as u64;
        let mut offset = 0;
        for segment in segments {
            let old = segment.tiles().as_ptr().addr();
            let original = self.originals.remove(&old).unwrap_or_else(|| (**segment).clone());
            moved.insert(old, (Arc::clone(&storage), offset));
            segment.move_tiles(Arc::clone(&storage), offset);
            let (address, bytes) = (segment.tiles().as_ptr().addr(), segment.tiles().len());
            self.places.insert(address, Place { buffer: buffer.clone(), domain, offset, bytes });
            self.originals.insert(address, original);
            offset += bytes;
        }
        Ok(())
    }
}

fn segments<const N: usize>(matrices: [&mut LinearWeights; N]) -> Vec<&mut Segment> {
    matrices.into_iter().flat_map(|matrix| matrix.segments.iter_mut()).collect()
}

/// Which segments go into which buffer of which domain, without those that fit none.
fn batches<'w>(domains: &[Domain], ledger: &Ledger, groups: Vec<Vec<&'w mut Segment>>) -> Vec<Batch<'w>> {
    let shared = domains.iter().any(|domain| domain.cores.count() > 1);
    let mut rooms: Vec<Room<'w>> =
        domains.iter().map(|domain| Room::new(domain, ledger.used(domain.id))).collect();
    let mut done = Vec::new();
    for mut group in groups {
        if shared {
            let bytes = group.iter().map(|segment| segment.tiles().len()).sum();
            if let Some(room) = rooms.iter_mut().find(|room| room.has(bytes)) {
                done.extend(room.add(group, bytes));
            }
            continue;
        }
        // The largest first, each to the domain that has least of this group, then least of all.
        group.sort_by_key(|segment| std::cmp::Reverse(segment.tiles().len()));
        let mut loads = vec![0; rooms.len()];
        for segment in group {
            let bytes = segment.tiles().len();
            let fitting = rooms.iter_mut().enumerate().filter(|(_, room)| room.has(bytes));
            if let Some((index, room)) = fitting.min_by_key(|(index, room)| (loads[*index], room.used)) {
                loads[index] += bytes;
                done.extend(room.add(vec![segment], bytes));
            }
        }
    }
    done.extend(rooms.into_iter().filter_map(|room| room.open));
    done
}

/// Bytes of weights that a domain may hold.
fn room(domain: &Domain) -> u64 {
    domain.bytes.saturating_sub(RESERVED_BYTES)
}

/// What a domain has taken.
struct Room<'w> {
    domain: DomainId,
    used: u64,
    most: u64,
    /// The batch that is being filled.
    open: Option<Batch<'w>>,
}

impl<'w> Room<'w> {
    fn new(domain: &Domain, used: u64) -> Self {
        Self { domain: domain.id, used, most: room(domain), open: None }
    }

    fn has(&self, bytes: usize) -> bool {
        self.used + bytes as u64 <= self.most
    }

    /// Takes segments in; gives back the batch before them if they do not fit beside it.
    fn add(&mut self, segments: Vec<&'w mut Segment>, bytes: usize) -> Option<Batch<'w>> {
        self.used += bytes as u64;
        match &mut self.open {
            Some(open) if open.bytes + bytes <= BUFFER_BYTES => {
                open.segments.extend(segments);
                open.bytes += bytes;
                None
            }
            open => open.replace(Batch { domain: self.domain, segments, bytes }),
        }
    }
}
