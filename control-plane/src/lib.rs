//! Knows the fleet and routes requests to it.
//!
//! ```text
//!  client ─► service ─► route: reserve ─► attempt ─► events passed on
//!                          │                 │
//!                          ▼                 ▼ gRPC on the reversed connection
//!            domain::Registry (pure) ◄── link: one session per dialled socket
//! ```
//!
//! - [`domain`] is what the fleet is and where a request goes: plain data and functions, no tonic, no tokio, no clock.
//! - [`link`] accepts the sockets that workers dial and is the HTTP/2 client on them.
//! - [`service`] is `InferenceService` for clients, with retries on another gateway before the first event.
//! - [`store`] is what outlives the process: one database for all replicas.
//! - [`trust`] is the certificate authority, TLS on both ports, and bearer tokens with roles.
//! - [`config`] and [`control_plane`] put it together.
//!
//! # Ownership
//!
//! [`fleet::Fleet`] owns the registry behind a lock that is never held across an await. A link's session owns its
//! connection; everything else holds clones of a handle. A stream owns its reservation, which it gives back by drop.
//!
//! # Failure
//!
//! A gateway whose connection ends, or that is silent for three heartbeats, is out of the registry at once, and its
//! streams end. They are tried elsewhere, and go on there if they had begun: only if no gateway of the version is left
//! does the client get GATEWAY_LOST.

pub mod artifacts;
pub mod config;
pub mod control_plane;
pub mod domain;
pub mod fleet;
pub mod inventory;
pub mod link;
pub mod peers;
pub mod rollout;
pub mod service;
pub mod store;
pub mod trust;
