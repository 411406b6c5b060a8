//! Connections that have not yet shown who they are: a bounded number, and the newest has the best claim.
//!
//! Whoever means it is through in milliseconds, and whoever holds a place for long does not mean it. So when all places are
//! taken, a new connection gets that of the oldest: to keep others out, one would have to dial faster than they finish.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio_util::sync::CancellationToken;

/// The places. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Pending {
    most: usize,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    taken: BTreeMap<u64, CancellationToken>,
}

/// A connection's place, free when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    number: u64,
    lost: CancellationToken,
    pending: Pending,
}

impl Pending {
    /// At most `most` places, at least one.
    pub(crate) fn new(most: usize) -> Self {
        Self { most: most.max(1), state: Arc::default() }
    }

    /// Takes a place, that of the oldest if there is no other.
    pub(crate) fn enter(&self) -> Place {
        let lost = CancellationToken::new();
        let mut state = self.state();
        let number = state.next;
        state.next += 1;
        state.taken.insert(number, lost.clone());
        if state.taken.len() > self.most
            && let Some((_, oldest)) = state.taken.pop_first()
        {
            oldest.cancel();
        }
        drop(state);
        Place { number, lost, pending: self.clone() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing in here panics half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Resolves when a newer connection has taken the place.
    pub(crate) async fn lost(&self) {
        self.lost.cancelled().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.pending.state().taken.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_makes_room_and_a_free_place_is_used_first() {
        let pending = Pending::new(2);
        let (a, b) = (pending.enter(), pending.enter());
        drop(b);
        let c = pending.enter();
        assert!(!a.lost.is_cancelled() && !c.lost.is_cancelled());
        let d = pending.enter();
        assert!(a.lost.is_cancelled() && !c.lost.is_cancelled());
        drop(a);
        let _e = pending.enter();
        assert!(c.lost.is_cancelled() && !d.lost.is_cancelled());
        assert_eq!(pending.state().taken.len(), 2);
    }
}
