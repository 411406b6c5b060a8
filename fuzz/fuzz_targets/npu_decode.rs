//! Any bytes, read as words of NPU commands: decoded, encoded again, shown.
//!
//! ```text
//! mkdir -p fuzz/corpus/npu_decode && cp rknpu-driver/src/regcmd/fixtures/* fuzz/corpus/npu_decode/
//! RUSTC_BOOTSTRAP=1 cargo fuzz run npu_decode -- -max_len=16384 -max_total_time=60
//! ```

#![no_main]

use libfuzzer_sys::fuzz_target;
use rknpu_driver::regcmd::{decode, disassemble, encode};

fuzz_target!(|bytes: &[u8]| {
    let words: Vec<u64> = bytes.as_chunks::<8>().0.iter().map(|&word| u64::from_le_bytes(word)).collect();
    assert_eq!(disassemble(&words).lines().count(), words.len());
    if let Ok(commands) = decode(&words) {
        assert_eq!(encode(&commands), words);
    }
});
