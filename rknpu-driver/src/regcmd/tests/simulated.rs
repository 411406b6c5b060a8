//! Changed streams through the simulated machine: the in-tree version of the fuzz target `npu_sim`.

use std::sync::Arc;

use proptest::prelude::*;

use super::{STREAMS, words};
use crate::regcmd::registers::Block;
use crate::regcmd::{AddressSlot, Word};
use crate::sim::{Backing, Kick, Machine, Memory, Options, Stopped, Unwritten};

/// Commands lie at address 0, so that the streams' links fit as they are; data behind them.
const COMMANDS: usize = 64 * 1024;
const DATA: u32 = 0x10_0000;
const DATA_BYTES: usize = 1 << 20;

/// Runs words as one chain of `tasks` over memory of a megabyte; `Ok` is the number of tasks done.
fn run(words: &[u64], tasks: usize) -> Result<usize, Box<Stopped>> {
    let memory = Memory::new(Unwritten::Zero);
    for (at, bytes) in [(0, COMMANDS), (DATA, DATA_BYTES)] {
        memory.map(at, Arc::new(Backing::new(bytes).unwrap())).unwrap();
    }
    let bytes: Vec<u8> = words.iter().flat_map(|&word| moved(Word(word)).0.to_le_bytes()).collect();
    memory.write(0, &bytes).unwrap();
    let ends = |word: &&u64| Word(**word).target() == Block::Enable.target();
    let length = words.iter().position(|word| ends(&word)).unwrap_or(words.len()).saturating_sub(3);
    let kick = Kick::new(0, length as u32, tasks as u32, 0x300);
    let report = Machine::new(Options::default()).run_chain(0, &memory, &kick)?;
    Ok(report.tasks.len())
}

/// Addresses of a stream that nobody bound are offsets; they move to the data.
fn moved(word: Word) -> Word {
    let same = |slot: &&AddressSlot| Word::write(slot.register(), word.value()) == word;
    match AddressSlot::ALL.iter().find(same) {
        Some(_) => word.with_value(word.value().wrapping_add(DATA)),
        None => word,
    }
}

#[test]
fn the_streams_themselves_run() {
    // The first stream begins with the program for one core, a single task.
    assert_eq!(run(&words(STREAMS[0].1), 1).unwrap(), 1);
    assert_eq!(run(&words(STREAMS[1].1), 2).unwrap(), 2);
    assert_eq!(run(&words(STREAMS[2].1), 11).unwrap(), 11);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(96) })]

    #[test]
    fn any_stream_ends_with_a_report_or_a_named_error(
        stream in 0..STREAMS.len(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), 0..64u32, any::<Option<u8>>()), 0..6),
        noise in prop::collection::vec(any::<u64>(), 0..4),
    ) {
        let mut words = words(STREAMS[stream].1);
        for (at, bit, value) in changes {
            let word = at.get_mut(&mut words);
            *word = match value {
                Some(value) => Word(*word).with_value(value.into()).0,
                None => *word ^ 1 << bit,
            };
        }
        words.extend(noise);
        let tasks = words.iter().filter(|&&word| Word(word).target() == Block::Enable.target()).count();
        if let Err(stopped) = run(&words, tasks.max(1)) {
            prop_assert!(!stopped.error.to_string().is_empty());
        }
    }
}
