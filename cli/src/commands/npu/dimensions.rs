//! Shapes of products on the command line.

use std::fmt;
use std::str::FromStr;

use rknpu_driver::shape::{MatmulShape, Precision, ShapeError};

/// M, K and N of a product as the command line writes them: `16x896x4864`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Dimensions {
    pub(super) rows: usize,
    pub(super) inner: usize,
    pub(super) outputs: usize,
}

impl Dimensions {
    /// The product of these dimensions.
    ///
    /// # Errors
    /// Dimensions that no product can have, or whose matrices are too large to make up and compare.
    pub(super) fn shape(self, precision: Precision) -> Result<MatmulShape, DimensionsError> {
        let shape = MatmulShape::new(self.rows, self.inner, self.outputs, precision)?;
        // The shape's own limits keep these far from overflow.
        let sides = [self.rows * self.inner, self.inner * self.outputs, self.rows * self.outputs];
        if sides.iter().any(|elements| *elements > MOST_ELEMENTS) {
            return Err(DimensionsError::TooLarge);
        }
        Ok(shape)
    }
}

/// Most elements of a matrix: a gigabyte of int8.
const MOST_ELEMENTS: usize = 1 << 30;

/// Why dimensions are refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum DimensionsError {
    /// No product has them.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// The matrices are too large.
    #[error("a matrix would have more than {MOST_ELEMENTS} elements")]
    TooLarge,
}

impl FromStr for Dimensions {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers: Vec<usize> =
            text.split('x').map(str::parse).collect::<Result<_, _>>().map_err(|error| {
                format!("three numbers with an x between them are wanted (MxKxN): {error}")
            })?;
        match numbers[..] {
            [rows, inner, outputs] => Ok(Dimensions { rows, inner, outputs }),
            _ => Err(format!("three numbers are wanted (MxKxN), there are {}", numbers.len())),
        }
    }
}

impl fmt::Display for Dimensions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}x{}", self.rows, self.inner, self.outputs)
    }
}

/// A precision as the command line writes it.
///
/// # Errors
/// A text for clap to show.
pub(super) fn parse_precision(text: &str) -> Result<Precision, String> {
    let known = Precision::ALL.into_iter().find(|precision| precision.name() == text);
    known.ok_or_else(|| "int8, int4 and fp16 are possible".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dimensions_are_three_numbers() {
        let dimensions: Dimensions = "16x896x4864".parse().unwrap();
        assert_eq!(dimensions, Dimensions { rows: 16, inner: 896, outputs: 4864 });
        assert_eq!(dimensions.to_string(), "16x896x4864");
        for bad in ["", "16", "16x896", "1x2x3x4", "ax2x3", "-1x2x3", "99999999999999999999x1x1"] {
            assert!(bad.parse::<Dimensions>().is_err(), "{bad}");
        }
        for large in ["16777216x1x16777216", "1x133144x16777216", "1x133145x1", "0x1x1"] {
            let dimensions: Dimensions = large.parse().unwrap();
            assert!(dimensions.shape(Precision::Int8).is_err(), "{large}");
        }
    }
}
