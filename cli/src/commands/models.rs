//! `rookery models`: what is served now (`list`), what the control plane keeps (`versions`), and how it gets there.

mod push;
mod retry;
mod served;
mod sign;
mod upload;
mod versions;

use std::path::Path;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use clap::{Args, Subcommand};
use rookery_proto::v1::model_service_client::ModelServiceClient;

use crate::client::{self, Channel};
use crate::error::{Failure, OrFail};
pub(crate) use push::push_bundle;

/// Largest answer: the list of many thousands of versions.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// Largest key file that is read.
const MAX_KEY_BYTES: u64 = 64 << 10;

/// The models that are served, and the versions that are kept.
#[derive(Args, Debug)]
#[command(
    after_help = "A pushed bundle becomes a version, such as qwen@2.1, that never changes. Aliases, such as
qwen@stable, point at versions. `rookery rollouts create` brings a version to gateways."
)]
pub struct ModelsArgs {
    #[command(subcommand)]
    command: ModelsCommand,
}

#[derive(Subcommand, Debug)]
enum ModelsCommand {
    List(served::ListArgs),
    Versions(versions::VersionsArgs),
    Push(push::PushArgs),
    Alias(versions::AliasArgs),
    Unalias(versions::UnaliasArgs),
    Delete(versions::DeleteArgs),
    Gc(versions::GcArgs),
    Sign(sign::SignArgs),
    Keys(sign::KeysArgs),
}

/// Runs the command.
///
/// # Errors
/// If the endpoint refuses or cannot be asked, or a file cannot be used.
pub async fn run(args: ModelsArgs) -> Result<(), Failure> {
    match args.command {
        ModelsCommand::List(args) => served::list(args).await,
        ModelsCommand::Versions(args) => versions::list(args).await,
        ModelsCommand::Push(args) => push::run(args).await,
        ModelsCommand::Alias(args) => versions::alias(args).await,
        ModelsCommand::Unalias(args) => versions::unalias(args).await,
        ModelsCommand::Delete(args) => versions::delete(args).await,
        ModelsCommand::Gc(args) => versions::gc(args).await,
        ModelsCommand::Sign(args) => sign::sign(args).await,
        ModelsCommand::Keys(args) => sign::keys(args).await,
    }
}

/// A connected client.
type Client = ModelServiceClient<Channel>;

/// Which control plane keeps the versions.
#[derive(Args, Debug)]
struct Target {
    /// Control plane to ask.
    #[arg(long, default_value = client::DEFAULT_ENDPOINT, env = "ROOKERY_ENDPOINT")]
    endpoint: String,
}

impl Target {
    async fn connect(&self) -> Result<Client, Failure> {
        let channel = client::channel(&self.endpoint).await?;
        Ok(ModelServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES))
    }
}

/// `MODEL@VERSION` or `MODEL@ALIAS`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Reference {
    model: String,
    name: String,
}

impl FromStr for Reference {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('@') {
            Some((model, name)) if !model.is_empty() && !name.is_empty() => {
                Ok(Self { model: model.to_owned(), name: name.to_owned() })
            }
            Some(_) | None => Err(format!("{text:?} is not MODEL@VERSION, such as qwen@2.1")),
        }
    }
}

/// Reads a key file.
fn read_secret(path: &Path) -> Result<String, Failure> {
    let unreadable = || format!("could not read {}", path.display());
    let bytes = std::fs::metadata(path).or_fail(unreadable)?.len();
    if bytes > MAX_KEY_BYTES {
        return Err(Failure::new(format!("{} is too large to be a key", path.display())));
    }
    std::fs::read_to_string(path).or_fail(unreadable)
}

/// A moment as people and programs read it.
fn utc(at: &prost_types::Timestamp) -> String {
    let since = Duration::new(u64::try_from(at.seconds).unwrap_or(0), u32::try_from(at.nanos).unwrap_or(0));
    // Beyond the year 9999 there is no such text; nobody has pushed anything then.
    let at = SystemTime::UNIX_EPOCH + since.min(Duration::from_secs(253_402_300_799));
    humantime::format_rfc3339_seconds(at).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_have_both_parts() {
        let parsed: Reference = "org/qwen@2.1".parse().unwrap();
        assert_eq!((parsed.model.as_str(), parsed.name.as_str()), ("org/qwen", "2.1"));
        for text in ["qwen", "@2.1", "qwen@", ""] {
            assert!(text.parse::<Reference>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn moments_read_well_however_strange() {
        let at = |seconds, nanos| utc(&prost_types::Timestamp { seconds, nanos });
        assert_eq!(at(1_800_000_000, 0), "2027-01-15T08:00:00Z");
        assert_eq!(at(-5, -5), "1970-01-01T00:00:00Z");
        assert_eq!(at(i64::MAX, i32::MAX), "9999-12-31T23:59:59Z");
    }
}
