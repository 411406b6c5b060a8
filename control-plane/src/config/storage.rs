//! What a control plane keeps, and what it does with it.

use std::{num::NonZeroU32, path::PathBuf, time::Duration};

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

use super::ConfigError;

/// Where state is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct StateSection {
    /// Folder of the database and the artifacts, unless these are elsewhere, and of the files for administrators.
    /// Default: none; `rookery control-plane` then takes `$XDG_STATE_HOME/rookery/control-plane`, everybody else a
    /// temporary one that is deleted at the end.
    pub folder: Option<PathBuf>,
    /// Database: `sqlite:PATH` or `postgres://USER:PASSWORD@HOST/NAME`. Default: `rookery.db` in the folder.
    pub url: Option<String>,
}

/// Where versions of models are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct ArtifactsSection {
    /// A folder, or `s3://BUCKET/PREFIX` with the usual `AWS_…` variables. Default: `artifacts` in the state folder.
    pub url: Option<String>,
}

/// Settings of this process among others that share the database.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct ReplicaSection {
    /// Address at which other replicas reach this one's link port, `host:port`. Default: where it listens.
    pub address: Option<String>,
}

/// Settings of roll-outs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct RolloutsSection {
    /// Longest time between two looks at every roll-out that is not over. Default 1s.
    #[serde(with = "humantime_serde")]
    pub interval: Duration,
    /// How long a roll-out waits for a gateway that has just gone before it goes on without it. Default 60s.
    #[serde(with = "humantime_serde")]
    pub grace: Duration,
}

/// Settings of downloads by gateways.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct DownloadsSection {
    /// Blobs sent to gateways at the same time; a gateway beyond that is told to come back. Default 64.
    pub max_at_once: NonZeroU32,
    /// Bytes per second for each gateway. Default: none, no limit.
    pub bandwidth: Option<ByteSize>,
    /// Longest random wait of a gateway before it begins, so that not all do at once. Default 5s.
    #[serde(with = "humantime_serde")]
    pub start_spread: Duration,
}

impl Default for RolloutsSection {
    fn default() -> Self {
        Self { interval: Duration::from_secs(1), grace: Duration::from_secs(60) }
    }
}

impl Default for DownloadsSection {
    fn default() -> Self {
        Self {
            max_at_once: const { NonZeroU32::new(64).expect("not zero") },
            bandwidth: None,
            start_spread: Duration::from_secs(5),
        }
    }
}

impl StateSection {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        match &self.url {
            Some(url)
                if !["sqlite:", "postgres://", "postgresql://"].iter().any(|it| url.starts_with(it)) =>
            {
                // The text may hold a password, and errors are logged.
                Err(ConfigError::StateUrl)
            }
            Some(_) | None => Ok(()),
        }
    }
}

impl ReplicaSection {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        let Some(address) = &self.address else { return Ok(()) };
        let (host, port) = address.rsplit_once(':').unwrap_or_default();
        let port = port.parse::<u16>().unwrap_or_default();
        if host.is_empty() || port == 0 {
            return Err(ConfigError::ReplicaAddress(address.chars().take(256).collect()));
        }
        Ok(())
    }
}
