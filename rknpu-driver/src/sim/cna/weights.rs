//! The weights: a run of bytes in the order in which the multipliers take them.

use super::format::Format;
use super::setting::Setting;
use crate::regcmd::registers::cna as reg;
use crate::sim::error::SimError;
use crate::sim::memory::{Memory, Window};
use crate::sim::registers::Blocks;

const BANK: usize = 32 << 10;

/// Weights that stay in CBUF: those that fit their banks. Longer ones are streamed and gone.
pub(in crate::sim) struct HeldWeights {
    bytes: Vec<u8>,
    shape: Shape,
}

/// What must be the same for a task to use the weights again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    format: Format,
    kernels: usize,
    channels: usize,
    bytes: usize,
    /// The banks in front of the weights.
    data_banks: u32,
}

/// The weights of the task in hand, handed out from first to last.
pub(in crate::sim) struct Weights<'a> {
    setting: &'a Setting,
    source: Source,
    at: usize,
}

enum Source {
    /// From memory, with a copy of what fits the banks.
    Memory { window: Window, copy: Option<Vec<u8>> },
    /// From CBUF.
    Buffer(HeldWeights),
}

impl<'a> Weights<'a> {
    /// Weights from memory, or with WEIGHT_REUSE from CBUF.
    pub(super) fn new(
        setting: &'a Setting,
        blocks: &Blocks,
        memory: &Memory,
        held: Option<HeldWeights>,
    ) -> Result<Self, SimError> {
        let source = match (setting.weight_reuse, held) {
            (false, _) => {
                let window = blocks.window(reg::DCOMP_ADDR0, memory)?;
                let fits = setting.weight_bytes() <= setting.weight_banks as usize * BANK;
                Source::Memory { window, copy: fits.then(|| Vec::with_capacity(setting.weight_bytes())) }
            }
            (true, Some(held)) if held.shape == Shape::of(setting) => Source::Buffer(held),
            (true, held) => {
                let value = blocks.get(reg::CBUF_CON0)?;
                let held = held.map(|held| held.shape);
                let reason = format!("WEIGHT_REUSE of {:?}, but CBUF holds {held:?}", Shape::of(setting));
                return Err(SimError::illegal(reg::CBUF_CON0, value, reason));
            }
        };
        Ok(Self { setting, source, at: 0 })
    }

    /// The next `length` bytes.
    pub(in crate::sim) fn next(&mut self, length: usize, into: &mut Vec<u8>) -> Result<(), SimError> {
        let from = self.at;
        self.at += length;
        match &mut self.source {
            Source::Memory { window, copy } => {
                into.resize(length, 0);
                window.read(from as i64, into)?;
                if let Some(copy) = copy {
                    copy.extend_from_slice(into);
                }
            }
            Source::Buffer(held) => {
                into.clear();
                into.extend_from_slice(held.bytes.get(from..from + length).unwrap_or(&[]));
                into.resize(length, 0);
            }
        }
        Ok(())
    }

    /// What is in CBUF when the task is over.
    pub(super) fn held(self) -> Option<HeldWeights> {
        match self.source {
            Source::Memory { copy, .. } => {
                copy.map(|bytes| HeldWeights { bytes, shape: Shape::of(self.setting) })
            }
            Source::Buffer(held) => Some(held),
        }
    }
}

impl Shape {
    fn of(setting: &Setting) -> Self {
        let Setting { format, kernels, channels, data_banks, .. } = *setting;
        Self { format, kernels, channels, bytes: setting.weight_bytes(), data_banks }
    }
}
