//! The `rookery` command: one front door to models, workers and the control plane.
//!
//! ```text
//!   main ─ args ─ config ─ telemetry ─► commands ─┬─ fetch        (pull, demo)
//!                                                 ├─ model crate  (pack, inspect)
//!                                                 ├─ engine       (bench)
//!                                                 ├─ client       (generate, models, demo)
//!                                                 └─ fleet ─ processes ─► this program again,
//!                                                                          as worker, control-plane
//! ```
//!
//! # Ownership
//!
//! [`app::run`] owns the runtime and the telemetry guard and flushes it after the command, off the runtime. A
//! parent holds its children's standard input; whoever loses the other end stops, so that nothing outlives
//! a parent, even one that was killed.
//!
//! # Failure
//!
//! Commands return [`error::Failure`], which one adapter prints with all its causes and a hint. Exit codes:
//! 0 done, 1 failed, 2 usage, 64 bad configuration. Results go to standard output, everything else to
//! standard error.

pub mod app;
pub mod args;
pub mod cache;
pub mod client;
pub mod commands;
pub mod config;
pub mod error;
pub mod fetch;
pub mod fleet;
pub mod live;
pub mod open_files;
pub mod output;
pub mod processes;
pub mod progress;
pub mod simulate;
pub mod telemetry;
