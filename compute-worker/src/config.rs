//! The worker's configuration: plain sections as a file has them, and the checked form that builds a worker.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use rookery_proto::server::{ConnectionLimits, LimitError, ServerLimits};
use serde::{Deserialize, Serialize};

use crate::backend::BackendSettings;
use crate::engine::{EngineConfig, EngineError};
use crate::probes::SelfCheck;

mod engine;
mod link;
mod npu;
mod versions;

pub use engine::{EngineSection, KvCacheType};
pub use link::{LinkSection, LinkTlsMode};
pub(crate) use link::{LinkTls, ValidLink};
pub use npu::{BoardSection, NpuFused, NpuInterface, NpuPolicy, NpuSection, NpuW4};
pub use versions::VersionsSection;

/// Configuration of a compute worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct WorkerConfig {
    /// Address of the worker's own gRPC port. Port 0 picks a free one. Default 127.0.0.1:7071.
    pub listen: SocketAddr,
    /// Stable id of this gateway in the fleet: 1 to 128 letters, digits, `.`, `_` or `-`. Default: as it has joined, else
    /// the host's name.
    pub gateway_id: Option<String>,
    /// Folders of model bundles to serve whatever the control plane says; at least one unless there is a control
    /// plane. No two may hold a model of the same name.
    pub bundles: Vec<PathBuf>,
    /// Folder of what the worker keeps: who it is in the fleet, and the versions that were assigned to it. Default:
    /// none; `rookery worker` then takes `$XDG_STATE_HOME/rookery/worker` if it has a control plane.
    pub state: Option<PathBuf>,
    /// Time from the order to stop until running generations are cut off. Default 30s.
    #[serde(with = "humantime_serde")]
    pub drain_timeout: Duration,
    /// The engine; each bundle gets one with these settings.
    pub engine: EngineSection,
    /// The NPU.
    pub npu: NpuSection,
    /// The connection to the control plane.
    pub link: LinkSection,
    /// Versions that the control plane assigns.
    pub versions: VersionsSection,
    /// What clients of the worker's own port may use.
    pub server: ServerLimits,
}

impl Default for WorkerConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 7071)),
            gateway_id: None,
            bundles: Vec::new(),
            state: None,
            drain_timeout: Duration::from_secs(30),
            engine: EngineSection::default(),
            npu: NpuSection::default(),
            link: LinkSection::default(),
            versions: VersionsSection::default(),
            server: ServerLimits::default(),
        }
    }
}

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// No bundle is named, and nobody is there to assign one.
    #[error("bundles must name at least one bundle, unless link.control-plane names who assigns versions")]
    NoBundle,
    /// Others could use the gateway without anybody knowing who they are.
    #[error(
        "listen must be a loopback address, is {0}: the worker's own port knows neither TLS nor tokens; \
             let others come through the control plane"
    )]
    Listen(SocketAddr),
    /// Others could listen in.
    #[error("link.tls must not be \"off\" for {0:?}: plain text is for loopback addresses only")]
    PlainText(String),
    /// A worker that dials with TLS has a certificate to keep.
    #[error("state must name a folder, since the worker dials with TLS and keeps its certificate there")]
    NoState,
    /// The folder of the state cannot be used.
    #[error("cannot use the state folder")]
    Identity(#[source] crate::agent::IdentityError),
    /// The text is no join token.
    #[error("link.join must have the form rk1.ID.SECRET.FINGERPRINT; make one with `rookery tokens join`")]
    JoinToken,
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
    /// A setting of the versions section is out of range.
    #[error("versions.{0}")]
    Versions(&'static str),
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
    pub(crate) state: Option<PathBuf>,
    pub(crate) drain_timeout: Duration,
    pub(crate) engine: EngineConfig,
    pub(crate) self_check: SelfCheck,
    pub(crate) backend: BackendSettings,
    pub(crate) link: Option<ValidLink>,
    pub(crate) versions: VersionsSection,
    pub(crate) limits: ServerLimits,
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
        if self.bundles.is_empty() && self.link.control_plane.is_none() {
            return Err(ConfigError::NoBundle);
        }
        if !self.listen.ip().to_canonical().is_loopback() {
            return Err(ConfigError::Listen(self.listen));
        }
        let backend = self.backend()?;
        let joined_as = || self.state.as_deref().and_then(crate::agent::Identity::holder);
        let gateway_id = self.gateway_id.or_else(joined_as).unwrap_or_else(host_name);
        if !is_gateway_id(&gateway_id) {
            return Err(ConfigError::GatewayId(gateway_id));
        }
        let connection = self.server.connection()?;
        Ok(ValidWorkerConfig {
            listen: self.listen,
            bundles: self.bundles,
            drain_timeout: self.drain_timeout,
            backend,
            engine: self.engine.validate()?,
            self_check: self.engine.self_check,
            link: self.link.validate(&connection, self.state.as_deref(), &gateway_id)?,
            state: self.state,
            gateway_id,
            versions: self.versions.validate()?,
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
        assert!(error(|c| c.listen = ([0, 0, 0, 0], 7071).into()).contains("loopback"));
        let far = |c: &mut WorkerConfig| c.link.control_plane = Some("plane.example:7072".into());
        assert!(error(far).contains("state"));
        assert!(
            error(|c| {
                far(c);
                c.link.tls = LinkTlsMode::Off;
            })
            .contains("link.tls")
        );
        assert!(
            error(|c| {
                far(c);
                c.link.join = Some("rk1.x".into());
            })
            .contains("link.join")
        );
        let folder = tempfile::tempdir().unwrap();
        let with_state = WorkerConfig { state: Some(folder.path().into()), ..usable() };
        let mut stranger = with_state.clone();
        far(&mut stranger);
        assert!(stranger.validate().is_err_and(|error| format!("{error:?}").contains("NotJoined")));
        let mut near = with_state;
        near.link.control_plane = Some("127.0.0.1:7072".into());
        near.bundles.clear();
        assert!(near.clone().validate().unwrap().link.unwrap().tls.is_none());
        near.link.join = Some(format!("rk1.{}.{}.{}", "0".repeat(12), "s".repeat(43), "a".repeat(64)));
        assert!(near.validate().unwrap().link.unwrap().tls.is_some());
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
