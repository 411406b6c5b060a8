//! Versions of models on this gateway: fetched, checked, tried, switched to and taken back.

mod agent;
mod board;
pub mod core;
pub mod download;
mod gates;
mod machine;
pub mod memory;
mod state;
pub mod station;
pub mod store;
mod wire;

pub use agent::{Agent, AssignError, Report};
pub use board::{Board, SystemMemory};
pub use machine::{Kept, Machine, NotKept, Numbers, Outcome, Progress, Room};
pub use state::{
    Assignment, Committed, DetachedSignature, Gate, MAX_MODELS, MAX_TOLD, MAX_TRANSITIONS, Phase, Saved,
    Slots, State, Target, TransitionRecord, Verdict, Wanted,
};
