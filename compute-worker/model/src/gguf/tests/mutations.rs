//! Whatever bytes a file holds, opening it and reading all it lists ends in values or an error.

use proptest::prelude::*;

use super::build::Builder;
use super::{GgufFile, read_whole};

/// Numbers that counts, lengths and offsets break on.
const AWKWARD: [u64; 10] = [0, 1, 31, 32, 255, 1 << 31, u32::MAX as u64, 1 << 61, 1 << 63, u64::MAX];

#[derive(Clone, Debug)]
enum Mutation {
    Byte { at: usize, value: u8 },
    Word { at: usize, value: u64 },
    Cut { at: usize },
    Insert { at: usize, value: u8 },
    Swap { from: usize, to: usize, len: usize },
}

fn mutation(len: usize) -> impl Strategy<Value = Mutation> {
    // Header bytes decide most of what happens, so half of the positions fall there.
    let at = move || prop_oneof![0..len, 0..len / 4];
    let word = prop_oneof![prop::sample::select(&AWKWARD[..]), any::<u64>()];
    prop_oneof![
        4 => (at(), any::<u8>()).prop_map(|(at, value)| Mutation::Byte { at, value }),
        4 => (at(), word).prop_map(|(at, value)| Mutation::Word { at, value }),
        1 => at().prop_map(|at| Mutation::Cut { at }),
        1 => (at(), any::<u8>()).prop_map(|(at, value)| Mutation::Insert { at, value }),
        1 => (at(), at(), 1..64_usize).prop_map(|(from, to, len)| Mutation::Swap { from, to, len }),
    ]
}

fn apply(bytes: &mut Vec<u8>, mutation: &Mutation) {
    match *mutation {
        Mutation::Byte { at, value } => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        Mutation::Word { at, value } => {
            if let Some(word) = bytes.get_mut(at..at + 8) {
                word.copy_from_slice(&value.to_le_bytes());
            }
        }
        Mutation::Cut { at } => bytes.truncate(at),
        Mutation::Insert { at, value } => bytes.insert(at.min(bytes.len()), value),
        Mutation::Swap { from, to, len } => {
            for i in 0..len {
                if from + i < bytes.len() && to + i < bytes.len() {
                    bytes.swap(from + i, to + i);
                }
            }
        }
    }
}

/// As the fuzz target does.
fn read_all(bytes: &[u8]) {
    if let Ok(file) = GgufFile::from_bytes(bytes.to_vec()) {
        for (name, tensor) in file.tensors() {
            let mut out = Vec::new();
            if file.read_rows(name, 0..tensor.rows, &mut out).is_ok() {
                assert_eq!(out.len(), tensor.rows * tensor.columns);
            }
        }
    }
    drop(read_whole(bytes.to_vec()));
}

fn mutations() -> impl Strategy<Value = Vec<Mutation>> {
    prop::collection::vec(mutation(Builder::model().build().len()), 1..6)
}

fn config() -> ProptestConfig {
    ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_damaged_file_never_panics(mutations in mutations()) {
        let mut bytes = Builder::model().build();
        for mutation in &mutations {
            apply(&mut bytes, mutation);
        }
        read_all(&bytes);
    }

    #[test]
    fn random_bytes_never_panic(tail in prop::collection::vec(any::<u8>(), 0..400)) {
        read_all(&tail);
        read_all(&[b"GGUF\x03\0\0\0".as_slice(), &tail].concat());
    }
}
