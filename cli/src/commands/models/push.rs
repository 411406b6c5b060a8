//! `rookery models push`: a bundle becomes a version that the control plane keeps.
//!
//! A push is a loop of two steps: ask what is missing, send that. Whatever interrupts it, the next round begins with what has
//! arrived by then; the push ends with an error only if nothing has arrived for a while, or if trying again is of no use.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use rookery_model::bundle::{Bundle, BundleInfo};
use rookery_proto::signing::SigningKey;
use rookery_proto::v1::{
    BeginPushRequest, FinishPushRequest, MissingBlob, ModelVersion, SetAliasRequest, Signature,
};
use serde_json::json;
use tonic::Status;

use super::retry::{Patience, is_final};
use super::upload::{Meter, Uploads};
use super::{Client, Target, read_secret, versions};
use crate::client::explain;
use crate::error::{Failure, OrFail};
use crate::output;
use crate::progress::TerminalProgress;

/// Blobs that travel at the same time, unless told otherwise.
const PARALLEL: usize = 4;

/// When a push that nobody set a limit for gives up.
const GIVE_UP_AFTER: Duration = Duration::from_secs(300);

/// Sends a bundle to the control plane, which keeps it as a version.
#[derive(Args, Debug)]
#[command(
    after_help = "Only blobs that are not there travel; the same command goes on where an interrupted one stopped.

Examples:
  rookery models push qwen-w4 --name qwen --version 2.1
  rookery models push qwen-w4 --name qwen --version 2.1 --alias canary --sign release.key.pem"
)]
pub(super) struct PushArgs {
    /// The bundle's folder.
    bundle: PathBuf,
    /// Name of the model there. Default: the bundle's.
    #[arg(long, value_name = "MODEL")]
    name: Option<String>,
    /// What to call this version. A version never changes: another bundle needs another name.
    #[arg(long)]
    version: String,
    /// Point an alias, such as `canary`, at it in the end.
    #[arg(long)]
    alias: Option<String>,
    /// Sign it with this secret key, a PEM file.
    #[arg(long, value_name = "KEY")]
    sign: Option<PathBuf>,
    /// Blobs that travel at the same time.
    #[arg(long, default_value_t = PARALLEL as u8, value_parser = clap::value_parser!(u8).range(1..=32))]
    parallel: u8,
    /// Give up when nothing has arrived for so long.
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = humantime::parse_duration)]
    give_up_after: Duration,
    #[command(flatten)]
    target: Target,
    /// Write JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// If the bundle cannot be read, or the control plane refuses it or cannot be reached for long.
pub(super) async fn run(args: PushArgs) -> Result<(), Failure> {
    let info = Bundle::inspect(&args.bundle)
        .or_fail(|| format!("could not read the bundle {}", args.bundle.display()))?;
    let signature = args.sign.as_deref().map(|key| sign(key, &info)).transpose()?;
    let client = args.target.connect().await?;
    let mut push = Push::new(client, &args.bundle, &info, usize::from(args.parallel), args.give_up_after)?;
    push.model = args.name.clone().unwrap_or(push.model);
    push.version = args.version.clone();
    push.signatures = signature.into_iter().collect();
    let began = Instant::now();
    let pushed = push.carry_through().await?;
    push.meter.finish();
    if let Some(alias) = &args.alias {
        let version = pushed.version.clone();
        let request = SetAliasRequest { model: pushed.model.clone(), alias: alias.clone(), version };
        push.client.set_alias(request).await.map_err(|status| explain(&status))?;
    }
    report(&args, &pushed, push.meter.sent(), began.elapsed())
}

/// Pushes a bundle as this version, unsigned.
///
/// # Errors
/// As [`run`].
pub(crate) async fn push_bundle(
    client: Client,
    bundle: &Path,
    model: &str,
    version: &str,
) -> Result<ModelVersion, Failure> {
    let info =
        Bundle::inspect(bundle).or_fail(|| format!("could not read the bundle {}", bundle.display()))?;
    let mut push = Push::new(client, bundle, &info, PARALLEL, GIVE_UP_AFTER)?;
    (push.model, push.version) = (model.to_owned(), version.to_owned());
    let pushed = push.carry_through().await?;
    push.meter.finish();
    Ok(pushed)
}

