//! Configuration: compiled defaults, then a TOML file, then `ROOKERY_` variables, then flags.
//!
//! Each section belongs to the component that reads it. A key that no component knows is refused wherever
//! it comes from: a misspelt setting must not pass for one that took effect.

use std::path::{Path, PathBuf};

use figment::error::Kind;
use figment::providers::{Format, Serialized, Toml};
use figment::value::{Dict, Map, Value};
use figment::{Error, Figment, Metadata, Profile, Provider};
use rookery_compute_worker::config::WorkerConfig;
use rookery_control_plane::config::ControlPlaneConfig;
use serde::{Deserialize, Serialize};

use crate::telemetry::TelemetryConfig;

/// Variables that start like settings and are none: the path of the TOML file, whom clients call and how, and the
/// model file of the test suite.
const NOT_SETTINGS: [&str; 5] =
    ["ROOKERY_CONFIG", "ROOKERY_ENDPOINT", "ROOKERY_TOKEN", "ROOKERY_CA", "ROOKERY_DEMO_MODEL"];
const PREFIX: &str = "ROOKERY_";

/// Everything that can be configured.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default, deny_unknown_fields)]
pub struct Config {
    /// Logs, traces and metrics of every process.
    pub telemetry: TelemetryConfig,
    /// What `rookery worker` runs.
    pub worker: WorkerConfig,
    /// What `rookery control-plane` runs.
    pub control_plane: ControlPlaneConfig,
}

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The TOML file cannot be read.
    #[error("could not read the configuration file {path}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A variable's name or value is not Unicode.
    #[error("the environment variable {name} is not valid Unicode")]
    NotUnicode {
        /// Its name, as far as it can be shown.
        name: String,
    },
    /// A setting is unknown or has a value that makes no sense.
    #[error("{place}: {reason}")]
    Setting {
        /// The variable, flag or file and key.
        place: String,
        /// What is wrong.
        reason: String,
    },
    /// The configuration has no TOML form.
    #[error("the configuration could not be written as TOML")]
    Dump(#[from] toml::ser::Error),
}

/// Settings from flags, as nested tables under their sections.
#[derive(Clone, Debug, Default)]
pub struct Flags(Dict);

impl Flags {
    /// Sets the setting at this dotted path if the flag was given.
    pub fn set(&mut self, path: &str, value: Option<impl Into<Value>>) {
        if let Some(value) = value {
            let path: Vec<String> = path.split('.').map(str::to_owned).collect();
            insert(&mut self.0, &path, value.into());
        }
    }
}

impl Provider for Flags {
    fn metadata(&self) -> Metadata {
        Metadata::named("flags")
    }

    fn data(&self) -> Result<Map<Profile, Dict>, Error> {
        Ok(Profile::Default.collect(self.0.clone()))
    }
}

/// Settings from variables.
struct Environment(Dict);

impl Provider for Environment {
    fn metadata(&self) -> Metadata {
        Metadata::named("environment")
    }

    fn data(&self) -> Result<Map<Profile, Dict>, Error> {
        Ok(Profile::Default.collect(self.0.clone()))
    }
}

impl Config {
    /// Loads the configuration of this process: `file` if given, the environment, and `flags`.
    ///
    /// # Errors
    /// [`ConfigError`] naming the variable, flag or file and key at fault.
    pub fn load(file: Option<&Path>, flags: &Flags) -> Result<Config, ConfigError> {
        let text = match file {
            Some(path) => std::fs::read_to_string(path)
                .map_err(|source| ConfigError::File { path: path.to_owned(), source })?,
            None => String::new(),
        };
        let name = file.map_or_else(String::new, |path| path.display().to_string());
        Config::merge(&name, &text, variables()?, flags)
    }

    /// Merges the layers: TOML `text` from a file of this `name`, variables, flags.
    fn merge(
        name: &str,
        text: &str,
        variables: Vec<(String, String)>,
        flags: &Flags,
    ) -> Result<Config, ConfigError> {
        let mut environment = Dict::new();
        for (variable, value) in variables {
            insert(&mut environment, &key_path(&variable), parse(&value));
        }
        let figment = Figment::from(Serialized::defaults(Config::default()))
            .merge(Toml::string(text))
            .merge(Environment(environment.clone()))
            .merge(flags.clone());
        figment.extract().map_err(|error| explain(error, name, &environment, flags))
    }

    /// The configuration as TOML. Settings without a value are left out.
    ///
    /// # Errors
    /// [`ConfigError::Dump`].
    pub fn dump(&self) -> Result<String, ConfigError> {
        Ok(toml::to_string_pretty(self)?)
    }
}

fn variables() -> Result<Vec<(String, String)>, ConfigError> {
    let mut found = Vec::new();
    for (name, value) in std::env::vars_os() {
        let shown = name.to_string_lossy().into_owned();
        if !shown.starts_with(PREFIX) || NOT_SETTINGS.contains(&shown.as_str()) {
            continue;
        }
        match (name.into_string(), value.into_string()) {
            (Ok(name), Ok(value)) => found.push((name, value)),
            _ => return Err(ConfigError::NotUnicode { name: shown }),
        }
    }
    found.sort();
    Ok(found)
}

