//! Tensors whose precision is given.

use std::fmt;
use std::str::FromStr;

use rookery_model::bundle::Precision;
use rookery_model::names::TensorName;
use serde::{Deserialize, Serialize};

/// Tensors whose precision is given; written `PATTERN=w8` or `PATTERN=w4`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pin {
    /// `*` stands for any run of characters, `?` for any one.
    pub pattern: String,
    /// What the tensors get.
    pub precision: Precision,
}

/// Text that is no pin.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("pin {0:?} is not of the form PATTERN=w8 or PATTERN=w4, such as blk.*.ffn_down=w8")]
pub struct PinError(pub String);

impl Pin {
    /// Whether the pattern fits a tensor's name, with or without `.weight` at its end.
    pub fn fits(&self, name: TensorName) -> bool {
        let name = name.to_string();
        let short = name.strip_suffix(".weight").unwrap_or(&name);
        glob(self.pattern.as_bytes(), name.as_bytes()) || glob(self.pattern.as_bytes(), short.as_bytes())
    }
}

/// Whether all of `text` is what `pattern` describes. Linear in the product of the lengths: on a mismatch only the last
/// `*` takes one more character.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(&c) if c == b'?' || c == text[t] => {
                p += 1;
                t += 1;
            }
            Some(_) | None => {
                let Some((at, taken)) = star else { return false };
                star = Some((at, taken + 1));
                (p, t) = (at + 1, taken + 1);
            }
        }
    }
    pattern[p..].iter().all(|&c| c == b'*')
}

impl FromStr for Pin {
    type Err = PinError;

    fn from_str(text: &str) -> Result<Self, PinError> {
        let wrong = || PinError(text.to_owned());
        let (pattern, precision) = text.rsplit_once('=').ok_or_else(wrong)?;
        let precision = match precision.trim() {
            "w8" => Precision::W8,
            "w4" => Precision::W4,
            _ => return Err(wrong()),
        };
        let pattern = pattern.trim();
        if pattern.is_empty() { Err(wrong()) } else { Ok(Self { pattern: pattern.to_owned(), precision }) }
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.pattern, self.precision)
    }
}

impl TryFrom<String> for Pin {
    type Error = PinError;

    fn try_from(text: String) -> Result<Self, PinError> {
        text.parse()
    }
}

impl From<Pin> for String {
    fn from(pin: Pin) -> String {
        pin.to_string()
    }
}
