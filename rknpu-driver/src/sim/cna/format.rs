//! Number formats of the multipliers, and the groups that their weights and atoms come in.

use crate::timing::MacFormat;

/// Number formats of the multipliers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::sim) enum Format {
    Int8,
    Int16,
    Fp16,
    Bf16,
    Int4,
    Tf32,
}

impl Format {
    /// The format of a precision code of CNA and CORE.
    pub(super) fn from_code(code: u32) -> Option<Self> {
        match code {
            0 => Some(Self::Int8),
            1 => Some(Self::Int16),
            2 => Some(Self::Fp16),
            3 => Some(Self::Bf16),
            6 => Some(Self::Int4),
            7 => Some(Self::Tf32),
            _ => None,
        }
    }

    /// What the format costs, and the groups its weights lie in.
    pub(in crate::sim) fn mac(self) -> MacFormat {
        match self {
            Self::Int8 => MacFormat::Int8,
            Self::Int16 | Self::Fp16 | Self::Bf16 => MacFormat::Sixteen,
            Self::Int4 => MacFormat::Int4,
            Self::Tf32 => MacFormat::Tf32,
        }
    }

    /// Bytes of `elements` elements (int4: two a byte).
    pub(in crate::sim) fn bytes(self, elements: usize) -> usize {
        elements * self.mac().bits() as usize / 8
    }

    /// Elements of a 16-byte atom.
    pub(in crate::sim) fn lanes(self) -> usize {
        128 / self.mac().bits() as usize
    }

    /// Kernels of a group.
    pub(in crate::sim) fn kernel_group(self) -> usize {
        self.mac().kernel_group() as usize
    }

    /// Channels that lie together in depthwise weights: 64 bytes of them (int8 64, fp16 32 by a sweep on the silicon).
    pub(in crate::sim) fn depthwise_group(self) -> usize {
        4 * self.lanes()
    }
}
