//! Whether the device is still there.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use nix::errno::Errno;

use crate::sim::faults::Absence;

/// A device that can go away, for good or until it is opened again.
#[derive(Debug, Default)]
pub(super) struct Presence {
    /// Descriptors of earlier generations are dead.
    generation: AtomicU64,
    gone_for_ever: AtomicBool,
}

impl Presence {
    /// The generation of a descriptor opened now.
    pub(super) fn open(&self) -> Result<u64, Errno> {
        if self.gone_for_ever.load(SeqCst) { Err(Errno::ENODEV) } else { Ok(self.generation.load(SeqCst)) }
    }

    /// Whether a descriptor of that generation still works.
    pub(super) fn check(&self, generation: u64) -> Result<(), Errno> {
        if self.open()? == generation { Ok(()) } else { Err(Errno::ENODEV) }
    }

    pub(super) fn leave(&self, absence: Absence) {
        self.generation.fetch_add(1, SeqCst);
        match absence {
            Absence::UntilReopened => {}
            Absence::ForEver => self.gone_for_ever.store(true, SeqCst),
        }
    }
}
