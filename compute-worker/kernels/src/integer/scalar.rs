//! The oracle.
//!
//! ```text
//! direct: for m, n:  acc[m][n] = Σ_k a[m][k] · w[n][k]           tiles read in place, one value at a time
//! pack:   packed[k/4][n][k%4] = w[n][k]
//! packed: for m, k/4, n:  acc[m][n] += Σ_4 a · packed
//! ```
//! Slow and plain on purpose: it must be easy to believe.

use super::{Acc, IntegerTable, PANEL, Panel, PanelTiles, Quad, Rows};
use crate::tiles::{self, W4_GROUP};

pub(crate) static TABLE: IntegerTable =
    IntegerTable { direct_rows_w8: 4, direct_rows_w4: 4, direct, pack, packed };

/// The int8 weight of the panel at (n, k), n < rows, k < cols.
fn value(panel: &Panel<'_>, n: usize, k: usize) -> i8 {
    match panel.tiles {
        PanelTiles::W8(tiles) => tiles[tiles::w8_index(n, k, panel.cols)],
        PanelTiles::W4(tiles, multipliers) => {
            let multiplier = multipliers[n * panel.groups() + k / W4_GROUP] & 15;
            tiles::nibble(tiles[tiles::w4_index(n, k, panel.cols)], k) * multiplier as i8
        }
    }
}

fn direct(panel: &Panel<'_>, rows: Rows<'_>, acc: &mut [Acc]) {
    for (row, acc) in rows.values.chunks_exact(rows.stride.max(1)).zip(acc) {
        *acc = [0; PANEL];
        for (n, acc) in acc[..panel.rows].iter_mut().enumerate() {
            *acc = (0..panel.cols)
                .fold(0i32, |sum, k| sum.wrapping_add(i32::from(row[k]) * i32::from(value(panel, n, k))));
        }
    }
}

pub(super) fn pack(panel: &Panel<'_>, out: &mut [Quad]) {
    for (quad, out) in out.iter_mut().enumerate() {
        for (i, out) in out.0.iter_mut().enumerate() {
            let (n, k) = (i / 4, quad * 4 + i % 4);
            *out = if n < panel.rows && k < panel.cols { value(panel, n, k) } else { 0 };
        }
    }
}

fn packed(panel: &[Quad], rows: Rows<'_>, acc: &mut [Acc]) {
    for (row, acc) in rows.values.chunks_exact(rows.stride.max(1)).zip(acc) {
        *acc = [0; PANEL];
        for (a, w) in row.chunks_exact(4).zip(panel) {
            for (acc, w) in acc.iter_mut().zip(w.0.chunks_exact(4)) {
                for (a, w) in a.iter().zip(w) {
                    *acc = acc.wrapping_add(i32::from(*a) * i32::from(*w));
                }
            }
        }
    }
}
