//! Good files give their numbers; bad ones an error that names the part at fault.

mod build;
mod mutations;

use std::error::Error;
use std::path::PathBuf;

use self::build::{Builder, f32_value, string, string_value, strings_value, typed, u32_value};
use super::{Array, GgufFile, GgufModel, Value};
use crate::config::Architecture;
use crate::dequant::StorageType;
use crate::names::{LayerTensor, TensorName};
use crate::source::{ImportError, ModelSource};

/// Opens a file and reads every tensor that the model consists of.
fn read_whole(bytes: Vec<u8>) -> Result<GgufModel, ImportError> {
    let model = GgufModel::from_bytes(bytes)?;
    for name in model.config().tensor_names() {
        let (rows, columns) = model.config().shape(name);
        assert_eq!(model.tensor(name)?.len(), rows * columns);
    }
    Ok(model)
}

/// The whole chain of messages.
fn message(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
}

/// Changes one thing in a good file and expects each part in the error's message.
fn refused(expected: &[&str], change: impl FnOnce(&mut Builder)) {
    let mut builder = Builder::model();
    change(&mut builder);
    match read_whole(builder.build()) {
        Ok(_) => panic!("accepted; expected an error with {expected:?}"),
        Err(error) => {
            let message = message(&error);
            for part in expected {
                assert!(message.contains(part), "{message:?} lacks {part:?}");
            }
        }
    }
}

#[test]
fn a_good_file_gives_its_shape_and_numbers() {
    let model = read_whole(Builder::model().build()).unwrap();
    let config = model.config();
    assert_eq!(config.architecture, Architecture::Llama);
    assert_eq!((config.hidden, config.heads, config.kv_heads, config.head_dim), (32, 2, 1, 16));
    assert_eq!((config.layers, config.ffn, config.vocab, config.context), (1, 64, 3, 128));
    assert_eq!((config.rope_theta, config.rope_position_scale, config.rms_eps), (10_000.0, 1.0, 1e-5));
    assert!(!config.tied_head && !config.qkv_bias && !config.qk_norm);
    assert_eq!(model.tensor(TensorName::OutputNorm).unwrap(), (0..32).map(|i| i as f32).collect::<Vec<_>>());
    let (rows, columns) = config.shape(TensorName::TokenEmbedding);
    let expected: Vec<f32> =
        (0..rows * columns).map(|i| f32::from((i / 32 * 7 + i % 32 + 2) as u8 as i8) / 256.0).collect();
    assert_eq!(model.tensor(TensorName::TokenEmbedding).unwrap(), expected);
    assert_eq!(model.parameters(), 2 * 3 * 32 + 2 * 32 * 32 + 2 * 16 * 32 + 3 * 64 * 32 + 3 * 32);
}

#[test]
fn llama_query_and_key_rows_come_out_half_split() {
    let model = read_whole(Builder::model().build()).unwrap();
    let stored = |row: usize| (row * 7 + 2) as u8 as i8;
    for (tensor, rows) in [(LayerTensor::AttnQ, 32), (LayerTensor::AttnK, 16)] {
        let name = TensorName::Layer(0, tensor);
        let all = model.tensor(name).unwrap();
        for row in 0..rows {
            let (head, within) = (row / 16, row % 16);
            let from = head * 16 + within % 8 * 2 + within / 8;
            assert_eq!(all[row * 32], f32::from(stored(from)) / 256.0, "{name} row {row}");
        }
        assert_eq!(model.tensor_rows(name, 3..9).unwrap(), all[3 * 32..9 * 32], "{name}");
    }
    let value = model.tensor(TensorName::Layer(0, LayerTensor::AttnV)).unwrap();
    assert_eq!(value[32], f32::from(stored(1)) / 256.0);
}

#[test]
fn llama_bias_is_reordered_like_its_rows() {
    let mut builder = Builder::model();
    for (name, n) in [("attn_q", 32), ("attn_k", 16), ("attn_v", 16)] {
        builder.push(&format!("blk.0.{name}.bias"), &[n], StorageType::F32);
    }
    let model = read_whole(builder.build()).unwrap();
    let bias = model.tensor(TensorName::Layer(0, LayerTensor::AttnQBias)).unwrap();
    assert_eq!(bias[..10], [0.0, 2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 14.0, 1.0, 3.0]);
    assert_eq!(bias[16], 16.0);
}

