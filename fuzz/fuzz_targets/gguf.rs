//! Any bytes, read as a GGUF file: the container with every row of every tensor, then the model in it.
//!
//! ```text
//! cargo install cargo-fuzz
//! mkdir -p fuzz/corpus/gguf && cp tests/fixtures/import/seed.gguf fuzz/corpus/gguf/
//! RUSTC_BOOTSTRAP=1 cargo fuzz run gguf -- -max_len=65536 -max_total_time=60
//! ```

#![no_main]

use libfuzzer_sys::fuzz_target;
use rookery_model::gguf::{GgufFile, GgufModel};
use rookery_model::source::ModelSource;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(file) = GgufFile::from_bytes(bytes.to_vec()) {
        for (name, tensor) in file.tensors() {
            let mut out = Vec::new();
            if file.read_rows(name, 0..tensor.rows, &mut out).is_ok() {
                assert_eq!(out.len(), tensor.rows * tensor.columns);
            }
        }
    }
    if let Ok(model) = GgufModel::from_bytes(bytes.to_vec()) {
        for name in model.config().tensor_names() {
            let (rows, columns) = model.config().shape(name);
            if let Ok(values) = model.tensor(name) {
                assert_eq!(values.len(), rows * columns);
            }
        }
    }
});
