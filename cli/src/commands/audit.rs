//! `rookery audit`: who did what, when.

use clap::Args;
use rookery_proto::v1::ListAuditRequest;
use serde_json::json;

use super::fleet::{Target, utc};
use crate::client::explain;
use crate::error::Failure;
use crate::output::{self, Table};

/// Shows what was done, newest first.
#[derive(Args, Debug)]
pub struct AuditArgs {
    /// At most this many.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
    #[command(flatten)]
    target: Target,
    /// Write JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// If the control plane refuses or cannot be asked.
pub async fn run(args: AuditArgs) -> Result<(), Failure> {
    let mut client = args.target.connect().await?;
    let answer = client.list_audit(ListAuditRequest { limit: args.limit }).await;
    let entries = answer.map_err(|status| explain(&status))?.into_inner().entries;
    if args.json {
        let record = |entry: &rookery_proto::v1::AuditEntry| {
            json!({
                "at": utc(entry.at.as_ref()), "actor": entry.actor, "action": entry.action,
                "object": entry.object, "detail": entry.detail,
            })
        };
        return output::json(&entries.iter().map(record).collect::<Vec<_>>());
    }
    let mut table = Table::new(&["TIME", "WHO", "ACTION", "OBJECT", "DETAIL"]);
    for entry in entries {
        let at = utc(entry.at.as_ref()).unwrap_or_default();
        table.row([at, entry.actor, entry.action, entry.object, entry.detail]);
    }
    output::write(&table.render())
}
