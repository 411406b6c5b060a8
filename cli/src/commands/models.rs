//! `rookery models list`: what an endpoint serves.

use clap::{Args, Subcommand};
use serde_json::json;

use crate::client;
use crate::error::Failure;
use crate::output::{self, Table};

/// What endpoints serve.
#[derive(Args, Debug)]
pub struct ModelsArgs {
    #[command(subcommand)]
    command: ModelsCommand,
}

#[derive(Subcommand, Debug)]
enum ModelsCommand {
    /// Lists the models that an endpoint can generate with now.
    List(ListArgs),
}

#[derive(Args, Debug)]
struct ListArgs {
    /// Worker or control plane to ask.
    #[arg(long, default_value = client::DEFAULT_ENDPOINT, env = "ROOKERY_ENDPOINT")]
    endpoint: String,
    /// Write JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// If the endpoint cannot be asked.
pub async fn run(args: ModelsArgs) -> Result<(), Failure> {
    let ModelsCommand::List(args) = args.command;
    let mut client = client::connect(&args.endpoint).await?;
    let models = client::list_models(&mut client).await?;
    if args.json {
        let models: Vec<_> = models
            .iter()
            .map(|model| {
                json!({
                    "name": model.name, "digest": model.digest, "architecture": model.architecture,
                    "recipe": model.recipe, "parameters": model.parameters, "gateways": model.gateways,
                    "context_tokens": model.context_tokens, "vocabulary": model.vocabulary,
                })
            })
            .collect();
        return output::json(&models);
    }
    let mut table =
        Table::new(&["NAME", "ARCHITECTURE", "RECIPE", ">PARAMETERS", ">CONTEXT", ">GATEWAYS", "DIGEST"]);
    for model in models {
        table.row([
            model.name,
            model.architecture,
            model.recipe,
            output::grouped(model.parameters),
            output::grouped(model.context_tokens.into()),
            model.gateways.to_string(),
            model.digest.chars().take(19).collect(),
        ]);
    }
    output::write(&table.render())
}
