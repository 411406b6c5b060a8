//! `rookery models versions`, `alias`, `unalias`, `delete`, `gc`: what the control plane keeps.

use clap::Args;
use rookery_proto::v1::{
    CollectGarbageRequest, DeleteAliasRequest, DeleteVersionRequest, ListVersionsRequest, ModelVersion,
    SetAliasRequest,
};
use serde_json::{Value, json};

use super::{Client, Reference, Target, utc};
use crate::client::explain;
use crate::error::Failure;
use crate::output::{self, Table};

/// Lists the versions that the control plane keeps, served or not.
#[derive(Args, Debug)]
pub(super) struct VersionsArgs {
    /// Only of this model.
    model: Option<String>,
    #[command(flatten)]
    target: Target,
    /// Write JSON.
    #[arg(long)]
    json: bool,
}

/// Points a name, such as `stable` or `canary`, at a version.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  rookery models alias qwen@2.1 stable
  rookery generate --model qwen@stable 'Hello'")]
pub(super) struct AliasArgs {
    /// MODEL@VERSION.
    version: Reference,
    /// The alias.
    alias: String,
    #[command(flatten)]
    target: Target,
}

/// Removes an alias; the version stays.
#[derive(Args, Debug)]
pub(super) struct UnaliasArgs {
    /// MODEL@ALIAS.
    alias: Reference,
    #[command(flatten)]
    target: Target,
}

/// Deletes a version that no alias, roll-out or gateway uses. Its blobs stay until `rookery models gc`.
#[derive(Args, Debug)]
pub(super) struct DeleteArgs {
    /// MODEL@VERSION.
    version: Reference,
    #[command(flatten)]
    target: Target,
}

/// Frees the blobs that no version needs. Those of pushes that are under way, or were interrupted in the last 24 hours, stay.
#[derive(Args, Debug)]
pub(super) struct GcArgs {
    /// Only say what would be freed.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    target: Target,
    /// Write JSON.
    #[arg(long)]
    json: bool,
}

pub(super) async fn list(args: VersionsArgs) -> Result<(), Failure> {
    let mut client = args.target.connect().await?;
    let versions = fetch(&mut client, args.model.unwrap_or_default()).await?;
    if args.json {
        return output::json(&versions.iter().map(record).collect::<Vec<_>>());
    }
    output::write(&table(&versions).render())
}

pub(super) async fn alias(args: AliasArgs) -> Result<(), Failure> {
    let mut client = args.target.connect().await?;
    let Reference { model, name: version } = args.version;
    let request = SetAliasRequest { model, alias: args.alias, version };
    let set = client.set_alias(request).await.map_err(|status| explain(&status))?.into_inner();
    output::line(format_args!("{}@{} is {}@{} now", set.model, set.alias, set.model, set.version))
}

pub(super) async fn unalias(args: UnaliasArgs) -> Result<(), Failure> {
    let mut client = args.target.connect().await?;
    let Reference { model, name: alias } = args.alias;
    let removed = format!("{model}@{alias} is gone");
    client.delete_alias(DeleteAliasRequest { model, alias }).await.map_err(|status| explain(&status))?;
    output::line(removed)
}

pub(super) async fn delete(args: DeleteArgs) -> Result<(), Failure> {
    let mut client = args.target.connect().await?;
    let Reference { model, name: version } = args.version;
    let deleted = format!("{model}@{version} is deleted; `rookery models gc` frees what it alone needed");
    client
        .delete_version(DeleteVersionRequest { model, version })
        .await
        .map_err(|status| explain(&status))?;
    output::line(deleted)
}

pub(super) async fn gc(args: GcArgs) -> Result<(), Failure> {
    let mut client = args.target.connect().await?;
    let request = CollectGarbageRequest { dry_run: args.dry_run };
    let freed = client.collect_garbage(request).await.map_err(|status| explain(&status))?.into_inner();
    if args.json {
        let record = json!({"dry_run": args.dry_run, "blobs": freed.blobs, "bytes": freed.bytes});
        return output::json(&record);
    }
    let verb = if args.dry_run { "would be freed" } else { "freed" };
    output::line(format_args!("{} blobs, {}: {verb}", freed.blobs, output::bytes(freed.bytes)))
}

/// The versions of a model, or of all if it is empty.
pub(super) async fn fetch(client: &mut Client, model: String) -> Result<Vec<ModelVersion>, Failure> {
    let listed = client.list_versions(ListVersionsRequest { model }).await;
    Ok(listed.map_err(|status| explain(&status))?.into_inner().versions)
}

/// A version as JSON.
pub(super) fn record(version: &ModelVersion) -> Value {
    let signed_by: Vec<_> = version.signatures.iter().map(|signature| &signature.key_id).collect();
    json!({
        "model": version.model, "version": version.version, "digest": version.digest,
        "size_bytes": version.size_bytes, "architecture": version.architecture, "recipe": version.recipe,
        "parameters": version.parameters, "aliases": version.aliases, "signed_by": signed_by,
        "gateways": version.gateways, "created": version.created.as_ref().map(utc),
        "created_by": version.created_by,
    })
}

fn table(versions: &[ModelVersion]) -> Table {
    let headings =
        ["MODEL", "VERSION", "ALIASES", "RECIPE", ">SIZE", ">GATEWAYS", "SIGNED BY", "PUSHED", "DIGEST"];
    let mut table = Table::new(&headings);
    for version in versions {
        let signed: Vec<_> = version.signatures.iter().map(|signature| signature.key_id.as_str()).collect();
        table.row([
            version.model.clone(),
            version.version.clone(),
            version.aliases.join(", "),
            version.recipe.clone(),
            output::bytes(version.size_bytes),
            version.gateways.to_string(),
            signed.join(", "),
            version.created.as_ref().map(utc).unwrap_or_default(),
            version.digest.chars().take(19).collect(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use rookery_proto::v1::Signature;

    use super::*;

    #[test]
    fn a_version_shows_what_people_decide_by() {
        let version = ModelVersion {
            model: "org/qwen".to_owned(),
            version: "2.1".to_owned(),
            digest: format!("sha256:{}", "ab".repeat(32)),
            size_bytes: 491_400_064,
            aliases: vec!["canary".to_owned(), "stable".to_owned()],
            signatures: vec![Signature { key_id: "21fe31dfa154a261".to_owned(), signature: vec![0; 64] }],
            gateways: 12,
            ..ModelVersion::default()
        };
        let text = table(std::slice::from_ref(&version)).render();
        for shown in
            ["org/qwen", "2.1", "canary, stable", "491.4 MB", "12", "21fe31dfa154a261", "sha256:abababababab"]
        {
            assert!(text.contains(shown), "{shown}: {text}");
        }
        let record = record(&version);
        assert_eq!(record["digest"], version.digest);
        assert_eq!(record["signed_by"], json!(["21fe31dfa154a261"]));
        assert_eq!(record["created"], Value::Null);
    }
}
