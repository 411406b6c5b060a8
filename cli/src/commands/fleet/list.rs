//! `rookery fleet list`, and how a gateway looks in a line.

use std::time::{Duration, SystemTime};

use clap::Args;
use prost_types::Timestamp;
use rookery_proto::v1::{Admission, Gateway, ListGatewaysRequest, Phase, VersionStatus};
use serde_json::{Value, json};

use super::Target;
use crate::client::explain;
use crate::error::Failure;
use crate::output::{self, Table};

/// Lists gateways.
#[derive(Args, Debug)]
pub(super) struct ListArgs {
    /// Only those that match, such as site=berlin,board!=dev.
    #[arg(long, value_name = "SELECTOR", default_value = "")]
    select: String,
    #[command(flatten)]
    target: Target,
    /// Write JSON.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: ListArgs) -> Result<(), Failure> {
    let mut client = args.target.connect().await?;
    let answer = client.list_gateways(ListGatewaysRequest { selector: args.select }).await;
    let gateways = answer.map_err(|status| explain(&status))?.into_inner().gateways;
    if args.json {
        return output::json(&gateways.iter().map(record).collect::<Vec<_>>());
    }
    output::write(&table(&gateways, SystemTime::now()))
}

/// One line for each gateway.
pub(super) fn table(gateways: &[Gateway], now: SystemTime) -> String {
    let mut table =
        Table::new(&["GATEWAY", "STATE", "LABELS", "BOARD", ">MEMORY", "VERSIONS", ">RUNNING", ">SEEN"]);
    for gateway in gateways {
        let facts = gateway.facts.clone().unwrap_or_default();
        table.row([
            gateway.id.clone(),
            state(gateway).to_owned(),
            labels(gateway),
            facts.board,
            if facts.memory_bytes == 0 { String::new() } else { output::bytes(facts.memory_bytes) },
            versions(gateway),
            gateway.in_flight.to_string(),
            seen(gateway, now),
        ]);
    }
    table.render()
}

/// Online or not, and what it is given.
pub(super) fn state(gateway: &Gateway) -> &'static str {
    match (gateway.online, gateway.admission()) {
        (true, Admission::Open | Admission::Unspecified) => "online",
        (true, Admission::Cordoned) => "online, cordoned",
        (true, Admission::Drained) => "online, drained",
        (false, Admission::Open | Admission::Unspecified) => "offline",
        (false, Admission::Cordoned) => "offline, cordoned",
        (false, Admission::Drained) => "offline, drained",
    }
}

/// Those that people gave it: what it reports of itself has columns of its own.
fn labels(gateway: &Gateway) -> String {
    let own = |name: &str| !["board", "driver", "processor"].contains(&name);
    let mut labels: Vec<_> = gateway.labels.iter().filter(|(name, _)| own(name)).collect();
    labels.sort();
    labels.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(",")
}

/// What it serves, and what is on its way.
pub(super) fn versions(gateway: &Gateway) -> String {
    gateway.versions.iter().map(|version| one_version(gateway, version)).collect::<Vec<_>>().join(", ")
}

fn one_version(gateway: &Gateway, version: &VersionStatus) -> String {
    let name = version_name(gateway, &version.model, &version.digest);
    match version.phase() {
        Phase::Serving => name,
        Phase::Downloading if version.total_bytes > 0 => {
            let percent = 100.0 * version.downloaded_bytes as f64 / version.total_bytes as f64;
            format!("{name} downloading {percent:.0} %")
        }
        Phase::Downloading
        | Phase::Unspecified
        | Phase::Assigned
        | Phase::Verifying
        | Phase::Staged
        | Phase::Probing
        | Phase::Activating
        | Phase::Failed
        | Phase::RolledBack
        | Phase::Draining => format!("{name} {}", phase(version.phase())),
    }
}

/// `qwen@2.1`; the beginning of the digest where the version's name is not known.
pub(super) fn version_name(gateway: &Gateway, model: &str, digest: &str) -> String {
    let assigned = gateway.assigned.iter().find(|assigned| assigned.digest == digest);
    match assigned.filter(|assigned| !assigned.version.is_empty()) {
        Some(assigned) => format!("{model}@{}", assigned.version),
        None => format!("{model}@{}", short(digest)),
    }
}

/// The beginning of a digest, which is enough for people.
pub(super) fn short(digest: &str) -> &str {
    let hex = digest.strip_prefix("sha256:").unwrap_or(digest);
    hex.get(..12).unwrap_or(hex)
}

/// A phase in words.
pub(super) fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Unspecified => "not there",
        Phase::Assigned => "assigned",
        Phase::Downloading => "downloading",
        Phase::Verifying => "verifying",
        Phase::Staged => "staged",
        Phase::Probing => "probing",
        Phase::Activating => "activating",
        Phase::Serving => "serving",
        Phase::Failed => "failed",
        Phase::RolledBack => "rolled back",
        Phase::Draining => "draining",
    }
}

fn seen(gateway: &Gateway, now: SystemTime) -> String {
    match (gateway.online, gateway.last_seen.as_ref().and_then(moment)) {
        (true, _) => "now".to_owned(),
        (false, None) => "never".to_owned(),
        (false, Some(at)) => format!("{} ago", age(now.duration_since(at).unwrap_or_default())),
    }
}

