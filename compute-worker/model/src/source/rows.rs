//! Rows of a stored matrix as f32, with memory bounded by what is asked for.

use std::ops::Range;

use crate::dequant::StorageType;
use crate::source::bytes::Bytes;
use crate::source::{ImportError, TensorFault};

/// A matrix somewhere in a file; whoever makes one has checked that it lies inside.
#[derive(Clone, Debug)]
pub(crate) struct StoredMatrix {
    pub(crate) storage: StorageType,
    pub(crate) rows: usize,
    /// A multiple of the storage type's block.
    pub(crate) columns: usize,
    /// First byte in the file.
    pub(crate) offset: u64,
}

impl StoredMatrix {
    fn row_bytes(&self) -> usize {
        self.columns / self.storage.block_values() * self.storage.block_bytes()
    }

    /// Appends stored rows to `out`, refusing values that are not finite.
    pub(crate) fn read(
        &self,
        bytes: &Bytes,
        name: &str,
        rows: Range<usize>,
        out: &mut Vec<f32>,
    ) -> Result<(), ImportError> {
        assert!(
            rows.start <= rows.end && rows.end <= self.rows,
            "rows {rows:?} of {name} with {}",
            self.rows
        );
        let row_bytes = self.row_bytes();
        // About a megabyte at a time: few system calls, little memory.
        let rows_per_read = (1 << 20) / row_bytes + 1;
        let mut buffer = Vec::new();
        for first in rows.clone().step_by(rows_per_read) {
            let count = rows_per_read.min(rows.end - first);
            buffer.resize(count * row_bytes, 0);
            bytes.read_at(self.offset + (first * row_bytes) as u64, &mut buffer)?;
            let start = out.len();
            out.resize(start + count * self.columns, 0.0);
            self.storage.decode(&buffer, &mut out[start..]);
            if let Some(at) = out[start..].iter().position(|value| !value.is_finite()) {
                let (row, column) = (first + at / self.columns, at % self.columns);
                return Err(ImportError::tensor(
                    name,
                    TensorFault::NotFinite { value: out[start + at], row, column },
                ));
            }
        }
        Ok(())
    }
}
