//! The gate through which calls enter a server, and the phases of its shutdown.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError},
    time::{Instant, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::Tasks;
use crate::status::{Reason, refuse_with};

/// How long another try should wait when this server is full or leaves.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Part of the drain deadline that is kept for sending final statuses and closing connections.
const CLOSING_TIME: Duration = Duration::from_millis(500);

/// Admits calls up to a limit, and says when to stop. Clones are the same gate.
///
/// Phases, each entered once: open → draining (new calls are refused) → cut (running streams end with UNAVAILABLE)
/// → closed (connections close).
#[derive(Clone, Debug)]
pub struct Gate {
    permits: Arc<Semaphore>,
    most: u32,
    draining: CancellationToken,
    cut: CancellationToken,
    closed: CancellationToken,
}

/// A call's place inside the gate; free again when dropped.
#[derive(Debug)]
pub struct Admission(#[expect(dead_code, reason = "held for its drop")] OwnedSemaphorePermit);

impl Gate {
    /// An open gate for at most `calls` at the same time (at least 1).
    pub fn new(calls: u32) -> Self {
        let most = calls.max(1);
        let new = CancellationToken::new;
        Self {
            permits: Arc::new(Semaphore::new(most as usize)),
            most,
            draining: new(),
            cut: new(),
            closed: new(),
        }
    }

    /// Admits one call.
    ///
    /// # Errors
    /// UNAVAILABLE with reason DRAINING while draining, RESOURCE_EXHAUSTED with reason QUEUE_FULL when full, both
    /// with `RetryInfo`.
    pub fn admit(&self) -> Result<Admission, Status> {
        if self.is_draining() {
            return Err(Self::draining_status());
        }
        match Arc::clone(&self.permits).try_acquire_owned() {
            Ok(permit) => Ok(Admission(permit)),
            Err(TryAcquireError::Closed) => Err(Self::draining_status()),
            Err(TryAcquireError::NoPermits) => {
                let message = format!("{} calls run already, which is the limit", self.most);
                Err(refuse_with(Reason::QueueFull, message, &[], Some(RETRY_AFTER)))
            }
        }
    }

    /// The status of a call that comes while draining, and of a stream that is cut.
    pub fn draining_status() -> Status {
        refuse_with(Reason::Draining, "the server is shutting down", &[], Some(RETRY_AFTER))
    }

    /// True from the start of the drain on.
    pub fn is_draining(&self) -> bool {
        self.draining.is_cancelled()
    }

    /// Resolves when the drain begins.
    pub async fn draining(&self) {
        self.draining.cancelled().await;
    }

    /// Resolves when running streams must end.
    pub async fn cut(&self) {
        self.cut.cancelled().await;
    }

    /// Resolves when connections must close.
    pub async fn closed(&self) {
        self.closed.cancelled().await;
    }

    /// Refuses new calls from now on.
    pub fn begin_drain(&self) {
        self.draining.cancel();
    }

    /// Shuts down within `limit`: refuses new calls, waits for the running ones, cuts what is left shortly before
    /// the limit, closes connections and waits for the tasks. True if every stream ended by itself.
    pub async fn drain(&self, limit: Duration, tasks: &Tasks) -> bool {
        let end = Instant::now() + limit;
        self.begin_drain();
        let cut_at = end.checked_sub(CLOSING_TIME.min(limit / 2)).unwrap_or(end);
        let idle = timeout_at(cut_at, self.idle()).await.is_ok();
        self.cut.cancel();
        let _ = timeout(CLOSING_TIME / 4, self.idle()).await;
        self.closed.cancel();
        tasks.finish(end.saturating_duration_since(Instant::now()).max(CLOSING_TIME / 2)).await;
        idle
    }

    /// Resolves when no admitted call is left.
    async fn idle(&self) {
        // An error would mean a closed semaphore, and this one is never closed.
        let _ = self.permits.acquire_many(self.most).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{reason_of, retry_after};

    #[tokio::test]
    async fn a_full_gate_refuses_and_a_freed_place_is_reused() {
        let gate = Gate::new(1);
        let first = gate.admit().unwrap();
        let refused = gate.admit().unwrap_err();
        assert_eq!(reason_of(&refused), Some(Reason::QueueFull));
        assert!(retry_after(&refused).is_some());
        drop(first);
        gate.admit().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn drain_waits_for_calls_then_cuts_them_inside_the_limit() {
        let (gate, tasks) = (Gate::new(4), Tasks::new());
        let stuck = gate.admit().unwrap();
        let start = Instant::now();
        let limit = Duration::from_secs(10);
        let drain = {
            let (gate, tasks) = (gate.clone(), tasks.clone());
            async move { gate.drain(limit, &tasks).await }
        };
        let (clean, ()) = tokio::join!(drain, async {
            gate.draining().await;
            assert_eq!(reason_of(&gate.admit().unwrap_err()), Some(Reason::Draining));
            gate.cut().await;
            drop(stuck);
            gate.closed().await;
        });
        assert!(!clean);
        assert!(start.elapsed() <= limit);
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_server_drains_at_once() {
        let start = Instant::now();
        assert!(Gate::new(4).drain(Duration::from_secs(10), &Tasks::new()).await);
        assert!(start.elapsed() < Duration::from_secs(1));
    }
}
