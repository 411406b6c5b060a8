//! Settings that both servers have in their configuration.

use std::{num::NonZeroU32, time::Duration};

use serde::{Deserialize, Serialize};

use super::ConnectionLimits;

/// What clients of a gRPC port may use. Part of the configuration files of both servers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct ServerLimits {
    /// Connections at the same time; further ones wait to be accepted. Default 1024.
    pub max_connections: NonZeroU32,
    /// Calls at the same time on one connection. Default 64.
    pub max_streams_per_connection: NonZeroU32,
    /// Generations and tokenisations at the same time over all connections; further ones are refused with
    /// RESOURCE_EXHAUSTED. Default 1024.
    pub max_calls: NonZeroU32,
    /// Largest request message, in bytes. Default 1048576 (1 MiB), more than any model's context; requests are read
    /// before they are admitted, so this times the streams is what one connection can make the server hold.
    pub max_message_bytes: NonZeroU32,
    /// Time that a new connection has to start speaking HTTP/2. Default 5s.
    #[serde(with = "humantime_serde")]
    pub handshake_timeout: Duration,
    /// Time between keep-alive pings on a connection. Default 20s.
    #[serde(with = "humantime_serde")]
    pub keepalive_interval: Duration,
    /// Time for the answer to a ping, after which the connection is given up. Default 10s.
    #[serde(with = "humantime_serde")]
    pub keepalive_timeout: Duration,
}

const fn non_zero(value: u32) -> NonZeroU32 {
    NonZeroU32::new(value).expect("the defaults are not zero")
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self {
            max_connections: const { non_zero(1024) },
            max_streams_per_connection: const { non_zero(64) },
            max_calls: const { non_zero(1024) },
            max_message_bytes: const { non_zero(1 << 20) },
            handshake_timeout: Duration::from_secs(5),
            keepalive_interval: Duration::from_secs(20),
            keepalive_timeout: Duration::from_secs(10),
        }
    }
}

/// A setting of [`ServerLimits`] is out of range.
#[derive(Debug, thiserror::Error)]
#[error("{setting} must be greater than zero")]
pub struct LimitError {
    setting: &'static str,
}

impl ServerLimits {
    /// The limits of a single connection.
    ///
    /// # Errors
    /// Names the setting that is zero.
    pub fn connection(&self) -> Result<ConnectionLimits, LimitError> {
        let durations = [
            ("handshake-timeout", self.handshake_timeout),
            ("keepalive-interval", self.keepalive_interval),
            ("keepalive-timeout", self.keepalive_timeout),
        ];
        if let Some((setting, _)) = durations.into_iter().find(|(_, duration)| duration.is_zero()) {
            return Err(LimitError { setting });
        }
        Ok(ConnectionLimits {
            handshake_timeout: self.handshake_timeout,
            keepalive_interval: self.keepalive_interval,
            keepalive_timeout: self.keepalive_timeout,
            max_streams: self.max_streams_per_connection.get(),
        })
    }
}
