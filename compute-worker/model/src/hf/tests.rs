//! Folders of the tiny models with one thing changed each.

use std::error::Error;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::HfModel;
use super::config::read_config;
use super::json::Object;
use super::safetensors::SafetensorsFile;
use crate::source::{ImportError, ModelSource};

fn message(error: &ImportError) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// A copy of a tiny model's folder that a test may change.
struct Folder(tempfile::TempDir);

impl Folder {
    fn copy(name: &str) -> Self {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/tiny").join(name);
        let folder = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(&from).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
        }
        Folder(folder)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn edit(&self, name: &str, change: impl FnOnce(&mut Value)) -> &Self {
        let mut value: Value = serde_json::from_slice(&std::fs::read(self.file(name)).unwrap()).unwrap();
        change(&mut value);
        self.write(name, value.to_string())
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> &Self {
        std::fs::write(self.file(name), bytes).unwrap();
        self
    }

    fn remove(&self, name: &str) -> &Self {
        std::fs::remove_file(self.file(name)).unwrap();
        self
    }

    fn open(&self) -> Result<HfModel, ImportError> {
        HfModel::open(self.0.path())
    }

    fn refused(&self, expected: &[&str]) {
        let message = message(&self.open().expect_err("accepted"));
        for part in expected {
            assert!(message.contains(part), "{message:?} lacks {part:?}");
        }
    }
}

/// `config.json` of a plain Llama with some fields changed; null takes one away.
fn config(changes: Value) -> Result<crate::config::ModelConfig, ImportError> {
    let mut base = json!({
        "architectures": ["LlamaForCausalLM"], "hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4,
        "num_hidden_layers": 2, "num_key_value_heads": 2, "vocab_size": 100, "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5, "hidden_act": "silu",
    });
    for (field, value) in changes.as_object().unwrap() {
        base[field] = value.clone();
    }
    read_config(&Object::from_value("config.json", base))
}

fn config_refused(changes: Value, expected: &[&str]) {
    let message = message(&config(changes).expect_err("accepted"));
    for part in expected {
        assert!(message.contains(part), "{message:?} lacks {part:?}");
    }
}

#[test]
fn configurations_take_each_familys_defaults() {
    let llama = config(json!({"num_key_value_heads": null})).unwrap();
    assert_eq!((llama.head_dim, llama.kv_heads, llama.rope_theta), (32, 4, 10_000.0));
    assert!(!llama.qkv_bias && !llama.tied_head && !llama.qk_norm);
    let qwen2 = config(json!({"architectures": ["Qwen2ForCausalLM"], "tie_word_embeddings": true})).unwrap();
    assert!(qwen2.qkv_bias && qwen2.tied_head);
    let qwen3 = config(json!({"architectures": ["Qwen3ForCausalLM"]})).unwrap();
    assert!(qwen3.qk_norm && qwen3.head_dim == 128 && !qwen3.qkv_bias);
    assert!(config(json!({"attention_bias": true})).unwrap().qkv_bias);
    assert_eq!(
        config(json!({"architectures": null, "model_type": "qwen3", "head_dim": 48})).unwrap().head_dim,
        48
    );
}

#[test]
fn rope_is_read_in_the_old_and_the_new_style() {
    let old = config(json!({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 4.0}})).unwrap();
    let new = config(json!({"rope_parameters": {"rope_theta": 5e5, "rope_type": "linear", "factor": 4.0}}))
        .unwrap();
    assert_eq!(old, new);
    assert_eq!((old.rope_theta, old.rope_position_scale), (5e5, 0.25));
    let plain = config(json!({"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}})).unwrap();
    assert_eq!((plain.rope_theta, plain.rope_position_scale, plain.rope_factors), (1e6, 1.0, None));
}

#[test]
fn llama3_scaling_gives_the_published_factors() {
    // Llama 3.1: head size 128, theta 500000. The ends are the definition; the middle is its formula,
    // computed elsewhere.
    let scaled = config(json!({
        "head_dim": 128, "rope_theta": 500_000.0,
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192},
    }));
    let factors = scaled.unwrap().rope_factors.unwrap();
    assert_eq!(factors.len(), 64);
    assert!(
        factors[..29].iter().all(|&factor| factor == 1.0)
            && factors[35..].iter().all(|&factor| factor == 8.0)
    );
    for (pair, expected) in MIDDLE {
        assert!((f64::from(factors[pair]) - expected).abs() < 1e-6 * expected, "{pair}: {}", factors[pair]);
    }
}

const MIDDLE: [(usize, f64); 6] = [
    (29, 1.207483871283662),
    (30, 1.5534146285049255),
    (31, 2.0263132059050557),
    (32, 2.694529687894733),
    (33, 3.684252527745718),
    (34, 5.257326588708465),
];

#[test]
fn unsupported_configurations_are_refused_by_name() {
    config_refused(
        json!({"architectures": ["MistralForCausalLM"]}),
        &["MistralForCausalLM", "Qwen3ForCausalLM"],
    );
    config_refused(json!({"architectures": null}), &["architectures", "missing"]);
    config_refused(json!({"hidden_act": "gelu"}), &["gelu"]);
    config_refused(json!({"mlp_bias": true}), &["feed-forward"]);
    config_refused(json!({"quantization_config": {"quant_method": "gptq"}}), &["gptq"]);
    config_refused(json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}), &["yarn", "llama3"]);
    config_refused(json!({"rope_scaling": {"type": "dynamic", "factor": 4.0}}), &["dynamic"]);
    config_refused(json!({"rope_scaling": {"factor": 4.0}}), &["rope_type", "missing"]);
    config_refused(
        json!({"rope_scaling": {"type": "linear", "factor": 4.0}, "rope_parameters": {"rope_theta": 5e5}}),
        &["rope_scaling", "disagrees with rope_parameters"],
    );
    config_refused(json!({"rope_scaling": {"type": "linear"}}), &["rope_scaling: factor", "missing"]);
    config_refused(json!({"rope_scaling": {"type": "linear", "factor": 0.0}}), &["rope_position_scale"]);
    config_refused(json!({"partial_rotary_factor": 0.5}), &["0.5 of a head"]);
    config_refused(json!({"use_sliding_window": true, "sliding_window": 1024}), &["1024 tokens"]);
    config_refused(
        json!({"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 64}),
        &["64"],
    );
    config_refused(json!({"hidden_size": "big"}), &["config.json: hidden_size", "not a count"]);
    config_refused(json!({"hidden_size": -1}), &["hidden_size"]);
    config_refused(json!({"hidden_size": null}), &["hidden_size", "missing"]);
    config_refused(json!({"num_attention_heads": 0}), &["0 heads"]);
    config_refused(json!({"num_hidden_layers": 0}), &["layers is 0"]);
    config_refused(json!({"head_dim": 1u64 << 62}), &["head_dim"]);
    let endless = json!({"head_dim": 1u64 << 62, "rope_scaling": {"rope_type": "llama3", "factor": 8.0,
        "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}});
    config_refused(endless, &["head_dim"]);
}

#[test]
fn windows_that_no_layer_uses_are_ignored() {
    config(json!({"use_sliding_window": false, "sliding_window": 1024, "max_window_layers": 2})).unwrap();
    config(json!({"use_sliding_window": true, "sliding_window": 1024, "max_window_layers": 2})).unwrap();
    config(json!({"use_sliding_window": true, "sliding_window": 4096})).unwrap();
}

#[test]
fn shards_must_hold_what_the_index_lists() {
    const INDEX: &str = "model.safetensors.index.json";
    let name = "model.layers.0.mlp.up_proj.weight";
    let index = |change: &dyn Fn(&mut serde_json::Map<String, Value>)| {
        let folder = Folder::copy("hf-llama3");
        folder.edit(INDEX, |value| change(value["weight_map"].as_object_mut().unwrap()));
        folder
    };
    Folder::copy("hf-llama3").open().unwrap();
    // Tensors count wherever they are: the index only has to agree.
    index(&|map| drop(map.remove(name))).open().unwrap();
    let moved = index(&|map| map[name] = json!("model-00002-of-00002.safetensors"));
    moved.refused(&[name, "model-00002-of-00002", "does not hold it"]);
    let extra = index(&|map| drop(map.insert("phantom".into(), json!("model-00001-of-00002.safetensors"))));
    extra.refused(&["phantom"]);
    for path in [
        "../model-00001-of-00002.safetensors",
        "/etc/x.safetensors",
        "a/b.safetensors",
        "..",
        "x\\y.safetensors",
    ] {
        index(&|map| map[name] = json!(path)).refused(&[name, "inside the folder"]);
    }
    index(&|map| map[name] = json!("passwd")).refused(&["passwd"]);
    Folder::copy("hf-llama3").remove("model-00002-of-00002.safetensors").refused(&["model-00002-of-00002"]);
    Folder::copy("hf-llama3").remove(INDEX).refused(&["neither"]);
    Folder::copy("hf-llama3").write(INDEX, "{}").refused(&[INDEX, "weight_map"]);
    let twice = r#"{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}"#;
    Folder::copy("hf-llama3").write(INDEX, twice).refused(&["\"a\"", "more than once"]);
    let doubled = Folder::copy("hf-llama3");
    std::fs::copy(
        doubled.file("model-00001-of-00002.safetensors"),
        doubled.file("model-00002-of-00002.safetensors"),
    )
    .unwrap();
    doubled.refused(&["more than once"]);
    Folder::copy("hf-llama3").remove(INDEX).write("pytorch_model.bin", "x").refused(&["safetensors first"]);
}

#[test]
fn tensors_are_checked_against_the_configuration() {
    let folder = Folder::copy("hf-qwen2");
    folder.edit("config.json", |config| config["intermediate_size"] = json!(224));
    folder.refused(&["model.layers.0.mlp.gate_proj.weight", "[208, 96]", "[224, 96]"]);
    folder.edit("config.json", |config| {
        config["intermediate_size"] = json!(208);
        config["tie_word_embeddings"] = json!(false);
    });
    folder.refused(&["lm_head.weight", "missing"]);
    let deeper = Folder::copy("hf-qwen2");
    deeper.edit("config.json", |config| config["num_hidden_layers"] = json!(3)).refused(&["model.layers.2."]);
    deeper
        .edit("config.json", |config| config["num_hidden_layers"] = json!(1))
        .refused(&["model.layers.1.", "ignoring"]);
}

/// A safetensors file with this header and `data_len` zero bytes.
fn safetensors(header: &str, data_len: usize) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; data_len]].concat()
}

#[test]
fn safetensors_headers_are_checked() {
    let good = r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},
        "b":{"dtype":"I64","shape":[1],"data_offsets":[16,24]}}"#;
    let whole = safetensors(good, 24);
    let file = SafetensorsFile::from_bytes(whole.clone()).unwrap();
    assert_eq!(file.tensor("a").unwrap().shape, [2, 2]);
    assert!(file.tensor("b").unwrap().storage.is_none());
    for len in 0..whole.len() {
        assert!(SafetensorsFile::from_bytes(whole[..len].to_vec()).is_err(), "accepted at {len}");
    }
    for (header, expected) in [
        (r#"{"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,12]}}"#, "12 bytes listed"),
        (r#"{"a":{"dtype":"F32","shape":[2,2],"data_offsets":[16,0]}}"#, "outside"),
        (r#"{"a":{"dtype":"F32","shape":[8,8],"data_offsets":[0,256]}}"#, "outside"),
        (r#"{"a":{"dtype":"F32","shape":[0,2],"data_offsets":[0,0]}}"#, "zero"),
        (r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[0,16]}}"#, "overflows"),
        (r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#, "\"a\""),
        (
            r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#,
            "more than once",
        ),
        (
            r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#,
            "overlaps tensor \"a\"",
        ),
        (r#"{"a":[]}"#, "\"a\""),
        ("[1]", "safetensors header"),
    ] {
        let error = SafetensorsFile::from_bytes(safetensors(header, 24)).expect_err(header);
        assert!(error.to_string().contains(expected), "{error} lacks {expected:?}");
    }
    let huge = [&u64::MAX.to_le_bytes()[..], b"{}"].concat();
    assert!(SafetensorsFile::from_bytes(huge).unwrap_err().to_string().contains("claims"));
    let nested = format!(r#"{{"a":{}}}"#, "[".repeat(100_000));
    SafetensorsFile::from_bytes(safetensors(&nested, 0)).unwrap_err();
}

#[test]
fn a_bad_weight_is_found_when_read() {
    let folder = Folder::copy("hf-qwen3");
    let path = folder.file("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let end = bytes.len();
    bytes[end - 2..].copy_from_slice(&0x7F80_u16.to_le_bytes()); // bf16 infinity
    folder.write("model.safetensors", &bytes);
    let model = folder.open().unwrap();
    let faults: Vec<String> = (model.config().tensor_names().into_iter())
        .filter_map(|name| model.tensor(name).err().map(|error| error.to_string()))
        .collect();
    assert_eq!(faults.len(), 1);
    assert!(faults[0].contains("inf"), "{faults:?}");
}

#[test]
fn tokenizer_settings_come_from_where_models_keep_them() {
    let folder = Folder::copy("hf-llama3");
    let model = folder.open().unwrap();
    let first = model.tokenizer_config().clone();
    assert!(first.add_bos && first.bos.is_some() && first.eos.len() == 2);
    folder.edit("tokenizer_config.json", |settings| {
        settings["add_bos_token"] = json!(false);
        settings["bos_token"] = json!({"content": "<|begin_of_text|>", "special": true});
        settings["chat_template"] =
            json!([{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]);
    });
    let second = folder.open().unwrap().tokenizer_config().clone();
    assert_eq!((second.add_bos, second.bos, second.chat_template.as_deref()), (false, first.bos, Some("D")));
    folder.write("chat_template.jinja", "J");
    assert_eq!(folder.open().unwrap().tokenizer_config().chat_template.as_deref(), Some("J"));
    folder.remove("tokenizer_config.json").remove("generation_config.json");
    let bare = folder.open().unwrap().tokenizer_config().clone();
    assert_eq!((bare.bos, bare.eos.len()), (first.bos, 1));
}

#[test]
fn a_tokenizer_that_does_not_fit_is_refused() {
    Folder::copy("hf-qwen2").remove("tokenizer.json").refused(&["tokenizer.json"]);
    Folder::copy("hf-qwen2").write("tokenizer.json", "{").refused(&["tokenizer.json"]);
    Folder::copy("hf-qwen2").write("tokenizer.json", b"\xFF").refused(&["tokenizer.json", "UTF-8"]);
    Folder::copy("hf-qwen2")
        .edit("tokenizer_config.json", |settings| settings["eos_token"] = json!("<none>"))
        .refused(&["eos_token", "<none>"]);
    Folder::copy("hf-qwen2").remove("config.json").refused(&["config.json"]);
}

#[test]
fn the_digest_covers_every_file_that_matters() {
    let folder = Folder::copy("hf-qwen3");
    let digest = |folder: &Folder| folder.open().unwrap().digest().unwrap();
    let before = digest(&folder);
    folder.write("README.md", "of no consequence");
    assert_eq!(digest(&folder), before);
    folder.write("chat_template.jinja", "changed");
    assert_ne!(digest(&folder), before);
}
