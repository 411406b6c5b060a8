//! Streams that mean harm: every one ends with an error that names what was wrong, or runs.

use std::sync::Arc;

use proptest::prelude::*;

use super::stream::{
    CONVOLUTION, Conv, FEATURE, FP16, INT8, Numbers, OUTPUT, REGCMD, WEIGHTS, chain, memory, run,
};
use crate::sim::{
    Backing, Machine, Memory, MemoryFault, Options, RegisterId, SimError, UndecodedKind, Unwritten,
};

fn stop(conv: Conv, changes: &[(u16, u32)]) -> SimError {
    let mut numbers = Numbers(3);
    let feature = conv.pack_feature(&numbers.signed(conv.width * conv.height * conv.channels, 100));
    let weights = conv.pack_weights(&numbers.signed(conv.outputs * conv.channels, 100));
    let memory = memory(&feature, &weights, 1 << 16);
    let mut words = conv.words();
    for (register, value) in changes {
        let target = words.iter().find(|word| word.1 == *register).map_or(0x0201, |word| word.0);
        words.retain(|word| word.1 != *register);
        words.push((target, *register, *value));
    }
    let stopped = run(&memory, &[(words, CONVOLUTION)]).unwrap_err();
    assert_eq!(stopped.report.tasks_done(), 0);
    stopped.error
}

#[test]
fn each_contradiction_names_its_register() {
    let conv = Conv::pointwise(INT8, 8, 64, 32);
    let cases = [
        (0x100c, 5 << 7 | 5 << 4, 0x100c),
        (0x100c, 1, 0x100c),
        (0x1014, 0, 0x1014),
        (0x1020, 8 << 16, 0x1020),
        (0x1020, 9 << 16 | 1, 0x107c),
        (0x1024, 60, 0x1024),
        (0x102c, 9, 0x102c),
        (0x1030, 1, 0x1030),
        (0x1034, 1, 0x1034),
        (0x1038, 1 << 24 | 1 << 16, 0x1038),
        (0x1038, 1 << 24 | 1 << 16 | 33, 0x3018),
        (0x1040, 0xb2, 0x1040),
        (0x1044, 1, 0x1044),
        (0x1044, 0x3fff, 0x1040),
        (0x1088, 32, 0x1088),
        (0x3010, 0x200, 0x3010),
        (0x3014, 3, 0x3014),
        (0x3018, 63, 0x3018),
        // One more than a field holds: its low bits alone would be a size of one.
        (0x3018, 0x2000, 0x3018),
        (0x4030, 0x2000, 0x4030),
        (0x1088, 1 << 31 | 64, 0x1088),
    ];
    for (register, value, named) in cases {
        let error = stop(conv, &[(register, value)]);
        let SimError::Illegal { register: found, .. } = error.root() else {
            panic!("{register:#x}: {error:?}")
        };
        assert_eq!(*found, RegisterId(named), "{register:#x} = {value:#x}: {error:?}");
    }
    assert!(matches!(
        stop(conv, &[(0x1100, 1)]).root(),
        SimError::Undecoded { kind: UndecodedKind::Compressed, .. }
    ));
    assert!(matches!(
        stop(conv, &[(0x102c, 1 << 22 | 8)]).root(),
        SimError::Undecoded { kind: UndecodedKind::Other, .. }
    ));
    assert!(matches!(stop(conv, &[(0x1fff, 1)]).root(), SimError::UnknownRegister { offset: 0x1fff, .. }));
}

#[test]
fn each_bad_address_names_the_register_that_held_it() {
    let conv = Conv::pointwise(INT8, 8, 64, 32);
    for register in [0x1070, 0x1110, 0x4020] {
        let error = stop(conv, &[(register, 0x7000_0000)]);
        let SimError::Memory { register: found, source } = error.root() else { panic!("{error:?}") };
        assert_eq!(*found, RegisterId(register));
        assert!(matches!(source, MemoryFault::Unmapped { at: 0x7000_0000, .. }), "{source}");
    }
    let error = stop(conv, &[(0x1080, 0x07ff_ffff)]);
    let SimError::Memory { register, source: MemoryFault::OutOfBuffer { .. } } = error.root() else {
        panic!("{error:?}")
    };
    assert_eq!(register.to_string(), "CNA.FEATURE_DATA_ADDR (0x1070)");
}

