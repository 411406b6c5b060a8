//! `rookery models sign` and `rookery models keys`: who answers for a version.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use rookery_model::bundle::Bundle;
use rookery_proto::signing::{PublicKey, SigningKey};
use rookery_proto::v1::{
    AddSignatureRequest, DistrustKeyRequest, ListTrustedKeysRequest, Signature, TrustKeyRequest, TrustedKey,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Reference, Target, read_secret, utc, versions};
use crate::client::explain;
use crate::error::{Failure, OrFail};
use crate::output::{self, Table};

/// Signs a version, or a bundle far from any control plane.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  rookery models sign qwen@2.1 --key release.key.pem
  rookery models sign ./qwen-w4 --key release.key.pem --output qwen.sig     needs no network
  rookery models sign qwen@2.1 --signature qwen.sig                         needs no key")]
pub(super) struct SignArgs {
    /// MODEL@VERSION, or with --output a bundle's folder.
    what: String,
    /// Secret key to sign with, a PEM file.
    #[arg(long, value_name = "FILE", required_unless_present = "signature")]
    key: Option<PathBuf>,
    /// Write the signature to this file and tell nobody.
    #[arg(long, value_name = "FILE", requires = "key")]
    output: Option<PathBuf>,
    /// Add a signature that was made elsewhere.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["key", "output"])]
    signature: Option<PathBuf>,
    #[command(flatten)]
    target: Target,
}

/// Keys that sign versions, and which of them count.
#[derive(Args, Debug)]
pub(super) struct KeysArgs {
    #[command(subcommand)]
    command: KeysCommand,
}

#[derive(Subcommand, Debug)]
enum KeysCommand {
    /// Makes a pair of keys: NAME.key.pem, which only you should have, and NAME.pub.pem.
    Generate {
        /// What the files are called.
        name: PathBuf,
        /// Write JSON.
        #[arg(long)]
        json: bool,
    },
    /// From now on, signatures by this key count.
    Trust {
        /// Public key, a PEM file.
        file: PathBuf,
        #[command(flatten)]
        target: Target,
    },
    /// Signatures by this key count no longer.
    Distrust {
        /// Its id, as `rookery models keys list` shows it.
        key_id: String,
        #[command(flatten)]
        target: Target,
    },
    /// Lists the keys whose signatures count.
    List {
        #[command(flatten)]
        target: Target,
        /// Write JSON.
        #[arg(long)]
        json: bool,
    },
}

/// A signature in a file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Detached {
    /// What is signed: digest of a bundle's manifest.
    digest: String,
    /// Which key made it.
    key_id: String,
    /// 128 hexadecimal digits.
    signature: String,
}

pub(super) async fn sign(args: SignArgs) -> Result<(), Failure> {
    if let (Some(file), Some(key)) = (&args.output, &args.key) {
        return sign_offline(Path::new(&args.what), key, file);
    }
    let reference: Reference = args.what.parse().map_err(Failure::usage)?;
    let mut client = args.target.connect().await?;
    let version = versions::fetch(&mut client, reference.model.clone()).await?;
    let version = version.into_iter().find(|version| version.version == reference.name).ok_or_else(|| {
        Failure::new(format!("there is no version {} of {}", reference.name, reference.model))
            .hint("`rookery models versions` lists them")
    })?;
    let signature = match (&args.key, &args.signature) {
        (Some(key), _) => secret(key)?.sign(&version.digest),
        (None, Some(file)) => read_detached(file, &version.digest)?,
        (None, None) => return Err(Failure::usage("there is neither --key nor --signature")),
    };
    let key_id = signature.key_id.clone();
    let Reference { model, name: version } = reference;
    let done = format!("{model}@{version} is signed by {key_id}");
    let request = AddSignatureRequest { model, version, signature: Some(signature) };
    client.add_signature(request).await.map_err(|status| explain(&status))?;
    output::line(done)
}

fn sign_offline(bundle: &Path, key: &Path, file: &Path) -> Result<(), Failure> {
    let info =
        Bundle::inspect(bundle).or_fail(|| format!("could not read the bundle {}", bundle.display()))?;
    let Signature { key_id, signature } = secret(key)?.sign(info.digest.as_str());
    let signature = signature.iter().map(|byte| format!("{byte:02x}")).collect();
    let detached = Detached { digest: info.digest.to_string(), key_id, signature };
    let text = serde_json::to_string_pretty(&detached).or_fail(|| "could not write JSON".to_owned())?;
    fs::write(file, text + "\n").or_fail(|| format!("could not write {}", file.display()))?;
    output::line(format_args!("{} is signed by {}: {}", info.digest, detached.key_id, file.display()))
}

fn read_detached(file: &Path, digest: &str) -> Result<Signature, Failure> {
    let unusable = || format!("{} is no signature that `rookery models sign --output` wrote", file.display());
    let text = fs::read_to_string(file).or_fail(|| format!("could not read {}", file.display()))?;
    let detached: Detached = serde_json::from_str(&text).or_fail(unusable)?;
    if detached.digest != digest {
        let why = format!("{} signs {}, and the version is {digest}", file.display(), detached.digest);
        return Err(Failure::new(why).hint("sign the bundle that was pushed"));
    }
    let digits = detached.signature.as_bytes().chunks(2);
    let signature = digits
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap_or_default(), 16))
        .collect::<Result<_, _>>()
        .or_fail(unusable)?;
    Ok(Signature { key_id: detached.key_id, signature })
}

