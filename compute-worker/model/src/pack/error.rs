//! Why packing fails.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::bundle::{BundleError, Part};
use crate::names::TensorName;
use crate::source::ImportError;
use crate::tokenizer::TokenizerError;

/// Why packing failed. The target is as it was before.
#[derive(Debug, Error)]
pub enum PackError {
    /// The target exists and may not be replaced.
    #[error("{} exists; choose another folder or ask to overwrite it", path.display())]
    TargetExists {
        /// The target.
        path: PathBuf,
    },
    /// The target exists and is no bundle, so it is not replaced.
    #[error("{} exists and is not a bundle; it is left alone", path.display())]
    TargetNotABundle {
        /// The target.
        path: PathBuf,
    },
    /// The name is empty or has characters that people cannot type.
    #[error("model name {name:?} {fault}")]
    Name {
        /// The name given.
        name: String,
        /// What is wrong with it.
        fault: &'static str,
    },
    /// The source could not be read.
    #[error("cannot read the source")]
    Source(#[from] ImportError),
    /// The source's tokenizer cannot be served.
    #[error("tokenizer")]
    Tokenizer(#[source] TokenizerError),
    /// A weight is infinite or not a number.
    #[error("tensor {tensor} holds {value} in row {row}; the source is corrupt")]
    NotFinite {
        /// Tensor at fault.
        tensor: TensorName,
        /// Row of the value.
        row: usize,
        /// The value.
        value: f32,
    },
    /// A file or folder could not be written.
    #[error("cannot write {}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another packer is at work on the same target.
    #[error("{} is being packed by another process; wait until it has finished or choose another folder", path.display())]
    InProgress {
        /// The target.
        path: PathBuf,
    },
    /// Rows given for a matrix do not fit what the table of tensors says of it.
    #[error("tensor {tensor}: {fault}")]
    Misfit {
        /// Tensor at fault.
        tensor: TensorName,
        /// What does not fit.
        fault: String,
    },
    /// A part has not been written, or is not in the bundle it was to be copied from.
    #[error("part {part} is missing")]
    NoPart {
        /// The part.
        part: Part,
    },
    /// An optional document is of an unknown type or too large.
    #[error("document {title}: {fault}")]
    Document {
        /// Its title.
        title: String,
        /// What is wrong with it.
        fault: String,
    },
    /// What makes the contents of a matrix failed.
    #[error("tensor {tensor}")]
    Content {
        /// The matrix.
        tensor: TensorName,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The folder just written does not read back.
    #[error("the packed bundle does not read back")]
    ReadBack(#[source] BundleError),
}

pub(super) fn io_error(path: &Path) -> impl Fn(io::Error) -> PackError + '_ {
    move |source| PackError::Io { path: path.to_owned(), source }
}
