//! The worker's configuration: plain sections as a file has them, and the checked form that builds a worker.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use rookery_proto::server::{ConnectionLimits, LimitError, ServerLimits};
use serde::{Deserialize, Serialize};

use crate::backend::BackendSettings;
use crate::engine::{EngineConfig, EngineError};
use crate::probes::SelfCheck;

mod engine;
mod npu;

pub use engine::{EngineSection, KvCacheType};
pub use npu::{BoardSection, NpuFused, NpuInterface, NpuPolicy, NpuSection, NpuW4};

/// Configuration of a compute worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct WorkerConfig {
    /// Address of the worker's own gRPC port. Port 0 picks a free one. Default 127.0.0.1:7071.
    pub listen: SocketAddr,
    /// Stable id of this gateway in the fleet: 1 to 128 letters, digits, `.`, `_` or `-`. Default: the host's name.
    pub gateway_id: Option<String>,
    /// Folders of the model bundles to serve, at least one. No two may hold a model of the same name.
    pub bundles: Vec<PathBuf>,
    /// Time from the order to stop until running generations are cut off. Default 30s.
    #[serde(with = "humantime_serde")]
    pub drain_timeout: Duration,
    /// The engine; each bundle gets one with these settings.
    pub engine: EngineSection,
    /// The NPU.
    pub npu: NpuSection,
    /// The connection to the control plane.
    pub link: LinkSection,
    /// What clients of the worker's own port may use.
    pub server: ServerLimits,
}

/// Settings of the connection that the worker dials to the control plane.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct LinkSection {
    /// Link address of the control plane, `host:port`. Default: none, the worker stands alone.
    pub control_plane: Option<String>,
    /// Time for one attempt to connect. Default 5s.
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
    /// Pause after the first failed attempt; it doubles with each further one. Default 100ms.
    #[serde(with = "humantime_serde")]
    pub backoff_min: Duration,
    /// Longest pause between attempts. Each pause is shortened by a random part of up to a half. Default 10s.
    #[serde(with = "humantime_serde")]
    pub backoff_max: Duration,
    /// Time between keep-alive pings on the connection. Default 5s.
    #[serde(with = "humantime_serde")]
    pub keepalive_interval: Duration,
    /// Time for the answer to a ping, after which the worker dials again. Default 5s.
    #[serde(with = "humantime_serde")]
    pub keepalive_timeout: Duration,
}

impl Default for WorkerConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 7071)),
            gateway_id: None,
            bundles: Vec::new(),
            drain_timeout: Duration::from_secs(30),
            engine: EngineSection::default(),
            npu: NpuSection::default(),
            link: LinkSection::default(),
            server: ServerLimits::default(),
        }
    }
}