fn secret(path: &Path) -> Result<SigningKey, Failure> {
    SigningKey::from_pem(&read_secret(path)?).or_fail(|| format!("could not use {}", path.display()))
}

pub(super) async fn keys(args: KeysArgs) -> Result<(), Failure> {
    match args.command {
        KeysCommand::Generate { name, json } => generate(&name, json),
        KeysCommand::Trust { file, target } => trust(&file, &target).await,
        KeysCommand::Distrust { key_id, target } => {
            let mut client = target.connect().await?;
            let said = format!("signatures by {key_id} count no longer");
            client.distrust_key(DistrustKeyRequest { key_id }).await.map_err(|status| explain(&status))?;
            output::line(said)
        }
        KeysCommand::List { target, json } => list(&target, json).await,
    }
}

fn generate(name: &Path, json: bool) -> Result<(), Failure> {
    let made = || "could not make a key".to_owned();
    let key = SigningKey::generate().or_fail(made)?;
    let (secret, public) = (with_suffix(name, ".key.pem"), with_suffix(name, ".pub.pem"));
    write_new(&secret, 0o600, &key.to_pem().or_fail(made)?)?;
    write_new(&public, 0o644, &key.public().to_pem().or_fail(made)?)?;
    let id = key.public().id();
    if json {
        return output::json(&json!({"key_id": id.as_str(), "secret_key": secret, "public_key": public}));
    }
    output::line(format_args!("key {id}: {} (keep it to yourself), {}", secret.display(), public.display()))
}

fn with_suffix(name: &Path, suffix: &str) -> PathBuf {
    let mut name = name.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Never over a file that is there: it may be the only copy of a key.
fn write_new(path: &Path, mode: u32, text: &str) -> Result<(), Failure> {
    let opened = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    let written = opened.and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()));
    written.or_fail(|| format!("could not write {}", path.display()))
}

async fn trust(file: &Path, target: &Target) -> Result<(), Failure> {
    let pem = fs::read_to_string(file).or_fail(|| format!("could not read {}", file.display()))?;
    let key = PublicKey::from_pem(&pem).or_fail(|| format!("could not use {}", file.display()))?;
    let request = TrustKeyRequest { public_key: key.to_bytes().to_vec() };
    let mut client = target.connect().await?;
    let trusted = client.trust_key(request).await.map_err(|status| explain(&status))?.into_inner();
    output::line(format_args!("signatures by {} count", trusted.key_id))
}

async fn list(target: &Target, json: bool) -> Result<(), Failure> {
    let mut client = target.connect().await?;
    let listed = client.list_trusted_keys(ListTrustedKeysRequest {}).await;
    let keys = listed.map_err(|status| explain(&status))?.into_inner().keys;
    if json {
        return output::json(&keys.iter().map(record).collect::<Vec<_>>());
    }
    let mut table = Table::new(&["KEY", "TRUSTED SINCE", "BY"]);
    for key in keys {
        table.row([key.key_id, key.created.as_ref().map(utc).unwrap_or_default(), key.created_by]);
    }
    output::write(&table.render())
}

fn record(key: &TrustedKey) -> Value {
    let pem = PublicKey::from_bytes(&key.public_key).and_then(|key| key.to_pem()).ok();
    json!({
        "key_id": key.key_id, "public_key": pem, "created": key.created.as_ref().map(utc),
        "created_by": key.created_by,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_private_and_never_overwritten() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let name = folder.path().join("release.2026");
        generate(&name, true).unwrap();
        let secret_file = folder.path().join("release.2026.key.pem");
        let before = fs::read_to_string(&secret_file).unwrap();
        assert_eq!(fs::metadata(&secret_file).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(generate(&name, true).is_err());
        assert_eq!(fs::read_to_string(&secret_file).unwrap(), before);
        let public = fs::read_to_string(folder.path().join("release.2026.pub.pem")).unwrap();
        assert_eq!(PublicKey::from_pem(&public).unwrap(), secret(&secret_file).unwrap().public());
    }

    #[test]
    fn a_detached_signature_is_of_one_digest() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("sig");
        let key = SigningKey::generate().unwrap();
        let digest = format!("sha256:{}", "0".repeat(64));
        let Signature { key_id, signature } = key.sign(&digest);
        let hex: String = signature.iter().map(|byte| format!("{byte:02x}")).collect();
        let json = json!({"digest": digest, "key_id": key_id, "signature": hex});
        fs::write(&file, json.to_string()).unwrap();
        let read = read_detached(&file, &digest).unwrap();
        assert!(key.public().verifies(&digest, &read.signature));
        assert!(read_detached(&file, "sha256:other").is_err());
        for text in ["", "{}", &json.to_string().replace(&hex[..2], "zz")] {
            fs::write(&file, text).unwrap();
            assert!(read_detached(&file, &digest).is_err(), "{text}");
        }
    }
}
