//! `rookery rollouts`: moves gateways to a version in waves, and back when it proves worse.

mod create;
mod history;
mod show;
mod steer;
mod watch;

use clap::{Args, Subcommand};
use rookery_proto::v1::rollout_service_client::RolloutServiceClient;

use crate::client::{self, Channel};
use crate::error::Failure;
pub(crate) use show::state as state_name;

/// Largest answer: a roll-out over many thousands of gateways.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// Moves gateways to a version in waves, and back when it proves worse.
#[derive(Args, Debug)]
#[command(after_help = "A roll-out is named by its id or by any beginning of it that only one has.

Examples:
  rookery rollouts create --model qwen@2 --select 'site=berlin,board!=dev' --wave 1 --wave 10% --wave 100% \\
    --soak 10m --max-failed 2% --max-unavailable 20% --window 'Mon-Fri 01:00-05:00 Europe/Berlin'
  rookery rollouts watch 0193c2
  rookery rollouts rollback 0193c2 --reason 'answers are too long'
  rookery fleet history --rollout 0193c2        what each of its gateways did")]
pub struct RolloutsArgs {
    #[command(subcommand)]
    command: RolloutsCommand,
}

#[derive(Subcommand, Debug)]
enum RolloutsCommand {
    // The largest by far.
    Create(Box<create::CreateArgs>),
    List(show::ListArgs),
    Show(show::ShowArgs),
    Watch(watch::WatchArgs),
    /// Starts nothing new until `resume`; gateways on the way go on.
    Pause(steer::SteerArgs),
    /// Goes on after `pause`; a soak begins anew.
    Resume(steer::SteerArgs),
    /// Ends the roll-out; gateways stay as they are.
    Abort(steer::SteerArgs),
    /// Takes everything back to what gateways served before; also after the end, while no later roll-out has them.
    Rollback(steer::SteerArgs),
    /// Lets the next wave begin.
    Approve(steer::SteerArgs),
    History(history::HistoryArgs),
}

/// Runs the command.
///
/// # Errors
/// If the control plane refuses or cannot be asked; for `watch` also if the roll-out does not succeed.
pub async fn run(args: RolloutsArgs) -> Result<(), Failure> {
    use rookery_proto::v1::Steering;
    match args.command {
        RolloutsCommand::Create(args) => create::run(*args).await,
        RolloutsCommand::List(args) => show::list(args).await,
        RolloutsCommand::Show(args) => show::show(args).await,
        RolloutsCommand::Watch(args) => watch::run(args).await,
        RolloutsCommand::Pause(args) => steer::run(args, Steering::Pause).await,
        RolloutsCommand::Resume(args) => steer::run(args, Steering::Resume).await,
        RolloutsCommand::Abort(args) => steer::run(args, Steering::Abort).await,
        RolloutsCommand::Rollback(args) => steer::run(args, Steering::RollBack).await,
        RolloutsCommand::Approve(args) => steer::run(args, Steering::Approve).await,
        RolloutsCommand::History(args) => history::run(args).await,
    }
}

/// Which control plane is asked.
#[derive(Args, Debug)]
struct Target {
    /// Control plane to ask.
    #[arg(long, default_value = client::DEFAULT_ENDPOINT, env = "ROOKERY_ENDPOINT")]
    endpoint: String,
}

impl Target {
    async fn connect(&self) -> Result<RolloutServiceClient<Channel>, Failure> {
        let channel = client::channel(&self.endpoint).await?;
        Ok(RolloutServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES))
    }
}
