//! `rookery rollouts list` and `show`, and how a roll-out looks.

use std::time::{Duration, SystemTime};

use clap::Args;
use prost_types::Timestamp;
use rookery_proto::v1::{
    GetRolloutRequest, ListRolloutsRequest, Rollout, RolloutCounts, RolloutGateway, RolloutSpec, RolloutState,
};
use serde_json::{Value, json};

use super::Target;
use crate::client::explain;
use crate::error::Failure;
use crate::output::{self, Table};

/// Digits of an id that people are shown: the moment of its creation, to the millisecond.
pub(super) const SHORT_ID: usize = 12;

/// Lists roll-outs, newest first.
#[derive(Args, Debug)]
pub(super) struct ListArgs {
    /// Only those that are not over.
    #[arg(long)]
    unfinished: bool,
    /// At most this many.
    #[arg(long, default_value_t = 20)]
    limit: u32,
    #[command(flatten)]
    target: Target,
    /// Write JSON.
    #[arg(long)]
    json: bool,
}

/// Shows a roll-out with its gateways.
#[derive(Args, Debug)]
pub(super) struct ShowArgs {
    /// Its id, or the beginning of it.
    id: String,
    #[command(flatten)]
    target: Target,
    /// Write JSON.
    #[arg(long)]
    json: bool,
}

pub(super) async fn list(args: ListArgs) -> Result<(), Failure> {
    let mut client = args.target.connect().await?;
    let request = ListRolloutsRequest { unfinished: args.unfinished, limit: args.limit };
    let answer = client.list_rollouts(request).await.map_err(|status| explain(&status))?;
    let rollouts = answer.into_inner().rollouts;
    if args.json {
        return output::json(&rollouts.iter().map(record).collect::<Vec<_>>());
    }
    let mut table = Table::new(&[
        "ID", "VERSION", "STATE", ">WAVE", ">SERVING", ">FAILED", ">OFFLINE", ">OF", "CREATED", "BY",
        "REASON",
    ]);
    for rollout in &rollouts {
        let counts = rollout.counts.unwrap_or_default();
        table.row([
            short(&rollout.id),
            version(rollout),
            state(rollout.state()).to_owned(),
            wave(rollout),
            counts.serving.to_string(),
            counts.failed.to_string(),
            counts.offline.to_string(),
            counts.selected.to_string(),
            utc(rollout.created.as_ref()).unwrap_or_default(),
            rollout.created_by.clone(),
            cut(&rollout.reason, 60),
        ]);
    }
    output::write(&table.render())
}

pub(super) async fn show(args: ShowArgs) -> Result<(), Failure> {
    let mut client = args.target.connect().await?;
    let request = GetRolloutRequest { id: args.id };
    let rollout = client.get_rollout(request).await.map_err(|status| explain(&status))?.into_inner();
    if args.json {
        return output::json(&record(&rollout));
    }
    output::write(&format!("{}\n{}", summary(&rollout), gateway_table(&rollout)))
}

/// A few lines about a roll-out.
pub(super) fn summary(rollout: &Rollout) -> String {
    let spec = rollout.spec.clone().unwrap_or_default();
    let RolloutCounts { selected, waiting, switching, serving, failed, offline } =
        rollout.counts.unwrap_or_default();
    let head = if rollout.id.is_empty() {
        format!("{} (dry run)", version(rollout))
    } else {
        format!("{}  {}", short(&rollout.id), version(rollout))
    };
    let selector = if spec.selector.is_empty() { "all gateways" } else { &spec.selector };
    let mut lines = vec![
        format!("{head}  {}  wave {}", state(rollout.state()), wave(rollout)),
        rollout.reason.clone(),
        format!("{selector}; waves {}; soak {}", spec.waves.join(", "), seconds(spec.soak_s)),
        format!(
            "{serving} of {selected} serve it, {switching} on the way, {failed} failed, {waiting} waiting, {offline} offline"
        ),
    ];
    if !spec.windows.is_empty() {
        lines.insert(3, format!("only {}", spec.windows.join("; ")));
    }
    lines.join("\n") + "\n"
}

fn seconds(seconds: u64) -> String {
    humantime::format_duration(Duration::from_secs(seconds)).to_string()
}

/// The gateways: those that need a look first, then by wave.
pub(super) fn gateway_table(rollout: &Rollout) -> String {
    let mut gateways: Vec<_> = rollout.gateways.iter().collect();
    gateways.sort_by_key(|gateway| (rank(gateway), gateway.wave, gateway.gateway.clone()));
    let mut table = Table::new(&["GATEWAY", ">WAVE", "PHASE", "BEFORE", "REASON"]);
    for gateway in gateways {
        let reached = !matches!(gateway.phase.as_str(), "waiting" | "late") || rollout.id.is_empty();
        let digest = gateway.previous_digest.strip_prefix("sha256:").unwrap_or_default();
        table.row([
            gateway.gateway.clone(),
            if reached { (gateway.wave + 1).to_string() } else { "-".to_owned() },
            gateway.phase.clone(),
            digest.chars().take(12).collect(),
            gateway.reason.clone(),
        ]);
    }
    table.render()
}

fn rank(gateway: &RolloutGateway) -> u8 {
    match gateway.phase.as_str() {
        "failed" | "rolled-back" => 0,
        "serving" => 2,
        "waiting" | "late" => 3,
        _ => 1,
    }
}

/// `qwen@2`.
pub(super) fn version(rollout: &Rollout) -> String {
    let RolloutSpec { model, version, .. } = rollout.spec.clone().unwrap_or_default();
    format!("{model}@{version}")
}

