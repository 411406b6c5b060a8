//! Between values of the domain and columns: texts and 64-bit integers.

use std::{error::Error, fmt::Write, str::FromStr};

use serde::{Serialize, de::DeserializeOwned};
use sqlx::{Row, any::AnyRow};

use crate::domain::Millis;

use super::StoreError;

/// Most rows of a statement with many. SQLite takes 32,766 values.
pub(super) const MOST_ROWS: usize = 200;

/// Columns by name, as what they stand for.
pub(super) trait Columns {
    fn text(&self, column: &'static str) -> Result<String, StoreError>;
    fn maybe_text(&self, column: &'static str) -> Result<Option<String>, StoreError>;
    fn number(&self, column: &'static str) -> Result<i64, StoreError>;
    fn maybe_number(&self, column: &'static str) -> Result<Option<i64>, StoreError>;

    fn unsigned(&self, column: &'static str) -> Result<u64, StoreError> {
        u64::try_from(self.number(column)?).map_err(|error| corrupt(column, error))
    }

    fn millis(&self, column: &'static str) -> Result<Millis, StoreError> {
        self.number(column).map(Millis)
    }

    fn parsed<T>(&self, column: &'static str) -> Result<T, StoreError>
    where
        T: FromStr<Err: Error + Send + Sync + 'static>,
    {
        self.text(column)?.parse().map_err(|error| corrupt(column, error))
    }

    fn maybe_parsed<T>(&self, column: &'static str) -> Result<Option<T>, StoreError>
    where
        T: FromStr<Err: Error + Send + Sync + 'static>,
    {
        self.maybe_text(column)?.map(|text| text.parse().map_err(|error| corrupt(column, error))).transpose()
    }

    fn json<T: DeserializeOwned>(&self, column: &'static str) -> Result<T, StoreError> {
        serde_json::from_str(&self.text(column)?).map_err(|error| corrupt(column, error))
    }
}

impl Columns for AnyRow {
    fn text(&self, column: &'static str) -> Result<String, StoreError> {
        Ok(self.try_get(column)?)
    }

    fn maybe_text(&self, column: &'static str) -> Result<Option<String>, StoreError> {
        Ok(self.try_get(column)?)
    }

    fn number(&self, column: &'static str) -> Result<i64, StoreError> {
        Ok(self.try_get(column)?)
    }

    fn maybe_number(&self, column: &'static str) -> Result<Option<i64>, StoreError> {
        Ok(self.try_get(column)?)
    }
}

pub(super) fn corrupt(what: &'static str, error: impl Error + Send + Sync + 'static) -> StoreError {
    StoreError::Corrupt { what, source: Box::new(error) }
}

/// A value as JSON.
pub(super) fn to_json(what: &str, value: &impl Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| StoreError::Invalid { what: format!("{what}: {error}") })
}

/// A count as a column holds it.
pub(super) fn signed(what: &str, value: u64) -> Result<i64, StoreError> {
    i64::try_from(value).map_err(|_| StoreError::Invalid { what: format!("{what} {value} is too large") })
}

/// Text from outside as both databases take it: PostgreSQL has no NUL.
pub(super) fn plain(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

/// `$1, $2, …`: `count` placeholders after the first `before`.
pub(super) fn placeholders(before: usize, count: usize) -> String {
    let mut list = String::new();
    for index in before + 1..=before + count {
        let comma = if list.is_empty() { "" } else { ", " };
        // Writing to a string does not fail.
        let _ = write!(list, "{comma}${index}");
    }
    list
}

/// `($1, $2), ($3, $4), …`: placeholders of `rows` rows.
pub(super) fn tuples(rows: usize, columns: usize) -> String {
    (0..rows).map(|row| format!("({})", placeholders(row * columns, columns))).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_count_on() {
        assert_eq!(placeholders(0, 1), "$1");
        assert_eq!(placeholders(2, 3), "$3, $4, $5");
        assert_eq!(tuples(2, 2), "($1, $2), ($3, $4)");
    }
}
