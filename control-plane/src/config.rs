//! The control plane's configuration: plain sections as a file has them, and the checked form that builds it.

use std::{net::SocketAddr, num::NonZeroU32, time::Duration};

use rookery_proto::{
    server::{ConnectionLimits, LimitError, ServerLimits},
    validate::limit,
};
use serde::{Deserialize, Serialize};

/// Configuration of the control plane.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct ControlPlaneConfig {
    /// Address that clients call. Port 0 picks a free one. Default 127.0.0.1:7070.
    pub listen: SocketAddr,
    /// Time from the order to stop until running generations are cut off. Default 30s.
    #[serde(with = "humantime_serde")]
    pub drain_timeout: Duration,
    /// The port that workers dial.
    pub link: LinkSection,
    /// Where requests go.
    pub routing: RoutingSection,
    /// What clients may use.
    pub server: ServerLimits,
}

/// Settings of the port that workers dial.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct LinkSection {
    /// Address that workers dial. Port 0 picks a free one. Default 127.0.0.1:7072.
    pub listen: SocketAddr,
    /// Links at the same time; further connections wait to be accepted. Default 4096.
    pub max_links: NonZeroU32,
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
}

impl Default for ControlPlaneConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 7070)),
            drain_timeout: Duration::from_secs(30),
            link: LinkSection::default(),
            routing: RoutingSection::default(),
            server: ServerLimits::default(),
        }
    }
}

impl Default for LinkSection {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 7072)),
            max_links: const { NonZeroU32::new(4096).expect("not zero") },
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
    /// Gateways refuse such an interval.
    #[error("link.heartbeat-interval must be from 100ms to 60s, is {0:?}")]
    Heartbeat(Duration),
}

/// A checked [`ControlPlaneConfig`]; only this builds a control plane.
#[derive(Clone, Debug)]
pub struct ValidControlPlaneConfig {
    pub(crate) listen: SocketAddr,
    pub(crate) drain_timeout: Duration,
    pub(crate) link: ValidLinkSection,
    pub(crate) routing: RoutingSection,
    pub(crate) limits: ServerLimits,
    pub(crate) connection: ConnectionLimits,
}

/// A checked [`LinkSection`].
#[derive(Clone, Debug)]
pub(crate) struct ValidLinkSection {
    pub(crate) listen: SocketAddr,
    pub(crate) max_links: usize,
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
        Ok(ValidControlPlaneConfig {
            listen: self.listen,
            drain_timeout: self.drain_timeout,
            link: self.link.validate()?,
            routing: self.routing,
            connection: self.server.connection()?,
            limits: self.server,
        })
    }
}

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
        Ok(ValidLinkSection {
            listen: self.listen,
            max_links: self.max_links.get() as usize,
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
    }
}
