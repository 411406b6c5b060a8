//! `rookery fleet`: the gateways that have joined, how they are, and what they are given to do.

mod change;
mod history;
mod list;
mod show;
mod watch;

pub(super) use list::utc;

use clap::{Args, Subcommand};
use rookery_proto::v1::fleet_service_client::FleetServiceClient;

use crate::client::{self, Channel};
use crate::error::Failure;
use crate::simulate;

/// Largest answer: the list of many thousands of gateways.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// Gateways: what they are, how they are, what they are given to do.
#[derive(Args, Debug)]
#[command(
    after_help = "A selector is terms joined by commas, all of which must hold: site=berlin, board!=dev,
site=berlin|bonn, gpu (has the label), !gpu (has it not).

Examples:
  rookery fleet list --select site=berlin
  rookery fleet label shelf-3 site=berlin rack-
  rookery fleet drain shelf-3
  rookery fleet simulate --gateways 100 --rollout"
)]
pub struct FleetArgs {
    #[command(subcommand)]
    command: FleetCommand,
}

#[derive(Subcommand, Debug)]
enum FleetCommand {
    List(list::ListArgs),
    Show(show::ShowArgs),
    Label(change::LabelArgs),
    /// Gives gateways no new versions; they go on serving what they serve.
    Cordon(change::AdmissionArgs),
    /// Takes cordon and drain back.
    Uncordon(change::AdmissionArgs),
    /// Gives gateways neither new versions nor new requests; running requests end by themselves.
    Drain(change::AdmissionArgs),
    Remove(change::RemoveArgs),
    Watch(watch::WatchArgs),
    History(history::HistoryArgs),
    Simulate(simulate::SimulateArgs),
}

impl FleetArgs {
    /// Whether gateways are simulated in this process.
    pub fn simulates(&self) -> bool {
        matches!(self.command, FleetCommand::Simulate(_))
    }
}

/// Runs the command.
///
/// # Errors
/// If the control plane refuses or cannot be asked.
pub async fn run(args: FleetArgs) -> Result<(), Failure> {
    use change::Admit::{Cordoned, Drained, Open};
    match args.command {
        FleetCommand::List(args) => list::run(args).await,
        FleetCommand::Show(args) => show::run(args).await,
        FleetCommand::Label(args) => change::label(args).await,
        FleetCommand::Cordon(args) => change::admission(args, Cordoned).await,
        FleetCommand::Uncordon(args) => change::admission(args, Open).await,
        FleetCommand::Drain(args) => change::admission(args, Drained).await,
        FleetCommand::Remove(args) => change::remove(args).await,
        FleetCommand::Watch(args) => watch::run(args).await,
        FleetCommand::History(args) => history::run(args).await,
        FleetCommand::Simulate(args) => simulate::run(args).await,
    }
}

/// Which control plane is asked.
#[derive(Args, Debug)]
pub(super) struct Target {
    /// Control plane to ask.
    #[arg(long, default_value = client::DEFAULT_ENDPOINT, env = "ROOKERY_ENDPOINT")]
    endpoint: String,
}

impl Target {
    pub(super) async fn connect(&self) -> Result<FleetServiceClient<Channel>, Failure> {
        let channel = client::channel(&self.endpoint).await?;
        Ok(FleetServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES))
    }
}
