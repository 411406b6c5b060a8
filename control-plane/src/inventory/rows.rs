//! The store's rows, read again only when they may have changed.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::{Mutex, watch};

use crate::{
    domain::Millis,
    store::{GatewayRecord, Store, StoreError},
};

/// A replica that has not said for this long that it lives is dead, and its links with it.
pub(crate) const DEAD_AFTER: Duration = Duration::from_secs(6);

/// How old what other replicas may have written can be here.
const OLDEST: Duration = Duration::from_secs(1);

/// The same while this is the only replica: nobody else writes.
const OLDEST_ALONE: Duration = Duration::from_secs(5);

/// What was read at one moment.
#[derive(Debug)]
pub(super) struct Read {
    /// When it began to be read: whatever was written before is in it.
    pub(super) at: Millis,
    /// By id.
    pub(super) gateways: Vec<Arc<GatewayRecord>>,
    /// Replicas that live.
    pub(super) replicas: BTreeSet<String>,
}

impl Read {
    /// Whether it is the same gateways, as people have set them.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        let rows = || self.gateways.iter().zip(&other.gateways);
        std::ptr::eq(self, other)
            || self.gateways.len() == other.gateways.len()
                && rows().all(|(one, other)| {
                    (&one.id, one.admission, &one.labels) == (&other.id, other.admission, &other.labels)
                })
    }
}

pub(super) struct Rows {
    written: watch::Receiver<u64>,
    /// One reader at a time; the others get what it has read.
    last: Mutex<Option<Last>>,
    forget: watch::Sender<u64>,
}

struct Last {
    read: Arc<Read>,
    at: Instant,
    written: u64,
    forgotten: u64,
}

impl Rows {
    pub(super) fn new(store: &Store) -> Self {
        Self { written: store.written(), last: Mutex::new(None), forget: watch::Sender::new(0) }
    }

    /// Everything, as it is now by this replica's writes, and by others' at most a second ago.
    pub(super) async fn get(&self, store: &Store) -> Result<Arc<Read>, StoreError> {
        let mut last = self.last.lock().await;
        // Before reading: what is written meanwhile may or may not be seen.
        let (written, forgotten) = (*self.written.borrow(), *self.forget.borrow());
        if let Some(last) = &*last {
            let oldest = if last.read.replicas.len() > 1 { OLDEST } else { OLDEST_ALONE };
            let current = last.written == written && last.forgotten == forgotten;
            if current && last.at.elapsed() < oldest {
                return Ok(Arc::clone(&last.read));
            }
        }
        let at = Instant::now();
        let now = Millis::now();
        let since = Millis(now.0.saturating_sub(DEAD_AFTER.as_millis() as i64));
        let replicas = store.replicas(since).await?.into_iter().map(|replica| replica.id).collect();
        let gateways = store.gateways().await?.into_iter().map(Arc::new).collect();
        let read = Arc::new(Read { at: now, gateways, replicas });
        *last = Some(Last { read: Arc::clone(&read), at, written, forgotten });
        Ok(read)
    }

    /// What was read counts no more.
    pub(super) fn forget(&self) {
        self.forget.send_modify(|count| *count = count.wrapping_add(1));
    }
}