impl Default for LinkSection {
    fn default() -> Self {
        Self {
            control_plane: None,
            connect_timeout: Duration::from_secs(5),
            backoff_min: Duration::from_millis(100),
            backoff_max: Duration::from_secs(10),
            keepalive_interval: Duration::from_secs(5),
            keepalive_timeout: Duration::from_secs(5),
        }
    }
}

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// No bundle is named.
    #[error("bundles must name at least one bundle")]
    NoBundle,
    /// The id has another form, or none was given and the host has no usable name.
    #[error("gateway-id {0:?} must have 1 to 128 letters, digits, '.', '_' or '-'")]
    GatewayId(String),
    /// No such instruction set.
    #[error("engine.isa {0:?} is not an instruction set")]
    Isa(String),
    /// A setting of the engine is out of range.
    #[error("engine settings are not usable")]
    Engine(#[source] EngineError),
    /// A setting of the npu section is out of range.
    #[error("npu.{0}")]
    Npu(&'static str),
    /// A setting of the server section is out of range.
    #[error("server settings are not usable")]
    Server(#[from] LimitError),
    /// A setting of the link section is out of range.
    #[error("link.{0} must be greater than zero")]
    LinkZero(&'static str),
    /// The back-off's limits are the wrong way round.
    #[error("link.backoff-min must be at most link.backoff-max")]
    Backoff,
    /// Not an address.
    #[error("link.control-plane {0:?} must be host:port")]
    ControlPlane(String),
}

/// A checked [`WorkerConfig`]; only this builds a worker.
#[derive(Clone, Debug)]
pub struct ValidWorkerConfig {
    pub(crate) listen: SocketAddr,
    pub(crate) gateway_id: String,
    pub(crate) bundles: Vec<PathBuf>,
    pub(crate) drain_timeout: Duration,
    pub(crate) engine: EngineConfig,
    pub(crate) self_check: SelfCheck,
    pub(crate) backend: BackendSettings,
    pub(crate) link: Option<ValidLink>,
    pub(crate) limits: ServerLimits,
    pub(crate) connection: ConnectionLimits,
}

/// A checked link section with an address.
#[derive(Clone, Debug)]
pub(crate) struct ValidLink {
    pub(crate) address: String,
    pub(crate) connect_timeout: Duration,
    pub(crate) backoff_min: Duration,
    pub(crate) backoff_max: Duration,
    pub(crate) connection: ConnectionLimits,
}

impl WorkerConfig {
    /// What decides where linear layers are computed, for [`crate::backend::Backends::open`].
    ///
    /// # Errors
    /// Names the first setting that cannot be used.
    pub fn backend(&self) -> Result<BackendSettings, ConfigError> {
        Ok(BackendSettings { choice: self.engine.backend, npu: self.npu.validate()? })
    }

    /// Checks every setting and fills in what depends on the machine.
    ///
    /// # Errors
    /// Names the first setting that cannot be used.
    pub fn validate(self) -> Result<ValidWorkerConfig, ConfigError> {
        if self.bundles.is_empty() {
            return Err(ConfigError::NoBundle);
        }
        let backend = self.backend()?;
        let gateway_id = self.gateway_id.unwrap_or_else(host_name);
        if !is_gateway_id(&gateway_id) {
            return Err(ConfigError::GatewayId(gateway_id));
        }
        let connection = self.server.connection()?;
        Ok(ValidWorkerConfig {
            listen: self.listen,
            gateway_id,
            bundles: self.bundles,
            drain_timeout: self.drain_timeout,
            backend,
            engine: self.engine.validate()?,
            self_check: self.engine.self_check,
            link: self.link.validate(&connection)?,
            limits: self.server,
            connection,
        })
    }
}

impl ValidWorkerConfig {
    /// The gateway's id, also where it comes from the host's name.
    pub fn gateway_id(&self) -> &str {
        &self.gateway_id
    }

    /// The bundles' folders.
    pub fn bundles(&self) -> &[PathBuf] {
        &self.bundles
    }
}

impl LinkSection {
    fn validate(self, server: &ConnectionLimits) -> Result<Option<ValidLink>, ConfigError> {
        let Some(address) = self.control_plane else { return Ok(None) };
        let port = address
            .rsplit_once(':')
            .filter(|(host, _)| !host.is_empty())
            .map(|(_, port)| port.parse::<u16>());
        if !matches!(port, Some(Ok(1..))) {
            return Err(ConfigError::ControlPlane(address));
        }
        let durations = [
            ("connect-timeout", self.connect_timeout),
            ("backoff-min", self.backoff_min),
            ("keepalive-interval", self.keepalive_interval),
            ("keepalive-timeout", self.keepalive_timeout),
        ];
        if let Some((setting, _)) = durations.into_iter().find(|(_, duration)| duration.is_zero()) {
            return Err(ConfigError::LinkZero(setting));
        }
        if self.backoff_min > self.backoff_max {
            return Err(ConfigError::Backoff);
        }
        let connection = ConnectionLimits {
            handshake_timeout: server.handshake_timeout,
            keepalive_interval: self.keepalive_interval,
            keepalive_timeout: self.keepalive_timeout,
            max_streams: LINK_STREAMS,
        };
        let Self { connect_timeout, backoff_min, backoff_max, .. } = self;
        Ok(Some(ValidLink { address, connect_timeout, backoff_min, backoff_max, connection }))
    }
}

/// Calls at the same time on the link. The control plane is one peer for many clients, and the engine's own
/// queue is the limit that matters.
const LINK_STREAMS: u32 = 4096;

fn is_gateway_id(id: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    (1..=128).contains(&id.len()) && id.bytes().all(plain)
}

/// Empty where the system does not tell; then the id must be configured.
fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map(|name| name.trim().to_owned())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usable() -> WorkerConfig {
        WorkerConfig {
            bundles: vec!["bundle".into()],
            gateway_id: Some("gw-1".into()),
            ..WorkerConfig::default()
        }
    }

    fn error(edit: impl FnOnce(&mut WorkerConfig)) -> String {
        let mut config = usable();
        edit(&mut config);
        config.validate().unwrap_err().to_string()
    }

    #[test]
    fn defaults_with_a_bundle_are_valid() {
        let valid = usable().validate().unwrap();
        assert!(valid.link.is_none());
        assert_eq!(valid.gateway_id(), "gw-1");
    }

    #[test]
    fn errors_name_the_setting() {
        assert!(error(|c| c.bundles.clear()).contains("bundles"));
        assert!(error(|c| c.gateway_id = Some("a b".into())).contains("gateway-id"));
        assert!(error(|c| c.gateway_id = Some(String::new())).contains("gateway-id"));
        assert!(error(|c| c.engine.isa = Some("z80".into())).contains("engine.isa"));
        assert!(error(|c| c.engine.max_batch = 0).contains("engine"));
        for address in ["host", ":7072", "host:0", "host:port"] {
            assert!(error(|c| c.link.control_plane = Some(address.into())).contains("link.control-plane"));
        }
        assert!(
            error(|c| {
                c.link.control_plane = Some("host:7072".into());
                c.link.backoff_max = Duration::from_millis(1);
            })
            .contains("backoff-min")
        );
    }
}