/// `ROOKERY_CONTROL_PLANE__LINK_LISTEN` → `control-plane`, `link-listen`.
fn key_path(variable: &str) -> Vec<String> {
    let keys = variable.strip_prefix(PREFIX).unwrap_or(variable);
    keys.split("__").map(|key| key.to_ascii_lowercase().replace('_', "-")).collect()
}

fn variable_name(path: &[String]) -> String {
    let keys: Vec<String> = path.iter().map(|key| key.to_ascii_uppercase().replace('-', "_")).collect();
    format!("{PREFIX}{}", keys.join("__"))
}

/// Values as TOML has them, so that lists and numbers can be given; anything else is text.
fn parse(value: &str) -> Value {
    value.parse().unwrap_or_else(|_| Value::from(value))
}

fn insert(table: &mut Dict, path: &[String], value: Value) {
    let Some((first, rest)) = path.split_first() else { return };
    if rest.is_empty() {
        table.insert(first.clone(), value);
        return;
    }
    let entry = table.entry(first.clone()).or_insert_with(|| Value::from(Dict::new()));
    if !matches!(entry, Value::Dict(..)) {
        *entry = Value::from(Dict::new());
    }
    if let Value::Dict(_, inner) = entry {
        insert(inner, rest, value);
    }
}

fn contains(table: &Dict, path: &[String]) -> bool {
    match path.split_first() {
        None => false,
        Some((first, [])) => table.contains_key(first),
        Some((first, rest)) => match table.get(first) {
            Some(Value::Dict(_, inner)) => contains(inner, rest),
            _ => false,
        },
    }
}

/// Says where the setting at fault came from. Later layers win, so they are asked first.
fn explain(error: Error, file: &str, environment: &Dict, flags: &Flags) -> ConfigError {
    let mut path = error.path.clone();
    let reason = if let Kind::UnknownField(key, known) = &error.kind {
        if path.last() != Some(key) {
            path.push(key.clone());
        }
        format!("unknown setting {key} (known here: {})", known.join(", "))
    } else {
        error.kind.to_string()
    };
    let key = path.join(".");
    let place = if contains(&flags.0, &path) {
        format!("flag for {key}")
    } else if contains(environment, &path) {
        format!("environment variable {}", variable_name(&path))
    } else if file.is_empty() {
        key
    } else if key.is_empty() {
        format!("configuration file {file}")
    } else {
        format!("configuration file {file}, {key}")
    };
    ConfigError::Setting { place, reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(text: &str, variables: &[(&str, &str)], flags: &Flags) -> Result<Config, ConfigError> {
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Config::merge("rookery.toml", text, variables.collect(), flags)
    }

    #[test]
    fn later_layers_win() {
        let text = "[telemetry]\nlog-filter = \"from file\"\nspan-queue = 7\nexport-timeout = \"4s\"";
        let variables =
            [("ROOKERY_TELEMETRY__LOG_FILTER", "from environment"), ("ROOKERY_TELEMETRY__SPAN_QUEUE", "8")];
        let mut flags = Flags::default();
        flags.set("telemetry.log-filter", Some("from flag"));
        flags.set("telemetry.otlp-endpoint", None::<String>);
        let telemetry = merged(text, &variables, &flags).unwrap().telemetry;
        assert_eq!(telemetry.log_filter, "from flag");
        assert_eq!(telemetry.span_queue, 8);
        assert_eq!(telemetry.export_timeout.as_secs(), 4);
        assert_eq!(telemetry.trace_sample_ratio, 1.0);
    }

    #[test]
    fn unknown_settings_are_refused_with_their_place() {
        let none = Flags::default();
        let message = |result: Result<Config, ConfigError>| result.unwrap_err().to_string();
        let file = message(merged("[telemetry]\nlog-filer = \"x\"", &[], &none));
        assert!(file.contains("rookery.toml") && file.contains("unknown setting log-filer"), "{file}");
        let variable = message(merged("", &[("ROOKERY_WORKER__LISTN", "x")], &none));
        assert!(variable.contains("environment variable ROOKERY_WORKER__LISTN"), "{variable}");
        let section = message(merged("", &[("ROOKERY_WROKER", "x")], &none));
        assert!(section.contains("environment variable ROOKERY_WROKER"), "{section}");
        let value = message(merged("", &[("ROOKERY_TELEMETRY__SPAN_QUEUE", "many")], &none));
        assert!(value.contains("ROOKERY_TELEMETRY__SPAN_QUEUE") && value.contains("many"), "{value}");
    }

    #[test]
    fn a_dump_loads_as_the_same_configuration() {
        let dumped = Config::default().dump().unwrap();
        let again = merged(&dumped, &[], &Flags::default()).unwrap();
        assert_eq!(again.dump().unwrap(), dumped);
    }
}
