//! `rookery rollouts pause|resume|abort|rollback|approve`.

use clap::Args;
use rookery_proto::v1::{SteerRolloutRequest, Steering};

use super::Target;
use super::show::{record, summary};
use crate::client::explain;
use crate::error::Failure;
use crate::output;

/// An order to a roll-out.
#[derive(Args, Debug)]
pub(super) struct SteerArgs {
    /// The roll-out's id, or the beginning of it.
    id: String,
    /// Why, for the history.
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
    #[command(flatten)]
    target: Target,
    /// Write JSON.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: SteerArgs, steering: Steering) -> Result<(), Failure> {
    let mut client = args.target.connect().await?;
    let request = SteerRolloutRequest { id: args.id, steering: steering.into(), reason: args.reason };
    let rollout = client.steer_rollout(request).await.map_err(|status| explain(&status))?.into_inner();
    if args.json { output::json(&record(&rollout)) } else { output::write(&summary(&rollout)) }
}
