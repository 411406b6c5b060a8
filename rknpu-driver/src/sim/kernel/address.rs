//! Device addresses of one 4 GB space, handed out the way the kernel's allocators do.

use std::collections::BTreeMap;

/// The IOMMU's page, and both drivers' granularity of buffers.
pub(crate) const PAGE: u64 = 4096;

/// Where in a space a buffer is put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Placement {
    /// From the bottom up, in the lowest gap that fits: `drm_mm`, which rocket uses. The first buffer is at address 0.
    Bottom,
    /// From the top down, in the highest gap that fits, aligned to `align` bytes: the kernel's IOVA allocator, which the vendor's
    /// driver uses. Page 0 is never handed out.
    Top {
        /// A power of two, at least a page.
        align: u64,
    },
}

/// The allocated ranges of one address space.
#[derive(Debug)]
pub(crate) struct AddressSpace {
    bytes: u64,
    /// Start → length, disjoint, page-aligned.
    taken: BTreeMap<u64, u64>,
}

impl AddressSpace {
    /// An empty space of `bytes` bytes (a multiple of the page, at most 4 GB).
    pub(crate) fn new(bytes: u64) -> Self {
        Self { bytes, taken: BTreeMap::new() }
    }

    /// Takes a range of `bytes` (rounded up to pages); `None` if no gap is large enough.
    pub(crate) fn take(&mut self, bytes: u64, placement: Placement) -> Option<u64> {
        let bytes = bytes.max(1).checked_next_multiple_of(PAGE)?;
        let start = match placement {
            Placement::Bottom => self.lowest_gap(bytes)?,
            Placement::Top { align } => self.highest_gap(bytes, align)?,
        };
        self.taken.insert(start, bytes);
        Some(start)
    }

    /// Gives a range back; its start must be one that [`Self::take`] returned.
    pub(crate) fn give_back(&mut self, start: u64) {
        self.taken.remove(&start);
    }

    /// How many bytes are taken.
    #[cfg(test)]
    pub(crate) fn taken_bytes(&self) -> u64 {
        self.taken.values().sum()
    }

    fn lowest_gap(&self, bytes: u64) -> Option<u64> {
        let mut at = 0;
        for (&start, &length) in &self.taken {
            if start - at >= bytes {
                return Some(at);
            }
            at = start + length;
        }
        (self.bytes - at >= bytes).then_some(at)
    }

    fn highest_gap(&self, bytes: u64, align: u64) -> Option<u64> {
        let mut end = self.bytes;
        let below = self.taken.iter().rev().map(|(&start, &length)| (start, start + length));
        for (start, next) in below.chain([(0, PAGE)]) {
            let fit = end.checked_sub(bytes).map(|at| at & !(align - 1)).filter(|&at| at >= next);
            if fit.is_some() {
                return fit;
            }
            end = start;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bottom_starts_at_zero_and_fills_gaps() {
        let mut space = AddressSpace::new(1 << 20);
        assert_eq!(space.take(1, Placement::Bottom), Some(0));
        assert_eq!(space.take(PAGE + 1, Placement::Bottom), Some(PAGE));
        assert_eq!(space.take(PAGE, Placement::Bottom), Some(3 * PAGE));
        space.give_back(PAGE);
        assert_eq!(space.take(3 * PAGE, Placement::Bottom), Some(4 * PAGE));
        assert_eq!(space.take(2 * PAGE, Placement::Bottom), Some(PAGE));
        assert_eq!(space.taken_bytes(), 7 * PAGE);
    }

    #[test]
    fn the_top_goes_down_aligned_and_never_to_page_zero() {
        let mut space = AddressSpace::new(16 * PAGE);
        let page = Placement::Top { align: PAGE };
        assert_eq!(space.take(PAGE, page), Some(15 * PAGE));
        assert_eq!(space.take(3 * PAGE, Placement::Top { align: 4 * PAGE }), Some(12 * PAGE));
        assert_eq!(space.take(12 * PAGE, page), None);
        assert_eq!(space.take(11 * PAGE, page), Some(PAGE));
        assert_eq!(space.take(1, page), None);
        space.give_back(15 * PAGE);
        assert_eq!(space.take(1, page), Some(15 * PAGE));
    }

    #[test]
    fn a_full_space_refuses() {
        let mut space = AddressSpace::new(4 << 30);
        assert_eq!(space.take(4 << 30, Placement::Bottom), Some(0));
        assert_eq!(space.take(1, Placement::Bottom), None);
        assert_eq!(space.take(u64::MAX, Placement::Bottom), None);
    }
}
