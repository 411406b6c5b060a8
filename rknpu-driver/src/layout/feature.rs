//! Feature cubes: `address = (channel / c2) · surface + pixel · 16 + (channel % c2) · element`.
//!
//! A cube's bytes are the same for a feature the device reads and an output it writes; only c2, the channels
//! in an atom, follows from the element: 32 for int4 (the low nibble is the even channel), 16 for int8, 8 for
//! fp16 and int16, 4 for int32 and fp32. That int4 features put the low nibble first is known for weights
//! only; a device that takes the other order for both computes the same sums.

use half::f16;

use super::ATOM;

/// The geometry of a cube whose pixels are the rows of a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cube {
    /// Pixels that hold data: rows.
    pub pixels: usize,
    /// Channels: columns. A multiple of c2.
    pub channels: usize,
    /// Pixels from one surface to the next, at least `pixels`.
    pub surface: usize,
    /// Channels in an atom (c2).
    pub atom: usize,
}

impl Cube {
    /// Bytes from the first to past the last.
    pub const fn bytes(&self) -> usize {
        self.channels.div_ceil(self.atom) * self.surface * ATOM
    }

    /// Byte offset of the atom that holds a channel of a pixel.
    pub const fn atom_offset(&self, pixel: usize, channel: usize) -> usize {
        (channel / self.atom * self.surface + pixel) * ATOM
    }

    /// Writes one row of int8 values; channels past its end become zero.
    ///
    /// # Panics
    /// When the row has more values than the cube channels, or `out` is too short for the cube.
    pub fn write_i8(&self, pixel: usize, row: &[i8], out: &mut [u8]) {
        self.write(pixel, row, out, |values, atom| {
            for (to, &value) in atom.iter_mut().zip(values) {
                *to = value as u8;
            }
        });
    }

    /// Writes one row of binary16 values; channels past its end become zero.
    ///
    /// # Panics
    /// As [`write_i8`](Self::write_i8).
    pub fn write_f16(&self, pixel: usize, row: &[f16], out: &mut [u8]) {
        self.write(pixel, row, out, |values, atom| {
            for (to, value) in atom.as_chunks_mut::<2>().0.iter_mut().zip(values) {
                *to = value.to_le_bytes();
            }
        });
    }

    /// Writes one row of values −8…7 as nibbles; channels past its end become zero.
    ///
    /// # Panics
    /// As [`write_i8`](Self::write_i8).
    pub fn write_i4(&self, pixel: usize, row: &[i8], out: &mut [u8]) {
        self.write(pixel, row, out, |values, atom| {
            for (to, pair) in atom.iter_mut().zip(values.chunks(2)) {
                let high = pair.get(1).copied().unwrap_or(0);
                *to = (pair[0] as u8 & 0xf) | (high as u8) << 4;
            }
        });
    }

    /// Writes one row, atom by atom; a whole atom's values always come in one call.
    fn write<T>(&self, pixel: usize, row: &[T], out: &mut [u8], mut put: impl FnMut(&[T], &mut [u8; ATOM])) {
        assert!(
            pixel < self.pixels && row.len() <= self.channels,
            "a row of {} values at pixel {pixel} of {self:?}",
            row.len()
        );
        let step = self.surface * ATOM;
        let atoms = out[..self.bytes()].chunks_mut(step).map(|surface| &mut surface[pixel * ATOM..][..ATOM]);
        let mut values = row.chunks(self.atom);
        for atom in atoms {
            let atom: &mut [u8; ATOM] = atom.try_into().expect("the slice was made 16 bytes long");
            let piece = values.next().unwrap_or(&[]);
            if piece.len() < self.atom {
                *atom = [0; ATOM];
            }
            if !piece.is_empty() {
                put(piece, atom);
            }
        }
    }

    /// Reads int32 channels `first..` of neighbouring pixels, `pixel` on, into one row each; `add` adds to
    /// what is there. Rows are equally long. Four rows at a time are faster than one: they share cache lines
    /// of the cube.
    ///
    /// # Panics
    /// When the channels or pixels are outside the cube, `first` is not the first channel of an atom, or
    /// `bytes` is too short.
    pub fn read_i32(&self, bytes: &[u8], pixel: usize, first: usize, rows: &mut [&mut [i32]], add: bool) {
        let values = |atom: &[u8; ATOM]| -> [i32; 4] {
            std::array::from_fn(|i| i32::from_le_bytes(std::array::from_fn(|byte| atom[4 * i + byte])))
        };
        match add {
            false => self.read(bytes, pixel, first, rows, values, |_, new| new),
            true => self.read(bytes, pixel, first, rows, values, i32::wrapping_add),
        }
    }

    /// As [`read_i32`](Self::read_i32) for int16 channels.
    ///
    /// # Panics
    /// As [`read_i32`](Self::read_i32).
    pub fn read_i16(&self, bytes: &[u8], pixel: usize, first: usize, rows: &mut [&mut [i32]], add: bool) {
        let values = |atom: &[u8; ATOM]| -> [i32; 8] {
            std::array::from_fn(|i| i32::from(i16::from_le_bytes([atom[2 * i], atom[2 * i + 1]])))
        };
        match add {
            false => self.read(bytes, pixel, first, rows, values, |_, new| new),
            true => self.read(bytes, pixel, first, rows, values, i32::wrapping_add),
        }
    }

