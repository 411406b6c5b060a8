//! `rookery fleet simulate`: a small fleet with every fault, a roll-out that is taken back, and a control plane that stays.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::support::{rookery, run};

/// Runs a simulation and reads its report.
fn simulate(arguments: &[&str]) -> Value {
    let mut command = rookery();
    command.args(["fleet", "simulate", "--json", "--hurry", "20", "--give-up-after", "60s"]).args(arguments);
    let (code, report, error) = run(&mut command);
    assert_eq!(code, Some(0), "{error}");
    serde_json::from_str(&report).unwrap_or_else(|why| panic!("{why}: {report}\n{error}"))
}

/// The counts of the gateways with a fault.
fn of<'a>(report: &'a Value, fault: &str) -> &'a Value {
    let rows = report["rollout"]["outcome"].as_array().unwrap();
    rows.iter().find(|row| row["fault"] == fault).unwrap_or_else(|| panic!("no {fault} in {report:#}"))
}

fn count(row: &Value, what: &str) -> u64 {
    row[what].as_u64().unwrap_or_else(|| panic!("no {what} in {row}"))
}

#[test]
fn fifty_gateways_with_every_fault_come_to_the_new_version_and_back_to_a_killed_control_plane() {
    let report = simulate(&[
        "--gateways=50",
        "--seed=3",
        "--rollout",
        "--faults=offline=10%,slow=10%,bad-probe=8%,crash=10%,skew=10%",
        "--version-size=16MB",
        "--soak=1s",
        "--idle=1s",
    ]);
    let rollout = &report["rollout"];
    assert_eq!(rollout["state"], "done", "{report:#}");
    assert_eq!(rollout["waves"].as_array().unwrap().len(), 3, "{report:#}");
    assert!(rollout["settled_s"].is_number(), "{report:#}");
    let all = of(&report, "all");
    assert_eq!((count(all, "gateways"), count(all, "serve_nothing")), (50, 0), "{report:#}");
    // Who answers probes wrong goes on with the version before, and everybody else has the new one.
    let bad = of(&report, "bad-probe");
    let refused = count(bad, "gateways");
    assert_eq!([count(bad, "refused"), count(bad, "serve_old")], [refused; 2], "{report:#}");
    assert_eq!(count(all, "refused"), refused, "{report:#}");
    assert_eq!(count(all, "serve_new"), 50 - refused, "{report:#}");
    // Every fault was there, and took place.
    assert!(count(of(&report, "slow"), "gateways") > 0, "{report:#}");
    assert!(count(of(&report, "offline"), "gateways") > 0 && count(&report, "links_lost") > 0, "{report:#}");
    assert_eq!(count(&report, "crashes"), count(of(&report, "crash"), "gateways"), "{report:#}");
    assert_eq!(count(rollout, "wrong_clocks"), count(of(&report, "skew"), "gateways"), "{report:#}");
    assert!(report["restart"]["back_s"].as_f64().unwrap() < 30.0, "{report:#}");
    assert!(count(&report["restart"], "most_links_a_second") < 50, "{report:#}");
}

#[test]
fn a_version_that_too_many_gateways_refuse_is_taken_back() {
    let report = simulate(&[
        "--gateways=30",
        "--rollout",
        "--faults=bad-probe=60%",
        "--max-failed=30",
        "--version-size=16MB",
        "--soak=1s",
        "--idle=1s",
    ]);
    let rollout = &report["rollout"];
    assert_eq!(rollout["state"], "rolled back", "{report:#}");
    let all = of(&report, "all");
    assert_eq!((count(all, "serve_old"), count(all, "serve_new")), (30, 0), "{report:#}");
    assert!(rollout["reason"].as_str().unwrap().contains("failed"), "{report:#}");
    // It did not get to all of them, and none but those that answer probes wrong refused it.
    let refused = count(of(&report, "bad-probe"), "refused");
    assert!(refused > 0 && refused + count(all, "taken_back") < 30, "{report:#}");
    assert_eq!(count(all, "refused"), refused, "{report:#}");
}

/// A control plane of this test's own, killed when dropped.
struct Plane(Child);

impl Drop for Plane {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_control_plane_that_runs_already_is_left_as_it_was() {
    let state = tempfile::tempdir().unwrap();
    let mut command: Command = rookery();
    command.args(["control-plane", "--supervised", "--listen=127.0.0.1:0", "--link-listen=127.0.0.1:0"]);
    command.args(["--link-tls=on", "--log-filter=error", "--state"]).arg(state.path());
    let mut plane = Plane(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap());
    let mut line = String::new();
    BufReader::new(plane.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let ready: Value = serde_json::from_str(&line).unwrap();
    let endpoint = format!("http://{}", ready["listen"].as_str().unwrap());
    let link = ready["link"].as_str().unwrap();
    let report = simulate(&[
        "--gateways=5",
        "--rollout",
        "--soak=0s",
        "--control-plane",
        link,
        "--endpoint",
        &endpoint,
    ]);
    assert_eq!(report["rollout"]["state"], "done", "{report:#}");
    assert!(report["idle"].is_null() && report["restart"].is_null(), "{report:#}");
    for list in [["fleet", "list"], ["models", "versions"]] {
        let (code, left, error) = run(rookery().args(list).args(["--json", "--endpoint", &endpoint]));
        assert_eq!(code, Some(0), "{error}");
        assert!(!left.contains("sim-"), "{left}");
    }
}
