//! Pushes, versions, downloads and garbage, through a whole control plane; object stores that speak S3.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod command;
mod downloads;
mod garbage;
mod hostile;
mod killed;
mod push;
mod s3;
mod support;
mod versions;
