//! Exit codes, help and configuration of the real program.

use rookery_compute_worker::probes::ProbeSet;
use rookery_model::bundle::{Bundle, NoProgress, QUANTIZATION_TYPE};
use rookery_model::pack::{Draft, ExistingTarget};

use crate::support::{fixture, rookery, run, tiny_bundle};

#[test]
fn every_command_teaches_itself() {
    let (code, help, _) = run(rookery().arg("--help"));
    assert_eq!(code, Some(0));
    let commands = [
        "demo",
        "up",
        "pull",
        "pack",
        "inspect",
        "generate",
        "models",
        "bench",
        "npu",
        "worker",
        "control-plane",
    ];
    for command in commands {
        assert!(help.contains(command), "{command} is not in the help");
        let (code, own, _) = run(rookery().args([command, "--help"]));
        assert_eq!(code, Some(0), "{command}");
        assert!(own.contains("Usage:"), "{command}: {own}");
        assert!(own.contains("Examples:") || command == "models", "{command} gives no examples");
    }
}

#[test]
fn exit_codes_tell_usage_configuration_and_failure_apart() {
    let code = |arguments: &[&str]| run(rookery().args(arguments));
    assert_eq!(code(&["--version"]).0, Some(0));
    assert_eq!(code(&["no-such-command"]).0, Some(2));
    assert_eq!(code(&["pack"]).0, Some(2));
    assert_eq!(code(&["pull", "gopher://x"]).0, Some(2));
    assert_eq!(code(&["generate", "x", "--logit-bias", "nonsense"]).0, Some(2));
    let (exit, _, error) = code(&["inspect", "/no/such/bundle"]);
    assert_eq!(exit, Some(1));
    assert!(error.starts_with("error: could not inspect /no/such/bundle\n  cause: "), "{error}");
    let (exit, _, error) = code(&["worker"]);
    assert_eq!(exit, Some(64), "{error}");
    assert!(error.contains("bundles"), "{error}");
    let (exit, _, error) = code(&["models", "list", "--endpoint", "127.0.0.1:1"]);
    assert_eq!(exit, Some(1));
    assert!(error.contains("nobody answers") && error.contains("hint:"), "{error}");
}

#[test]
fn unknown_settings_are_named_wherever_they_come_from() {
    let (code, _, error) = run(rookery().args(["models", "list"]).env("ROOKERY_WORKER__LISTN", "x"));
    assert_eq!(code, Some(64));
    assert!(error.contains("ROOKERY_WORKER__LISTN"), "{error}");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rookery.toml");
    std::fs::write(&file, "[worker.engine]\nthreds = 2\n").unwrap();
    let (code, _, error) = run(rookery().arg("--dump-config").arg("--config").arg(&file));
    assert_eq!(code, Some(64));
    assert!(error.contains("threds") && error.contains("rookery.toml"), "{error}");
    let (code, _, error) = run(rookery().args(["--dump-config", "--config", "/no/such/file"]));
    assert_eq!(code, Some(64));
    assert!(error.contains("/no/such/file"), "{error}");
    let (code, _, error) = run(rookery().args(["models", "list", "--log-filter", "rookery=nonsense"]));
    assert_eq!(code, Some(64));
    assert!(error.contains("log filter"), "{error}");
}

#[test]
fn flags_win_over_variables_over_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rookery.toml");
    let text =
        "[worker]\nlisten = \"127.0.0.1:1001\"\ngateway-id = \"file\"\n[worker.engine]\nmax-batch = 3\n";
    std::fs::write(&file, text).unwrap();
    let (code, dump, error) = run(rookery()
        .args(["worker", "--listen", "127.0.0.1:1003", "--dump-config", "--config"])
        .arg(&file)
        .env("ROOKERY_WORKER__LISTEN", "127.0.0.1:1002")
        .env("ROOKERY_WORKER__GATEWAY_ID", "variable")
        .env("ROOKERY_CONTROL_PLANE__LINK__HEARTBEAT_INTERVAL", "2s"));
    assert_eq!(code, Some(0), "{error}");
    let dump: toml::Table = dump.parse().unwrap();
    let worker = &dump["worker"];
    assert_eq!(worker["listen"].as_str(), Some("127.0.0.1:1003"));
    assert_eq!(worker["gateway-id"].as_str(), Some("variable"));
    assert_eq!(worker["engine"]["max-batch"].as_integer(), Some(3));
    assert_eq!(dump["control-plane"]["link"]["heartbeat-interval"].as_str(), Some("2s"));
}

