//! Tracked tasks: each has a name and a policy for its failure, and shutdown waits for all of them.

use std::{future::Future, time::Duration};

use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::error;

/// What a panic of a task means for the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnPanic {
    /// One connection or request is gone; the rest goes on.
    Log,
    /// The process cannot do its work without this task: [`Tasks::failed`] resolves.
    StopNode,
}

/// The tasks of one server. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    failed: CancellationToken,
}

impl Tasks {
    /// No tasks yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs `future` as a task of this server.
    pub fn spawn<F>(&self, name: &'static str, on_panic: OnPanic, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let watch = PanicWatch { name, on_panic, failed: self.failed.clone() };
        self.tracker.spawn(async move {
            let _watch = watch;
            future.await;
        });
    }

    /// Runs `work` on a thread that may block and gives its result, or `None` if it panicked.
    pub async fn run_blocking<F, T>(&self, name: &'static str, work: F) -> Option<T>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        let watch = PanicWatch { name, on_panic: OnPanic::Log, failed: self.failed.clone() };
        let handle = self.tracker.spawn_blocking(move || {
            let _watch = watch;
            work()
        });
        handle.await.ok()
    }

    /// Resolves when a task that the node cannot do without has panicked.
    pub async fn failed(&self) {
        self.failed.cancelled().await;
    }

    /// Waits until all tasks have ended, at most for `limit`. True if they have.
    pub async fn finish(&self, limit: Duration) -> bool {
        self.tracker.close();
        tokio::time::timeout(limit, self.tracker.wait()).await.is_ok()
    }
}

/// Lives inside a task; dropped by unwinding, it reports the panic (the panic hook has printed the message).
struct PanicWatch {
    name: &'static str,
    on_panic: OnPanic,
    failed: CancellationToken,
}

impl Drop for PanicWatch {
    fn drop(&mut self) {
        if std::thread::panicking() {
            error!(task = self.name, policy = ?self.on_panic, "a task panicked");
            if self.on_panic == OnPanic::StopNode {
                self.failed.cancel();
            }
        }
    }
}

/// Lets hyper run its futures as tasks of this server.
#[derive(Clone, Debug)]
pub struct TaskExecutor(pub Tasks);

impl<F> hyper::rt::Executor<F> for TaskExecutor
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, future: F) {
        self.0.spawn("http2 stream", OnPanic::Log, async move {
            future.await;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_of_a_vital_task_is_seen_and_others_are_not() {
        let tasks = Tasks::new();
        tasks.spawn("harmless", OnPanic::Log, async { panic!("expected by the test") });
        assert_eq!(tasks.run_blocking("blocking", || 7).await, Some(7));
        assert_eq!(tasks.run_blocking::<_, ()>("blocking", || panic!("expected by the test")).await, None);
        assert!(!tasks.failed.is_cancelled());
        tasks.spawn("vital", OnPanic::StopNode, async { panic!("expected by the test") });
        tasks.failed().await;
        assert!(tasks.finish(Duration::from_secs(5)).await);
    }
}
