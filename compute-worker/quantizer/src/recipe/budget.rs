//! What a mixed bundle may take.

use std::fmt;
use std::str::FromStr;

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

/// Bits that no body can have fewer than, or use more of.
const BITS: std::ops::RangeInclusive<f64> = 1.0..=16.0;

/// What a mixed bundle may take; written `4.6GiB` or `5.0bits`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Budget {
    /// Bytes of all weights: embedding, blocks and head, with their headers.
    WeightBytes(u64),
    /// Bits per weight of the blocks' linear layers, scales and multipliers counted.
    BodyBits(f64),
}

/// Text that is no budget.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("budget {0:?} is neither a size such as 4.6GiB or 4900MB nor bits per weight such as 5.0bits")]
pub struct BudgetError(pub String);

impl FromStr for Budget {
    type Err = BudgetError;

    fn from_str(text: &str) -> Result<Self, BudgetError> {
        let wrong = || BudgetError(text.to_owned());
        let trimmed = text.trim();
        if let Some(bits) = trimmed.strip_suffix("bits").or_else(|| trimmed.strip_suffix("bit")) {
            let bits: f64 = bits.trim().parse().map_err(|_| wrong())?;
            return if BITS.contains(&bits) { Ok(Self::BodyBits(bits)) } else { Err(wrong()) };
        }
        // A plain number would be bytes, and is far more often bits or gigabytes that lost their unit.
        if trimmed.ends_with(|c: char| c.is_ascii_digit() || c == '.') {
            return Err(wrong());
        }
        match trimmed.parse::<ByteSize>() {
            Ok(size) if size.as_u64() > 0 => Ok(Self::WeightBytes(size.as_u64())),
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::BodyBits(bits) => write!(f, "{bits}bits"),
            // Exact, so that reading it back gives the same budget.
            Self::WeightBytes(bytes) => write!(f, "{bytes}B"),
        }
    }
}

impl TryFrom<String> for Budget {
    type Error = BudgetError;

    fn try_from(text: String) -> Result<Self, BudgetError> {
        text.parse()
    }
}

impl From<Budget> for String {
    fn from(budget: Budget) -> String {
        budget.to_string()
    }
}
