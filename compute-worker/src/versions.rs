//! Versions of models on this gateway: fetched, checked, tried, switched to and taken back.

mod agent;
pub mod core;
mod machine;
mod state;
mod wire;

pub use agent::{Agent, AssignError, Report};
pub use machine::{Kept, Machine, NotKept, Numbers, Outcome, Progress, Room};
pub use state::{
    Assignment, Committed, DetachedSignature, Gate, MAX_MODELS, MAX_TOLD, MAX_TRANSITIONS, Phase, Saved,
    Slots, State, Target, TransitionRecord, Verdict, Wanted,
};