/// The beginning of an id.
pub(super) fn short(id: &str) -> String {
    id.chars().take(SHORT_ID).collect()
}

/// `2/3`.
pub(super) fn wave(rollout: &Rollout) -> String {
    let waves = rollout.spec.as_ref().map_or(0, |spec| spec.waves.len());
    format!("{}/{waves}", rollout.wave + 1)
}

fn cut(text: &str, most: usize) -> String {
    let cut: String = text.chars().take(most).collect();
    if cut.len() < text.len() { cut + "…" } else { cut }
}

/// A moment as people and programs read it; nothing for one that is not there, or far out.
pub(super) fn utc(at: Option<&Timestamp>) -> Option<String> {
    // Beyond the year 9999 there is no such text.
    let at = at.filter(|at| (0..253_402_300_800).contains(&at.seconds))?;
    let since = Duration::from_secs(at.seconds.unsigned_abs());
    Some(humantime::format_rfc3339_seconds(SystemTime::UNIX_EPOCH + since).to_string())
}

/// A state in words.
pub(crate) fn state(state: RolloutState) -> &'static str {
    match state {
        RolloutState::Unspecified => "unknown",
        RolloutState::Running => "running",
        RolloutState::Soaking => "soaking",
        RolloutState::AwaitingApproval => "awaiting approval",
        RolloutState::AwaitingWindow => "awaiting a window",
        RolloutState::Paused => "paused",
        RolloutState::RollingBack => "rolling back",
        RolloutState::Done => "done",
        RolloutState::RolledBack => "rolled back",
        RolloutState::Aborted => "aborted",
    }
}

/// The roll-out as JSON.
pub(super) fn record(rollout: &Rollout) -> Value {
    let spec = rollout.spec.clone().unwrap_or_default();
    let gates = spec.gates.unwrap_or_default();
    let counts = rollout.counts.unwrap_or_default();
    let gateways = rollout.gateways.iter().map(|gateway| {
        json!({
            "gateway": gateway.gateway, "wave": gateway.wave, "phase": gateway.phase, "reason": gateway.reason,
            "previous_digest": (!gateway.previous_digest.is_empty()).then_some(&gateway.previous_digest),
        })
    });
    json!({
        "id": (!rollout.id.is_empty()).then_some(&rollout.id),
        "model": spec.model, "version": spec.version, "digest": rollout.digest, "selector": spec.selector,
        "state": rollout.state().as_str_name(), "reason": rollout.reason, "wave": rollout.wave,
        "generation": rollout.generation, "created": utc(rollout.created.as_ref()),
        "created_by": rollout.created_by, "updated": utc(rollout.updated.as_ref()),
        "waves": spec.waves, "soak_s": spec.soak_s, "max_failed_percent": spec.max_failed_percent,
        "max_unavailable_percent": spec.max_unavailable_percent, "windows": spec.windows,
        "manual_approval": spec.manual_approval, "gateway_timeout_s": spec.gateway_timeout_s,
        "gates": {
            "min_speed_percent": gates.min_speed_percent, "max_celsius": gates.max_celsius,
            "max_extra_error_percent": gates.max_extra_error_percent,
            "max_extra_ttft_percent": gates.max_extra_ttft_percent,
        },
        "counts": {
            "selected": counts.selected, "waiting": counts.waiting, "switching": counts.switching,
            "serving": counts.serving, "failed": counts.failed, "offline": counts.offline,
        },
        "gateways": gateways.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rollout() -> Rollout {
        let gateway = |gateway: &str, wave, phase: &str| RolloutGateway {
            gateway: gateway.to_owned(),
            wave,
            phase: phase.to_owned(),
            ..Default::default()
        };
        Rollout {
            id: "0193c2a4b5c6700080000000000000ff".to_owned(),
            spec: Some(RolloutSpec {
                model: "m".to_owned(),
                version: "2".to_owned(),
                waves: vec!["1".to_owned(), "100%".to_owned()],
                soak_s: 600,
                ..Default::default()
            }),
            state: RolloutState::Soaking.into(),
            reason: "soaks for another 9m".to_owned(),
            counts: Some(RolloutCounts {
                selected: 3,
                serving: 1,
                failed: 1,
                waiting: 1,
                ..Default::default()
            }),
            gateways: vec![gateway("a", 0, "serving"), gateway("b", 0, "waiting"), gateway("c", 0, "failed")],
            ..Default::default()
        }
    }

    #[test]
    fn people_see_what_needs_a_look_first() {
        let text = summary(&rollout());
        assert!(text.starts_with("0193c2a4b5c6  m@2  soaking  wave 1/2\nsoaks for another 9m\n"), "{text}");
        assert!(text.contains("all gateways; waves 1, 100%; soak 10m"), "{text}");
        assert!(text.ends_with("1 of 3 serve it, 0 on the way, 1 failed, 1 waiting, 0 offline\n"), "{text}");
        let table = gateway_table(&rollout());
        let order: Vec<_> = table.lines().skip(1).map(|line| &line[..1]).collect();
        assert_eq!(order, ["c", "a", "b"]);
        assert!(table.lines().last().unwrap().contains(" -  waiting"), "{table}");
    }

    #[test]
    fn programs_see_everything() {
        let json = record(&rollout());
        assert_eq!(json["state"], "ROLLOUT_STATE_SOAKING");
        assert_eq!(json["gateways"][2]["phase"], "failed");
        assert!(json["created"].is_null() && json["gateways"][0]["previous_digest"].is_null());
    }
}
