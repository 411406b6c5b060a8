//! Names of the instruction sets that have a table of kernels, and their detection.

use std::fmt;
use std::str::FromStr;

/// An instruction set for which a complete table of kernels exists.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Isa {
    /// Plain Rust: specification, fallback and oracle.
    Scalar,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ, VL and VNNI.
    Avx512Vnni,
    /// x86-64 with AMX-INT8 (and all of [`Isa::Avx512Vnni`], which does its single-row work).
    AmxInt8,
    /// AArch64 with the dot-product extension (Cortex-A76, Cortex-A55 of the RK3588).
    NeonDotprod,
}

impl Isa {
    /// Every name, slowest first.
    pub const ALL: [Isa; 5] = [Isa::Scalar, Isa::Avx2, Isa::Avx512Vnni, Isa::AmxInt8, Isa::NeonDotprod];

    /// The stable name used in configuration, logs and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Avx2 => "avx2",
            Isa::Avx512Vnni => "avx512-vnni",
            Isa::AmxInt8 => "amx-int8",
            Isa::NeonDotprod => "neon-dotprod",
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The text is not the name of an instruction set.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ParseIsaError(String);

impl fmt::Display for ParseIsaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unknown instruction set {:?}; one of", self.0)?;
        Isa::ALL.iter().try_for_each(|isa| write!(f, " {isa}"))
    }
}

impl std::error::Error for ParseIsaError {}

impl FromStr for Isa {
    type Err = ParseIsaError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Isa::ALL.into_iter().find(|isa| isa.name() == text).ok_or_else(|| ParseIsaError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_unknown_names_are_refused() {
        for isa in Isa::ALL {
            assert_eq!(isa.to_string().parse(), Ok(isa));
        }
        let error = "avx9".parse::<Isa>().expect_err("avx9 does not exist");
        assert!(error.to_string().contains("\"avx9\"") && error.to_string().contains("neon-dotprod"));
    }
}
