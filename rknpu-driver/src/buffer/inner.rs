//! A buffer's memory with its users.
#![expect(unsafe_code, reason = "slices of memory shared with the device; each block has its proof")]

use std::ops::Range;
use std::slice;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Instant;

use super::BufferKind;
use super::mapping::Mapping;
use super::object::Object;
use super::state::{LINE, Refusal, Users};
use crate::device::DomainId;
use crate::device::link::lock;
use crate::error::SyncError;

/// What a buffer is made of.
#[derive(Debug)]
pub(crate) struct Inner {
    state: Mutex<State>,
    /// Signalled when a user leaves.
    left: Condvar,
    /// How often a guard or a job that writes has come in: a job remembers it for its commands.
    epoch: AtomicU64,
    // The mapping goes before the object.
    pub(super) mapping: Mapping,
    pub(crate) object: Object,
    pub(crate) iova: u32,
    pub(crate) len: usize,
    pub(crate) domain: DomainId,
    pub(crate) kind: BufferKind,
    /// Whether the buffer is someone's, not the driver's own.
    pub(crate) counted: bool,
}

#[derive(Debug, Default)]
struct State {
    users: Users,
    /// The device wrote since the CPU last synced all of it.
    device_wrote: bool,
    /// What the CPU wrote and a sync failed to hand over.
    unsynced: Option<Range<usize>>,
}

impl Inner {
    pub(crate) fn new(object: Object, mapping: Mapping, place: Place) -> Self {
        let Place { iova, len, domain, kind, counted } = place;
        let shared = &object.link.shared;
        if counted {
            shared.buffers.fetch_add(1, Ordering::Relaxed);
            shared.buffer_bytes.fetch_add(len as u64, Ordering::Relaxed);
        }
        let (state, left, epoch) = Default::default();
        Self { state, left, epoch, mapping, object, iova, len, domain, kind, counted }
    }

    /// Lets a guard in: waits for others, then makes the device's writes visible.
    pub(super) fn enter_guard(&self, bytes: &Range<usize>, write: bool) -> Result<(), SyncError> {
        let mut state = self.wait_for(|users| users.enter_guard(bytes.clone(), write))?;
        // Synced under the lock: nobody enters between coming in and seeing the right bytes.
        let synced = self.sync_for_guard(&mut state, bytes);
        if synced.is_err() {
            state.users.leave_guard(bytes.clone(), write);
            self.left.notify_all();
        } else if write {
            self.epoch.fetch_add(1, Ordering::Release);
        }
        synced
    }

    fn sync_for_guard(&self, state: &mut State, bytes: &Range<usize>) -> Result<(), SyncError> {
        if state.users.is_sealed() {
            return Ok(());
        }
        if self.object.syncs_whole() {
            // A sync for the CPU drops the lines of all of the object: with another guard inside, it would
            // drop what that one wrote.
            let first = state.users.guards() == 1;
            return if first { self.object.begin_access(&(0..self.len)) } else { Ok(()) };
        }
        if !state.device_wrote {
            return Ok(());
        }
        let lines = self.whole_lines(bytes);
        self.object.begin_access(&lines)?;
        state.device_wrote = lines.start > 0 || lines.end < self.len;
        Ok(())
    }

    /// Lets a guard out: makes what it wrote visible to the device.
    pub(super) fn leave_guard(&self, bytes: &Range<usize>, write: bool) -> Result<(), SyncError> {
        let mut state = lock(&self.state);
        state.users.leave_guard(bytes.clone(), write);
        let last = state.users.guards() == 0;
        let handed_over = match (self.object.syncs_whole(), state.users.is_sealed()) {
            (_, true) => None,
            (true, false) => last.then_some(0..self.len),
            (false, false) => write.then(|| self.whole_lines(bytes)),
        };
        let result = handed_over.map_or(Ok(()), |lines| self.hand_over(&mut state, lines));
        self.left.notify_all();
        result
    }

    /// Makes lines visible to the device, and remembers them where that fails.
    fn hand_over(&self, state: &mut State, lines: Range<usize>) -> Result<(), SyncError> {
        let lines = match state.unsynced.take() {
            Some(old) => old.start.min(lines.start)..old.end.max(lines.end),
            None => lines,
        };
        let result = self.object.end_access(&lines);
        if result.is_err() {
            state.unsynced = Some(lines);
        }
        result
    }

    /// Lets a job in, before it is started: waits for others and hands over what an earlier sync could not.
    /// A job that writes may leave a mark, bytes from an offset on, which nobody can overwrite before it does.
    pub(crate) fn enter_job(&self, write: bool, mark: Option<(usize, &[u8])>) -> Result<(), SyncError> {
        let mut state = self.wait_for(|users| users.enter_job(write))?;
        let unsynced = state.unsynced.clone();
        let mut handed_over = unsynced.map_or(Ok(()), |lines| self.hand_over(&mut state, lines));
        if let (true, Ok(()), Some((offset, bytes))) = (write, handed_over.clone(), mark) {
            handed_over = self.leave_mark(&mut state, offset, bytes);
        }
        if handed_over.is_err() {
            state.users.leave_job(write);
            self.left.notify_all();
        } else if write {
            self.epoch.fetch_add(1, Ordering::Release);
        }
        handed_over
    }

