//! Any bytes, read as what a bundle holds: its documents, or a weight blob for the config of a small model.
//!
//! The first byte says which. Digests are not checked here: they would keep the fuzzer out of everything behind them.
//!
//! ```text
//! cargo install cargo-fuzz
//! fuzz/fuzz_targets/bundle_seeds.py BUNDLE fuzz/corpus/bundle
//! RUSTC_BOOTSTRAP=1 cargo fuzz run bundle -- -max_len=65536 -max_total_time=60
//! ```

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use rookery_compute_worker::probes::ProbeSet;
use rookery_model::bundle::{
    BundleConfig, Part, Precision, SCHEMA_VERSION, SegmentEntry, TensorEntry, check_documents,
    check_weight_blob,
};
use rookery_model::config::{Architecture, ModelConfig};
use rookery_quantizer::pack::Quantization;

/// One block of 32 wide: a whole blob is a few kilobytes.
static CONFIG: LazyLock<BundleConfig> = LazyLock::new(|| {
    let model = ModelConfig {
        architecture: Architecture::Qwen2,
        hidden: 32,
        layers: 1,
        heads: 2,
        kv_heads: 1,
        head_dim: 16,
        ffn: 48,
        vocab: 40,
        context: 64,
        rms_eps: 1e-5,
        rope_theta: 10_000.0,
        rope_position_scale: 1.0,
        rope_factors: None,
        tied_head: false,
        qkv_bias: true,
        qk_norm: false,
        ffn_hadamard: None,
    };
    let entry = |name| {
        let (rows, cols) = model.shape(name);
        let segment = |first_row, rows, precision| SegmentEntry { first_row, rows, precision };
        let segments = match rows {
            1 => vec![segment(0, 1, Precision::F32)],
            // Both precisions in one matrix, and more than one segment.
            _ => vec![segment(0, 16, Precision::W8), segment(16, rows - 16, Precision::W4)],
        };
        let segments = if rows == 16 { vec![segment(0, 16, Precision::W4)] } else { segments };
        TensorEntry { name, rows, cols, segments }
    };
    BundleConfig {
        schema_version: SCHEMA_VERSION,
        name: "fuzz".to_owned(),
        recipe: "mixed".to_owned(),
        tensors: model.tensor_names().into_iter().map(entry).collect(),
        source_digest: format!("sha256:{}", "0".repeat(64)),
        source: String::new(),
        parameters: model.parameters(),
        quality: None,
        packer_version: String::new(),
        model,
    }
});

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, bytes)) = bytes.split_first() else { return };
    let part = match kind % 8 {
        0 | 4 => Part::Embedding,
        1 | 5 => Part::Block(0),
        2 => Part::Head,
        6 => return drop(ProbeSet::parse(bytes, CONFIG.model.vocab)),
        7 => return drop(Quantization::parse(bytes)),
        _ => return documents(bytes),
    };
    let _ = check_weight_blob(&CONFIG, part, bytes);
});

/// Index, manifest and config, each but the last behind its length in two bytes.
fn documents(bytes: &[u8]) {
    let split = |bytes: &[u8]| -> Option<(Vec<u8>, Vec<u8>)> {
        let (length, rest) = bytes.split_first_chunk::<2>()?;
        let (document, rest) = rest.split_at_checked(usize::from(u16::from_le_bytes(*length)))?;
        Some((document.to_vec(), rest.to_vec()))
    };
    let Some((index, rest)) = split(bytes) else { return };
    let Some((manifest, config)) = split(&rest) else { return };
    let _ = check_documents(&index, &manifest, &config);
}
