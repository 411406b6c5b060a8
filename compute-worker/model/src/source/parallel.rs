//! Work shared among threads that end with the call.

use std::sync::{Mutex, PoisonError};

/// Calls `f` with every item, from up to `threads` threads.
pub(crate) fn parallel<T: Send>(
    items: impl ExactSizeIterator<Item = T> + Send,
    threads: usize,
    f: impl Fn(T) + Sync,
) {
    let threads = threads.min(items.len());
    let items = Mutex::new(items);
    let next = || items.lock().unwrap_or_else(PoisonError::into_inner).next();
    let run = || {
        while let Some(item) = next() {
            f(item);
        }
    };
    std::thread::scope(|scope| {
        (1..threads).for_each(|_| drop(scope.spawn(run)));
        run();
    });
}