/// Runs a convolution over zeros with other than the default options; the last byte of the weights is never written.
fn with_options(conv: Conv, options: Options) -> Result<(), SimError> {
    let memory = Memory::new(options.unwritten);
    let feature = conv.pack_feature(&vec![0; conv.width * conv.height * conv.channels]);
    let weights = conv.pack_weights(&vec![0; conv.outputs * conv.channels]);
    for (base, bytes) in [(FEATURE, feature), (WEIGHTS, weights[..weights.len() - 1].to_vec())] {
        memory.map(base, Arc::new(Backing::new(bytes.len()).unwrap())).unwrap();
        memory.write(base, &bytes).unwrap();
    }
    for base in [OUTPUT, REGCMD] {
        memory.map(base, Arc::new(Backing::new(1 << 17).unwrap())).unwrap();
    }
    let kick = chain(&memory, &[(conv.words(), CONVOLUTION)]);
    Machine::new(options).run_chain(0, &memory, &kick).map(|_| ()).map_err(|stopped| stopped.error)
}

#[test]
fn options_decide_on_unwritten_bytes_and_the_spare_bank() {
    let tall = Conv { width: 1, tensor_width: 1, height: 500, ..Conv::pointwise(INT8, 1, 64, 32) };
    let unwritten = with_options(tall, Options::default()).unwrap_err();
    let SimError::Memory { register, source: MemoryFault::Unwritten { byte, .. } } = unwritten.root() else {
        panic!("{unwritten:?}")
    };
    assert_eq!((*register, *byte), (RegisterId(0x1110), i64::from(WEIGHTS) + 32 * 64 - 1));
    let zeros = Options { unwritten: Unwritten::Zero, ..Options::default() };
    with_options(tall, zeros).unwrap();
    let refused = with_options(tall, Options { spare_bank: true, ..zeros }).unwrap_err();
    assert!(refused.root().to_string().contains("no spare bank"), "{refused:?}");
    with_options(Conv { height: 512, ..tall }, Options { spare_bank: true, ..zeros }).unwrap();
    with_options(Conv { height: 480, ..tall }, Options { spare_bank: true, ..zeros }).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]

    /// Any registers at any values, over a task that is otherwise right.
    #[test]
    fn no_stream_panics(
        changes in prop::collection::vec((0..200usize, prop_oneof![any::<u32>(), 0..64u32, (0..32u32).prop_map(|b| 1 << b)], any::<bool>()), 1..6),
        enable in prop_oneof![5 => Just(CONVOLUTION), 1 => Just(0x1d_u32), 1 => Just(0x18), 1 => any::<u32>()],
        fp16 in any::<bool>(),
    ) {
        let conv = Conv::pointwise(if fp16 { FP16 } else { INT8 }, 4, 64, 32);
        let mut numbers = Numbers(9);
        let feature = conv.pack_feature(&numbers.signed(4 * 64, 100));
        let weights = conv.pack_weights(&numbers.signed(32 * 64, 100));
        let memory = memory(&feature, &weights, 1 << 14);
        let mut words = conv.words();
        for (index, value, flip) in changes {
            let index = index % words.len();
            words[index].2 = if flip { words[index].2 ^ value } else { value };
        }
        let _ = run(&memory, &[(words, enable)]);
    }

    /// Words that are no words.
    #[test]
    fn no_words_panic(words in prop::collection::vec((any::<u16>(), any::<u16>(), any::<u32>()), 0..40), enable in any::<u32>()) {
        let conv = Conv::pointwise(INT8, 1, 16, 1);
        let memory = memory(&conv.pack_feature(&[0; 16]), &conv.pack_weights(&[0; 16]), 1 << 12);
        let _ = run(&memory, &[(words, enable)]);
    }
}
