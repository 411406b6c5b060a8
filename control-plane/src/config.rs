//! The control plane's configuration: plain sections as a file has them, and the checked form that builds it.

use std::{net::SocketAddr, num::NonZeroU32, time::Duration};

use rookery_proto::{
    server::{ConnectionLimits, LimitError, ServerLimits},
    validate::limit,
};
use serde::{Deserialize, Serialize};

mod storage;
mod tls;

pub use storage::{ArtifactsSection, DownloadsSection, ReplicaSection, RolloutsSection, StateSection};
pub(crate) use tls::ServerIdentity;
pub use tls::{TlsMode, TlsSection};

/// Configuration of the control plane.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct ControlPlaneConfig {
    /// Address that clients call. Port 0 picks a free one. Default 127.0.0.1:7070.
    pub listen: SocketAddr,
    /// Time from the order to stop until running generations are cut off. Default 30s.
    #[serde(with = "humantime_serde")]
    pub drain_timeout: Duration,
    /// Where state is kept.
    pub state: StateSection,
    /// Where versions of models are kept.
    pub artifacts: ArtifactsSection,
    /// TLS and tokens on the clients' port.
    pub tls: TlsSection,
    /// The port that workers dial.
    pub link: LinkSection,
    /// This process among others that share the database.
    pub replica: ReplicaSection,
    /// Where requests go.
    pub routing: RoutingSection,
    /// Roll-outs.
    pub rollouts: RolloutsSection,
    /// Downloads by gateways.
    pub downloads: DownloadsSection,
    /// What clients may use.
    pub server: ServerLimits,
}

/// Settings of the port that workers dial.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct LinkSection {
    /// Address that workers dial. Port 0 picks a free one. Default 127.0.0.1:7072.
    pub listen: SocketAddr,
    /// Whether gateways dial with TLS and are known by certificates. Without, everybody who reaches the port is the
    /// gateway that they say they are. Default auto: everywhere but on a loopback address.
    pub tls: TlsMode,
    /// Links and other connections of gateways at the same time; further ones wait to be accepted. Default 4096.
    pub max_links: NonZeroU32,
    /// Connections at the same time, on each port, that have not finished their handshake; a further one takes the place
    /// of the oldest. Default 256.
    pub max_pending: NonZeroU32,
    /// How long the certificate of a gateway lasts; gateways renew theirs after two thirds of it. One that is away for
    /// longer has to join anew. From 1s to 10 years. Default 30days.
    #[serde(with = "humantime_serde")]
    pub certificate_life: Duration,
    /// Time from accepting a connection to the gateway's first status. Default 5s.
    #[serde(with = "humantime_serde")]
    pub handshake_timeout: Duration,
    /// Longest time between two statuses of a gateway, from 100ms to 60s. One that is silent for three times as long
    /// is taken for lost. Default 1s.
    #[serde(with = "humantime_serde")]
    pub heartbeat_interval: Duration,
    /// Time between keep-alive pings on a link. Default 5s.
    #[serde(with = "humantime_serde")]
    pub keepalive_interval: Duration,
    /// Time for the answer to a ping, after which the link is lost. Default 5s.
    #[serde(with = "humantime_serde")]
    pub keepalive_timeout: Duration,
}

/// Settings of routing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct RoutingSection {
    /// Gateways that a request is tried on before the client gets an error. Default 3.
    pub max_attempts: NonZeroU32,
    /// How long a request waits for a gateway when none that serves its model is linked. Default 2s.
    #[serde(with = "humantime_serde")]
    pub wait_for_gateway: Duration,
    /// How often an answer may go on with another gateway after the one that made it was lost. Default 8.
    pub max_continuations: u32,
}

