//! The fleet as data: gateways, what they serve, how busy they are, and which one a request goes to.

mod gateway;
mod registry;
mod routing;

pub use gateway::{GatewayId, GatewayState, InvalidGatewayId, Model, ModelLoad};
pub use registry::{LinkId, NoRoute, Registry, Reservation, ServedModel};
pub use routing::{AFFINITY_SLACK, Candidate, choose};