#[test]
fn metadata_of_every_type_is_read() {
    let mut builder = Builder { version: 3, keys: Vec::new(), tensors: Vec::new() };
    let nested = [
        &9_u32.to_le_bytes()[..],
        &1_u64.to_le_bytes(),
        &1_u32.to_le_bytes(),
        &2_u64.to_le_bytes(),
        &[1, 0xFF],
    ];
    let cases: Vec<(Vec<u8>, Value)> = vec![
        (typed(0, &[200]), Value::Unsigned(200)),
        (typed(1, &[200]), Value::Signed(-56)),
        (typed(2, &[1, 2]), Value::Unsigned(513)),
        (typed(3, &[0, 0x80]), Value::Signed(-32768)),
        (u32_value(7), Value::Unsigned(7)),
        (typed(5, &(-7_i32).to_le_bytes()), Value::Signed(-7)),
        (f32_value(0.5), Value::Float(0.5)),
        (typed(7, &[1]), Value::Bool(true)),
        (string_value("héllo"), Value::String("héllo".to_owned())),
        (strings_value(&["x", ""]), Value::Array(Array::String(vec!["x".to_owned(), String::new()]))),
        (typed(10, &u64::MAX.to_le_bytes()), Value::Unsigned(u64::MAX)),
        (typed(11, &i64::MIN.to_le_bytes()), Value::Signed(i64::MIN)),
        (typed(12, &1e300_f64.to_le_bytes()), Value::Float(1e300)),
        (typed(9, &nested.concat()), Value::Array(Array::Array(vec![Array::Signed(vec![1, -1])]))),
    ];
    for (index, (bytes, _)) in cases.iter().enumerate() {
        builder.set(&format!("key{index}"), bytes.clone());
    }
    let file = GgufFile::from_bytes(builder.build()).unwrap();
    for (index, (_, value)) in cases.iter().enumerate() {
        assert_eq!(file.metadata().get(&format!("key{index}")), Some(value));
    }
}

#[test]
fn linear_rope_scaling_divides_positions() {
    let mut builder = Builder::model();
    builder.set("llama.rope.scaling.type", string_value("linear"));
    builder.set("llama.rope.scaling.factor", f32_value(4.0));
    builder.set("llama.rope.freq_base", f32_value(500_000.0));
    let model = read_whole(builder.build()).unwrap();
    assert_eq!((model.config().rope_position_scale, model.config().rope_theta), (0.25, 500_000.0));
}

#[test]
fn a_missing_output_ties_the_head() {
    let mut builder = Builder::model();
    builder.tensors.retain(|tensor| tensor.name != "output.weight");
    let model = read_whole(builder.build()).unwrap();
    assert!(model.config().tied_head);
    assert!(!model.config().tensor_names().contains(&TensorName::Output));
}

#[test]
fn unsupported_models_are_refused_by_name() {
    refused(&["\"gemma3\"", "llama, qwen2, qwen3"], |b| {
        b.set("general.architecture", string_value("gemma3"))
    });
    refused(&["llama.expert_count = 8"], |b| b.set("llama.expert_count", u32_value(8)));
    refused(&["sliding-window", "64 tokens"], |b| b.set("llama.attention.sliding_window", u32_value(64)));
    refused(&["rope scaling \"yarn\"", "linear"], |b| b.set("llama.rope.scaling.type", string_value("yarn")));
    refused(&["8 of a head's 16"], |b| b.set("llama.rope.dimension_count", u32_value(8)));
    refused(&["value heads of size 32"], |b| b.set("llama.attention.value_length", u32_value(32)));
    refused(&["final_logit_softcapping = 30"], |b| b.set("llama.final_logit_softcapping", f32_value(30.0)));
    refused(&["split", "--merge"], |b| b.set("split.count", typed(2, &[3, 0])));
    refused(&["\"adapter\""], |b| b.set("general.type", string_value("adapter")));
    refused(&["version 2"], |b| b.version = 2);
    refused(&["big-endian"], |b| b.version = 3_u32.swap_bytes());
    refused(&["blk.0.attn_output.bias", "attention output"], |b| {
        b.push("blk.0.attn_output.bias", &[32], StorageType::F32);
    });
    refused(&["blk.0.attn_q_norm.weight"], |b| b.push("blk.0.attn_q_norm.weight", &[16], StorageType::F32));
    refused(&["blk.1.attn_norm.weight"], |b| b.push("blk.1.attn_norm.weight", &[32], StorageType::F32));
    refused(&["output.weight", "IQ4_XS", "Q6_K"], |b| b.tensor("output.weight").kind = 23);
    refused(&["output.weight", "number 99"], |b| b.tensor("output.weight").kind = 99);
}