impl Default for ControlPlaneConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 7070)),
            drain_timeout: Duration::from_secs(30),
            state: StateSection::default(),
            artifacts: ArtifactsSection::default(),
            tls: TlsSection::default(),
            link: LinkSection::default(),
            replica: ReplicaSection::default(),
            routing: RoutingSection::default(),
            rollouts: RolloutsSection::default(),
            downloads: DownloadsSection::default(),
            server: ServerLimits::default(),
        }
    }
}

impl Default for LinkSection {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 7072)),
            tls: TlsMode::default(),
            max_links: const { NonZeroU32::new(4096).expect("not zero") },
            max_pending: const { NonZeroU32::new(256).expect("not zero") },
            certificate_life: Duration::from_secs(30 * 24 * 3600),
            handshake_timeout: Duration::from_secs(5),
            heartbeat_interval: Duration::from_secs(1),
            keepalive_interval: Duration::from_secs(5),
            keepalive_timeout: Duration::from_secs(5),
        }
    }
}

impl Default for RoutingSection {
    fn default() -> Self {
        Self {
            max_attempts: const { NonZeroU32::new(3).expect("not zero") },
            wait_for_gateway: Duration::from_secs(2),
            max_continuations: 8,
        }
    }
}

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A setting of the server section is out of range.
    #[error("server settings are not usable")]
    Server(#[from] LimitError),
    /// A duration of the link section is zero.
    #[error("link.{0} must be greater than zero")]
    LinkZero(&'static str),
    /// Others could listen in.
    #[error("{setting} must not be \"off\" for {address}: plain text is for loopback addresses only")]
    PlainText {
        /// The setting.
        setting: &'static str,
        /// The address.
        address: SocketAddr,
    },
    /// Not a name that a certificate can have.
    #[error("tls.names: {0:?} is neither a host's name nor an address")]
    TlsName(String),
    /// One file without the other.
    #[error("tls.certificate and tls.key must be set together")]
    TlsFiles,
    /// Not a database that is known.
    #[error("state.url must begin with sqlite:, postgres:// or postgresql://")]
    StateUrl,
    /// Not an address.
    #[error("replica.address {0:?} must be host:port")]
    ReplicaAddress(String),
    /// Too short, or too long to be sensible.
    #[error("link.certificate-life must be from 1s to 10 years, is {0:?}")]
    CertificateLife(Duration),
    /// A duration outside the link section is zero.
    #[error("{0} must be greater than zero")]
    Zero(&'static str),
    /// Gateways refuse such an interval.
    #[error("link.heartbeat-interval must be from 100ms to 60s, is {0:?}")]
    Heartbeat(Duration),
}

/// A checked [`ControlPlaneConfig`]; only this builds a control plane.
#[derive(Clone, Debug)]
pub struct ValidControlPlaneConfig {
    pub(crate) listen: SocketAddr,
    pub(crate) drain_timeout: Duration,
    pub(crate) state: StateSection,
    pub(crate) artifacts: ArtifactsSection,
    /// `None`: plain text, and everybody may do everything.
    pub(crate) tls: Option<ServerIdentity>,
    pub(crate) link: ValidLinkSection,
    pub(crate) replica: ReplicaSection,
    pub(crate) routing: RoutingSection,
    pub(crate) rollouts: RolloutsSection,
    pub(crate) downloads: DownloadsSection,
    pub(crate) limits: ServerLimits,
    pub(crate) connection: ConnectionLimits,
}

/// A checked [`LinkSection`].
#[derive(Clone, Debug)]
pub(crate) struct ValidLinkSection {
    pub(crate) listen: SocketAddr,
    pub(crate) tls: bool,
    pub(crate) max_links: usize,
    pub(crate) max_pending: usize,
    pub(crate) certificate_life: Duration,
    pub(crate) handshake_timeout: Duration,
    pub(crate) heartbeat_ms: u32,
    pub(crate) keepalive_interval: Duration,
    pub(crate) keepalive_timeout: Duration,
}

impl ControlPlaneConfig {
    /// Checks every setting.
    ///
    /// # Errors
    /// Names the first setting that cannot be used.
    pub fn validate(self) -> Result<ValidControlPlaneConfig, ConfigError> {
        self.state.validate()?;
        self.replica.validate()?;
        if self.rollouts.interval.is_zero() {
            return Err(ConfigError::Zero("rollouts.interval"));
        }
        Ok(ValidControlPlaneConfig {
            listen: self.listen,
            drain_timeout: self.drain_timeout,
            state: self.state,
            artifacts: self.artifacts,
            tls: self.tls.validate(self.listen)?,
            link: self.link.validate()?,
            replica: self.replica,
            routing: self.routing,
            rollouts: self.rollouts,
            downloads: self.downloads,
            connection: self.server.connection()?,
            limits: self.server,
        })
    }
}

/// Life of a gateway's certificate.
const CERTIFICATE_LIFE: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(3660 * 24 * 3600);

impl LinkSection {
    fn validate(self) -> Result<ValidLinkSection, ConfigError> {
        let durations = [
            ("handshake-timeout", self.handshake_timeout),
            ("keepalive-interval", self.keepalive_interval),
            ("keepalive-timeout", self.keepalive_timeout),
        ];
        if let Some((setting, _)) = durations.into_iter().find(|(_, duration)| duration.is_zero()) {
            return Err(ConfigError::LinkZero(setting));
        }
        let heartbeat = self.heartbeat_interval;
        let heartbeat_ms =
            u32::try_from(heartbeat.as_millis()).ok().filter(|ms| limit::HEARTBEAT_MS.contains(ms));
        if !CERTIFICATE_LIFE.contains(&self.certificate_life) {
            return Err(ConfigError::CertificateLife(self.certificate_life));
        }
        Ok(ValidLinkSection {
            listen: self.listen,
            tls: self.tls.on(self.listen, "link.tls")?,
            max_links: self.max_links.get() as usize,
            max_pending: self.max_pending.get() as usize,
            certificate_life: self.certificate_life,
            handshake_timeout: self.handshake_timeout,
            heartbeat_ms: heartbeat_ms.ok_or(ConfigError::Heartbeat(heartbeat))?,
            keepalive_interval: self.keepalive_interval,
            keepalive_timeout: self.keepalive_timeout,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid_and_errors_name_the_setting() {
        ControlPlaneConfig::default().validate().unwrap();
        let mut config = ControlPlaneConfig::default();
        config.link.heartbeat_interval = Duration::from_millis(99);
        assert!(config.validate().unwrap_err().to_string().contains("link.heartbeat-interval"));
        let mut config = ControlPlaneConfig::default();
        config.link.handshake_timeout = Duration::ZERO;
        assert!(config.validate().unwrap_err().to_string().contains("link.handshake-timeout"));
        let error = |edit: fn(&mut ControlPlaneConfig)| {
            let mut config = ControlPlaneConfig::default();
            edit(&mut config);
            config.validate().unwrap_err().to_string()
        };
        let open: SocketAddr = ([0, 0, 0, 0], 7070).into();
        assert!(ControlPlaneConfig { listen: open, ..Default::default() }.validate().unwrap().tls.is_some());
        let plain = |config: &mut ControlPlaneConfig| {
            config.listen = ([0, 0, 0, 0], 7070).into();
            config.tls.mode = TlsMode::Off;
        };
        assert!(error(plain).contains("tls.mode"));
        let plain_link = |config: &mut ControlPlaneConfig| {
            config.link.listen = ([10, 0, 0, 1], 7072).into();
            config.link.tls = TlsMode::Off;
        };
        assert!(error(plain_link).contains("link.tls"));
        let secret = error(|config| config.state.url = Some("mysql://root:secret@host".into()));
        assert!(secret.contains("state.url") && !secret.contains("secret"));
        assert!(error(|config| config.replica.address = Some("host".into())).contains("replica.address"));
        assert!(error(|config| config.link.certificate_life = Duration::ZERO).contains("certificate-life"));
    }
}
