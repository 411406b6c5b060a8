//! How long the NPU takes: a pure model, with nothing measured and nothing to open.
//!
//! A task keeps a core's multiply-accumulators busy for [`mac_cycles`] and moves bytes between DRAM and the core; both
//! overlap, so the task lasts as long as the longer of them, plus what starting a task costs. Cores share the
//! memory. [`job_time`] plays a job's chains against each other; [`model`] predicts whole language models; [`compiler`] is what
//! the vendor's compiler would say.
//!
//! Every constant is a field of [`Board`] or [`model::Runtime`], or documented beside its value, with its source.
//! docs/npu-timing.md holds the predictions beside the figures that others published.

mod board;
pub mod compiler;
pub mod model;
mod play;
mod work;

pub use board::Board;
pub use play::{CoreTime, JobTime, job_time, task_time};
pub use work::{MacFormat, TaskWork, mac_cycles};
