//! `rookery plan`: what fits a board, and how it says that nothing does.

use serde_json::Value;

use super::support::{bundle, fixture, rookery, run};

fn plan(arguments: &[&str]) -> (Option<i32>, Value, String) {
    let (code, out, error) = run(rookery().args(["plan", "--json"]).args(arguments));
    (code, serde_json::from_str(&out).unwrap_or_default(), error)
}

#[test]
fn eight_billion_weights_need_four_bits_on_eight_gigabytes() {
    let (code, report, error) = plan(&["--model", "llama-3-8b", "--board", "rk3588-8g"]);
    assert_eq!(code, Some(0), "{error}");
    let choices = report["choices"].as_array().unwrap();
    let fits = |recipe: &str| {
        choices.iter().filter(|choice| choice["recipe"] == recipe).all(|choice| choice["fits"] == true)
    };
    assert!(!fits("w8") && fits("mixed") && fits("w4"), "{choices:?}");
    // Best quality first among those that fit.
    let bits: Vec<f64> = choices
        .iter()
        .filter(|choice| choice["fits"] == true)
        .map(|choice| choice["body_bits"].as_f64().unwrap())
        .collect();
    assert!(bits.is_sorted_by(|a, b| a >= b), "{bits:?}");
    // Fewer bytes a token cannot decode slower on the processor.
    let decode = |recipe: &str| {
        let choice = choices.iter().find(|choice| choice["recipe"] == recipe).unwrap();
        choice["speed"][0]["decode"].as_f64().unwrap()
    };
    assert!(decode("w4") > decode("mixed") && decode("mixed") > decode("w8"));
}

#[test]
fn files_and_bundles_are_planned_by_their_own_shapes() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = bundle(folder.path(), "w8");
    let (code, report, error) =
        plan(&["--model", bundle.to_str().unwrap(), "--board", "rk3588-4g", "--context", "64"]);
    assert_eq!(code, Some(0), "{error}");
    assert_eq!(report["choices"][0]["recipe"], "w8");
    let gguf = fixture("qwen2.gguf");
    let (code, from_gguf, error) = plan(&["--model", gguf.to_str().unwrap(), "--context", "64"]);
    assert_eq!(code, Some(0), "{error}");
    let bytes = |report: &Value| report["choices"][0]["memory"]["weights"].as_u64().unwrap();
    assert_eq!(bytes(&report), bytes(&from_gguf), "the plan's w8 is the packer's");
}

#[test]
fn what_does_not_fit_or_is_not_known_is_said() {
    let (code, report, error) = plan(&["--model", "qwen2.5-7b", "--board", "rk3588-4g"]);
    assert_eq!(code, Some(1));
    assert!(error.contains("does not fit rk3588-4g") && error.contains("rookery prune"), "{error}");
    assert!(report["choices"].as_array().unwrap().iter().all(|choice| choice["fits"] == false));
    let (code, _, error) = plan(&["--model", "no-such-model"]);
    assert_eq!(code, Some(2));
    assert!(error.contains("llama-3-8b"), "{error}");
    let (code, _, error) = plan(&["--model", "llama-3-8b", "--context", "9000"]);
    assert_eq!(code, Some(2));
    assert!(error.contains("8192"), "{error}");
    let (code, _, error) = plan(&["--model", "llama-3-8b", "--board", "rk3588-5g"]);
    assert_eq!(code, Some(2));
    assert!(error.contains("rk3588-8g"), "{error}");
}
