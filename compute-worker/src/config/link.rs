//! Settings of the connection to the control plane.

use std::{net::IpAddr, path::Path, time::Duration};

use rookery_proto::server::ConnectionLimits;
use serde::{Deserialize, Serialize};

use super::ConfigError;
use crate::agent::{Identity, JoinToken};

/// Settings of the connection that the worker dials to the control plane.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct LinkSection {
    /// Link address of the control plane, `host:port`. Default: none, the worker stands alone.
    pub control_plane: Option<String>,
    /// Whether it is dialled with TLS, as a gateway with a certificate. Default auto: yes, unless the address is a
    /// loopback one and there is neither a join token nor a certificate.
    pub tls: LinkTlsMode,
    /// Join token, to be traded for a certificate. Needed once: afterwards it is ignored. Default: none.
    pub join: Option<String>,
    /// Time for one attempt to connect, and for TLS on it. Default 5s.
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
    /// Pause after the first failed attempt; it doubles with each further one. Default 100ms.
    #[serde(with = "humantime_serde")]
    pub backoff_min: Duration,
    /// Longest pause between attempts. Each pause is shortened by a random part of up to a half. Default 10s.
    #[serde(with = "humantime_serde")]
    pub backoff_max: Duration,
    /// Longest pause before the first attempt after a link that worked was lost, which is spread evenly over this time: so a fleet whose
    /// control plane starts anew does not come back all at once. Zero: none. Default 5s.
    #[serde(with = "humantime_serde")]
    pub reconnect_spread: Duration,
    /// Time between keep-alive pings on the connection. Default 5s.
    #[serde(with = "humantime_serde")]
    pub keepalive_interval: Duration,
    /// Time for the answer to a ping, after which the worker dials again. Default 5s.
    #[serde(with = "humantime_serde")]
    pub keepalive_timeout: Duration,
}

/// Whether the control plane is dialled with TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LinkTlsMode {
    /// Yes, unless the address is a loopback one and there is neither a join token nor a certificate.
    #[default]
    Auto,
    /// Always.
    On,
    /// Never; refused unless the address is a loopback one.
    Off,
}

impl Default for LinkSection {
    fn default() -> Self {
        Self {
            control_plane: None,
            tls: LinkTlsMode::default(),
            join: None,
            connect_timeout: Duration::from_secs(5),
            backoff_min: Duration::from_millis(100),
            backoff_max: Duration::from_secs(10),
            reconnect_spread: Duration::from_secs(5),
            keepalive_interval: Duration::from_secs(5),
            keepalive_timeout: Duration::from_secs(5),
        }
    }
}

/// A checked link section with an address.
#[derive(Clone, Debug)]
pub(crate) struct ValidLink {
    pub(crate) address: String,
    pub(crate) gateway: String,
    /// `None`: plain text.
    pub(crate) tls: Option<LinkTls>,
    pub(crate) connect_timeout: Duration,
    pub(crate) backoff_min: Duration,
    pub(crate) backoff_max: Duration,
    pub(crate) reconnect_spread: Duration,
    pub(crate) connection: ConnectionLimits,
}

/// What a worker needs to be somebody.
#[derive(Clone, Debug)]
pub(crate) struct LinkTls {
    pub(crate) identity: Identity,
    pub(crate) join: Option<JoinToken>,
}

impl LinkSection {
    pub(super) fn validate(
        self,
        server: &ConnectionLimits,
        state: Option<&Path>,
        gateway_id: &str,
    ) -> Result<Option<ValidLink>, ConfigError> {
        let Some(address) = self.control_plane else { return Ok(None) };
        let (host, port) = address.rsplit_once(':').unwrap_or_default();
        if host.is_empty() || !matches!(port.parse::<u16>(), Ok(1..)) {
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
        let join = self.join.map(|text| text.parse().map_err(|_| ConfigError::JoinToken)).transpose()?;
        let tls = tls(self.tls, &address, is_loopback(host), join, state, gateway_id)?;
        let connection = ConnectionLimits {
            handshake_timeout: server.handshake_timeout,
            keepalive_interval: self.keepalive_interval,
            keepalive_timeout: self.keepalive_timeout,
            max_streams: LINK_STREAMS,
        };
        let Self { connect_timeout, backoff_min, backoff_max, reconnect_spread, .. } = self;
        Ok(Some(ValidLink {
            address,
            gateway: gateway_id.to_owned(),
            tls,
            connect_timeout,
            backoff_min,
            backoff_max,
            reconnect_spread,
            connection,
        }))
    }
}

fn tls(
    mode: LinkTlsMode,
    address: &str,
    loopback: bool,
    join: Option<JoinToken>,
    state: Option<&Path>,
    gateway_id: &str,
) -> Result<Option<LinkTls>, ConfigError> {
    let identity = state.map(|state| Identity::new(state, gateway_id));
    let exists = identity.as_ref().is_some_and(Identity::exists);
    let on = match mode {
        LinkTlsMode::Auto => !loopback || join.is_some() || exists,
        LinkTlsMode::On => true,
        LinkTlsMode::Off if loopback => false,
        LinkTlsMode::Off => return Err(ConfigError::PlainText(address.to_owned())),
    };
    if !on {
        return Ok(None);
    }
    let identity = identity.ok_or(ConfigError::NoState)?;
    identity.check().map_err(ConfigError::Identity)?;
    if !exists && join.is_none() {
        return Err(ConfigError::Identity(crate::agent::IdentityError::NotJoined));
    }
    Ok(Some(LinkTls { identity, join }))
}

/// A name counts as loopback only if it says so itself: others are looked up anew with each attempt.
fn is_loopback(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}

/// Calls at the same time on the link. The control plane is one peer for many clients, and the engine's own
/// queue is the limit that matters.
const LINK_STREAMS: u32 = 4096;
