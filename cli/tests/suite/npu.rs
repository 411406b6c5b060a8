//! `rookery npu` on simulated devices and on files.

use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use crate::support::{bundle, rookery, run, tiny_bundle};

fn npu(arguments: &[&str]) -> (Option<i32>, String, String) {
    run(rookery().arg("npu").args(arguments))
}

/// A word: block's target, value, register.
fn word(target: u64, value: u64, register: u64) -> u64 {
    target << 48 | value << 16 | register
}

fn stream() -> Vec<u64> {
    vec![
        word(0x0201, 0x20, 0x1010),
        word(0x1001, 0x1000, 0x4020),
        0,
        word(0x0101, 0, 0x0014),
        word(0x0041, 0, 0x0000),
        word(0x0081, 0x0d, 0x0008),
    ]
}

fn write(folder: &Path, name: &str, words: &[u64]) -> String {
    let path = folder.join(name);
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    std::fs::write(&path, bytes).unwrap();
    path.display().to_string()
}

#[test]
fn disassembly_names_blocks_registers_and_fields() {
    let folder = tempfile::tempdir().unwrap();
    let file = write(folder.path(), "task.bin", &stream());
    let (code, text, error) = npu(&["disasm", &file]);
    assert_eq!(code, Some(0), "{error}");
    assert_eq!(text.lines().count(), 6, "one line a word: {text}");
    for expected in ["CNA", "CONV_CON2", "FEATURE_GRAINS=2", "DST_BASE_ADDR", "starts CNA, CORE, DPU"] {
        assert!(text.contains(expected), "{expected} is missing: {text}");
    }
    let (code, json, _) = npu(&["disasm", &file, "--json"]);
    assert_eq!(code, Some(0));
    let commands: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(commands[1]["register"], "DST_BASE_ADDR");
    assert_eq!(commands[1]["value"], 0x1000);
    assert_eq!(commands[0]["fields"]["FEATURE_GRAINS"], 2);
}

