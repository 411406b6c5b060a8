//! Settings for versions that the control plane assigns.

use std::{path::PathBuf, time::Duration};

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

use super::ConfigError;
use crate::versions::download::Patience;

/// Settings for versions that the control plane assigns.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct VersionsSection {
    /// Disk that stays free when a version is fetched. Default 1 GiB.
    pub disk_headroom: ByteSize,
    /// Blobs that are fetched at the same time, from 1 to 16. Default 4.
    pub parallel_downloads: usize,
    /// Time without a byte after which a download begins a new stream. Default 60s.
    #[serde(with = "humantime_serde")]
    pub stall_timeout: Duration,
    /// Time without a byte after which a download fails. Default one day.
    #[serde(with = "humantime_serde")]
    pub give_up: Duration,
    /// Folder that has `proc` and `sys`, where board, memory and temperatures are read. Default `/`.
    pub system_root: PathBuf,
}

impl Default for VersionsSection {
    fn default() -> Self {
        let patience = Patience::default();
        Self {
            disk_headroom: ByteSize::gib(1),
            parallel_downloads: patience.parallel,
            stall_timeout: patience.stall,
            give_up: patience.give_up,
            system_root: PathBuf::from("/"),
        }
    }
}

impl VersionsSection {
    pub(super) fn validate(self) -> Result<Self, ConfigError> {
        let checks = [
            ("parallel-downloads must be from 1 to 16", (1..=16).contains(&self.parallel_downloads)),
            ("stall-timeout must be greater than zero", !self.stall_timeout.is_zero()),
            ("give-up must be greater than zero", !self.give_up.is_zero()),
        ];
        match checks.into_iter().find(|(_, holds)| !holds) {
            Some((rule, _)) => Err(ConfigError::Versions(rule)),
            None => Ok(self),
        }
    }

    pub(crate) fn patience(&self) -> Patience {
        Patience {
            parallel: self.parallel_downloads,
            stall: self.stall_timeout,
            give_up: self.give_up,
            ..Patience::default()
        }
    }
}
