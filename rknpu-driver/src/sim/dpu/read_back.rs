//! The bulk path: int32 accumulators written as they are, which is how matrix products come back.
//!
//! It equals the general path (a test holds them equal) and moves four channels at a time without a detour through
//! the stages' 64-bit values.

use super::output::Output;
use crate::sim::rdma::ATOM;
use crate::sim::{Cube, SimError};
use crate::timing::TaskWork;

/// Channels of an atom of int32.
const LANES: usize = 4;

/// Pixels gathered at a time.
const PIXELS: usize = 256;

/// Writes a cube of accumulators. Channels behind the last real one are written as zeros: OFFSET_PEND must be zero.
pub(super) fn run(
    cube: &Cube<i32>,
    output: &Output,
    real_channels: usize,
    work: &mut TaskWork,
) -> Result<(), SimError> {
    let pixels = cube.width * cube.height;
    let surfaces = output.surfaces();
    work.write_bytes += (surfaces * pixels * ATOM) as u64;
    let whole = (real_channels / LANES).min(surfaces);
    if pixels == 1 && output.is_contiguous() {
        let mut bytes = vec![0; surfaces * ATOM];
        for (element, value) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(&cube.data[..real_channels]) {
            *element = value.to_le_bytes();
        }
        return output.write_bytes(0, &bytes);
    }
    let mut atoms = vec![0; pixels.min(PIXELS) * ATOM];
    for first in (0..pixels).step_by(PIXELS) {
        let count = PIXELS.min(pixels - first);
        let rows = &cube.data[first * cube.channels..(first + count) * cube.channels];
        let atoms = &mut atoms[..count * ATOM];
        for surface in 0..surfaces {
            let lanes = if surface < whole {
                LANES
            } else {
                real_channels.saturating_sub(surface * LANES).min(LANES)
            };
            gather(rows, cube.channels, surface * LANES, lanes, atoms);
            output.write_surface(surface, first, atoms)?;
        }
    }
    Ok(())
}

/// Copies `lanes` channels from `channel` on of every pixel into its atom and clears the rest.
fn gather(rows: &[i32], channels: usize, channel: usize, lanes: usize, atoms: &mut [u8]) {
    for (row, atom) in rows.chunks_exact(channels).zip(atoms.as_chunks_mut::<ATOM>().0) {
        let mut values = [0i32; LANES];
        if lanes > 0 {
            values[..lanes].copy_from_slice(&row[channel..channel + lanes]);
        }
        for (element, value) in atom.as_chunks_mut::<4>().0.iter_mut().zip(values) {
            *element = value.to_le_bytes();
        }
    }
}