#[test]
fn disassembly_reads_standard_input() {
    let mut child = rookery()
        .args(["npu", "disasm", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let bytes: Vec<u8> = stream().iter().flat_map(|word| word.to_le_bytes()).collect();
    child.stdin.take().unwrap().write_all(&bytes).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert!(String::from_utf8(output.stdout).unwrap().contains("CONV_CON2"));
}

#[test]
fn what_is_no_command_is_refused_clearly() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(path("empty"), b"").unwrap();
    std::fs::write(path("cut"), [0; 13]).unwrap();
    std::fs::write(path("text"), b"this is no command buffer at all").unwrap();
    let refused = |arguments: &[&str], reason: &str| {
        let (code, _, error) = npu(arguments);
        assert_eq!(code, Some(1), "{arguments:?}: {error}");
        assert!(error.contains(reason), "{arguments:?}: {error}");
    };
    refused(&["disasm", &path("missing")], "could not read");
    refused(&["disasm", &path("empty")], "is empty");
    refused(&["disasm", &path("cut")], "13 bytes");
    refused(&["disasm", &path("text")], "no register commands");
    refused(&["disasm", folder.path().to_str().unwrap()], "could not read");
    // A stream with one unknown register is shown whole, and named at the end.
    let mut words = stream();
    words.insert(1, word(0x1001, 7, 0x4ffc));
    let file = write(folder.path(), "odd.bin", &words);
    let (code, text, error) = npu(&["disasm", &file]);
    assert_eq!(code, Some(1));
    assert_eq!(text.lines().count(), 7, "{text}");
    assert!(error.contains("word 1") && error.contains("0x4ffc"), "{error}");
}

#[test]
fn products_on_simulated_devices_are_exact() {
    for device in ["sim", "sim-rocket"] {
        let (code, text, error) = npu(&["selftest", "--device", device, "--count", "24", "--seed", "5"]);
        assert_eq!(code, Some(0), "{device}: {error}{text}");
        assert!(text.contains("simulated") && text.contains("all 24 products are right"), "{text}");
    }
    let (code, json, error) = npu(&[
        "selftest",
        "--device",
        "sim",
        "--shape",
        "33x100x65",
        "--count",
        "3",
        "--precision",
        "int4",
        "--json",
    ]);
    assert_eq!(code, Some(0), "{error}");
    let report: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(report["simulated"], true);
    assert_eq!(report["failures"].as_array().unwrap().len(), 0);
    let products: u64 =
        report["groups"].as_array().unwrap().iter().map(|group| group["products"].as_u64().unwrap()).sum();
    assert_eq!(products, 3);
}

#[test]
fn measurements_of_a_simulation_say_so_and_are_the_models() {
    let arguments = [
        "bench",
        "--device",
        "sim",
        "--shape",
        "1x896x896",
        "--shape",
        "16x512x1024",
        "--cores",
        "1",
        "--cores",
        "3",
    ];
    let (code, text, error) = npu(&arguments);
    assert_eq!(code, Some(0), "{error}");
    assert!(text.contains("simulated: a model's, not a board's"), "{text}");
    let rows: Vec<&str> = text.lines().skip(3).collect();
    assert_eq!(rows.len(), 2 * 2 * 3, "shapes, cores, precisions: {text}");
    assert!(rows.iter().all(|row| row.chars().count() == rows[0].chars().count()), "columns line up: {text}");
    let (_, json, _) = run(rookery().arg("npu").args(arguments).arg("--json"));
    let report: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(report["simulated"], true);
    for row in report["rows"].as_array().unwrap() {
        let number = |key: &str| row[key].as_f64().unwrap();
        assert!((number("measured_ms") / number("predicted_ms") - 1.0).abs() < 0.02, "{row}");
        assert!(number("gigabytes_per_second") > 0.0 && number("tera_operations_per_second") > 0.0, "{row}");
    }
}

#[test]
fn the_worker_reads_what_calibration_writes() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("board.toml");
    let (code, _, error) =
        run(rookery().args(["npu", "calibrate", "--device", "sim", "--threads", "1", "--out"]).arg(&file));
    assert_eq!(code, Some(0), "{error}");
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.contains("simulated"), "{text}");
    let (code, dump, error) = run(rookery().arg("--dump-config").arg("--config").arg(&file));
    assert_eq!(code, Some(0), "{error}{text}");
    let dump: toml::Table = dump.parse().unwrap();
    let board = &dump["worker"]["npu"]["board"];
    let near = |key: &str, expected: f64| {
        let found = board[key].as_float().unwrap();
        assert!((found / expected - 1.0).abs() < 0.05, "{key}: {found}");
    };
    near("npu-clock-hz", 1.0e9);
    near("npu-bytes-per-second", 30.0e9);
    let duration = |key: &str| humantime::parse_duration(board[key].as_str().unwrap()).unwrap().as_micros();
    assert!((165..170).contains(&duration("submit-overhead")), "{board}");
    assert!((15..18).contains(&duration("task-overhead")), "{board}");
    // The processor's part is this machine's: it is written, and it is not the default.
    let written: toml::Table = text.parse().unwrap();
    let (written, defaults) =
        (&written["worker"]["npu"]["board"], [("bytes", 1.2e10), ("macs", 3e10), ("pack-bytes", 2e9)]);
    for (what, default) in defaults {
        let key = format!("cpu-{what}-per-second");
        let found = board[&key].as_float().unwrap();
        assert_eq!(written[&key].as_float().unwrap(), found, "{key}");
        assert!(found > 1e6 && found != default, "{key}: {found}");
    }
}

