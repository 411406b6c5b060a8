//! JSON files of a model folder; every getter names file and field in its errors.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::marker::PhantomData;
use std::path::Path;

use serde::de::{DeserializeOwned, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use crate::source::ImportError;

/// The largest tokenizers take 35 MB.
const MAX_BYTES: u64 = 1 << 27;

/// A JSON object and where it comes from. Null fields count as absent.
#[derive(Clone, Debug, Default)]
pub(super) struct Object {
    place: String,
    fields: Map<String, Value>,
}

impl Object {
    /// Reads a file of the folder; `None` if there is none.
    pub(super) fn read(folder: &Path, name: &str) -> Result<Option<Self>, ImportError> {
        let Some(text) = read_text(folder, name)? else { return Ok(None) };
        parse(name, &text).map(|fields| Some(Self { place: name.to_owned(), fields }))
    }

    #[cfg(test)]
    pub(super) fn from_value(place: &str, value: Value) -> Self {
        let Value::Object(fields) = value else { panic!("{place} is no object") };
        Self { place: place.to_owned(), fields }
    }

    pub(super) fn get(&self, field: &str) -> Option<&Value> {
        self.fields.get(field).filter(|value| !value.is_null())
    }

    pub(super) fn error(&self, field: &str, fault: impl Into<String>) -> ImportError {
        ImportError::key(format!("{}: {field}", self.place), fault)
    }

    pub(super) fn count(&self, field: &str) -> Result<Option<usize>, ImportError> {
        self.typed(field, "a count", |value| value.as_u64().and_then(|number| usize::try_from(number).ok()))
    }

    pub(super) fn required_count(&self, field: &str) -> Result<usize, ImportError> {
        self.count(field)?.ok_or_else(|| self.error(field, "missing"))
    }

    pub(super) fn float(&self, field: &str) -> Result<Option<f64>, ImportError> {
        self.typed(field, "a number", Value::as_f64)
    }

    pub(super) fn required_float(&self, field: &str) -> Result<f64, ImportError> {
        self.float(field)?.ok_or_else(|| self.error(field, "missing"))
    }

    pub(super) fn bool(&self, field: &str) -> Result<Option<bool>, ImportError> {
        self.typed(field, "true or false", Value::as_bool)
    }

    pub(super) fn string(&self, field: &str) -> Result<Option<&str>, ImportError> {
        self.typed(field, "a string", Value::as_str)
    }

    pub(super) fn array(&self, field: &str) -> Result<Option<&Vec<Value>>, ImportError> {
        self.typed(field, "an array", Value::as_array)
    }

    pub(super) fn object(&self, field: &str) -> Result<Option<Object>, ImportError> {
        let fields = self.typed(field, "an object", Value::as_object)?;
        Ok(fields.map(|fields| Object { place: format!("{}: {field}", self.place), fields: fields.clone() }))
    }

    /// One token id or a list of them.
    pub(super) fn token_ids(&self, field: &str) -> Result<Vec<u32>, ImportError> {
        let id = |value: &Value| value.as_u64().and_then(|number| u32::try_from(number).ok());
        let ids = self.typed(field, "a token id or an array of them", |value| match value.as_array() {
            Some(values) => values.iter().map(id).collect::<Option<Vec<u32>>>(),
            None => id(value).map(|id| vec![id]),
        })?;
        Ok(ids.unwrap_or_default())
    }

    fn typed<'a, T>(
        &'a self,
        field: &str,
        wanted: &str,
        convert: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ImportError> {
        let Some(value) = self.get(field) else { return Ok(None) };
        convert(value).map(Some).ok_or_else(|| self.error(field, format!("is not {wanted}")))
    }
}

/// Text of a file of the folder; `None` if there is none.
pub(super) fn read_text(folder: &Path, name: &str) -> Result<Option<String>, ImportError> {
    let path = folder.join(name);
    let io = |source| ImportError::io(&path, source);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(error)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(ImportError::malformed(name, format!("more than {MAX_BYTES} bytes")));
    }
    String::from_utf8(bytes).map(Some).map_err(|error| {
        ImportError::malformed(name, format!("not UTF-8 at byte {}", error.utf8_error().valid_up_to()))
    })
}

/// Parses JSON text, naming `place` if it is not what is wanted.
pub(super) fn parse<T: DeserializeOwned>(place: &str, text: &str) -> Result<T, ImportError> {
    serde_json::from_str(text).map_err(|error| ImportError::malformed(place, error.to_string()))
}

/// An object's fields in order, repetitions included: a plain map would let the last one win unseen.
#[derive(Debug)]
pub(super) struct Fields<T>(pub(super) Vec<(String, T)>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Fields<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(FieldsVisitor(PhantomData))
    }
}

struct FieldsVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for FieldsVisitor<T> {
    type Value = Fields<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields<T>, A::Error> {
        let mut fields = Vec::new();
        while let Some(field) = map.next_entry()? {
            fields.push(field);
        }
        Ok(Fields(fields))
    }
}
