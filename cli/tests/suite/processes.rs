//! Real processes: a fleet comes up, answers, and leaves nothing behind however its parent ends.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::{rookery, run, tiny_bundle};

/// Longest wait for anything here.
const PATIENCE: Duration = Duration::from_secs(30);

struct Up {
    parent: Child,
    endpoint: String,
    children: Vec<u32>,
}

impl Up {
    /// Starts `rookery up` with two workers and reads where it serves.
    fn start(bundle: &Path) -> Up {
        let mut parent = rookery()
            .arg("up")
            .arg(bundle)
            .args(["--workers", "2", "--listen", "127.0.0.1:0", "--threads", "1", "--kv-cache", "1MiB"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(parent.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let endpoint = line.split_whitespace().find(|word| word.starts_with("http://"));
        let endpoint =
            endpoint.unwrap_or_else(|| panic!("no endpoint in {line:?}")).trim_end_matches(';').to_owned();
        let children = children_of(parent.id());
        assert_eq!(children.len(), 3, "a control plane and two workers");
        Up { parent, endpoint, children }
    }

    fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.parent.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    fn assert_gone(&mut self) {
        self.parent.wait().unwrap();
        let began = Instant::now();
        while let Some(child) = self.children.iter().find(|child| alive(**child)) {
            assert!(began.elapsed() < PATIENCE, "process {child} is still running");
            std::thread::yield_now();
        }
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        // Only where an assertion has failed; the children follow.
        let _ = self.parent.kill();
        let _ = self.parent.wait();
    }
}

fn children_of(parent: u32) -> Vec<u32> {
    let processes = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    ids.filter(|id| parent_and_state(*id).is_some_and(|(p, _)| p == parent)).collect()
}

/// A zombie is not running, whoever has yet to reap it.
fn alive(id: u32) -> bool {
    parent_and_state(id).is_some_and(|(_, state)| state != 'Z')
}

fn parent_and_state(id: u32) -> Option<(u32, char)> {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // The name before it is in brackets and may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((fields.next()?.parse().ok()?, state))
}

fn tokens(events: &[serde_json::Value]) -> Vec<u64> {
    let deltas = events.iter().filter_map(|event| event["delta"]["token_ids"].as_array());
    deltas.flatten().filter_map(serde_json::Value::as_u64).collect()
}

#[test]
fn a_fleet_answers_and_ctrl_c_leaves_nothing_running() {
    let folder = tempfile::tempdir().unwrap();
    let mut up = Up::start(&tiny_bundle(folder.path()));
    let (code, models, error) = run(rookery().args(["models", "list", "--json", "--endpoint", &up.endpoint]));
    assert_eq!(code, Some(0), "{error}");
    let models: serde_json::Value = serde_json::from_str(&models).unwrap();
    assert_eq!((models[0]["name"].as_str(), models[0]["gateways"].as_u64()), (Some("tiny"), Some(2)));

    let generate = |extra: &[&str]| {
        let mut command = rookery();
        command.args(["generate", "--token-ids", "1,2,3", "--max-tokens", "5", "--ignore-eos", "--json"]);
        run(command.args(["--endpoint", &up.endpoint]).args(extra))
    };
    let (code, events, error) = generate(&[]);
    assert_eq!(code, Some(0), "{error}");
    let events: Vec<serde_json::Value> =
        events.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(events[0]["started"]["model"], "tiny");
    let finished = &events.last().unwrap()["finished"];
    assert_eq!(finished["reason"], "FINISH_REASON_MAX_TOKENS");
    assert_eq!(finished["usage"]["generated_tokens"], 5);
    // A slow reader gets several tokens in one event, so only the tokens can be compared.
    let again = generate(&["--seed", "1"]).1;
    let again: Vec<serde_json::Value> =
        again.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(tokens(&again), tokens(&events), "the same request, the same tokens");

    let (code, _, error) = generate(&["--model", "no-such-model"]);
    assert_eq!(code, Some(1));
    assert!(error.contains("MODEL_NOT_FOUND") && error.contains("hint:"), "{error}");
    let (code, _, error) = generate(&["--temperature=-1"]);
    assert_eq!(code, Some(1));
    assert!(error.contains("temperature"), "{error}");

    up.signal("-INT");
    up.assert_gone();
}

#[test]
fn terminating_the_parent_leaves_nothing_running() {
    let folder = tempfile::tempdir().unwrap();
    let mut up = Up::start(&tiny_bundle(folder.path()));
    up.signal("-TERM");
    up.assert_gone();
}

#[test]
fn killing_the_parent_leaves_nothing_running() {
    let folder = tempfile::tempdir().unwrap();
    let mut up = Up::start(&tiny_bundle(folder.path()));
    up.signal("-KILL");
    up.assert_gone();
}

#[test]
fn a_fleet_that_cannot_start_leaves_nothing_running() {
    let (code, _, error) = run(rookery().args(["up", "/no/such/bundle", "--listen", "127.0.0.1:0"]));
    assert_eq!(code, Some(1));
    assert!(error.contains("worker-1 ended before it was ready"), "{error}");
    assert!(error.contains("/no/such/bundle"), "the worker's own words are there: {error}");
}

#[test]
fn a_benchmark_gives_the_numbers_that_it_promises() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = tiny_bundle(folder.path());
    let (code, json, error) = run(rookery().arg("bench").arg(&bundle).args([
        "--prompt-tokens",
        "20",
        "--gen-tokens",
        "8",
        "--concurrency",
        "2",
        "--threads",
        "1",
        "--json",
    ]));
    assert_eq!(code, Some(0), "{error}");
    let report: serde_json::Value = serde_json::from_str(&json).unwrap();
    for key in [
        "prefill_tok_s",
        "decode_tok_s",
        "ttft_ms",
        "peak_rss_bytes",
        "resident_bytes",
        "file_bytes",
        "bandwidth_share",
    ] {
        assert!(report[key].as_f64().is_some_and(|value| value > 0.0), "{key}: {report}");
    }
    // So small a model may be done before its reader looks for the first time.
    for key in ["itl_ms_p50", "itl_ms_p99"] {
        assert!(report[key].as_f64().is_some_and(|value| value >= 0.0), "{key}: {report}");
    }
}

/// Weights in the simulator's memory are mapped twice there, once for the device and once for the processor.
#[test]
fn memory_of_a_benchmark_adds_up_on_the_simulated_npu() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = tiny_bundle(folder.path());
    let (code, json, error) = run(rookery().arg("bench").arg(&bundle).args([
        "--backend",
        "npu-sim",
        "--prompt-tokens",
        "8",
        "--gen-tokens",
        "2",
        "--threads",
        "1",
        "--json",
    ]));
    assert_eq!(code, Some(0), "{error}");
    let report: serde_json::Value = serde_json::from_str(&json).unwrap();
    let size = |key: &str| report[key].as_u64().unwrap();
    assert!(size("npu_bytes") >= size("weight_bytes") / 2, "{report}");
    let parts = ["file_bytes", "npu_bytes", "kv_bytes", "other_resident_bytes"].map(size);
    // Blocks of keys and values are counted whole, and may be touched in part.
    let slack = size("kv_bytes") + 8192;
    assert!(parts.iter().sum::<u64>().abs_diff(size("resident_bytes")) <= slack, "{report}");
}

#[test]
fn the_line_that_says_where_layers_are_computed_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = tiny_bundle(folder.path());
    for (command, begins) in [("worker", "serving on"), ("up", "worker-1 on")] {
        let child = rookery()
            .arg(command)
            .arg(&bundle)
            .args(["--listen", "127.0.0.1:0", "--threads", "1", "--kv-cache", "1MiB", "--backend", "npu-sim"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut process = Killed(child);
        let mut lines = BufReader::new(process.0.stderr.take().unwrap()).lines();
        let line = lines.find_map(|line| line.ok().filter(|line| line.starts_with(begins))).unwrap();
        assert!(line.contains("linear layers on npu-sim/vendor"), "{command}: {line}");
        assert!(line.contains("(as configured; figures are simulated)"), "{command}: {line}");
    }
}

/// A process that does not outlive its test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
