//! `rookery rollouts history`: who did what, when and why.

use clap::Args;
use rookery_proto::v1::{ListPlansRequest, Plan};
use serde_json::json;

use super::Target;
use super::show::{state, utc};
use crate::client::explain;
use crate::error::Failure;
use crate::output::{self, Table};

/// Lists every plan that a roll-out has had: who made it, when, why, and which gateways it changed.
#[derive(Args, Debug)]
pub(super) struct HistoryArgs {
    /// The roll-out's id, or the beginning of it.
    id: String,
    #[command(flatten)]
    target: Target,
    /// Write JSON.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: HistoryArgs) -> Result<(), Failure> {
    let mut client = args.target.connect().await?;
    let answer = client.list_plans(ListPlansRequest { id: args.id }).await;
    let plans = answer.map_err(|status| explain(&status))?.into_inner().plans;
    if args.json {
        let record = |plan: &Plan| {
            json!({
                "generation": plan.generation, "parent": plan.parent, "state": plan.state().as_str_name(),
                "wave": plan.wave, "at": utc(plan.at.as_ref()), "actor": plan.actor, "reason": plan.reason,
                "changed": plan.changed,
            })
        };
        return output::json(&plans.iter().map(record).collect::<Vec<_>>());
    }
    output::write(&table(&plans))
}

fn table(plans: &[Plan]) -> String {
    let mut table = Table::new(&[">PLAN", "AT", "STATE", ">WAVE", "BY", ">GATEWAYS", "REASON"]);
    for plan in plans {
        table.row([
            plan.generation.to_string(),
            utc(plan.at.as_ref()).unwrap_or_default(),
            state(plan.state()).to_owned(),
            (plan.wave + 1).to_string(),
            plan.actor.clone(),
            plan.changed.len().to_string(),
            plan.reason.clone(),
        ]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use rookery_proto::v1::RolloutState;

    use super::*;

    #[test]
    fn each_plan_is_a_line_with_its_reason() {
        let plan = Plan {
            generation: 3,
            parent: 2,
            state: RolloutState::RollingBack.into(),
            actor: "control plane".to_owned(),
            reason: "1 of 1 gateway failed".to_owned(),
            changed: vec!["gw".to_owned()],
            ..Default::default()
        };
        let text = table(&[plan]);
        assert!(
            text.lines()
                .nth(1)
                .unwrap()
                .ends_with("rolling back     1  control plane         1  1 of 1 gateway failed"),
            "{text}"
        );
    }
}
