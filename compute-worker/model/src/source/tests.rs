//! The same weights in both formats are the same model.

use std::path::{Path, PathBuf};

use super::open;
use crate::config::Architecture;
use crate::names::TensorName;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/tiny").join(name)
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn both_formats_give_the_same_model() {
    for name in ["llama3", "qwen2", "qwen3"] {
        let gguf = open(&fixture(&format!("{name}.gguf"))).unwrap();
        let hf = open(&fixture(&format!("hf-{name}"))).unwrap();
        assert_eq!(gguf.config(), hf.config(), "{name}");
        assert_eq!(gguf.parameters(), hf.parameters());
        for tensor in gguf.config().tensor_names() {
            let (ours, theirs) = (gguf.tensor(tensor).unwrap(), hf.tensor(tensor).unwrap());
            assert_eq!(bits(&ours), bits(&theirs), "{name} {tensor}");
            let (rows, columns) = gguf.config().shape(tensor);
            let part = rows / 3..rows / 3 + rows.div_ceil(2);
            let whole = &ours[part.start * columns..part.end * columns];
            assert_eq!(
                bits(&gguf.tensor_rows(tensor, part.clone()).unwrap()),
                bits(whole),
                "{name} {tensor}"
            );
            assert_eq!(bits(&hf.tensor_rows(tensor, part).unwrap()), bits(whole), "{name} {tensor}");
        }
    }
}

#[test]
fn shapes_are_what_the_fixtures_were_made_with() {
    let llama = open(&fixture("llama3.gguf")).unwrap();
    let config = llama.config();
    assert_eq!(config.architecture, Architecture::Llama);
    assert_eq!((config.layers, config.heads, config.kv_heads, config.head_dim), (3, 6, 2, 16));
    assert!(!config.tied_head && !config.qkv_bias && !config.qk_norm);
    let factors = config.rope_factors.as_ref().unwrap();
    assert_eq!((factors.len(), factors[0], factors[7]), (8, 1.0, 8.0));
    assert!(factors[1] > 1.0 && factors[1] < 8.0, "{factors:?}");

    let qwen3 = open(&fixture("hf-qwen3")).unwrap();
    let config = qwen3.config();
    assert!(config.tied_head && config.qk_norm && !config.qkv_bias && config.rope_factors.is_none());
    assert_eq!(config.shape("blk.1.attn_output.weight".parse().unwrap()), (96, 128));

    let qwen2 = open(&fixture("qwen2.gguf")).unwrap();
    assert!(qwen2.config().qkv_bias && qwen2.config().tied_head && !qwen2.config().qk_norm);
    assert!(!qwen2.config().tensor_names().contains(&TensorName::Output));
}

#[test]
fn tokenizer_settings_agree_where_both_formats_say_them() {
    for name in ["llama3", "qwen2", "qwen3"] {
        let gguf = open(&fixture(&format!("{name}.gguf"))).unwrap();
        let hf = open(&fixture(&format!("hf-{name}"))).unwrap();
        let (ours, theirs) = (gguf.tokenizer_config(), hf.tokenizer_config());
        assert_eq!(ours.add_bos, theirs.add_bos, "{name}");
        assert_eq!(ours.chat_template, theirs.chat_template, "{name}");
        assert_eq!(ours.eos.first(), theirs.eos.first(), "{name}");
        assert_eq!(theirs.eos.len(), 2, "{name}");
        assert_eq!(theirs.bos, if name == "llama3" { ours.bos } else { None }, "{name}");
    }
}

#[test]
fn digests_name_the_bytes() {
    let gguf = open(&fixture("qwen2.gguf")).unwrap().digest().unwrap();
    assert!(gguf.starts_with("sha256:") && gguf.len() == 71, "{gguf}");
    let folder = open(&fixture("hf-qwen2")).unwrap().digest().unwrap();
    assert_eq!(folder, open(&fixture("hf-qwen2")).unwrap().digest().unwrap());
    assert_ne!(folder, gguf);
}

#[test]
fn descriptions_say_what_was_read() {
    let text = open(&fixture("qwen2.gguf")).unwrap().description();
    assert!(text.contains("qwen2") && text.contains("F16"), "{text}");
    let text = open(&fixture("hf-qwen3")).unwrap().description();
    assert!(text.contains("qwen3") && !text.contains("hf-qwen3") && text.contains("BF16"), "{text}");
}
