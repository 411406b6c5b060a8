//! `rookery tokens`: who may call, and who may join.

use std::collections::HashMap;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use rookery_proto::v1::{
    AccessToken, CreateAccessTokenRequest, CreateJoinTokenRequest, ListAccessTokensRequest,
    RevokeAccessTokenRequest, Role,
};
use serde_json::{Value, json};

use super::fleet::{Target, utc};
use crate::client::explain;
use crate::error::Failure;
use crate::output::{self, Table};

/// Tokens: bearer tokens for calls, join tokens for gateways.
#[derive(Args, Debug)]
#[command(after_help = "Secrets are shown once, and only their hashes are kept.

Examples:
  rookery tokens create ci --role deployer --valid 90days
  rookery tokens join --uses 20 --label site=berlin")]
pub struct TokensArgs {
    #[command(subcommand)]
    command: TokensCommand,
}

#[derive(Subcommand, Debug)]
enum TokensCommand {
    /// Makes a bearer token and writes it to standard output.
    Create(CreateArgs),
    /// Lists bearer tokens, without their secrets.
    List(ListArgs),
    /// Revokes a bearer token at once.
    Revoke(RevokeArgs),
    /// Makes a token that gateways join with: `rookery worker --join TOKEN`.
    Join(JoinArgs),
}

#[derive(Args, Debug)]
struct CreateArgs {
    /// Whose it is: a name for lists and the audit.
    name: String,
    /// What it may do.
    #[arg(long, value_enum, default_value_t = RoleFlag::Inference)]
    role: RoleFlag,
    /// How long, such as 90days. Default: until it is revoked.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    valid: Option<Duration>,
    #[command(flatten)]
    target: Target,
}

#[derive(Args, Debug)]
struct ListArgs {
    #[command(flatten)]
    target: Target,
    /// Write JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
struct RevokeArgs {
    /// Its name.
    name: String,
    #[command(flatten)]
    target: Target,
}

#[derive(Args, Debug)]
struct JoinArgs {
    /// How many gateways may join with it.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    uses: u32,
    /// How long it can be used; at most 30days.
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = humantime::parse_duration)]
    valid: Duration,
    /// Label of gateways that join with it; may be given several times.
    #[arg(long = "label", value_name = "NAME=VALUE", value_parser = label)]
    labels: Vec<(String, String)>,
    #[command(flatten)]
    target: Target,
}

/// What a bearer token may do; each role may do what those before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum RoleFlag {
    /// Generate, tokenize, list models.
    Inference,
    /// Push versions, roll them out, look at the fleet.
    Deployer,
    /// Everything.
    Admin,
}

/// Runs the command.
///
/// # Errors
/// If the control plane refuses or cannot be asked.
pub async fn run(args: TokensArgs) -> Result<(), Failure> {
    match args.command {
        TokensCommand::Create(args) => create(args).await,
        TokensCommand::List(args) => list(args).await,
        TokensCommand::Revoke(args) => revoke(args).await,
        TokensCommand::Join(args) => join(args).await,
    }
}

async fn create(args: CreateArgs) -> Result<(), Failure> {
    let role = match args.role {
        RoleFlag::Inference => Role::Inference,
        RoleFlag::Deployer => Role::Deployer,
        RoleFlag::Admin => Role::Admin,
    };
    let valid_s = args.valid.map_or(0, seconds);
    let mut client = args.target.connect().await?;
    let request = CreateAccessTokenRequest { name: args.name.clone(), role: role.into(), valid_s };
    let answer = client.create_access_token(request).await.map_err(|status| explain(&status))?;
    output::note(format_args!("this is {}'s token; it is not shown again", args.name));
    output::line(answer.into_inner().token)
}

async fn list(args: ListArgs) -> Result<(), Failure> {
    let mut client = args.target.connect().await?;
    let answer = client.list_access_tokens(ListAccessTokensRequest {}).await;
    let tokens = answer.map_err(|status| explain(&status))?.into_inner().tokens;
    if args.json {
        return output::json(&tokens.iter().map(record).collect::<Vec<_>>());
    }
    let mut table = Table::new(&["NAME", "ROLE", "CREATED", "ENDS"]);
    for token in &tokens {
        table.row([
            token.name.clone(),
            role(token).to_owned(),
            utc(token.created.as_ref()).unwrap_or_default(),
            utc(token.ends.as_ref()).unwrap_or_else(|| "never".to_owned()),
        ]);
    }
    output::write(&table.render())
}

async fn revoke(args: RevokeArgs) -> Result<(), Failure> {
    let mut client = args.target.connect().await?;
    let request = RevokeAccessTokenRequest { name: args.name.clone() };
    client.revoke_access_token(request).await.map_err(|status| explain(&status))?;
    output::line(format!("{}: revoked", args.name))
}

async fn join(args: JoinArgs) -> Result<(), Failure> {
    let mut client = args.target.connect().await?;
    let labels: HashMap<_, _> = args.labels.into_iter().collect();
    let request = CreateJoinTokenRequest { valid_s: seconds(args.valid), uses: args.uses, labels };
    let answer = client.create_join_token(request).await.map_err(|status| explain(&status))?.into_inner();
    let ends = utc(answer.ends.as_ref()).unwrap_or_default();
    output::note(format_args!(
        "{} may join with this until {ends}; it is not shown again",
        gateways(args.uses)
    ));
    output::line(answer.token)
}

/// Not zero, which would mean something else.
fn seconds(time: Duration) -> u64 {
    time.as_secs().max(1)
}

fn gateways(count: u32) -> String {
    if count == 1 { "one gateway".to_owned() } else { format!("{count} gateways") }
}

fn label(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or_else(|| format!("{text:?} is not NAME=VALUE"))?;
    Ok((name.to_owned(), value.to_owned()))
}

fn role(token: &AccessToken) -> &'static str {
    match token.role() {
        Role::Unspecified => "unknown",
        Role::Inference => "inference",
        Role::Deployer => "deployer",
        Role::Admin => "admin",
    }
}

fn record(token: &AccessToken) -> Value {
    json!({
        "name": token.name, "role": role(token), "created": utc(token.created.as_ref()),
        "ends": utc(token.ends.as_ref()),
    })
}
