//! Which bytes of a buffer were ever written.
//!
//! One bit says that a chunk of 64 bytes was written whole, so a page has one word; chunks that were written in part are
//! few (edges of ranges) and keep a mask each.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

const CHUNK: usize = 64;
const PAGE: usize = 64 * CHUNK;

#[derive(Debug)]
pub(super) struct Written {
    pages: Box<[AtomicU64]>,
    partial: Mutex<HashMap<usize, u64>>,
}

impl Written {
    /// For a buffer of `len` bytes, a multiple of the page.
    pub(super) fn new(len: usize) -> Self {
        Self { pages: (0..len / PAGE).map(|_| AtomicU64::new(0)).collect(), partial: Mutex::default() }
    }

    pub(super) fn mark(&self, bytes: Range<usize>) {
        let mut at = bytes.start;
        while at < bytes.end {
            let chunk = at / CHUNK;
            if at.is_multiple_of(PAGE) && bytes.end - at >= PAGE {
                self.pages[at / PAGE].store(u64::MAX, Ordering::Relaxed);
                at += PAGE;
                continue;
            }
            let end = bytes.end.min((chunk + 1) * CHUNK);
            self.mark_chunk(chunk, mask(at % CHUNK, end - at));
            at = end;
        }
    }

    /// The first of these bytes that was never written.
    pub(super) fn first_gap(&self, bytes: Range<usize>) -> Option<usize> {
        let mut at = bytes.start;
        while at < bytes.end {
            let page = self.pages[at / PAGE].load(Ordering::Relaxed);
            if page == u64::MAX {
                at = (at / PAGE + 1) * PAGE;
                continue;
            }
            let chunk = at / CHUNK;
            let end = bytes.end.min((chunk + 1) * CHUNK);
            if page >> (chunk % 64) & 1 == 0 {
                let missing = mask(at % CHUNK, end - at) & !self.part(chunk);
                if missing != 0 {
                    return Some(chunk * CHUNK + missing.trailing_zeros() as usize);
                }
            }
            at = end;
        }
        None
    }

    fn mark_chunk(&self, chunk: usize, bytes: u64) {
        let page = &self.pages[chunk / 64];
        let bit = 1 << (chunk % 64);
        if page.load(Ordering::Relaxed) & bit != 0 {
            return;
        }
        if bytes != u64::MAX {
            let mut partial = self.partial.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            let known = partial.entry(chunk).or_default();
            *known |= bytes;
            if *known != u64::MAX {
                return;
            }
            partial.remove(&chunk);
        }
        page.fetch_or(bit, Ordering::Relaxed);
    }

    fn part(&self, chunk: usize) -> u64 {
        let partial = self.partial.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        partial.get(&chunk).copied().unwrap_or(0)
    }
}

/// `length` ones from bit `from` on (1 ≤ length, from + length ≤ 64).
fn mask(from: usize, length: usize) -> u64 {
    (u64::MAX >> (CHUNK - length)) << from
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_agree_with_a_flag_per_byte() {
        let len = 3 * PAGE;
        let (written, mut flags) = (Written::new(len), vec![false; len]);
        let mut state = 7u64;
        let mut next = |limit: usize| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as usize % limit
        };
        for round in 0..400 {
            let from = next(len);
            let longest = if round % 10 == 0 { len } else { 200 };
            let range = from..(from + next(longest)).min(len);
            written.mark(range.clone());
            flags[range].fill(true);
            let from = next(len);
            let to = (from + next(len)).min(len);
            let expected = (from..to).find(|at| !flags[*at]);
            assert_eq!(written.first_gap(from..to), expected, "{from}..{to}, round {round}");
        }
    }
}
