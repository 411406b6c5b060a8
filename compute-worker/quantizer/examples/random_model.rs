//! Writes a GGUF file with the shape of a well-known model and random weights: to see whether a model of that size packs, fits
//! and runs, without downloading it. What it says is noise.
//!
//! usage: cargo run --release -p rookery-quantizer --example random_model -- llama-3-8b OUT.gguf
#![expect(clippy::print_stdout, reason = "a program for people")]

use std::ops::Range;
use std::path::Path;
use std::process::ExitCode;

use rookery_model::config::{Architecture, ModelConfig};
use rookery_model::dequant::StorageType;
use rookery_model::gguf::{Array, TensorPlan, Value, write_gguf};
use rookery_model::names::TensorName;
use rookery_model::shapes;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [name, out] = arguments.as_slice() else {
        return fail("usage: random_model NAME OUT.gguf");
    };
    let Some(config) = shapes::named(name) else {
        return fail(&format!(
            "unknown shape {name}; known: {}",
            shapes::names().collect::<Vec<_>>().join(", ")
        ));
    };
    let names = config.tensor_names();
    let tensors: Vec<TensorPlan> = names.iter().map(|&name| plan(&config, name)).collect();
    let mut rows = |index: usize, range: Range<usize>| {
        if range.start == 0 {
            println!("{}", tensors[index].name);
        }
        Ok(values(index, names[index], tensors[index].columns, range))
    };
    match write_gguf(Path::new(out), &metadata(name, &config), &tensors, &mut rows) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&format!("{error}: {:?}", std::error::Error::source(&error))),
    }
}

fn fail(message: &str) -> ExitCode {
    println!("{message}");
    ExitCode::FAILURE
}

fn plan(config: &ModelConfig, name: TensorName) -> TensorPlan {
    let (rows, columns) = config.shape(name);
    let matrix = name.is_linear();
    let storage = if matrix { StorageType::Q8_0 } else { StorageType::F32 };
    TensorPlan { name: name.to_string(), rows: matrix.then_some(rows), columns, storage }
}

/// Matrices: zero mean, variance 1 / columns, so that activations keep their size. Norms: ones. Biases: small.
fn values(tensor: usize, name: TensorName, columns: usize, rows: Range<usize>) -> Vec<f32> {
    if !name.is_linear() {
        return vec![if name.to_string().ends_with(".bias") { 0.01 } else { 1.0 }; columns];
    }
    let scale = (12.0 / 4.0 / columns as f32).sqrt() / 65_536.0;
    let first = (tensor as u64) << 40 | (rows.start * columns) as u64;
    let value = |index: u64| {
        // Four 16-bit uniform numbers of a hash, added: close to normal, and cheap.
        let hash = splitmix(index);
        let sum: u64 = (0..4).map(|part| hash >> (16 * part) & 0xffff).sum();
        (sum as f32 - 131_070.0) * scale
    };
    (first..first + (rows.len() * columns) as u64).map(value).collect()
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood 2014).
fn splitmix(index: u64) -> u64 {
    let mut z = index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

fn metadata(name: &str, config: &ModelConfig) -> Vec<(String, Value)> {
    let own = |key: &str| format!("{}.{key}", config.architecture);
    let count = |value: usize| Value::Unsigned(value as u64);
    let mut metadata = vec![
        ("general.architecture".to_owned(), Value::String(config.architecture.to_string())),
        ("general.name".to_owned(), Value::String(format!("random {name}"))),
        (own("block_count"), count(config.layers)),
        (own("context_length"), count(config.context)),
        (own("embedding_length"), count(config.hidden)),
        (own("feed_forward_length"), count(config.ffn)),
        (own("attention.head_count"), count(config.heads)),
        (own("attention.head_count_kv"), count(config.kv_heads)),
        (own("attention.key_length"), count(config.head_dim)),
        (own("attention.value_length"), count(config.head_dim)),
        (own("attention.layer_norm_rms_epsilon"), Value::Float(f64::from(config.rms_eps))),
        (own("rope.freq_base"), Value::Float(config.rope_theta)),
        (own("vocab_size"), count(config.vocab)),
    ];
    metadata.extend(vocabulary(config));
    metadata
}

/// All single bytes, one merge, fillers, and an end of text.
fn vocabulary(config: &ModelConfig) -> Vec<(String, Value)> {
    let mut tokens = byte_tokens();
    tokens.push("ab".to_owned());
    while tokens.len() + 1 < config.vocab {
        tokens.push(format!("filler{}", tokens.len()));
    }
    tokens.push("<|endoftext|>".to_owned());
    let mut types = vec![1; tokens.len()];
    types[config.vocab - 1] = 3;
    let pre = if config.architecture == Architecture::Llama { "llama-bpe" } else { "qwen2" };
    let entries = [
        ("model", Value::String("gpt2".to_owned())),
        ("pre", Value::String(pre.to_owned())),
        ("tokens", Value::Array(Array::String(tokens))),
        ("token_type", Value::Array(Array::Signed(types))),
        ("merges", Value::Array(Array::String(vec!["a b".to_owned()]))),
        ("eos_token_id", Value::Unsigned(config.vocab as u64 - 1)),
        ("add_bos_token", Value::Bool(false)),
    ];
    entries.map(|(key, value)| (format!("tokenizer.ggml.{key}"), value)).into()
}

/// GPT-2's spelling of the 256 bytes: printable ones as they are, the others from U+0100 on.
fn byte_tokens() -> Vec<String> {
    let printable = |byte: u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut next = 0x100;
    let spell = |byte: u32| {
        let code = if printable(byte) {
            byte
        } else {
            next += 1;
            next - 1
        };
        char::from_u32(code).map(String::from).unwrap_or_default()
    };
    (0..256).map(spell).collect()
}
