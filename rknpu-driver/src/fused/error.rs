//! Why a fused operation did not run.

use thiserror::Error;

use crate::device::DomainId;
use crate::error::{AllocateError, JobError, SyncError};
use crate::regcmd::{BindError, TaskError};

/// Why a fused operation was not built, refused its input or failed.
#[derive(Debug, Error)]
pub enum FusedError {
    /// A shape that no task can work on.
    #[error(
        "{rows} rows of {columns} columns are outside of 1 to {max_rows} rows of 1 to {max_columns} columns"
    )]
    Shape {
        /// Rows asked for.
        rows: usize,
        /// Columns asked for.
        columns: usize,
        /// Largest number of rows.
        max_rows: usize,
        /// Largest number of columns.
        max_columns: usize,
    },
    /// A slice whose length does not follow from the operation's shape.
    #[error("{name} has {given} elements, {wanted} wanted")]
    Length {
        /// Which slice.
        name: &'static str,
        /// Its length.
        given: usize,
        /// What it should be.
        wanted: usize,
    },
    /// A number that the operation cannot take or represent: not finite, beyond fp16, outside of a table.
    #[error(
        "{name} of row {row}, column {column} is {value}, outside of what the operation works on ({range})"
    )]
    Range {
        /// Which slice.
        name: &'static str,
        /// The row.
        row: usize,
        /// The column.
        column: usize,
        /// The number.
        value: f32,
        /// What would do.
        range: &'static str,
    },
    /// The device has no such domain.
    #[error("the device has no {0}")]
    Domain(DomainId),
    /// A task could not be encoded.
    #[error("a task could not be encoded")]
    Task(#[from] TaskError),
    /// The tasks could not be laid out.
    #[error("the tasks could not be laid out")]
    Bind(#[from] BindError),
    /// No memory.
    #[error("no buffer for the operation")]
    Allocate(#[from] AllocateError),
    /// A buffer could not be reached.
    #[error("a buffer of the operation could not be had")]
    Sync(#[from] SyncError),
    /// The job failed.
    #[error("the operation's job failed")]
    Job(#[from] JobError),
}
