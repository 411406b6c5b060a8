//! Where TLS is spoken, and with which certificate.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};

use super::ConfigError;

/// Whether a port speaks TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TlsMode {
    /// Not on a loopback address, and everywhere else.
    #[default]
    Auto,
    /// Always.
    On,
    /// Never; refused unless the address is a loopback one.
    Off,
}

impl TlsMode {
    /// Whether a port at `address` speaks TLS.
    ///
    /// # Errors
    /// If it is to do without where others could listen in; `setting` names the setting.
    pub(crate) fn on(self, address: SocketAddr, setting: &'static str) -> Result<bool, ConfigError> {
        let loopback = address.ip().to_canonical().is_loopback();
        match self {
            TlsMode::Auto => Ok(!loopback),
            TlsMode::On => Ok(true),
            TlsMode::Off if loopback => Ok(false),
            TlsMode::Off => Err(ConfigError::PlainText { setting, address }),
        }
    }
}

/// Settings of TLS and tokens on the clients' port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct TlsSection {
    /// Whether the clients' port speaks TLS and asks for bearer tokens. Without, everybody who reaches it may do
    /// everything. Default auto: everywhere but on a loopback address.
    pub mode: TlsMode,
    /// Names and addresses that clients call this control plane by, for the certificate that it makes itself.
    /// Default: none beside `localhost`, the host's name and the address that it listens on.
    pub names: Vec<String>,
    /// PEM file with a certificate and those above it, instead of one that it makes itself. Default: none.
    pub certificate: Option<PathBuf>,
    /// PEM file with that certificate's private key. Default: none.
    pub key: Option<PathBuf>,
}

/// The certificate of the clients' port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ServerIdentity {
    /// Made by the control plane's own authority for these names, beside the usual ones.
    Own {
        /// Names and addresses.
        names: Vec<String>,
    },
    /// Given by the operator.
    Files {
        /// The chain.
        certificate: PathBuf,
        /// The private key.
        key: PathBuf,
    },
}

impl TlsSection {
    /// `None`: plain text.
    pub(super) fn validate(self, listen: SocketAddr) -> Result<Option<ServerIdentity>, ConfigError> {
        if let Some(name) = self.names.iter().find(|name| !is_name(name)) {
            return Err(ConfigError::TlsName(name.chars().take(128).collect()));
        }
        let identity = match (self.certificate, self.key) {
            (None, None) => ServerIdentity::Own { names: self.names },
            (Some(certificate), Some(key)) => ServerIdentity::Files { certificate, key },
            (Some(_), None) | (None, Some(_)) => return Err(ConfigError::TlsFiles),
        };
        Ok(self.mode.on(listen, "tls.mode")?.then_some(identity))
    }
}

/// An address, or a host's name.
fn is_name(name: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    name.parse::<IpAddr>().is_ok() || (name.len() <= 253 && name.split('.').all(label))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_text_is_for_loopback_only() {
        let (loopback, any) = (([127, 0, 0, 1], 1).into(), ([0, 0, 0, 0], 1).into());
        let on = |mode: TlsMode, address| mode.on(address, "x").ok();
        assert_eq!([on(TlsMode::Auto, loopback), on(TlsMode::Auto, any)], [Some(false), Some(true)]);
        assert_eq!([on(TlsMode::On, loopback), on(TlsMode::On, any)], [Some(true), Some(true)]);
        assert_eq!([on(TlsMode::Off, loopback), on(TlsMode::Off, any)], [Some(false), None]);
        assert_eq!(on(TlsMode::Off, "[::1]:1".parse().unwrap()), Some(false));
        assert_eq!(on(TlsMode::Off, "[::ffff:127.0.0.1]:1".parse().unwrap()), Some(false));
        assert_eq!(on(TlsMode::Off, "[::ffff:10.0.0.1]:1".parse().unwrap()), None);
    }

    #[test]
    fn names_and_files_are_checked() {
        let loopback = ([127, 0, 0, 1], 1).into();
        let good =
            TlsSection { names: vec!["plane.example".into(), "10.0.0.1".into()], ..Default::default() };
        assert_eq!(good.clone().validate(loopback).unwrap(), None);
        let on = TlsSection { mode: TlsMode::On, ..good };
        assert!(
            matches!(on.validate(loopback).unwrap(), Some(ServerIdentity::Own { names }) if names.len() == 2)
        );
        for name in ["", "a b", "a..b", "https://a", &"a".repeat(64)] {
            let section = TlsSection { names: vec![name.into()], ..Default::default() };
            assert!(matches!(section.validate(loopback), Err(ConfigError::TlsName(_))), "{name}");
        }
        let half = TlsSection { key: Some("k".into()), ..Default::default() };
        assert!(matches!(half.validate(loopback), Err(ConfigError::TlsFiles)));
    }
}