#[test]
fn answers_of_the_simulated_npu_have_the_bits_of_the_processor() {
    let folder = tempfile::tempdir().unwrap();
    for recipe in ["w8", "w4"] {
        let bundle = bundle(folder.path(), recipe);
        let bundle = bundle.to_str().unwrap();
        let compare = ["compare", bundle, "--tokens", "6", "--threads", "2", "--prompt", "a rook"];
        let (code, text, error) = npu(&compare);
        assert_eq!(code, Some(0), "{recipe}: {error}{text}");
        assert!(text.contains("tokens: 6 of 6 equal") && text.contains("simulator"), "{text}");
        let (code, json, error) = run(rookery().arg("npu").args(compare).arg("--json"));
        assert_eq!(code, Some(0), "{error}");
        let report: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!((&report["equal_logits"], &report["recipe"]), (&report["logits"], &recipe.into()));
        assert!(report["npu_calls"].as_u64().unwrap() > 0, "{report}");
        assert_eq!(report["npu_calls"], report["calls"], "nothing is left to the processor: {report}");
    }
}

#[test]
fn a_comparison_that_fails_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = tiny_bundle(folder.path());
    let compare = |policy: &str| {
        let command = ["npu", "compare", bundle.to_str().unwrap(), "--tokens", "2"];
        run(rookery().args(command).env("ROOKERY_WORKER__NPU__POLICY", policy))
    };
    let (code, _, error) = compare("npu");
    assert_eq!(code, Some(0), "{error}");
    let (code, _, error) = compare("cpu");
    assert_eq!(code, Some(1), "{error}");
    assert!(error.contains("the NPU did not compute") && error.contains("hint:"), "{error}");
    // In fp16 nothing stays the same, and that is what the comparison is for.
    let command = ["npu", "compare", bundle.to_str().unwrap(), "--tokens", "2"];
    let fused = run(rookery().args(command).env("ROOKERY_WORKER__NPU__FUSED", r#"["norm", "silu"]"#));
    assert_eq!(fused.0, Some(1), "{}", fused.2);
    assert!(fused.2.contains("differ"), "{}", fused.2);
}

#[test]
fn command_lines_that_make_no_sense_are_usage_errors() {
    for arguments in [
        &["selftest", "--device", "sim", "--node", "/dev/dri/renderD129"][..],
        &["selftest", "--device", "sim", "--cores", "4"],
        &["selftest", "--device", "sim", "--shape", "1x2"],
        &["selftest", "--device", "sim", "--shape", "0x2x3"],
        &["selftest", "--device", "sim", "--precision", "int5"],
        &["selftest", "--device", "sim", "--count", "0"],
        &["bench", "--device", "gpu"],
        &["compare"],
        &["compare", "x", "--tokens", "0"],
        &["compare", "x", "--backend", "cpu"],
        &["disasm"],
        &[],
    ] {
        let (code, _, error) = npu(arguments);
        assert_eq!(code, Some(2), "{arguments:?}: {error}");
    }
}

#[test]
fn a_node_that_is_no_npu_is_named() {
    for command in ["info", "selftest"] {
        let (code, text, error) = npu(&[command, "--node", "/dev/null"]);
        assert_eq!(code, Some(1), "{command}: {text}{error}");
        assert!(format!("{text}{error}").contains("/dev/null"), "{command}: {text}{error}");
        assert!(error.contains("hint:"), "{command}: {error}");
        assert!(error.contains("no node of rknpu or rocket (found: no NPU driver)"), "{command}: {error}");
    }
}

#[test]
fn info_of_a_simulated_device_is_whole() {
    let (code, text, error) = npu(&["info", "--device", "sim"]);
    assert_eq!(code, Some(0), "{error}");
    for expected in ["simulated", "rknpu", "cores", "driver"] {
        assert!(text.contains(expected), "{expected} is missing: {text}");
    }
    let (code, json, _) = npu(&["info", "--device", "sim-rocket", "--json"]);
    assert_eq!(code, Some(0));
    let info: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(info["device"]["simulated"], true);
    assert_eq!(info["device"]["interface"], "rocket");
    assert_eq!(info["device"]["cores"], 3);
}
