//! One module per command.

pub mod audit;
pub mod bench;
pub mod control_plane;
pub mod demo;
pub mod eval;
pub mod fleet;
pub mod generate;
pub mod inspect;
pub mod models;
pub mod npu;
pub mod pack;
pub mod plan;
pub mod prune;
pub mod pull;
pub mod rollouts;
pub mod tokens;
pub mod up;
pub mod worker;
