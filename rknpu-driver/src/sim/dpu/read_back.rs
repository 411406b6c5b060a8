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
const PIXELS: usize = 64;

/// Surfaces gathered at a time: 128 bytes of every row.
const SURFACES: usize = 8;

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
    if pixels == 1 && output.is_contiguous() {
        let mut bytes = vec![0; surfaces * ATOM];
        for (element, value) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(&cube.data[..real_channels]) {
            *element = value.to_le_bytes();
        }
        return output.write_bytes(0, &bytes);
    }
    let mut atoms = vec![0; pixels.min(PIXELS) * SURFACES * ATOM];
    for first in (0..pixels).step_by(PIXELS) {
        let count = PIXELS.min(pixels - first);
        let rows = &cube.data[first * cube.channels..(first + count) * cube.channels];
        for surface in (0..surfaces).step_by(SURFACES) {
            let block = SURFACES.min(surfaces - surface);
            let end = |surfaces: usize| (surfaces * LANES).min(real_channels);
            let channels = end(surface)..end(surface + block);
            let atoms = &mut atoms[..block * count * ATOM];
            gather(rows, cube.channels, channels, atoms);
            for (index, atoms) in atoms.chunks_exact(count * ATOM).enumerate() {
                output.write_surface(surface + index, first, atoms)?;
            }
        }
    }
    Ok(())
}

/// Copies a range of channels of every pixel into the atoms of their surfaces, one surface after the other, and clears
/// the lanes behind the range.
fn gather(rows: &[i32], stride: usize, channels: std::ops::Range<usize>, atoms: &mut [u8]) {
    let pixels = rows.len() / stride;
    let atoms = atoms.as_chunks_mut::<ATOM>().0;
    let whole = channels.len() == atoms.len() / pixels * LANES;
    if !whole {
        atoms.fill([0; ATOM]);
    }
    for (pixel, row) in rows.chunks_exact(stride).enumerate() {
        let (quads, rest) = row[channels.clone()].as_chunks::<LANES>();
        for (index, quad) in quads.iter().enumerate() {
            store(&mut atoms[index * pixels + pixel], quad);
        }
        if !rest.is_empty() {
            store(&mut atoms[quads.len() * pixels + pixel], rest);
        }
    }
}

fn store(atom: &mut [u8; ATOM], values: &[i32]) {
    for (element, value) in atom.as_chunks_mut::<4>().0.iter_mut().zip(values) {
        *element = value.to_le_bytes();
    }
}
