//! Rookery's wire contract: the generated code of package `rookery.v1` and everything about it that a client, a
//! worker and the control plane must agree on.
//!
//! - [`v1`] is generated from `proto/rookery/v1/*.proto`; [`FILE_DESCRIPTOR_SET`] is the same for reflection.
//! - [`validate`] turns raw requests into typed ones. Raw requests stop at the handlers.
//! - [`status`] has the error reasons and their details; [`deadline`] reads `grpc-timeout`.
//! - [`semconv`] has the names of spans, attributes and metrics, which are contract too.
//! - [`trace_context`] carries W3C trace context in gRPC metadata.
//! - [`join_token`] is what a gateway joins with; `tls` (feature `tls`) is whom it then trusts, and dialling.
//! - `signing` (feature `signing`) signs versions of models and checks their signatures.
//! - [`server`] (feature `server`) is what both servers need to put the contract on a socket.
//!
//! This crate knows nothing of models, engines or fleets and starts no task by itself.

pub mod deadline;
pub mod join_token;
pub mod semconv;
#[cfg(feature = "server")]
pub mod server;
#[cfg(feature = "signing")]
pub mod signing;
pub mod status;
#[cfg(feature = "tls")]
pub mod tls;
pub mod trace_context;
pub mod validate;

/// Generated from `proto/rookery/v1/*.proto`.
#[expect(clippy::allow_attributes, reason = "generated code brings its own")]
pub mod v1 {
    tonic::include_proto!("rookery.v1");
}

/// Encoded `google.protobuf.FileDescriptorSet` of package `rookery.v1`, comments included, for gRPC reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] =
    include_bytes!(concat!(env!("OUT_DIR"), "/rookery.v1.descriptors.bin"));
