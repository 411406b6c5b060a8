//! Devices over the simulated kernels: buffers, jobs, faults, resets, and that nothing is left behind.
//!
//! `mixes` runs seeded mixes of faults: 1,000 by default, `DEVICE_MIXES=10000` more, and `DEVICE_ONLY=17`
//! the one whose failure named it: `DEVICE_ONLY=17 cargo test --release -p rknpu-driver --features sim --test
//! device mixes`.

mod buffers;
mod faults;
mod layout;
mod mixes;
mod product;