    /// Writes for a job that writes and has just come in.
    fn leave_mark(&self, state: &mut State, offset: usize, bytes: &[u8]) -> Result<(), SyncError> {
        self.object.begin_access(&(0..self.len))?;
        // SAFETY: `enter_job`, the only caller, has let in a job that writes, which keeps guards and other jobs
        // out, and still holds the lock; the job itself is started only after that. The slice ends here.
        unsafe { self.bytes_mut(offset..offset + bytes.len()) }.copy_from_slice(bytes);
        self.hand_over(state, 0..self.len)
    }

    /// Lets a job out, whether or not it ran.
    pub(crate) fn leave_job(&self, write: bool) {
        let mut state = lock(&self.state);
        state.users.leave_job(write);
        state.device_wrote |= write;
        self.left.notify_all();
    }

    /// Keeps everyone from memory that a job may still use, or lets them in again.
    pub(crate) fn set_quarantined(&self, quarantined: bool) {
        lock(&self.state).users.set_quarantined(quarantined);
        self.left.notify_all();
    }

    /// Ends all writing, with the device's writes visible to the CPU and the CPU's to the device.
    pub(super) fn seal(&self) -> Result<(), SyncError> {
        let mut state = self.wait_for(Users::may_seal)?;
        if state.users.is_sealed() {
            return Ok(());
        }
        if state.device_wrote && state.users.guards() == 0 {
            self.object.begin_access(&(0..self.len))?;
        }
        if let Some(lines) = state.unsynced.clone() {
            self.hand_over(&mut state, lines)?;
        }
        if state.device_wrote && self.object.syncs_whole() {
            self.object.end_access(&(0..self.len))?;
        }
        state.device_wrote = false;
        state.users.seal();
        Ok(())
    }

    pub(crate) fn is_sealed(&self) -> bool {
        lock(&self.state).users.is_sealed()
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Tries `enter` until it succeeds, will never, or the wait has lasted too long.
    fn wait_for(
        &self,
        mut enter: impl FnMut(&mut Users) -> Result<(), Refusal>,
    ) -> Result<std::sync::MutexGuard<'_, State>, SyncError> {
        let (started, limit) = (Instant::now(), self.object.link.shared.access_wait());
        let mut state = lock(&self.state);
        loop {
            let refusal = match enter(&mut state.users) {
                Ok(()) => return Ok(state),
                Err(refusal) => refusal,
            };
            let left = limit.saturating_sub(started.elapsed());
            match refusal {
                Refusal::Sealed => return Err(SyncError::Sealed),
                Refusal::Quarantined => return Err(SyncError::Quarantined),
                Refusal::Guard | Refusal::Job if left.is_zero() => {
                    return Err(SyncError::Busy { holder: refusal.holder(), waited: limit });
                }
                Refusal::Guard | Refusal::Job => {
                    let waited = self.left.wait_timeout(state, left);
                    state = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        }
    }

    /// `bytes` widened to whole lines, within the buffer.
    fn whole_lines(&self, bytes: &Range<usize>) -> Range<usize> {
        if bytes.is_empty() {
            return 0..0;
        }
        bytes.start / LINE * LINE..bytes.end.next_multiple_of(LINE).min(self.len)
    }

    /// Bytes that a read guard holds, or any of a sealed buffer.
    ///
    /// # Safety
    /// Nobody writes the bytes while the slice lives: a guard over them is inside, or the buffer is sealed.
    pub(super) unsafe fn bytes(&self, range: Range<usize>) -> &[u8] {
        assert!(range.start <= range.end && range.end <= self.mapping.len());
        // SAFETY: in bounds of the mapping by the assertion, and mapped as long as `self` lives. Bytes have
        // no invalid values. That nobody writes them is the caller's promise: `Users` keeps CPU writers and
        // jobs that write out, the device writes for jobs only, and those write only what they list
        // (`Device::prepare`).
        unsafe { slice::from_raw_parts(self.mapping.as_ptr().add(range.start), range.len()) }
    }

    /// Bytes that a write guard holds.
    ///
    /// # Safety
    /// Nobody else reads or writes the bytes while the slice lives: a write guard over them is inside, or a job
    /// that writes and was not started, and this is its only slice.
    #[expect(clippy::mut_from_ref, reason = "exclusion is kept by the guards, not by a borrow")]
    pub(super) unsafe fn bytes_mut(&self, range: Range<usize>) -> &mut [u8] {
        assert!(range.start <= range.end && range.end <= self.mapping.len());
        // SAFETY: in bounds of the mapping by the assertion, and mapped as long as `self` lives. Bytes have
        // no invalid values. That the slice is alone is the caller's promise: `Users` lets no other guard
        // over these bytes in, and no job.
        unsafe { slice::from_raw_parts_mut(self.mapping.as_ptr().add(range.start), range.len()) }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.counted {
            let shared = &self.object.link.shared;
            shared.buffers.fetch_sub(1, Ordering::Relaxed);
            shared.buffer_bytes.fetch_sub(self.len as u64, Ordering::Relaxed);
        }
    }
}

/// Where a buffer lies and what it is for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) iova: u32,
    pub(crate) len: usize,
    pub(crate) domain: DomainId,
    pub(crate) kind: BufferKind,
    pub(crate) counted: bool,
}
