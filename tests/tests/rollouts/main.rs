//! Versions rolled out to real gateways by a real control plane: what is good arrives everywhere, what is bad is stopped at
//! the first wave and taken back, and nothing is lost or half done however often processes are killed.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod away;
mod bad;
mod good;
mod killed;
mod replicas;
mod traced;
