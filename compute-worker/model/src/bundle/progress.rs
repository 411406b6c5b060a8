//! How long-running work reports how far it is.

/// Told of the phases of packing or verifying and of the bytes done in each. Called from several threads.
///
/// Phases do not nest: each `start` is followed by one `finish` unless the work fails.
pub trait Progress: Sync {
    /// A phase begins: a short verb phrase for people ("verifying", "packing") and the bytes it will handle.
    fn start(&self, what: &str, total_bytes: u64) {
        let _ = (what, total_bytes);
    }

    /// `bytes` more are done.
    fn advance(&self, bytes: u64) {
        let _ = bytes;
    }

    /// The phase is over.
    fn finish(&self) {}
}

/// Ignores everything it is told.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoProgress;

impl Progress for NoProgress {}
