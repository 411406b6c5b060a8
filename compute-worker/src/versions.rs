//! Versions of models on this gateway: fetched, checked, tried, switched to and taken back.
//!
//! The control plane says what is to be served ([`Assignment`]) and the gateway goes there by itself, with or without a link.
//!
//! ```text
//!             fetch          hash all        load beside       replay           move requests
//!  Assigned ─────► Downloading ──► Verifying ─────► Staged ────────► Probing ────────► Activating ──► Serving
//!     ▲                ▲  │            │ │             │                │                  │            │
//!     │                └──┼─ damaged ──┘ │             │   no room: the version that        │            │ replaced
//!     │                   ▼              ▼             ▼   serves gives way first           ▼            ▼
//!     │ next generation ┌────────────────────────────────────────────────────────────────────┐     Draining
//!     └─────────────────┤ Failed: signature, disk, memory, digests, probes, speed, temperature │   │       │
//!                       └────────────────────────────────────────────────────────────────────┘   ▼       ▼
//!                         the version before goes on serving, or comes back                   Staged  RolledBack
//!                                                                                         (on disk)  (taken back)
//! ```
//!
//! - [`core`] decides: pure, events in, actions and state out. [`Agent`] runs it, one task for a gateway.
//! - [`Machine`] is what it acts on: [`station::Station`] is a real gateway; simulations bring their own.
//! - [`store`] is the disk, [`download`] the way there, [`memory`] and the gates say what may not pass.
//!
//! # What holds
//!
//! A version is committed by one rename, of the state that names it, after its probes have passed and requests go to it. A
//! process that ends at any instruction leaves the version before that rename or the one after it, and either is whole: its
//! blobs were hashed before they had names, and all of it is hashed again before it serves in another life of the process.
//! If it was damaged meanwhile, what served before takes its place while the damaged blobs are fetched again.
//!
//! # Speed
//!
//! A bundle may promise a speed: `probes.json` has a `profile` of tokens a second by name of the board, or `*`. The gateway
//! decodes one generation alone after the probes and compares the median; without a profile the speed is told and not
//! judged.

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
