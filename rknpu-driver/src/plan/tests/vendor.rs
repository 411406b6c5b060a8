//! The planner's words beside those of the vendor's compiler for the same products.
//!
//! The fixtures are command streams that rknn-toolkit2 2.5.0 made of single 1×1 convolutions, copied as they
//! came.

use std::collections::BTreeMap;

use super::*;
use crate::regcmd::{Block, Word};

/// Registers that hold addresses, which belong to a file's own buffers.
const ADDRESSES: [u16; 4] = [0x1070, 0x1110, 0x4020, 0x5020];

/// Access to the look-up table: full tasks of the vendor's set it to "read entry 0", ours only touch it to
/// upload a table.
const TABLE: [u16; 2] = [0x4100, 0x4104];

/// The last value of each register of each task; addresses, table access and the program counter's left out.
fn tasks(words: &[u64]) -> Vec<BTreeMap<u16, u32>> {
    let mut tasks = vec![BTreeMap::new()];
    for &word in words {
        let word = Word(word);
        if word.target() == Block::Enable.target() {
            tasks.push(BTreeMap::new());
            continue;
        }
        let register = word.register();
        if register >= 0x1000 && !ADDRESSES.contains(&register) && !TABLE.contains(&register) {
            let last = tasks.len() - 1;
            tasks[last].insert(register, word.value());
        }
    }
    tasks.retain(|task| !task.is_empty());
    tasks
}

fn vendors(bytes: &[u8]) -> Vec<BTreeMap<u16, u32>> {
    let words: Vec<u64> = bytes.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)).collect();
    tasks(&words)
}

fn planned(plan: &MatmulPlan) -> Vec<BTreeMap<u16, u32>> {
    let (program, _) = plan.program(ProgramOptions::default()).expect("laid out");
    let words = program.bind_words(&[0; 4], 0).expect("bound");
    tasks(&words.into_iter().map(|word| word.0).collect::<Vec<_>>())
}

/// A plan by the compiler's own idea of time.
fn compiled(shape: MatmulShape, output: OutputStage) -> MatmulPlan {
    let board = crate::timing::Board::vendor_compiler();
    MatmulPlan::new(shape, &PlanOptions { board, output, ..PlanOptions::default() }).expect("planned")
}

#[test]
fn requantised_products_are_word_for_word_the_vendors() {
    let int8 = |rows, inner, outputs| MatmulShape { rows, inner, outputs, precision: Precision::Int8 };
    for (bytes, shape, scale, shift, offset, per_channel) in [
        (
            &include_bytes!("../fixtures/int8_7x32x32_per_channel.bin")[..],
            int8(7, 32, 32),
            0x72da,
            24,
            -3,
            true,
        ),
        (
            &include_bytes!("../fixtures/int8_128x256x4096_per_tensor.bin")[..],
            int8(128, 256, 4096),
            0x4aa4,
            26,
            -7,
            false,
        ),
        (
            &include_bytes!("../fixtures/int8_4x1536x8960_per_channel.bin")[..],
            int8(4, 1536, 8960),
            0x5230,
            27,
            0,
            true,
        ),
        (
            &include_bytes!("../fixtures/int8_1x2048x256_per_tensor.bin")[..],
            int8(1, 2048, 256),
            0x56af,
            27,
            19,
            false,
        ),
    ] {
        let requantise = Requantise { scale, shift, offset, per_channel };
        let (ours, theirs) =
            (planned(&compiled(shape, OutputStage::Requantised(requantise))), vendors(bytes));
        assert_eq!(ours.len(), theirs.len(), "tasks of {shape}");
        for (ours, theirs) in ours.iter().zip(&theirs) {
            let keys = ours.keys().chain(theirs.keys());
            let differing: Vec<_> = keys
                .filter(|&key| ours.get(key) != theirs.get(key))
                .map(|key| format!("{key:#06x}: {:x?}, vendor {:x?}", ours.get(key), theirs.get(key)))
                .collect();
            assert!(differing.is_empty(), "{shape}: {differing:#?}");
        }
    }
}

#[test]
fn binary32_outputs_differ_from_the_vendors_binary16_only_where_they_are_written() {
    let shape = MatmulShape { rows: 4, inner: 896, outputs: 128, precision: Precision::Fp16 };
    let ours = planned(&compiled(shape, OutputStage::Accumulators));
    let theirs = vendors(include_bytes!("../fixtures/fp16_4x896x128.bin"));
    let keys = ours[0].keys().chain(theirs[0].keys());
    let differing: std::collections::BTreeSet<u16> =
        keys.filter(|&key| ours[0].get(key) != theirs[0].get(key)).copied().collect();
    // DATA_FORMAT, BS_OW_CFG (twice the surfaces a group), OUT_CVT_SCALE (no narrowing), SURFACE_ADD.
    assert_eq!(differing.into_iter().collect::<Vec<_>>(), [0x4010, 0x4050, 0x4084, 0x40c0]);
}