#[test]
fn the_configuration_page_names_every_setting() {
    let page = include_str!("../../../docs/config.md");
    let (_, dump, _) = run(rookery().arg("--dump-config"));
    let dump: toml::Table = dump.parse().unwrap();
    let mut missing = Vec::new();
    fn walk(path: &str, table: &toml::Table, page: &str, missing: &mut Vec<String>) {
        for (key, value) in table {
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            if let toml::Value::Table(inner) = value {
                walk(&path, inner, page, missing);
            } else if !page.contains(&format!("`{path}`")) {
                missing.push(path);
            }
        }
    }
    walk("", &dump, page, &mut missing);
    assert!(missing.is_empty(), "docs/config.md lacks {missing:?}");
}

#[test]
fn a_bundle_quantised_by_a_newer_version_is_shown_without_that() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = Bundle::open(&tiny_bundle(folder.path()), &NoProgress).unwrap();
    let newer = folder.path().join("newer");
    let mut draft = Draft::create(&newer, ExistingTarget::Refuse, "newer").unwrap();
    let config = &bundle.info().config;
    config.parts().for_each(|part| draft.copy_part(&bundle, part).unwrap());
    draft.document(QUANTIZATION_TYPE, "quantization.json", br#"{"version":99}"#).unwrap();
    draft.publish(config, rookery_model::source::open(&fixture("qwen2.gguf")).unwrap().as_ref()).unwrap();
    for (flag, shown) in [("--tensors", "token_embd.weight"), ("--json", "\"digest\"")] {
        let (code, text, error) = run(rookery().arg("inspect").arg(&newer).arg(flag));
        assert_eq!(code, Some(0), "{error}");
        assert!(text.contains(shown), "{text}");
        assert!(error.starts_with("warning: ") && error.contains("version 99"), "{error}");
    }
    let (code, _, error) = run(rookery().arg("inspect").arg(&newer).arg("--units"));
    assert_eq!(code, Some(1));
    assert!(error.contains("version 99"), "{error}");
}

#[test]
fn a_promised_speed_is_in_the_probes_and_nonsense_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().join("bundle");
    let pack = |promise: &str| {
        let mut command = rookery();
        command.arg("pack").arg(fixture("qwen2.gguf")).args(["--profile", "board=6.5", "--profile", promise]);
        run(command.arg("--output").arg(&bundle))
    };
    for nonsense in ["fast", "=3", "board=", "board=-1", "board=inf"] {
        let (code, _, error) = pack(nonsense);
        assert_eq!(code, Some(2), "{nonsense}: {error}");
    }
    let (code, _, error) = pack("*=0.5");
    assert_eq!(code, Some(0), "{error}");
    let probes = ProbeSet::of(&Bundle::open(&bundle, &NoProgress).unwrap()).unwrap().unwrap();
    assert_eq!((probes.promised_speed("board"), probes.promised_speed("other")), (Some(6.5), Some(0.5)));
}

#[test]
fn packing_and_inspecting_agree() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = tiny_bundle(folder.path());
    let (code, json, error) = run(rookery().arg("inspect").arg(&bundle).arg("--json"));
    assert_eq!(code, Some(0), "{error}");
    let info: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(info["config"]["name"], "tiny");
    assert_eq!(info["config"]["recipe"], "w8");
    let digest = info["digest"].as_str().unwrap();
    let (_, table, _) = run(rookery().arg("inspect").arg(&bundle).arg("--tensors"));
    assert!(table.contains(digest) && table.contains("token_embd.weight"), "{table}");
    let (code, table, error) = run(rookery().arg("inspect").arg(fixture("qwen2.gguf")));
    assert_eq!(code, Some(0), "{error}");
    assert!(table.contains("general.architecture"), "{table}");
    let (code, _, error) = run(rookery().arg("pack").arg(fixture("qwen2.gguf")).arg("--output").arg(&bundle));
    assert_eq!(code, Some(1), "an existing bundle stays");
    assert!(error.contains("--replace"), "{error}");
}
