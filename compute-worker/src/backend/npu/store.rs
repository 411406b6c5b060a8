//! Weights in the NPU's memory: copied there once, read there by both.
//!
//! Matrices that a forward pass multiplies with the same activations (q, k, v; gate, up) form a group. On a device whose
//! address spaces belong to all cores (the vendor's driver), a group lies in one run of tiles, so that it is one product
//! and one job: tiles `[N/32][K/32]…` of matrices one after another are the tiles of the matrices stacked along N. Where each
//! core has an address space of its own (rocket), the matrices of a group go to different ones, so that cores work at
//! once.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use nix::errno::Errno;
use rknpu_driver::buffer::{BufferKind, SealedBuffer};
use rknpu_driver::device::{Device, Domain, DomainId};
use rknpu_driver::error::AllocateError;
use rookery_model::bundle::{LinearWeights, Segment, TileStorage};

use super::NpuError;
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

/// The tiles of a model that are in the NPU's memory, by their address in this process.
#[derive(Debug, Default)]
pub(super) struct Store {
    places: BTreeMap<usize, Place>,
    /// Bytes that did not fit and stay where they were.
    pub(super) left: usize,
    /// Bytes that are in the NPU's memory.
    pub(super) held: usize,
}

/// Segments that go into one buffer, one after another.
struct Batch<'w> {
    domain: DomainId,
    segments: Vec<&'w mut Segment>,
    bytes: usize,
}

impl Store {
    /// Where these tiles are, if they are in the NPU's memory.
    pub(super) fn find(&self, tiles: &[u8]) -> Option<&Place> {
        self.places.get(&tiles.as_ptr().addr()).filter(|place| place.bytes == tiles.len())
    }

    /// Whether a reset took the memory from the device.
    pub(super) fn is_stale(&self) -> bool {
        self.places.values().any(|place| place.buffer.is_stale())
    }

    /// Copies all matrices that linear layers use into the device's memory; a tied embedding follows its head. What the
    /// device has no room for stays where it is, to be computed by the processor; the last refusal is told.
    pub(super) fn build(device: &Device, weights: &mut ModelWeights) -> (Store, Option<AllocateError>) {
        let mut store = Store::default();
        let mut refusal = None;
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
        // Old address → where the tiles are now, for a tied embedding.
        let mut moved = HashMap::new();
        for batch in batches(device.domains(), groups, &mut store.left) {
            let bytes = batch.bytes;
            match store.fill(device, batch, &mut moved) {
                Ok(()) => store.held += bytes,
                Err(error) => {
                    store.left += bytes;
                    refusal = Some(error);
                }
            }
        }
        for segment in &mut embedding.segments {
            if let Some((storage, start)) = moved.get(&segment.tiles().as_ptr().addr()) {
                segment.move_tiles(Arc::clone(storage), *start);
            }
        }
        (store, refusal)
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
        batch: Batch<'_>,
        moved: &mut HashMap<usize, (Arc<dyn TileStorage>, usize)>,
    ) -> Result<(), AllocateError> {
        let Batch { domain, segments, bytes } = batch;
        let buffer = device.allocate(domain, bytes, BufferKind::Data)?;
        let in_use = |_| AllocateError::NoMemory { bytes, domain, source: Errno::EBUSY };
        let mut guard = buffer.write(..).map_err(in_use)?;
        let mut offset = 0;
        for segment in &segments {
            let tiles = segment.tiles();
            guard[offset..offset + tiles.len()].copy_from_slice(tiles);
            offset += tiles.len();
        }
        guard.finish().map_err(in_use)?;
        let buffer = buffer.seal().map_err(in_use)?;
        let storage: Arc<dyn TileStorage> = Arc::new(Storage(buffer.clone()));
        let mut offset = 0;
        for segment in segments {
            let old = segment.tiles().as_ptr().addr();
            moved.insert(old, (Arc::clone(&storage), offset));
            segment.move_tiles(Arc::clone(&storage), offset);
            let (address, bytes) = (segment.tiles().as_ptr().addr(), segment.tiles().len());
            self.places.insert(address, Place { buffer: buffer.clone(), domain, offset, bytes });
            offset += bytes;
        }
        Ok(())
    }
}

fn segments<const N: usize>(matrices: [&mut LinearWeights; N]) -> Vec<&mut Segment> {
    matrices.into_iter().flat_map(|matrix| matrix.segments.iter_mut()).collect()
}

/// Which segments go into which buffer of which domain; bytes that fit none are added to `left`.
fn batches<'w>(domains: &[Domain], groups: Vec<Vec<&'w mut Segment>>, left: &mut usize) -> Vec<Batch<'w>> {
    let shared = domains.iter().any(|domain| domain.cores.count() > 1);
    let mut rooms: Vec<Room<'w>> = domains.iter().map(Room::new).collect();
    let mut done = Vec::new();
    for mut group in groups {
        if shared {
            let bytes = group.iter().map(|segment| segment.tiles().len()).sum();
            match rooms.iter_mut().find(|room| room.has(bytes)) {
                Some(room) => done.extend(room.add(group, bytes)),
                None => *left += bytes,
            }
            continue;
        }
        // The largest first, each to the domain that has least of this group, then least of all.
        group.sort_by_key(|segment| std::cmp::Reverse(segment.tiles().len()));
        let mut loads = vec![0; rooms.len()];
        for segment in group {
            let bytes = segment.tiles().len();
            let fitting = rooms.iter_mut().enumerate().filter(|(_, room)| room.has(bytes));
            match fitting.min_by_key(|(index, room)| (loads[*index], room.used)) {
                Some((index, room)) => {
                    loads[index] += bytes;
                    done.extend(room.add(vec![segment], bytes));
                }
                None => *left += bytes,
            }
        }
    }
    done.extend(rooms.into_iter().filter_map(|room| room.open));
    done
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
    fn new(domain: &Domain) -> Self {
        let most = domain.bytes.saturating_sub(RESERVED_BYTES);
        Self { domain: domain.id, used: 0, most, open: None }
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