    /// As [`read_i32`](Self::read_i32) for binary32 channels.
    ///
    /// # Panics
    /// As [`read_i32`](Self::read_i32).
    pub fn read_f32(&self, bytes: &[u8], pixel: usize, first: usize, rows: &mut [&mut [f32]], add: bool) {
        let values = |atom: &[u8; ATOM]| -> [f32; 4] {
            std::array::from_fn(|i| f32::from_le_bytes(std::array::from_fn(|byte| atom[4 * i + byte])))
        };
        match add {
            false => self.read(bytes, pixel, first, rows, values, |_, new| new),
            true => self.read(bytes, pixel, first, rows, values, |old, new| old + new),
        }
    }

    /// As [`read_i32`](Self::read_i32) for int8 channels, which are never added.
    ///
    /// # Panics
    /// As [`read_i32`](Self::read_i32).
    pub fn read_i8(&self, bytes: &[u8], pixel: usize, first: usize, rows: &mut [&mut [i8]]) {
        let values = |atom: &[u8; ATOM]| atom.map(|byte| byte as i8);
        self.read(bytes, pixel, first, rows, values, |_, new| new);
    }

    #[inline]
    fn read<T: Copy, const N: usize>(
        &self,
        bytes: &[u8],
        pixel: usize,
        first: usize,
        rows: &mut [&mut [T]],
        values: impl Fn(&[u8; ATOM]) -> [T; N],
        put: impl Fn(T, T) -> T,
    ) {
        let len = rows.first().map_or(0, |row| row.len());
        assert!(
            self.atom == N
                && pixel + rows.len() <= self.pixels
                && first.is_multiple_of(N)
                && first + len <= self.channels
                && rows.iter().all(|row| row.len() == len),
            "channels {first}.. of pixel {pixel} of {self:?}"
        );
        let (step, line) = (self.surface * ATOM, rows.len() * ATOM);
        let mut at = self.atom_offset(pixel, first);
        for index in (0..len).step_by(N) {
            let atoms = bytes[at..at + line].as_chunks::<ATOM>().0;
            for (row, atom) in rows.iter_mut().zip(atoms) {
                let new = values(atom);
                if let Some(to) = row[index..].first_chunk_mut::<N>() {
                    *to = std::array::from_fn(|i| put(to[i], new[i]));
                } else {
                    row[index..].iter_mut().zip(new).for_each(|(to, new)| *to = put(*to, new));
                }
            }
            at += step;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn int4_at(bytes: &[u8], cube: &Cube, pixel: usize, channel: usize) -> i8 {
        let byte = bytes[cube.atom_offset(pixel, channel) + channel % cube.atom / 2];
        let high = if channel.is_multiple_of(2) { byte << 4 } else { byte };
        high as i8 >> 4
    }

    proptest! {
        #[test]
        fn rows_come_back_and_padding_is_zero(
            pixels in 1usize..20,
            inner in 1usize..100,
            slack in 0usize..4,
            seed: u64,
        ) {
            let mut random = crate::oracle::Generator::new(seed);
            let channels = inner.next_multiple_of(32);
            let cube = Cube { pixels, channels, surface: pixels + slack, atom: 16 };
            let mut bytes = vec![0xaa; cube.bytes()];
            let rows = random.int8(pixels * inner);
            for (pixel, row) in rows.chunks(inner).enumerate() {
                cube.write_i8(pixel, row, &mut bytes);
            }
            for (pixel, row) in rows.chunks(inner).enumerate() {
                let mut back = vec![1; cube.channels];
                cube.read_i8(&bytes, pixel, 0, &mut [&mut back]);
                prop_assert_eq!(&back[..inner], row);
                prop_assert!(back[inner..].iter().all(|&value| value == 0));
            }
            let cube = Cube { atom: 32, ..cube };
            let rows = random.int4(pixels * inner);
            for (pixel, row) in rows.chunks(inner).enumerate() {
                cube.write_i4(pixel, row, &mut bytes);
                for channel in 0..cube.channels {
                    let expected = row.get(channel).copied().unwrap_or(0);
                    prop_assert_eq!(int4_at(&bytes, &cube, pixel, channel), expected);
                }
            }
        }
    }

    #[test]
    fn the_layout_is_the_documented_one() {
        // Channel 17 of pixel 2 in a cube of five-pixel surfaces: second surface, third atom, second byte.
        let cube = Cube { pixels: 3, channels: 32, surface: 5, atom: 16 };
        let mut row = [0i8; 32];
        row[17] = 9;
        let mut bytes = vec![0; cube.bytes()];
        cube.write_i8(2, &row, &mut bytes);
        assert_eq!(bytes.iter().position(|&byte| byte == 9), Some(5 * 16 + 2 * 16 + 1));
        // fp16: eight channels an atom, low byte first.
        let cube = Cube { atom: 8, ..cube };
        let mut bytes = vec![0; cube.bytes()];
        let mut row = [f16::ZERO; 32];
        row[9] = f16::from_bits(0x1234);
        cube.write_f16(0, &row, &mut bytes);
        assert_eq!(bytes[5 * 16 + 2..][..2], [0x34, 0x12]);
    }

    #[test]
    fn additions_add() {
        let cube = Cube { pixels: 1, channels: 8, surface: 1, atom: 4 };
        let bytes: Vec<u8> = (0..8i32).flat_map(i32::to_le_bytes).collect();
        let mut out = [10; 4];
        cube.read_i32(&bytes, 0, 4, &mut [&mut out], true);
        assert_eq!(out, [14, 15, 16, 17]);
        cube.read_i32(&bytes, 0, 0, &mut [&mut out], false);
        assert_eq!(out, [0, 1, 2, 3]);
    }
}
