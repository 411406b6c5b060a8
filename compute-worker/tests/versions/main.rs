//! Versions on a gateway, through real folders, real bundles and real engines: what arrives whole, what is refused and why,
//! and what serves after the process was ended at any moment.

#![expect(clippy::unwrap_used, reason = "helpers of tests may stop it")]

mod bundles;
mod core;
mod download;
mod gates;
mod gateway;
mod kill;
mod store;
mod switch;