#[test]
fn a_window_over_the_whole_context_changes_nothing() {
    let mut builder = Builder::model();
    builder.set("llama.attention.sliding_window", u32_value(128));
    builder.set("llama.expert_count", u32_value(0));
    builder.push("blk.0.attn_rot_embd", &[8], StorageType::F32);
    read_whole(builder.build()).unwrap();
}

#[test]
fn faults_of_keys_name_the_key() {
    refused(&["general.architecture", "missing"], |b| b.remove("general.architecture"));
    refused(&["llama.block_count", "missing"], |b| b.remove("llama.block_count"));
    refused(&["llama.block_count", "a string"], |b| b.set("llama.block_count", string_value("one")));
    refused(&["llama.block_count", "integer"], |b| {
        b.set("llama.block_count", typed(5, &(-1_i32).to_le_bytes()))
    });
    refused(&["layers", "4294967295"], |b| b.set("llama.block_count", u32_value(u32::MAX)));
    refused(&["heads is 0"], |b| b.set("llama.attention.head_count", u32_value(0)));
    refused(&["2 attention heads", "3 key/value heads"], |b| {
        b.set("llama.attention.head_count_kv", u32_value(3))
    });
    refused(&["head size 24"], |b| b.set("llama.attention.key_length", u32_value(24)));
    refused(&["rms_eps is NaN"], |b| b.set("llama.attention.layer_norm_rms_epsilon", f32_value(f32::NAN)));
    refused(&["rope_theta is inf"], |b| b.set("llama.rope.freq_base", f32_value(f32::INFINITY)));
    refused(&["llama.vocab_size", "is 4", "3 tokens"], |b| b.set("llama.vocab_size", u32_value(4)));
    refused(&["general.alignment", "is 48"], |b| b.set("general.alignment", u32_value(48)));
    refused(&["general.alignment", "is 0"], |b| b.set("general.alignment", u32_value(0)));
    refused(&["tokenizer.ggml.tokens", "missing"], |b| b.remove("tokenizer.ggml.tokens"));
    refused(&["tokenizer.ggml.eos_token_id", "token id"], |b| {
        b.set("tokenizer.ggml.eos_token_id", typed(10, &u64::MAX.to_le_bytes()));
    });
    refused(&["llama.block_count", "more than once"], |b| {
        b.keys.push(("llama.block_count".to_owned(), u32_value(1)));
    });
}

#[test]
fn faults_of_values_name_the_key() {
    refused(&["\"k\"", "unknown value type 13"], |b| b.set("k", typed(13, &[])));
    refused(&["\"k\"", "boolean is 2"], |b| b.set("k", typed(7, &[2])));
    refused(&["\"k\"", "UTF-8"], |b| b.set("k", typed(8, &[1, 0, 0, 0, 0, 0, 0, 0, 0xFF])));
    refused(&["\"k\"", "count 18446744073709551615"], |b| b.set("k", typed(8, &[0xFF; 8])));
    let huge = [&0_u32.to_le_bytes()[..], &(1_u64 << 40).to_le_bytes()].concat();
    refused(&["\"k\"", "count 1099511627776"], |b| b.set("k", typed(9, &huge)));
    refused(&["\"k\"", "nested"], |b| {
        let level = [&9_u32.to_le_bytes()[..], &1_u64.to_le_bytes()].concat();
        b.set("k", typed(9, &level.repeat(100_000)));
    });
}

