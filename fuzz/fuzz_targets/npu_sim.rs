//! Command streams through the simulated NPU: the vendor's with changes, or any words at all. Every stream ends with a
//! report or an error that says where and why; nothing panics, nothing leaves the mapped memory.
//!
//! The first byte chooses: 0 to 2 a stream of the vendor's compiler, then five bytes a change (word, kind, argument);
//! 3 takes the rest as words. Cubes that walk many elements are slow, hence the time-out.
//!
//! ```text
//! RUSTC_BOOTSTRAP=1 cargo fuzz run npu_sim -- -max_len=4096 -timeout=60 -max_total_time=60
//! ```

#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use rknpu_driver::regcmd::registers::{self, Block};
use rknpu_driver::regcmd::{AddressSlot, Word};
use rknpu_driver::sim::{Backing, Kick, Machine, Memory, Options, Unwritten};

const STREAMS: [&[u8]; 3] = [
    include_bytes!("../../rknpu-driver/src/regcmd/fixtures/multi_core_convolution.bin"),
    include_bytes!("../../rknpu-driver/src/regcmd/fixtures/sigmoid_table.bin"),
    include_bytes!("../../rknpu-driver/src/regcmd/fixtures/softmax_deltas.bin"),
];
/// Commands lie at address 0, so that the streams' links fit as they are; data behind them.
const COMMANDS: usize = 64 * 1024;
const DATA: u32 = 0x10_0000;
const DATA_BYTES: usize = 1 << 20;

fuzz_target!(|bytes: &[u8]| {
    let Some((&choice, rest)) = bytes.split_first() else { return };
    let mut words = match STREAMS.get(usize::from(choice & 3)) {
        Some(stream) => changed(&parse(stream), rest),
        None => parse(rest),
    };
    words.truncate(COMMANDS / 8);

    let memory = Memory::new(if choice & 4 == 0 { Unwritten::Zero } else { Unwritten::Error });
    for (at, bytes) in [(0, COMMANDS), (DATA, DATA_BYTES)] {
        let backing = Arc::new(Backing::new(bytes).expect("a memory file of a megabyte"));
        memory.map(at, backing).expect("addresses are free");
    }
    let commands: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    memory.write(0, &commands).expect("commands fit");
    let seed: Vec<u8> = (0..DATA_BYTES / 2).map(|at| (at * 37 >> 3) as u8).collect();
    memory.write(DATA, &seed).expect("data fits");

    let enables = words.iter().filter(|&&word| Word(word).target() == Block::Enable.target()).count();
    let first = words.iter().position(|&word| Word(word).target() == Block::Enable.target());
    let length = first.map_or(words.len(), |at| at.saturating_sub(3));
    let kick = Kick::new(0, length as u32, enables.max(1) as u32, 0x300);
    if let Err(stopped) = Machine::new(Options::default()).run_chain(0, &memory, &kick) {
        assert!(!stopped.error.to_string().is_empty());
    }
});

/// Words, with addresses moved to where the data is.
fn parse(bytes: &[u8]) -> Vec<u64> {
    bytes.as_chunks::<8>().0.iter().map(|&word| moved(Word(u64::from_le_bytes(word))).0).collect()
}

fn moved(word: Word) -> Word {
    let address = AddressSlot::ALL.iter().any(|slot| {
        let register = slot.register();
        (register.block.target(), register.offset) == (word.target(), word.register())
    });
    if address { word.with_value(word.value().wrapping_add(DATA)) } else { word }
}

/// A stream with changes: a bit flipped, a value replaced by a small or a field's largest, two words exchanged.
fn changed(stream: &[u64], changes: &[u8]) -> Vec<u64> {
    let mut words = stream.to_vec();
    for &[low, high, kind, argument, other] in changes.as_chunks::<5>().0 {
        let at = usize::from(u16::from_le_bytes([low, high])) % words.len();
        let word = Word(words[at]);
        words[at] = match kind % 4 {
            0 => words[at] ^ 1 << (argument % 64),
            1 => word.with_value(argument.into()).0,
            2 => {
                let fields = Block::from_target(word.target())
                    .and_then(|block| registers::lookup(block, word.register()))
                    .map_or(&[][..], |register| register.fields);
                let field = fields.get(usize::from(argument) % fields.len().max(1));
                field.map_or(words[at], |field| {
                    word.with_value(field.put(word.value(), field.max().wrapping_sub(other.into()))).0
                })
            }
            _ => {
                let with = usize::from(u16::from_le_bytes([argument, other])) % words.len();
                let exchanged = words[with];
                words[with] = words[at];
                exchanged
            }
        };
    }
    words
}
