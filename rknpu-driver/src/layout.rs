//! The device's memory layouts, both ways: feature cubes (NC1HWC2), weight tiles, per-channel operands.
//!
//! An atom is 16 bytes: the channels of one pixel that lie side by side. A cube is a stack of surfaces, one
//! per atom of channels; a surface holds one atom per pixel. The rows of a matrix are the pixels of a cube,
//! its columns the channels. How well each layout is known: docs/npu.md, "Layouts".

pub mod feature;
pub mod operand;
pub mod weights;

pub use feature::Cube;

/// Bytes in an atom.
pub const ATOM: usize = 16;

/// Pixels of a surface as the vendor allocates outputs: a multiple of four, but one pixel stays one.
pub const fn output_surface(pixels: usize) -> usize {
    if pixels == 1 { 1 } else { pixels.next_multiple_of(4) }
}
