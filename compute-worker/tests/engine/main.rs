//! The engine on tiny random models, driven step by step or through its handle.
#![expect(clippy::unwrap_used, reason = "helpers of tests may stop it")]

mod faults;
mod identity;
mod lifecycle;
mod npu;
mod npu_faults;
mod outcomes;
mod probes;
mod quantised;
mod self_check;
mod support;
mod threaded;
