//! Metadata of a GGUF file: keys and typed values.

use std::collections::BTreeMap;

use super::reader::Reader;
use crate::source::ImportError;

/// Arrays of arrays are allowed by the format and used by no model; a bound keeps hostile ones off the stack.
const MAX_DEPTH: usize = 4;

/// A metadata value; numbers of all widths are widened to 64 bits.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// 8, 16, 32 or 64 bits without sign.
    Unsigned(u64),
    /// 8, 16, 32 or 64 bits with sign.
    Signed(i64),
    /// Single or double precision.
    Float(f64),
    /// True or false.
    Bool(bool),
    /// UTF-8 text.
    String(String),
    /// Values of one type.
    Array(Array),
}

/// An array, in the shape that costs least for its type.
#[derive(Clone, Debug, PartialEq)]
pub enum Array {
    /// Of any unsigned type.
    Unsigned(Vec<u64>),
    /// Of any signed type.
    Signed(Vec<i64>),
    /// Of any floating-point type.
    Float(Vec<f64>),
    /// Of booleans.
    Bool(Vec<bool>),
    /// Of strings.
    String(Vec<String>),
    /// Of arrays.
    Array(Vec<Array>),
}

impl Array {
    /// Number of values.
    pub fn len(&self) -> usize {
        match self {
            Array::Unsigned(values) => values.len(),
            Array::Signed(values) => values.len(),
            Array::Float(values) => values.len(),
            Array::Bool(values) => values.len(),
            Array::String(values) => values.len(),
            Array::Array(values) => values.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Value types by their numbers in the file.
#[derive(Clone, Copy)]
enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    String,
    Array,
    U64,
    I64,
    F64,
}

impl Kind {
    const ALL: [Kind; 13] = [
        Kind::U8,
        Kind::I8,
        Kind::U16,
        Kind::I16,
        Kind::U32,
        Kind::I32,
        Kind::F32,
        Kind::Bool,
        Kind::String,
        Kind::Array,
        Kind::U64,
        Kind::I64,
        Kind::F64,
    ];

    fn read(reader: &mut Reader<'_>, place: &str) -> Result<Self, ImportError> {
        let number = reader.u32(place)?;
        let kind = usize::try_from(number).ok().and_then(|number| Kind::ALL.get(number));
        kind.copied().ok_or_else(|| ImportError::malformed(place, format!("unknown value type {number}")))
    }

    /// Fewest bytes a value takes.
    fn least_bytes(self) -> u64 {
        match self {
            Kind::U8 | Kind::I8 | Kind::Bool => 1,
            Kind::U16 | Kind::I16 => 2,
            Kind::U32 | Kind::I32 | Kind::F32 => 4,
            Kind::U64 | Kind::I64 | Kind::F64 | Kind::String => 8,
            Kind::Array => 12,
        }
    }
}

impl Value {
    /// Reads a type number and a value of it.
    pub(super) fn read(reader: &mut Reader<'_>, place: &str) -> Result<Self, ImportError> {
        let kind = Kind::read(reader, place)?;
        Ok(match kind {
            Kind::U8 | Kind::U16 | Kind::U32 | Kind::U64 => Value::Unsigned(unsigned(kind, reader, place)?),
            Kind::I8 | Kind::I16 | Kind::I32 | Kind::I64 => Value::Signed(signed(kind, reader, place)?),
            Kind::F32 | Kind::F64 => Value::Float(float(kind, reader, place)?),
            Kind::Bool => Value::Bool(boolean(reader, place)?),
            Kind::String => Value::String(reader.string(place)?),
            Kind::Array => Value::Array(array(reader, place, 1)?),
        })
    }

    /// Name of the type, for error messages.
    fn kind_name(&self) -> &'static str {
        match self {
            Value::Unsigned(_) | Value::Signed(_) => "an integer",
            Value::Float(_) => "a real number",
            Value::Bool(_) => "a boolean",
            Value::String(_) => "a string",
            Value::Array(_) => "an array",
        }
    }
}

fn array(reader: &mut Reader<'_>, place: &str, depth: usize) -> Result<Array, ImportError> {
    if depth > MAX_DEPTH {
        return Err(ImportError::malformed(place, format!("arrays nested more than {MAX_DEPTH} deep")));
    }
    let kind = Kind::read(reader, place)?;
    let count = reader.count(kind.least_bytes(), place)?;
    let each = 0..count;
    Ok(match kind {
        Kind::U8 | Kind::U16 | Kind::U32 | Kind::U64 => {
            Array::Unsigned(each.map(|_| unsigned(kind, reader, place)).collect::<Result<_, _>>()?)
        }
        Kind::I8 | Kind::I16 | Kind::I32 | Kind::I64 => {
            Array::Signed(each.map(|_| signed(kind, reader, place)).collect::<Result<_, _>>()?)
        }
        Kind::F32 | Kind::F64 => {
            Array::Float(each.map(|_| float(kind, reader, place)).collect::<Result<_, _>>()?)
        }
        Kind::Bool => Array::Bool(each.map(|_| boolean(reader, place)).collect::<Result<_, _>>()?),
        Kind::String => Array::String(each.map(|_| reader.string(place)).collect::<Result<_, _>>()?),
        Kind::Array => Array::Array(each.map(|_| array(reader, place, depth + 1)).collect::<Result<_, _>>()?),
    })
}

fn unsigned(kind: Kind, reader: &mut Reader<'_>, place: &str) -> Result<u64, ImportError> {
    match kind.least_bytes() {
        1 => reader.u8(place).map(u64::from),
        2 => reader.array(place).map(|bytes| u64::from(u16::from_le_bytes(bytes))),
        4 => reader.u32(place).map(u64::from),
        _ => reader.u64(place),
    }
}

fn signed(kind: Kind, reader: &mut Reader<'_>, place: &str) -> Result<i64, ImportError> {
    match kind.least_bytes() {
        1 => reader.array(place).map(|bytes| i64::from(i8::from_le_bytes(bytes))),
        2 => reader.array(place).map(|bytes| i64::from(i16::from_le_bytes(bytes))),
        4 => reader.array(place).map(|bytes| i64::from(i32::from_le_bytes(bytes))),
        _ => reader.array(place).map(i64::from_le_bytes),
    }
}

fn float(kind: Kind, reader: &mut Reader<'_>, place: &str) -> Result<f64, ImportError> {
    match kind.least_bytes() {
        4 => reader.array(place).map(|bytes| f64::from(f32::from_le_bytes(bytes))),
        _ => reader.array(place).map(f64::from_le_bytes),
    }
}

fn boolean(reader: &mut Reader<'_>, place: &str) -> Result<bool, ImportError> {
    match reader.u8(place)? {
        0 => Ok(false),
        1 => Ok(true),
        byte => Err(ImportError::malformed(place, format!("boolean is {byte}, neither 0 nor 1"))),
    }
}

/// All keys of a file. Getters name the key in every error.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metadata {
    values: BTreeMap<String, Value>,
}

