//! How a job on rocket is seen to have run.
//!
//! Rocket's submit reports no job's error, and waiting succeeds after a job that was refused, or reset, just
//! as after one that ran. So before a job starts, the first sixteen bytes that its last task will write get a
//! value that is used once; found again afterwards, the task did not write. Tasks of a job run in order, so
//! the last one stands for all.

use std::sync::atomic::{AtomicU64, Ordering};

use super::check::{Use, find};
use super::commands::{Addresses, Written};
use crate::buffer::Buffer;
use crate::error::SyncError;

/// Bytes that every task writes at least: one atom.
pub(crate) const BYTES: usize = 16;

/// Where to look.
#[derive(Debug)]
pub(crate) enum Proof {
    /// The last task's first output bytes.
    Marker {
        /// The buffer.
        buffer: Buffer,
        /// First byte.
        offset: usize,
    },
    /// Nothing can be marked: the buffer is read in the same job, so a mark could be taken for data. Only the
    /// time tells.
    Time,
}

/// A mark that was set.
#[derive(Debug)]
pub(crate) struct Mark([u8; BYTES]);

impl Proof {
    /// Looks for bytes that the last task writes and no task reads.
    pub(crate) fn choose(uses: &[Use], addresses: &[Vec<Addresses>]) -> Self {
        let tasks = addresses.iter().flatten();
        let Some(&Written { address, .. }) = tasks.clone().last().and_then(|task| task.written.last()) else {
            return Proof::Time;
        };
        let Some(target) = find(uses, address).filter(|target| target.write) else { return Proof::Time };
        let offset = (address - target.inner.iova) as usize;
        let mut reads = tasks.flat_map(|task| &task.read);
        let read = reads
            .any(|&read| read != 0 && find(uses, read).is_some_and(|it| it.inner.iova == target.inner.iova));
        if read || offset + BYTES > target.inner.len {
            return Proof::Time;
        }
        Proof::Marker { buffer: Buffer(target.inner.clone()), offset }
    }

    /// Marks the bytes, before the job has its buffers.
    pub(crate) fn mark(&self) -> Result<Option<Mark>, SyncError> {
        let Proof::Marker { buffer, offset } = self else { return Ok(None) };
        let mark = Mark(unique());
        let mut guard = buffer.write(*offset..offset + BYTES)?;
        guard.copy_from_slice(&mark.0);
        guard.finish()?;
        Ok(Some(mark))
    }

    /// Whether the bytes were written since; the job no longer has its buffers.
    pub(crate) fn was_written(&self, mark: Option<&Mark>) -> Result<bool, SyncError> {
        let (Proof::Marker { buffer, offset }, Some(mark)) = (self, mark) else { return Ok(true) };
        Ok(buffer.read(*offset..offset + BYTES)?[..] != mark.0)
    }
}

/// Sixteen bytes that no one has used: a counter, scattered by SplitMix64's finaliser (Steele, Lea, Flood
/// 2014) so that it looks like no data.
fn unique() -> [u8; BYTES] {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let count = NEXT.fetch_add(1, Ordering::Relaxed);
    let mut bytes = [0; BYTES];
    bytes[..8].copy_from_slice(&scatter(count).to_le_bytes());
    bytes[8..].copy_from_slice(&scatter(!count).to_le_bytes());
    bytes
}

fn scatter(count: u64) -> u64 {
    let mut z = count.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}
