//! What can go wrong, one error a family of operations; each says what to do where that is known.

mod access;
mod open;
mod run;

pub use access::{AllocateError, ShareError, SyncError};
pub use open::OpenError;
pub use run::{Fault, JobError, ResetError};
