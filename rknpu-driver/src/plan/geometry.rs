//! What one task may hold: the convolution buffer and its accounting.
//!
//! A task is a 1×1 convolution over a feature of height 1 whose width is the rows of A, the form that the
//! vendor's compiler gives matrix products. Height 1 also stays clear of the one size where open drivers saw
//! wrong rows (width 1, features filling more than 97 % but not all of their banks); the vendor never leaves
//! a bank spare.

use crate::shape::{Precision, TILE_BYTES};

/// Banks of a core's convolution buffer; features and weights share them.
pub const BANKS: usize = 12;
/// Bytes of a bank.
pub const BANK_BYTES: usize = 32 * 1024;
/// Bytes of an entry, the unit features are counted in.
const ENTRY_BYTES: usize = 64;

/// Bytes of one tile's columns of one row of A.
pub const fn pixel_tile_bytes(precision: Precision) -> usize {
    32 * precision.bits() / 8
}

/// Entries that a feature of height 1 takes (exact on all 659 convolutions of the vendor's compiler seen).
pub const fn entries(channel_bytes: usize, pixels: usize) -> usize {
    let atoms = channel_bytes.div_ceil(16);
    let rest = match atoms % 4 {
        3 => pixels,
        rest => (rest * pixels).div_ceil(4),
    };
    atoms / 4 * pixels + rest
}

/// Banks that a feature of height 1 takes.
pub const fn data_banks(channel_bytes: usize, pixels: usize) -> usize {
    entries(channel_bytes, pixels).div_ceil(BANK_BYTES / ENTRY_BYTES)
}

/// Most pixels of a feature that `banks` banks hold.
pub(crate) fn most_pixels(channel_bytes: usize, banks: usize) -> usize {
    let mut pixels = banks * BANK_BYTES / channel_bytes.max(1);
    // Where three atoms of an entry take all of it, fewer fit.
    while pixels > 0 && data_banks(channel_bytes, pixels) > banks {
        pixels -= 1;
    }
    pixels
}

/// Kernel groups of `tiles` tiles of K each that the banks left by the features hold.
pub(crate) const fn resident_groups(data_banks: usize, tiles: usize) -> usize {
    (BANKS - data_banks) * BANK_BYTES / (tiles * TILE_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_and_banks_are_the_vendors() {
        // (channel bytes, pixels, entries, banks) as the vendor's compiler emits them.
        for (bytes, pixels, expected, banks) in [
            (32, 7, 4, 1),
            (64, 1, 1, 1),
            (1792, 4, 0x70, 1),
            (256, 512, 0x800, 4),
            (1536, 4, 0x60, 1),
            (384, 300, 0x708, 4),
        ] {
            assert_eq!(entries(bytes, pixels), expected, "{bytes} bytes, {pixels} pixels");
            assert_eq!(data_banks(bytes, pixels), banks, "{bytes} bytes, {pixels} pixels");
        }
    }

    #[test]
    fn most_pixels_is_the_largest_that_fits() {
        for bytes in (16..4096).step_by(16) {
            for banks in 1..BANKS {
                let pixels = most_pixels(bytes, banks);
                assert!(pixels > 0 && data_banks(bytes, pixels) <= banks, "{bytes} bytes, {banks} banks");
                assert!(data_banks(bytes, pixels + 1) > banks, "{bytes} bytes, {banks} banks");
            }
        }
    }
}
