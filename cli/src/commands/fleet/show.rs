//! `rookery fleet show`: everything about one gateway.

use std::time::SystemTime;

use clap::Args;
use rookery_proto::v1::{Gateway, ListGatewaysRequest};

use super::Target;
use super::list::{phase, record, short, state, utc, version_name};
use crate::client::explain;
use crate::error::Failure;
use crate::output::{self, Table};

/// Shows one gateway.
#[derive(Args, Debug)]
pub(super) struct ShowArgs {
    /// Its id.
    gateway: String,
    #[command(flatten)]
    target: Target,
    /// Write JSON.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: ShowArgs) -> Result<(), Failure> {
    let mut client = args.target.connect().await?;
    let selector = format!("id={}", args.gateway);
    let answer = client.list_gateways(ListGatewaysRequest { selector }).await;
    let gateways = answer.map_err(|status| explain(&status))?.into_inner().gateways;
    let Some(gateway) = gateways.iter().find(|gateway| gateway.id == args.gateway) else {
        return Err(Failure::new(format!("there is no gateway {}", args.gateway))
            .hint("`rookery fleet list` shows them"));
    };
    if args.json {
        return output::json(&record(gateway));
    }
    output::write(&text(gateway, SystemTime::now()))
}

fn text(gateway: &Gateway, now: SystemTime) -> String {
    let facts = gateway.facts.clone().unwrap_or_default();
    let bytes = |count: u64| if count == 0 { "unknown".to_owned() } else { output::bytes(count) };
    let moment = |at| utc(at).unwrap_or_else(|| "none".to_owned());
    let mut labels: Vec<_> = gateway.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    labels.sort();
    let seen = match (gateway.online, gateway.last_seen.as_ref().and_then(super::list::moment)) {
        (true, _) => "now".to_owned(),
        (false, None) => "never".to_owned(),
        (false, Some(at)) => {
            let age = super::list::age(now.duration_since(at).unwrap_or_default());
            format!("{} ({age} ago)", moment(gateway.last_seen.as_ref()))
        }
    };
    let mut table = Table::new(&["gateway", &gateway.id]);
    let rows = [
        ("state", state(gateway).to_owned()),
        ("seen", seen),
        ("joined", moment(gateway.joined.as_ref())),
        ("certificate ends", moment(gateway.certificate_ends.as_ref())),
        ("labels", labels.join(" ")),
        ("board", facts.board),
        ("processor", facts.processor),
        ("driver", if facts.driver.is_empty() { "none".to_owned() } else { facts.driver }),
        ("memory", format!("{} ({} free)", bytes(facts.memory_bytes), bytes(facts.available_memory_bytes))),
        ("free disk", bytes(facts.free_disk_bytes)),
        ("temperature", facts.celsius.map_or("unknown".to_owned(), |celsius| format!("{celsius:.0} °C"))),
        ("requests in flight", gateway.in_flight.to_string()),
    ];
    rows.into_iter().for_each(|(name, value)| table.row([name.to_owned(), value]));
    let mut text = table.render();
    if !gateway.assigned.is_empty() {
        text.push_str(&format!("\n{}", assigned(gateway).render()));
    }
    if !gateway.versions.is_empty() {
        text.push_str(&format!("\n{}", versions(gateway)));
    }
    text
}

fn assigned(gateway: &Gateway) -> Table {
    let mut table = Table::new(&["ASSIGNED", "DIGEST", "ROLLOUT", ">GENERATION"]);
    for assigned in &gateway.assigned {
        table.row([
            format!("{}@{}", assigned.model, assigned.version),
            short(&assigned.digest).to_owned(),
            assigned.rollout.clone(),
            assigned.generation.to_string(),
        ]);
    }
    table
}

fn versions(gateway: &Gateway) -> String {
    let mut table = Table::new(&["VERSION", "PHASE", ">BYTES", ">REQUESTS", ">FAILED", "REASON"]);
    for version in &gateway.versions {
        table.row([
            version_name(gateway, &version.model, &version.digest),
            phase(version.phase()).to_owned(),
            output::bytes(version.downloaded_bytes),
            version.requests.to_string(),
            version.failures.to_string(),
            version.reason.clone(),
        ]);
    }
    let mut text = table.render();
    for version in gateway.versions.iter().filter(|version| !version.verdicts.is_empty()) {
        let mut table = Table::new(&["GATE", "VERDICT", "EXPECTED", "SEEN"]);
        for verdict in &version.verdicts {
            let passed = if verdict.passed { "passed" } else { "failed" };
            table.row([
                verdict.gate.clone(),
                passed.to_owned(),
                verdict.expected.clone(),
                verdict.seen.clone(),
            ]);
        }
        let name = version_name(gateway, &version.model, &version.digest);
        text.push_str(&format!("\ngates of {name}\n{}", table.render()));
    }
    text
}

#[cfg(test)]
mod tests {
    use rookery_proto::v1::{Phase, Verdict, VersionStatus};

    use super::*;

    #[test]
    fn a_gateway_that_says_nothing_can_be_shown() {
        let bare = text(&Gateway { id: "gw".into(), ..Default::default() }, SystemTime::UNIX_EPOCH);
        assert!(bare.starts_with("gateway") && bare.contains("never"), "{bare}");
        let verdict = Verdict {
            gate: "probes".into(),
            expected: "1 2".into(),
            seen: "1 3".into(),
            ..Default::default()
        };
        let version = VersionStatus {
            model: "m".into(),
            digest: format!("sha256:{}", "c".repeat(64)),
            phase: Phase::Failed.into(),
            verdicts: vec![verdict],
            ..Default::default()
        };
        let gateway = Gateway { id: "gw".into(), versions: vec![version], ..Default::default() };
        let full = text(&gateway, SystemTime::UNIX_EPOCH);
        assert!(
            full.contains(
                "gates of m@cccccccccccc\nGATE    VERDICT  EXPECTED  SEEN\nprobes  failed   1 2       1 3\n"
            ),
            "{full}"
        );
    }
}