#[test]
fn faults_of_tensors_name_the_tensor() {
    let name = "blk.0.attn_k.weight";
    refused(&[name, "missing"], |b| b.tensors.retain(|tensor| tensor.name != name));
    refused(&[name, "more than once"], |b| {
        let mut again = b.tensor(name).clone();
        again.offset = None;
        b.tensors.push(again);
    });
    refused(&[name, "[16, 64]", "[16, 32]"], |b| {
        b.tensor(name).dims = vec![64, 16];
        let longer = [b.tensor(name).data.clone(), b.tensor(name).data.clone()].concat();
        b.tensor(name).data = longer;
    });
    refused(&[name, "zero"], |b| b.tensor(name).dims = vec![32, 0]);
    refused(&[name, "0 dimensions"], |b| b.tensor(name).dims = vec![]);
    refused(&[name, "5 dimensions"], |b| b.tensor(name).dims = vec![32, 16, 1, 1, 1]);
    refused(&[name, "overflows"], |b| b.tensor(name).dims = vec![1 << 40, 1 << 40]);
    refused(&[name, "overflows"], |b| b.tensor(name).dims = vec![32, u64::MAX, u64::MAX, u64::MAX]);
    refused(&[name, "multiple of 32", "Q8_0"], |b| b.tensor(name).dims = vec![33, 16]);
    refused(&[name, "outside"], |b| b.tensor(name).dims = vec![32, 1 << 30]);
    refused(&[name, "outside"], |b| b.tensor(name).offset = Some(1 << 40));
    refused(&[name, "outside"], |b| b.tensor(name).offset = Some(u64::MAX - 31));
    refused(&[name, "multiple of the alignment 32"], |b| b.tensor(name).offset = Some(33));
    refused(&["overlaps", "token_embd.weight"], |b| b.tensor(name).offset = Some(32));
    refused(&["token_embd.weight", "row 2, column 0", "NaN"], |b| {
        b.tensor("token_embd.weight").data[68..70].copy_from_slice(&0x7E00_u16.to_le_bytes());
    });
    refused(&["output_norm.weight", "column 5", "-inf"], |b| {
        b.tensor("output_norm.weight").data[20..24].copy_from_slice(&f32::NEG_INFINITY.to_le_bytes());
    });
    refused(&["rope_freqs.weight"], |b| b.push("rope_freqs.weight", &[8, 2], StorageType::F32));
    refused(&["4 rope factors for head size 16"], |b| {
        b.push("rope_freqs.weight", &[4], StorageType::F32);
        b.tensor("rope_freqs.weight").data = [1.0_f32; 4].map(f32::to_le_bytes).concat();
    });
    refused(&["rope_factors is 0"], |b| b.push("rope_freqs.weight", &[8], StorageType::F32));
}

#[test]
fn a_file_cut_off_anywhere_is_refused() {
    let whole = Builder::model().build();
    for len in 0..whole.len() {
        // Padding after the last tensor may go; nothing else may.
        let Err(error) = read_whole(whole[..len].to_vec()) else {
            panic!("accepted at {len} of {}", whole.len())
        };
        assert!(!message(&error).is_empty());
    }
}

#[test]
fn what_is_no_gguf_file_is_refused() {
    let not_gguf = GgufModel::from_bytes(b"PK\x03\x04 and so on".to_vec()).unwrap_err();
    assert!(message(&not_gguf).contains("not with \"GGUF\""), "{not_gguf}");
    let missing = GgufModel::open(&PathBuf::from("/nonexistent/x.gguf")).unwrap_err();
    assert!(message(&missing).contains("/nonexistent/x.gguf"), "{missing}");
    let counts = [b"GGUF".as_slice(), &3_u32.to_le_bytes(), &[0xFF; 8], &string("x")].concat();
    assert!(message(&GgufModel::from_bytes(counts).unwrap_err()).contains("tensor count"));
}
