//! What a simulation found, for people and programs.

use std::time::Duration;

use serde_json::{Value, json};

use super::Linked;
use crate::output::{self, Table};

/// A wave of the roll-out.
pub(super) struct Wave {
    /// Since the roll-out began.
    pub(super) began: Duration,
    /// Likewise.
    pub(super) ended: Duration,
    /// Gateways that served the version at its end.
    pub(super) serving: u32,
    /// Gateways that did not make it.
    pub(super) failed: u32,
}

/// The roll-out.
pub(super) struct Rollout {
    pub(super) waves: Vec<Wave>,
    pub(super) took: Duration,
    /// Processors that the control plane used.
    pub(super) cpu: f64,
}

/// Everything.
pub(super) struct Report {
    pub(super) gateways: usize,
    pub(super) seed: u64,
    pub(super) faults: String,
    pub(super) joined: Linked,
    /// Processors that the control plane used with heartbeats only.
    pub(super) idle_cpu: f64,
    /// Of the control plane, with heartbeats only.
    pub(super) resident_bytes: u64,
    pub(super) peak_bytes: u64,
    pub(super) rollout: Option<Rollout>,
    pub(super) back: Linked,
}

impl Report {
    pub(super) fn table(&self) -> String {
        let per = |amount: f64| amount / self.gateways as f64;
        let seconds = |time: Duration| format!("{:.1} s", time.as_secs_f64());
        let mut table = Table::new(&["WHAT", ">VALUE", ">PER GATEWAY"]);
        let mut row = |what: &str, value: String, each: String| table.row([what.to_owned(), value, each]);
        row("gateways", self.gateways.to_string(), String::new());
        row("joined within", seconds(self.joined.took), String::new());
        let memory = output::bytes(self.resident_bytes);
        row("memory, idle", memory, output::bytes(per(self.resident_bytes as f64) as u64));
        row(
            "memory, most",
            output::bytes(self.peak_bytes),
            output::bytes(per(self.peak_bytes as f64) as u64),
        );
        let percent = |cpu: f64| format!("{:.1} %", cpu * 100.0);
        let microseconds = |cpu: f64| format!("{:.0} µs/s", per(cpu) * 1e6);
        row("processor, idle", percent(self.idle_cpu), microseconds(self.idle_cpu));
        if let Some(rollout) = &self.rollout {
            for (number, wave) in rollout.waves.iter().enumerate() {
                let took = seconds(wave.ended.saturating_sub(wave.began));
                let count = format!("{} serve, {} failed", wave.serving, wave.failed);
                row(&format!("wave {}", number + 1), took, count);
            }
            row("roll-out", seconds(rollout.took), String::new());
            row("processor, roll-out", percent(rollout.cpu), microseconds(rollout.cpu));
        }
        row("back after a kill", seconds(self.back.took), String::new());
        row("links in one second, most", self.back.most_a_second.to_string(), String::new());
        table.render()
    }

    pub(super) fn json(&self) -> Value {
        let wave = |wave: &Wave| {
            json!({
                "began_s": wave.began.as_secs_f64(), "ended_s": wave.ended.as_secs_f64(),
                "serving": wave.serving, "failed": wave.failed,
            })
        };
        let rollout = self.rollout.as_ref().map(|rollout| {
            json!({
                "took_s": rollout.took.as_secs_f64(), "cpu": rollout.cpu,
                "waves": rollout.waves.iter().map(wave).collect::<Vec<_>>(),
            })
        });
        json!({
            "gateways": self.gateways, "seed": self.seed, "faults": self.faults,
            "joined_s": self.joined.took.as_secs_f64(), "idle_cpu": self.idle_cpu,
            "resident_bytes": self.resident_bytes, "peak_bytes": self.peak_bytes, "rollout": rollout,
            "back_s": self.back.took.as_secs_f64(), "most_links_a_second": self.back.most_a_second,
        })
    }
}