impl Metadata {
    /// The value of a key, if it is there.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }

    /// All keys and values, by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.values.iter().map(|(key, value)| (key.as_str(), value))
    }

    pub(super) fn insert(&mut self, key: String, value: Value) -> Result<(), ImportError> {
        match self.values.insert(key.clone(), value) {
            None => Ok(()),
            Some(_) => Err(ImportError::key(key, "listed more than once")),
        }
    }

    /// A count, stored in any integer type.
    pub(super) fn count(&self, key: &str) -> Result<Option<usize>, ImportError> {
        self.typed(key, "a count", |value| match value {
            Value::Unsigned(number) => usize::try_from(*number).ok(),
            Value::Signed(number) => usize::try_from(*number).ok(),
            // Some models list a value for each block; one decoder shape serves all only if they agree.
            Value::Array(Array::Unsigned(values)) => all_equal(values).and_then(|n| usize::try_from(n).ok()),
            Value::Array(Array::Signed(values)) => all_equal(values).and_then(|n| usize::try_from(n).ok()),
            Value::Float(_) | Value::Bool(_) | Value::String(_) | Value::Array(_) => None,
        })
    }

    pub(super) fn token_id(&self, key: &str) -> Result<Option<u32>, ImportError> {
        self.typed(key, "a token id", |value| match value {
            Value::Unsigned(number) => u32::try_from(*number).ok(),
            Value::Signed(number) => u32::try_from(*number).ok(),
            Value::Float(_) | Value::Bool(_) | Value::String(_) | Value::Array(_) => None,
        })
    }

    pub(super) fn float(&self, key: &str) -> Result<Option<f64>, ImportError> {
        self.typed(
            key,
            "a real number",
            |value| if let Value::Float(number) = value { Some(*number) } else { None },
        )
    }

    pub(super) fn bool(&self, key: &str) -> Result<Option<bool>, ImportError> {
        self.typed(key, "a boolean", |value| if let Value::Bool(flag) = value { Some(*flag) } else { None })
    }

    pub(super) fn string(&self, key: &str) -> Result<Option<&str>, ImportError> {
        self.typed(
            key,
            "a string",
            |value| if let Value::String(text) = value { Some(text.as_str()) } else { None },
        )
    }

    pub(super) fn strings(&self, key: &str) -> Result<Option<&[String]>, ImportError> {
        self.typed(key, "an array of strings", |value| {
            if let Value::Array(Array::String(texts)) = value { Some(texts.as_slice()) } else { None }
        })
    }

    pub(super) fn floats(&self, key: &str) -> Result<Option<&[f64]>, ImportError> {
        self.typed(key, "an array of real numbers", |value| {
            if let Value::Array(Array::Float(numbers)) = value { Some(numbers.as_slice()) } else { None }
        })
    }

    /// Small integers of either sign.
    pub(super) fn integers(&self, key: &str) -> Result<Option<Vec<i32>>, ImportError> {
        self.typed(key, "an array of 32-bit integers", |value| match value {
            Value::Array(Array::Signed(numbers)) => numbers.iter().map(|&n| i32::try_from(n).ok()).collect(),
            Value::Array(Array::Unsigned(numbers)) => {
                numbers.iter().map(|&n| i32::try_from(n).ok()).collect()
            }
            Value::Unsigned(_)
            | Value::Signed(_)
            | Value::Float(_)
            | Value::Bool(_)
            | Value::String(_)
            | Value::Array(_) => None,
        })
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        wanted: &str,
        convert: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ImportError> {
        let Some(value) = self.values.get(key) else { return Ok(None) };
        let wrong = || ImportError::key(key, format!("is {}, expected {wanted} in range", value.kind_name()));
        convert(value).map(Some).ok_or_else(wrong)
    }
}

/// What all values are, if there is one and they agree.
fn all_equal<T: Copy + PartialEq>(values: &[T]) -> Option<T> {
    let first = *values.first()?;
    values.iter().all(|&value| value == first).then_some(first)
}

/// Reads `count` keys with their values.
pub(super) fn read_metadata(reader: &mut Reader<'_>, count: usize) -> Result<Metadata, ImportError> {
    let mut metadata = Metadata::default();
    for index in 0..count {
        let key = reader.string(&format!("metadata key {index}"))?;
        let value = Value::read(reader, &format!("metadata {key:?}"))?;
        metadata.insert(key, value)?;
    }
    Ok(metadata)
}
