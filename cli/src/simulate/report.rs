//! What a simulation found, for people and programs.

use std::time::Duration;

use serde_json::{Value, json};

use super::outcome::Row;
use super::rollout::{Rollout, Wave};
use crate::commands::rollouts::state_name;
use crate::output::{self, Table};

/// The control plane with nothing but heartbeats.
#[derive(Clone, Copy, Debug)]
pub(super) struct Idle {
    /// How long it was looked at.
    pub(super) over: Duration,
    /// Processors that it used.
    pub(super) cpu: f64,
    /// Bytes resident at the end.
    pub(super) resident_bytes: u64,
}

/// After the control plane was killed and started again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Back {
    /// From the kill until it served again.
    pub(super) down: Duration,
    /// From the kill until all links were there.
    pub(super) took: Duration,
    /// Links that came about in one second.
    pub(super) most_a_second: usize,
    /// Bytes resident then.
    pub(super) resident_bytes: u64,
}

/// Everything. What only the control plane's own process tells is missing if that is somebody else's.
pub(super) struct Report {
    pub(super) gateways: usize,
    pub(super) seed: u64,
    pub(super) faults: String,
    pub(super) hurry: f64,
    /// Until all gateways were linked, but for those with a fault that keeps them away.
    pub(super) joined: Duration,
    pub(super) idle: Option<Idle>,
    pub(super) peak_bytes: Option<u64>,
    pub(super) rollout: Option<Rollout>,
    /// Links that faults have cut so far.
    pub(super) links_lost: u64,
    /// Programs that have died so far.
    pub(super) crashes: u64,
    pub(super) back: Option<Back>,
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

impl Report {
    pub(super) fn table(&self) -> String {
        let per = |amount: f64| amount / self.gateways as f64;
        let bytes = |count: u64| (output::bytes(count), output::bytes(per(count as f64) as u64));
        let cpu =
            |cpu: f64| (format!("{:.1} % of a core", cpu * 100.0), format!("{:.0} µs/s", per(cpu) * 1e6));
        let plain = |value: String| (value, String::new());
        let mut table = Table::new(&["SIMULATED", ">VALUE", ">PER GATEWAY"]);
        let mut row = |what: &str, (value, each): (String, String)| table.row([what.to_owned(), value, each]);
        row("gateways", plain(self.gateways.to_string()));
        row("joined within", plain(seconds(self.joined)));
        if let Some(idle) = self.idle {
            row("control plane, idle: processor", cpu(idle.cpu));
            row("control plane, idle: memory", bytes(idle.resident_bytes));
        }
        if let Some(peak) = self.peak_bytes {
            row("control plane, most memory", bytes(peak));
        }
        if let Some(rollout) = &self.rollout {
            for (number, wave) in rollout.waves.iter().enumerate() {
                let counts = format!("{} serve, {} failed", wave.serving, wave.failed);
                let took = wave.ended.saturating_sub(wave.began);
                row(&format!("wave {}: {counts}", number + 1), plain(seconds(took)));
            }
            row(&format!("roll-out: {}", state_name(rollout.state)), plain(seconds(rollout.took)));
            let settled = rollout.settled.map_or_else(|| "not all".to_owned(), seconds);
            row("all are where they belong", plain(settled));
            if let Some(used) = rollout.cpu {
                row("control plane, roll-out: processor", cpu(used));
            }
        }
        row("links cut by faults", plain(self.links_lost.to_string()));
        row("crashes", plain(self.crashes.to_string()));
        if let Some(back) = self.back {
            row("control plane killed: serves again", plain(seconds(back.down)));
            row("control plane killed: all links back", plain(seconds(back.took)));
            row("links in one second, most", plain(back.most_a_second.to_string()));
            row("control plane, links back: memory", bytes(back.resident_bytes));
        }
        let mut text = table.render();
        if let Some(rollout) = &self.rollout {
            text.push_str(&format!("\n{}: {}\n\n", state_name(rollout.state), rollout.reason));
            text.push_str(&outcome(rollout));
        }
        text
    }

    pub(super) fn json(&self) -> Value {
        let idle = self.idle.map(|idle| {
            json!({ "seconds": idle.over.as_secs_f64(), "cpu": idle.cpu, "resident_bytes": idle.resident_bytes })
        });
        let back = self.back.map(|back| {
            json!({
                "down_s": back.down.as_secs_f64(), "back_s": back.took.as_secs_f64(),
                "most_links_a_second": back.most_a_second, "resident_bytes": back.resident_bytes,
            })
        });
        json!({
            "simulated": true, "gateways": self.gateways, "seed": self.seed, "faults": self.faults,
            "hurry": self.hurry, "joined_s": self.joined.as_secs_f64(), "idle": idle,
            "peak_bytes": self.peak_bytes, "rollout": self.rollout.as_ref().map(rollout_json),
            "links_lost": self.links_lost, "crashes": self.crashes, "restart": back,
        })
    }
}

fn rollout_json(rollout: &Rollout) -> Value {
    let wave = |wave: &Wave| {
        json!({
            "began_s": wave.began.as_secs_f64(), "ended_s": wave.ended.as_secs_f64(),
            "serving": wave.serving, "failed": wave.failed,
        })
    };
    json!({
        "state": state_name(rollout.state), "reason": rollout.reason, "took_s": rollout.took.as_secs_f64(),
        "settled_s": rollout.settled.map(|settled| settled.as_secs_f64()), "cpu": rollout.cpu,
        "waves": rollout.waves.iter().map(wave).collect::<Vec<_>>(),
        "outcome": rollout.outcome.rows, "wrong_clocks": rollout.outcome.wrong_clocks,
    })
}

/// Where gateways are, by their faults.
fn outcome(rollout: &Rollout) -> String {
    let mut table = Table::new(&[
        "FAULT",
        ">GATEWAYS",
        ">SERVE NEW",
        ">SERVE OLD",
        ">NOTHING",
        ">REFUSED",
        ">TAKEN BACK",
        ">AWAY",
    ]);
    for row in &rollout.outcome.rows {
        let Row { fault, gateways, serve_new, serve_old, serve_nothing, refused, taken_back, away } = row;
        let counts = [gateways, serve_new, serve_old, serve_nothing, refused, taken_back, away];
        table.row([(*fault).to_owned()].into_iter().chain(counts.map(ToString::to_string)));
    }
    let mut text = table.render();
    if rollout.outcome.wrong_clocks > 0 {
        text.push_str(&format!(
            "clocks that the control plane sees to be wrong: {}\n",
            rollout.outcome.wrong_clocks
        ));
    }
    text
}
