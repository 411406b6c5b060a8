//! Shapes and precisions of matrix products, and the sizes that follow from them.

use thiserror::Error;

/// Input channels in a weight tile, whatever the precision.
pub const TILE_COLUMNS: usize = 32;
/// Bytes in a weight tile, whatever the precision.
pub const TILE_BYTES: usize = 1024;
/// Largest K: 131,072 products of −128 by −128 are 2^31, one more than int32 holds.
pub const MAX_INNER: usize = 131_071;
/// Largest M and N accepted; beyond it sizes in bytes could leave 32 bits per address space anyway.
pub const MAX_SIDE: usize = 1 << 24;

/// What is multiplied, and what it is accumulated in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Precision {
    /// int8 × int8 → int32.
    Int8,
    /// int4 × int4 → saturating int16; slices of K keep the sums inside int16 and the host adds them in
    /// int32.
    Int4,
    /// binary16 × binary16 → binary32.
    Fp16,
}

impl Precision {
    /// All of them, in the order tables print.
    pub const ALL: [Precision; 3] = [Precision::Int8, Precision::Int4, Precision::Fp16];

    /// Bits of one input or weight element.
    pub const fn bits(self) -> usize {
        match self {
            Precision::Int8 => 8,
            Precision::Int4 => 4,
            Precision::Fp16 => 16,
        }
    }

    /// Output channels in a kernel group, which is the number of rows of a weight tile.
    pub const fn tile_rows(self) -> usize {
        match self {
            Precision::Int8 => 32,
            Precision::Int4 => 64,
            Precision::Fp16 => 16,
        }
    }

    /// Channels of the input in one 16-byte atom (C2 of NC1HWC2).
    pub const fn input_atom(self) -> usize {
        128 / self.bits()
    }

    /// Bytes of one output element as the device writes it.
    pub const fn output_bytes(self) -> usize {
        match self {
            Precision::Int8 | Precision::Fp16 => 4,
            Precision::Int4 => 2,
        }
    }

    /// Channels of the output in one 16-byte atom.
    pub const fn output_atom(self) -> usize {
        16 / self.output_bytes()
    }

    /// Multiply-adds one core does in a cycle.
    pub const fn macs_per_cycle(self) -> u64 {
        match self {
            Precision::Int8 => 1024,
            Precision::Int4 => 2048,
            Precision::Fp16 => 512,
        }
    }

    /// The name that tables and failures print.
    pub const fn name(self) -> &'static str {
        match self {
            Precision::Int8 => "int8",
            Precision::Int4 => "int4",
            Precision::Fp16 => "fp16",
        }
    }
}

/// `C[rows][outputs] = A[rows][inner] · W[outputs][inner]ᵀ`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MatmulShape {
    /// M: rows of A and of C.
    pub rows: usize,
    /// K: columns of A and of W.
    pub inner: usize,
    /// N: rows of W, columns of C.
    pub outputs: usize,
    /// Element types.
    pub precision: Precision,
}

/// Why a shape cannot be computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ShapeError {
    /// A dimension is zero.
    #[error("a product of {rows} x {inner} x {outputs} (M x K x N) has nothing to compute")]
    Empty {
        /// M.
        rows: usize,
        /// K.
        inner: usize,
        /// N.
        outputs: usize,
    },
    /// A dimension is so large that sums or sizes overflow.
    #[error("{dimension} is {value}, at most {limit} is possible")]
    TooLarge {
        /// M, K or N.
        dimension: char,
        /// Its value.
        value: usize,
        /// The largest one accepted.
        limit: usize,
    },
}

impl MatmulShape {
    /// Checks the dimensions.
    pub const fn new(
        rows: usize,
        inner: usize,
        outputs: usize,
        precision: Precision,
    ) -> Result<Self, ShapeError> {
        if rows == 0 || inner == 0 || outputs == 0 {
            return Err(ShapeError::Empty { rows, inner, outputs });
        }
        if rows > MAX_SIDE {
            return Err(ShapeError::TooLarge { dimension: 'M', value: rows, limit: MAX_SIDE });
        }
        if inner > MAX_INNER {
            return Err(ShapeError::TooLarge { dimension: 'K', value: inner, limit: MAX_INNER });
        }
        if outputs > MAX_SIDE {
            return Err(ShapeError::TooLarge { dimension: 'N', value: outputs, limit: MAX_SIDE });
        }
        Ok(MatmulShape { rows, inner, outputs, precision })
    }

    /// Weight tiles along K.
    pub const fn inner_tiles(&self) -> usize {
        self.inner.div_ceil(TILE_COLUMNS)
    }

    /// Weight tiles along N: kernel groups.
    pub const fn groups(&self) -> usize {
        self.outputs.div_ceil(self.precision.tile_rows())
    }

    /// K padded to whole tiles.
    pub const fn padded_inner(&self) -> usize {
        self.inner_tiles() * TILE_COLUMNS
    }

    /// N padded to whole tiles.
    pub const fn padded_outputs(&self) -> usize {
        self.groups() * self.precision.tile_rows()
    }

    /// Bytes of W in tiles.
    pub const fn weight_bytes(&self) -> usize {
        self.groups() * self.inner_tiles() * TILE_BYTES
    }

    /// Multiply-adds without padding.
    pub const fn macs(&self) -> u64 {
        self.rows as u64 * self.inner as u64 * self.outputs as u64
    }
}

impl std::fmt::Display for MatmulShape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}x{}x{} {}", self.rows, self.inner, self.outputs, self.precision.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_sum_is_the_last_that_int32_holds() {
        let longest = |inner: usize| 128 * 128 * inner as i64;
        assert!(i32::try_from(longest(MAX_INNER)).is_ok() && i32::try_from(longest(MAX_INNER + 1)).is_err());
        for precision in Precision::ALL {
            assert!(MatmulShape::new(1, MAX_INNER, 1, precision).is_ok());
            let refused = MatmulShape::new(1, 131_072, 1, precision);
            let error = ShapeError::TooLarge { dimension: 'K', value: 131_072, limit: 131_071 };
            assert_eq!(refused, Err(error));
        }
    }
}
