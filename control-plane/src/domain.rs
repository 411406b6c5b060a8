//! The fleet as data: gateways, what they serve, how busy they are, which versions there are, what is being rolled out, and which
//! gateway a request goes to. No tonic, no tokio, no clock.

mod gateway;
pub mod labels;
mod registry;
pub mod rollout;
pub mod routing;
pub mod time;
pub mod version;

pub use gateway::{GatewayId, GatewayState, InvalidGatewayId, Model, ModelLoad, Traits};
pub use labels::{Labels, Selector};
pub use registry::{LinkId, NoRoute, Query, Registry, Reservation, ServedModel};
pub use routing::{
    AFFINITY_SLACK, Candidate, Wish, choose,
    names::{ModelNames, NameTable},
    prefix::Prompt,
    traffic::VersionTraffic,
};
pub use time::Millis;
pub use version::{AliasName, Digest, ModelName, VersionName};
