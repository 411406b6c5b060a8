//! How a job on rocket is seen to have run.
//!
//! Rocket's submit reports no job's error, and waiting succeeds after a job that was refused, or reset, just
//! as after one that ran. So when a job has its buffers and was not started, the first sixteen bytes that its last task will write get a
//! value that is used once; found again afterwards, the task did not write. Tasks of a job run in order, so
//! the last one stands for all.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::check::{Use, find};
use super::commands::Addresses;
use crate::buffer::{Buffer, Inner};
use crate::error::{JobError, SyncError};

/// Bytes that every task writes at least: one atom.
pub(crate) const BYTES: usize = 16;

/// Where to look: the last task's first output bytes.
#[derive(Debug)]
pub(crate) struct Proof {
    /// The buffer.
    buffer: Buffer,
    /// First byte.
    offset: usize,
}

/// A mark for one run.
#[derive(Debug)]
pub(crate) struct Mark<'a> {
    proof: &'a Proof,
    bytes: [u8; BYTES],
}

impl Proof {
    /// Looks for bytes that the last task writes and no task reads: a mark there could be taken for data.
    pub(crate) fn choose(uses: &[Use], addresses: &[Vec<Addresses>]) -> Result<Self, JobError> {
        let refused = |what: &str| JobError::Malformed(format!("nothing would show that it ran: {what}"));
        let tasks = addresses.iter().flatten();
        let last = tasks.clone().last().and_then(|task| task.written.last());
        let target = last.and_then(|last| find(uses, last.address).map(|target| (last.address, target)));
        let Some((address, target)) = target.filter(|(_, target)| target.write) else {
            return Err(refused("its last task has no output"));
        };
        let offset = (address - target.inner.iova) as usize;
        if offset + BYTES > target.inner.len {
            return Err(refused("its last task's output has less than an atom"));
        }
        let mut reads = tasks.flat_map(|task| &task.read);
        let read = reads
            .any(|&read| read != 0 && find(uses, read).is_some_and(|it| it.inner.iova == target.inner.iova));
        if read {
            return Err(refused("it reads the buffer that its last task writes"));
        }
        Ok(Proof { buffer: Buffer(target.inner.clone()), offset })
    }

    /// A mark, to be left where [`Mark::place`] says before the job starts.
    pub(crate) fn mark(&self) -> Mark<'_> {
        Mark { proof: self, bytes: unique() }
    }
}

impl Mark<'_> {
    /// The offset and the bytes, if this is the buffer they belong in.
    pub(crate) fn place(&self, inner: &Arc<Inner>) -> Option<(usize, &[u8])> {
        Arc::ptr_eq(inner, &self.proof.buffer.0).then_some((self.proof.offset, &self.bytes[..]))
    }

    /// Whether the bytes were written since; the job no longer has its buffers.
    pub(crate) fn was_written(&self) -> Result<bool, SyncError> {
        let Proof { buffer, offset } = self.proof;
        Ok(buffer.read(*offset..offset + BYTES)?[..] != self.bytes)
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