/// A time span in its largest unit: people compare, they do not compute.
pub(super) fn age(age: Duration) -> String {
    let seconds = age.as_secs();
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// A moment; `None` if it is beyond what this machine's clock knows.
pub(super) fn moment(at: &Timestamp) -> Option<SystemTime> {
    let (seconds, nanos) = (u64::try_from(at.seconds).ok()?, u32::try_from(at.nanos).ok()?);
    SystemTime::UNIX_EPOCH.checked_add(Duration::new(seconds, nanos.min(999_999_999)))
}

/// A moment as people and programs read it; nothing for one that is not there, or far out.
pub(in crate::commands) fn utc(at: Option<&Timestamp>) -> Option<String> {
    // Beyond the year 9999 there is no such text.
    let at = at.filter(|at| (0..253_402_300_800).contains(&at.seconds)).and_then(moment)?;
    Some(humantime::format_rfc3339_seconds(at).to_string())
}

/// The gateway as JSON.
pub(super) fn record(gateway: &Gateway) -> Value {
    let facts = gateway.facts.clone().unwrap_or_default();
    let version = |version: &VersionStatus| {
        json!({
            "model": version.model, "digest": version.digest, "phase": version.phase().as_str_name(),
            "reason": version.reason, "downloaded_bytes": version.downloaded_bytes,
            "total_bytes": version.total_bytes, "generation": version.generation,
            "requests": version.requests, "failures": version.failures, "ttft_us": version.ttft_us,
            "verdicts": version.verdicts.iter().map(verdict).collect::<Vec<_>>(),
        })
    };
    let assigned = gateway.assigned.iter().map(|assigned| {
        json!({
            "model": assigned.model, "version": assigned.version, "digest": assigned.digest,
            "rollout": (!assigned.rollout.is_empty()).then_some(&assigned.rollout),
            "generation": assigned.generation,
        })
    });
    json!({
        "id": gateway.id, "labels": gateway.labels, "online": gateway.online,
        "admission": gateway.admission().as_str_name(),
        "last_seen": utc(gateway.last_seen.as_ref()), "joined": utc(gateway.joined.as_ref()),
        "certificate_ends": utc(gateway.certificate_ends.as_ref()), "in_flight": gateway.in_flight,
        "facts": {
            "board": facts.board, "processor": facts.processor, "driver": facts.driver,
            "memory_bytes": facts.memory_bytes, "available_memory_bytes": facts.available_memory_bytes,
            "free_disk_bytes": facts.free_disk_bytes, "celsius": facts.celsius,
        },
        "versions": gateway.versions.iter().map(version).collect::<Vec<_>>(),
        "assigned": assigned.collect::<Vec<_>>(),
    })
}

pub(super) fn verdict(verdict: &rookery_proto::v1::Verdict) -> Value {
    json!({
        "gate": verdict.gate, "passed": verdict.passed, "expected": verdict.expected, "seen": verdict.seen,
    })
}

#[cfg(test)]
mod tests {
    use rookery_proto::v1::{AssignedVersion, GatewayFacts};

    use super::*;

    fn gateway(id: &str, online: bool) -> Gateway {
        let digest = format!("sha256:{}", "a".repeat(64));
        let version = VersionStatus {
            model: "qwen".into(),
            digest: digest.clone(),
            phase: Phase::Downloading.into(),
            downloaded_bytes: 25,
            total_bytes: 100,
            ..Default::default()
        };
        let assigned =
            AssignedVersion { model: "qwen".into(), version: "2.1".into(), digest, ..Default::default() };
        let facts =
            GatewayFacts { board: "ROCK 5B".into(), memory_bytes: 8_000_000_000, ..Default::default() };
        Gateway {
            id: id.into(),
            online,
            admission: Admission::Cordoned.into(),
            labels: [("site".into(), "berlin".into()), ("board".into(), "x".into())].into(),
            last_seen: Some(Timestamp { seconds: 1000, nanos: 0 }),
            facts: Some(facts),
            versions: vec![version],
            assigned: vec![assigned],
            ..Default::default()
        }
    }

    #[test]
    fn columns_line_up_and_say_what_matters() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1300);
        let text = table(&[gateway("a", true), gateway("shelf-3", false)], now);
        let expected = "\
GATEWAY  STATE              LABELS       BOARD    MEMORY  VERSIONS                   RUNNING       SEEN
a        online, cordoned   site=berlin  ROCK 5B  8.0 GB  qwen@2.1 downloading 25 %        0        now
shelf-3  offline, cordoned  site=berlin  ROCK 5B  8.0 GB  qwen@2.1 downloading 25 %        0  5 min ago
";
        assert_eq!(text, expected);
    }

    #[test]
    fn strange_moments_and_digests_do_no_harm() {
        assert_eq!(utc(Some(&Timestamp { seconds: i64::MAX, nanos: -1 })), None);
        assert_eq!(utc(Some(&Timestamp { seconds: 0, nanos: 0 })).as_deref(), Some("1970-01-01T00:00:00Z"));
        assert_eq!((short("sha256:ä"), short("")), ("ä", ""));
        let ages = [59, 60, 7200, 200_000].map(|seconds| age(Duration::from_secs(seconds)));
        assert_eq!(ages, ["59 s", "1 min", "2 h", "2 days"]);
        assert_eq!(record(&gateway("a", true))["versions"][0]["phase"], "PHASE_DOWNLOADING");
    }
}