fn report(args: &PushArgs, pushed: &ModelVersion, sent: u64, took: Duration) -> Result<(), Failure> {
    if args.json {
        let mut record = versions::record(pushed);
        record["sent_bytes"] = json!(sent);
        record["seconds"] = json!(took.as_secs_f64());
        if let Some(alias) = &args.alias {
            record["alias"] = json!(alias);
        }
        return output::json(&record);
    }
    let alias = args.alias.as_ref().map(|alias| format!(", which is {alias} now")).unwrap_or_default();
    output::line(format_args!(
        "{}@{}{alias}: {} ({} of {} sent in {:.1} s)",
        pushed.model,
        pushed.version,
        pushed.digest,
        output::bytes(sent),
        output::bytes(pushed.size_bytes),
        took.as_secs_f64()
    ))
}

fn sign(key: &Path, info: &BundleInfo) -> Result<Signature, Failure> {
    let key =
        SigningKey::from_pem(&read_secret(key)?).or_fail(|| format!("could not use {}", key.display()))?;
    Ok(key.sign(info.digest.as_str()))
}

fn read_manifest(bundle: &Path, info: &BundleInfo) -> Result<Vec<u8>, Failure> {
    let path = bundle.join(info.digest.path());
    std::fs::read(&path).or_fail(|| format!("could not read the manifest {}", path.display()))
}

/// One push and everything that it needs from round to round.
struct Push {
    client: Client,
    model: String,
    version: String,
    manifest: Vec<u8>,
    digest: String,
    signatures: Vec<Signature>,
    uploads: Uploads,
    meter: Meter,
    patience: Patience,
}

impl Push {
    /// A push of a bundle under its own name, as a version that has none yet.
    fn new(
        client: Client,
        bundle: &Path,
        info: &BundleInfo,
        parallel: usize,
        give_up_after: Duration,
    ) -> Result<Self, Failure> {
        Ok(Self {
            client,
            model: info.config.name.clone(),
            version: String::new(),
            manifest: read_manifest(bundle, info)?,
            digest: info.digest.to_string(),
            signatures: Vec::new(),
            uploads: Uploads::new(bundle, info, parallel),
            meter: Meter::new(TerminalProgress::new()),
            patience: Patience::new(give_up_after),
        })
    }

    async fn carry_through(&mut self) -> Result<ModelVersion, Failure> {
        loop {
            let status = match self.round().await {
                Ok(version) => return Ok(version),
                Err(Stop::Failure(failure)) => return Err(failure),
                Err(Stop::Status(status)) if is_final(&status) => return Err(explain(&status)),
                Err(Stop::Status(status)) => status,
            };
            let Some(delay) = self.patience.next(&status) else {
                let waited = humantime::format_duration(self.patience.limit());
                return Err(explain(&status).hint(format!(
                    "nothing has arrived for {waited}; the same command goes on from where this one stopped"
                )));
            };
            tracing::debug!(code = ?status.code(), message = status.message(), ?delay, "the push waits");
            tokio::time::sleep(delay).await;
        }
    }

    /// Asks what is missing and sends it; if nothing is, ends the push.
    async fn round(&mut self) -> Result<ModelVersion, Stop> {
        let missing = self.begin().await?;
        if !missing.is_empty() {
            self.uploads.send(&self.client, missing, &self.meter).await?;
            // What others were sending meanwhile may be missing still.
            if !self.begin().await?.is_empty() {
                return Err(Status::aborted("others are sending the rest of the same bundle").into());
            }
        }
        let request = FinishPushRequest {
            model: self.model.clone(),
            version: self.version.clone(),
            digest: self.digest.clone(),
            signatures: self.signatures.clone(),
        };
        Ok(self.client.finish_push(request).await?.into_inner())
    }

    async fn begin(&mut self) -> Result<Vec<MissingBlob>, Stop> {
        let request = BeginPushRequest {
            model: self.model.clone(),
            version: self.version.clone(),
            manifest: self.manifest.clone(),
        };
        let begun = self.client.begin_push(request).await?.into_inner();
        if begun.digest != self.digest {
            let why = format!("the endpoint read the manifest {} as {}", self.digest, begun.digest);
            return Err(Failure::new(why).into());
        }
        if self.meter.is_at(begun.present_bytes, begun.total_bytes) {
            self.patience.renew();
        }
        Ok(begun.missing)
    }
}

/// Why a round ended early.
pub(super) enum Stop {
    /// The endpoint or the connection; perhaps only for now.
    Status(Status),
    /// This side, for good.
    Failure(Failure),
}

impl From<Status> for Stop {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}
