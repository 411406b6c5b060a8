//! The store against SQLite and a real PostgreSQL: the same suite over both.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

#[expect(unreachable_pub, reason = "public in the harness, whose it is")]
#[path = "../../../tests/src/postgres.rs"]
mod postgres;

mod access;
mod crash;
mod gateways;
mod opening;
mod races;
mod rollouts;
mod shadow;
mod support;
mod transitions;
mod upgrade;
mod versions;
