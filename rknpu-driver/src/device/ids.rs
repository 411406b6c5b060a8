//! Names of cores and address spaces.

use std::fmt;

/// A core, 0–2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CoreId(pub u8);

impl fmt::Display for CoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "core {}", self.0)
    }
}

/// A set of cores, bit 0 for core 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CoreMask(pub u8);

impl CoreMask {
    /// The first `count` cores.
    #[must_use]
    pub const fn first(count: u8) -> Self {
        if count >= 8 { CoreMask(u8::MAX) } else { CoreMask((1 << count) - 1) }
    }

    /// The set of one core; empty for a core that no mask can hold.
    #[must_use]
    pub const fn of(core: CoreId) -> Self {
        if core.0 >= 8 { CoreMask(0) } else { CoreMask(1 << core.0) }
    }

    /// How many cores.
    #[must_use]
    pub const fn count(self) -> u32 {
        self.0.count_ones()
    }

    /// Whether a core is among them.
    #[must_use]
    pub const fn contains(self, core: CoreId) -> bool {
        core.0 < 8 && self.0 >> core.0 & 1 == 1
    }

    /// The cores, lowest first.
    pub fn iter(self) -> impl Iterator<Item = CoreId> {
        (0..8).map(CoreId).filter(move |&core| self.contains(core))
    }
}

/// An address space of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DomainId(pub u8);

impl fmt::Display for DomainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "domain {}", self.0)
    }
}

/// What an address space is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Domain {
    /// Its name.
    pub id: DomainId,
    /// Its size in bytes: 4 GiB, as bus addresses have 32 bits.
    pub bytes: u64,
    /// Cores that can run jobs in it.
    pub cores: CoreMask,
}
