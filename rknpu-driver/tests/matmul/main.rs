//! Planned products on the simulator against scalar ones.
//!
//! * `seeded`: random shapes. A slice of them runs by default; `MATMUL_SHAPES=2000` runs the full set,
//!   `MATMUL_FIRST` begins elsewhere, and `MATMUL_ONLY` runs the one whose failure named it:
//!
//!   ```text
//!   MATMUL_ONLY=17 cargo test --release -p rknpu-driver --features sim --test matmul seeded
//!   ```
//! * `corners`: every dimension at 1, at the limits of tiles, buffers and fields, and one past them.
//! * `w4`: int4 weights with multipliers, both ways.
//! * `requantise`: int8 outputs.
//! * `device`: through buffers and jobs.

mod bench;
mod corners;
mod device;
mod requantise;
mod seeded;
mod w4;
