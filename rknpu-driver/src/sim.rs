//! A register-level simulator of the NPU.

pub(crate) mod cna;
pub(crate) mod core;
pub(crate) mod dpu;
pub mod faults;
pub(crate) mod float;
pub mod kernel;
pub(crate) mod lut;
pub mod machine;
pub mod memory;
pub(crate) mod pc;
pub(crate) mod ppu;
pub(crate) mod rdma;
pub(crate) mod registers;
