//! `rookery fleet history`: what happened to versions on gateways.

use clap::Args;
use rookery_proto::v1::{GatewayTransition, ListTransitionsRequest};
use serde_json::{Value, json};

use super::Target;
use super::list::{phase, short, utc, verdict};
use crate::client::explain;
use crate::error::Failure;
use crate::output::{self, Table};

/// Shows what happened to versions on gateways, newest first.
#[derive(Args, Debug)]
pub(super) struct HistoryArgs {
    /// Only of this gateway.
    #[arg(default_value = "")]
    gateway: String,
    /// Only of this roll-out.
    #[arg(long, value_name = "ID", default_value = "")]
    rollout: String,
    /// At most this many.
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: u32,
    #[command(flatten)]
    target: Target,
    /// Write JSON.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: HistoryArgs) -> Result<(), Failure> {
    let mut client = args.target.connect().await?;
    let request =
        ListTransitionsRequest { gateway: args.gateway, rollout: args.rollout, limit: args.limit.max(1) };
    let answer = client.list_transitions(request).await.map_err(|status| explain(&status))?;
    let transitions = answer.into_inner().transitions;
    if args.json {
        return output::json(&transitions.iter().map(record).collect::<Vec<_>>());
    }
    let mut table = Table::new(&["TIME", "GATEWAY", "VERSION", "FROM", "TO", "WHY"]);
    for kept in &transitions {
        let transition = kept.transition.clone().unwrap_or_default();
        let failed = transition.verdicts.iter().find(|verdict| !verdict.passed);
        let gate = failed.map(|verdict| {
            format!(" ({}: expected {}, saw {})", verdict.gate, verdict.expected, verdict.seen)
        });
        table.row([
            utc(transition.at.as_ref()).unwrap_or_default(),
            kept.gateway.clone(),
            format!("{}@{}", transition.model, short(&transition.digest)),
            phase(transition.from()).to_owned(),
            phase(transition.to()).to_owned(),
            format!("{}{}", transition.reason, gate.unwrap_or_default()),
        ]);
    }
    output::write(&table.render())
}

fn record(kept: &GatewayTransition) -> Value {
    let transition = kept.transition.clone().unwrap_or_default();
    json!({
        "gateway": kept.gateway, "rollout": (!kept.rollout.is_empty()).then_some(&kept.rollout),
        "sequence": transition.sequence, "at": utc(transition.at.as_ref()), "model": transition.model,
        "digest": transition.digest, "from": transition.from().as_str_name(),
        "to": transition.to().as_str_name(), "reason": transition.reason,
        "generation": transition.generation,
        "verdicts": transition.verdicts.iter().map(verdict).collect::<Vec<_>>(),
    })
}
