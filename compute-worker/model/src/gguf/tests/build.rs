//! Writes GGUF files for tests, good ones and ones with any single thing wrong.

use crate::dequant::StorageType;

/// A tensor to write. `None` for the offset places it after the one before.
#[derive(Clone)]
pub(super) struct TensorSpec {
    pub(super) name: String,
    /// Columns first, as the file has it.
    pub(super) dims: Vec<u64>,
    pub(super) kind: u32,
    pub(super) offset: Option<u64>,
    pub(super) data: Vec<u8>,
}

#[derive(Clone)]
pub(super) struct Builder {
    pub(super) version: u32,
    /// Key and its value: type number and bytes.
    pub(super) keys: Vec<(String, Vec<u8>)>,
    pub(super) tensors: Vec<TensorSpec>,
}

pub(super) fn string(text: &str) -> Vec<u8> {
    let mut out = (text.len() as u64).to_le_bytes().to_vec();
    out.extend_from_slice(text.as_bytes());
    out
}

pub(super) fn typed(kind: u32, bytes: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes(), bytes].concat()
}

pub(super) fn u32_value(value: u32) -> Vec<u8> {
    typed(4, &value.to_le_bytes())
}

pub(super) fn f32_value(value: f32) -> Vec<u8> {
    typed(6, &value.to_le_bytes())
}

pub(super) fn string_value(text: &str) -> Vec<u8> {
    typed(8, &string(text))
}

pub(super) fn strings_value(texts: &[&str]) -> Vec<u8> {
    let mut out = 8_u32.to_le_bytes().to_vec();
    out.extend_from_slice(&(texts.len() as u64).to_le_bytes());
    out.extend(texts.iter().flat_map(|text| string(text)));
    typed(9, &out)
}

impl Builder {
    /// A whole model: one block, hidden 32, two heads of 16, three tokens, Q8_0 matrices, f32 norms.
    pub(super) fn model() -> Self {
        let mut builder = Builder { version: 3, keys: Vec::new(), tensors: Vec::new() };
        builder.set("general.architecture", string_value("llama"));
        for (key, value) in [
            ("block_count", 1),
            ("embedding_length", 32),
            ("feed_forward_length", 64),
            ("context_length", 128),
            ("attention.head_count", 2),
            ("attention.head_count_kv", 1),
        ] {
            builder.set(&format!("llama.{key}"), u32_value(value));
        }
        builder.set("llama.attention.layer_norm_rms_epsilon", f32_value(1e-5));
        builder.set("tokenizer.ggml.model", string_value("gpt2"));
        builder.set("tokenizer.ggml.pre", string_value("llama-bpe"));
        builder.set("tokenizer.ggml.tokens", strings_value(&["a", "b", "ab"]));
        builder.set("tokenizer.ggml.merges", strings_value(&["a b"]));
        builder.set("tokenizer.ggml.eos_token_id", u32_value(1));
        for (name, rows) in [
            ("token_embd.weight", 3),
            ("output.weight", 3),
            ("blk.0.attn_q.weight", 32),
            ("blk.0.attn_k.weight", 16),
            ("blk.0.attn_v.weight", 16),
            ("blk.0.attn_output.weight", 32),
            ("blk.0.ffn_gate.weight", 64),
            ("blk.0.ffn_up.weight", 64),
        ] {
            builder.push(name, &[32, rows], StorageType::Q8_0);
        }
        builder.push("blk.0.ffn_down.weight", &[64, 32], StorageType::Q8_0);
        for name in ["output_norm.weight", "blk.0.attn_norm.weight", "blk.0.ffn_norm.weight"] {
            builder.push(name, &[32], StorageType::F32);
        }
        builder
    }

    pub(super) fn set(&mut self, key: &str, value: Vec<u8>) {
        match self.keys.iter_mut().find(|(other, _)| other == key) {
            Some((_, old)) => *old = value,
            None => self.keys.push((key.to_owned(), value)),
        }
    }

    pub(super) fn remove(&mut self, key: &str) {
        self.keys.retain(|(other, _)| other != key);
    }

    /// Adds a tensor of small values.
    pub(super) fn push(&mut self, name: &str, dims: &[u64], storage: StorageType) {
        let kind = if storage == StorageType::F32 { 0 } else { 8 };
        assert_eq!(StorageType::from_gguf(kind), Some(storage), "not written here");
        let blocks = dims.iter().product::<u64>() as usize / storage.block_values();
        let mut data = Vec::new();
        for block in 0..blocks {
            if storage == StorageType::F32 {
                data.extend_from_slice(&(block as f32).to_le_bytes());
            } else {
                // Scale 2⁻⁸, then values that tell rows and columns apart.
                data.extend_from_slice(&0x1C00_u16.to_le_bytes());
                data.extend((2..storage.block_bytes()).map(|i| (block * 7 + i) as u8));
            }
        }
        self.tensors.push(TensorSpec {
            name: name.to_owned(),
            dims: dims.to_vec(),
            kind,
            offset: None,
            data,
        });
    }

    pub(super) fn tensor(&mut self, name: &str) -> &mut TensorSpec {
        self.tensors.iter_mut().find(|tensor| tensor.name == name).expect("a tensor of the test model")
    }

    pub(super) fn build(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend_from_slice(&self.version.to_le_bytes());
        out.extend_from_slice(&(self.tensors.len() as u64).to_le_bytes());
        out.extend_from_slice(&(self.keys.len() as u64).to_le_bytes());
        for (key, value) in &self.keys {
            out.extend(string(key));
            out.extend_from_slice(value);
        }
        let mut data = Vec::new();
        for tensor in &self.tensors {
            out.extend(string(&tensor.name));
            out.extend_from_slice(&(tensor.dims.len() as u32).to_le_bytes());
            out.extend(tensor.dims.iter().flat_map(|n| n.to_le_bytes()));
            out.extend_from_slice(&tensor.kind.to_le_bytes());
            out.extend_from_slice(&tensor.offset.unwrap_or(data.len() as u64).to_le_bytes());
            data.extend_from_slice(&tensor.data);
            data.resize(data.len().next_multiple_of(32), 0);
        }
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(data);
        out
    }
}
