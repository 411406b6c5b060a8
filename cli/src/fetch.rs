//! Bringing files onto this machine: resumable, verified, shared between runs.
//!
//! A file is written beside its destination as `<name>.partial` and renamed once it is whole and its
//! checksum, where one is known, is right; so whatever stands under its final name is complete.

pub mod demo;
pub mod digest;
pub mod download;
pub mod http;
pub mod hub;
