//! Scenarios of a fleet in one process.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod cancel;
mod continuation;
mod drain;
mod generate;
mod hostile;
mod npu;
mod protocols;
mod refusals;
mod routing;
mod trust;
mod unread;
