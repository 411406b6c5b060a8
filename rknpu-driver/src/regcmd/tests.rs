//! Round trips, layout, and streams of the vendor's compiler.

use proptest::prelude::*;

use super::registers::{self, Block, Field, Register, cna, core, dpu, dpu_rdma, enable, pc};
use super::*;

#[cfg(feature = "sim")]
mod simulated;

/// Streams of the vendor's compiler, as it wrote them (addresses still addends): convolutions for 1, 2 and 3 cores
/// with pooling tasks, a table upload with its use, a chain of deltas with reductions.
const STREAMS: [(&str, &[u8]); 3] = [
    ("multi_core_convolution", include_bytes!("fixtures/multi_core_convolution.bin")),
    ("sigmoid_table", include_bytes!("fixtures/sigmoid_table.bin")),
    ("softmax_deltas", include_bytes!("fixtures/softmax_deltas.bin")),
];

const KINDS: [TaskKind; 4] =
    [TaskKind::Convolution, TaskKind::ConvolutionWithOperands, TaskKind::Elementwise, TaskKind::Pooling];

fn words(bytes: &[u8]) -> Vec<u64> {
    bytes.as_chunks::<8>().0.iter().map(|&word| u64::from_le_bytes(word)).collect()
}

fn raw(words: &[Word]) -> Vec<u64> {
    words.iter().map(|word| word.0).collect()
}

#[test]
fn vendor_streams_decode_and_encode_to_the_same_words() {
    for (name, bytes) in STREAMS {
        let words = words(bytes);
        let commands = decode(&words).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(encode(&commands), words, "{name}");
        let reserved: Vec<_> =
            disassemble(&words).lines().filter(|line| line.contains("reserved")).map(str::to_owned).collect();
        assert_eq!(reserved, Vec::<String>::new(), "{name}: bits that no field names");
    }
}

/// What a full task of ours writes is what the vendor's full tasks write, in the same order, but for the repetition
/// of four CNA registers ahead of the first task and two table registers that do nothing without an upload.
#[test]
fn full_tasks_write_what_the_vendors_do() {
    let vendor = words(STREAMS[0].1);
    let end = vendor.iter().position(|&word| Word(word).target() == Block::Enable.target()).unwrap();
    let skipped = [dpu::LUT_ACCESS_CFG, dpu::LUT_ACCESS_DATA];
    let theirs: Vec<_> =
        decode(&vendor[4..end - 3]).unwrap().iter().map(|command| *command.register).collect();
    let theirs: Vec<_> = theirs.into_iter().filter(|register| !skipped.contains(register)).collect();
    let ours = TaskBuilder::new(TaskKind::ConvolutionWithOperands).finish();
    let ours: Vec<_> = decode(&raw(&ours.words)).unwrap().iter().map(|command| *command.register).collect();
    assert_eq!(ours, theirs);
}

#[test]
fn table_of_registers_is_sorted_and_found() {
    assert!(
        registers::ALL.windows(2).all(|pair| {
            (pair[0].block.target(), pair[0].offset) < (pair[1].block.target(), pair[1].offset)
        })
    );
    for register in &registers::ALL {
        assert_eq!(registers::lookup(register.block, register.offset), Some(register));
        assert!(register.fields.iter().all(|field| field.register == register.offset));
    }
    assert_eq!(registers::lookup(Block::Cna, 0x1ffc), None);
    assert_eq!(cna::conv_con1::PROC_PRECISION.mask(), 0x380);
    assert_eq!((cna::CONV_CON1.block, cna::CONV_CON1.offset), (Block::Cna, 0x100c));
    // Added over reserved bits of Mesa's file.
    assert_eq!(cna::conv_con2::CORE_SPLIT.mask(), 0xf000_0000);
    assert_eq!(pc::register_amounts::CORES_MINUS_ONE.mask(), 0x3_0000);
}

#[test]
fn values_too_wide_and_blocks_not_started_are_refused() {
    let mut task = TaskBuilder::new(TaskKind::Convolution);
    let field = cna::data_size0::DATAIN_WIDTH;
    assert_eq!(task.set(field, 2048).unwrap_err(), TaskError::FieldOverflow { field, value: 2048 });
    let error = task.set_signed(cna::dma_con2::SURF_STRIDE, -(1 << 27) - 1).unwrap_err();
    assert_eq!(
        error.to_string(),
        "-134217729 does not fit into CNA.SURF_STRIDE, bits 27:0 of register 0x1080"
    );
    for register in
        [dpu_rdma::RDMA_SRC_BASE_ADDR, enable::OPERATION_ENABLE, dpu::S_POINTER, dpu::LUT_ACCESS_DATA]
    {
        let foreign = TaskError::ForeignRegister { register, kind: TaskKind::Convolution };
        assert_eq!(task.write(register, 0).unwrap_err(), foreign);
    }
    assert!(task.address(AddressSlot::Bias, Base(0), 0).is_err());
    assert!(TaskBuilder::new(TaskKind::Pooling).upload_table(&[0; LUT_ENTRIES], &[0; LUT_ENTRIES]).is_err());
}

#[test]
fn signed_fields_and_addresses_reach_the_words() {
    let mut task = TaskBuilder::new(TaskKind::Convolution);
    task.set_signed(cna::dma_con2::SURF_STRIDE, -3).unwrap();
    task.address(AddressSlot::Feature, Base(1), 0x40).unwrap();
    task.address(AddressSlot::Feature, Base(1), 0x80).unwrap();
    let mut program = Program::new(ProgramOptions::default());
    program.chain(&[task.finish()]).unwrap();
    let bound = program.bind_words(&[0, 0x1_0000], 0x4000).unwrap();
    assert_eq!(value(&bound, cna::DMA_CON2), 0x0fff_fffd);
    assert_eq!(value(&bound, cna::FEATURE_DATA_ADDR), 0x1_0080);

    assert!(matches!(program.bind(&[0], 0x4000), Err(BindError::MissingBase { base: 1, given: 1, .. })));
    assert!(matches!(program.bind(&[0, u32::MAX - 15], 0), Err(BindError::AddressOverflow { .. })));
    assert!(matches!(program.bind(&[0, 8], 0), Err(BindError::Misaligned { align: 16, .. })));
    assert!(matches!(program.bind(&[0, 0], 32), Err(BindError::Misaligned { align: 64, .. })));
}

fn value(words: &[Word], register: Register) -> u32 {
    let at = |word: &&Word| (word.target(), word.register()) == (register.block.target(), register.offset);
    words.iter().find(at).unwrap().value()
}

#[test]
fn an_upload_is_two_tables_after_the_registers() {
    let negative = std::array::from_fn(|index| index as i16 - 600);
    let positive = std::array::from_fn(|index| index as i16);
    let mut task = TaskBuilder::new(TaskKind::Elementwise);
    task.banks(Banks::Clear).upload_table(&negative, &positive).unwrap();
    let words = task.finish().words;
    let plain = TaskBuilder::new(TaskKind::Elementwise).finish().words.len();
    assert_eq!(value(&words, dpu::S_POINTER), 0x30);
    assert_eq!(words.len(), plain + 2 * (1 + LUT_ENTRIES));
    assert_eq!(words[plain], Word::write(dpu::LUT_ACCESS_CFG, 0x2_0000));
    assert_eq!(words[plain + 1].value(), 0xffff_fda8);
    assert_eq!(words[plain + 514], Word::write(dpu::LUT_ACCESS_CFG, 0x3_0000));
    assert_eq!(words[plain + 1027].value(), 512);
}

#[test]
fn disassembly_names_blocks_registers_fields_and_tails() {
    let mut program = Program::new(ProgramOptions::default());
    let mut task = TaskBuilder::new(TaskKind::Convolution);
    task.set(core::misc_cfg::PROC_PRECISION, 2).unwrap().set(core::misc_cfg::QD_EN, 1).unwrap();
    task.set_signed(cna::dma_con1::LINE_STRIDE, -4).unwrap();
    let task = task.finish();
    program.chain(&[task.clone(), task]).unwrap();
    let mut words = raw(&program.bind_words(&[], 0x1000).unwrap());
    words.extend([
        0x1234_0000_0001_0008,
        0x0201_0000_0005_1ffc,
        0x0000_0000_0001_0000,
        0x0801_8000_0000_3018,
    ]);
    let text = disassemble(&words);
    for wanted in [
        "CORE      MISC_CFG                  0x00000201  QD_EN=1  PROC_PRECISION=2(fp16)",
        "CNA       DMA_CON1                  0x0ffffffc  LINE_STRIDE=-4",
        "BASE_ADDRESS              0x00001380  ; the next task is at 0x1380",
        "; the next task has 53 pairs of words",
        "; no task follows",
        "; starts CNA, CORE, DPU",
        "; must precede the enable",
        "unknown target 0x1234, register 0x0008, value 0x00000001",
        "CNA       unknown register 0x1ffc  0x00000005",
        "unknown target 0x0000, register 0x0000, value 0x00000001",
        "reserved=0x80000000",
    ] {
        assert!(text.contains(wanted), "{wanted:?} is not in\n{text}");
    }
}

/// Follows a chain as the PC does: from a task's words over its tail to the next.
fn walk(words: &[Word], commands: u32, first: &ProgramTask) -> Vec<(u32, u32)> {
    let mut seen = Vec::new();
    let (mut offset, mut pairs) = (first.offset, (first.words + 4).div_ceil(2));
    loop {
        let start = offset as usize / 8;
        let fetched = &words[start..words.len().min(start + 2 * pairs as usize)];
        let end = fetched.iter().position(|word| word.target() == Block::Enable.target());
        seen.push((offset, end.expect("the amount covers the enable") as u32 + 1));
        let tail = &fetched[end.unwrap() - 3..];
        if tail[0] == Word::ZERO {
            return seen;
        }
        offset = tail[0].value() - commands;
        pairs = pc::register_amounts::PC_DATA_AMOUNT.get(tail[1].value()) + 1;
    }
}

fn a_kind() -> impl Strategy<Value = TaskKind> {
    prop::sample::select(KINDS.as_slice())
}

/// A field that tasks of this kind set, with a value that fits.
fn a_field(kind: TaskKind) -> impl Strategy<Value = (Field, u32)> {
    let probe = TaskBuilder::new(kind);
    let settable = |register: &&Register| probe.clone().write(**register, 0).is_ok();
    let fields: Vec<Field> =
        registers::ALL.iter().filter(settable).flat_map(|register| register.fields).copied().collect();
    (prop::sample::select(fields), any::<u32>()).prop_map(|(field, value)| (field, value & field.max()))
}

fn a_task() -> impl Strategy<Value = (TaskKind, Vec<(Field, u32)>)> {
    a_kind().prop_flat_map(|kind| (Just(kind), prop::collection::vec(a_field(kind), 0..40)))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    #[test]
    fn what_is_set_is_decoded((kind, fields) in a_task()) {
        let mut task = TaskBuilder::new(kind);
        for &(field, value) in &fields {
            task.set(field, value).unwrap();
        }
        let words = raw(&task.finish().words);
        let commands = decode(&words).unwrap();
        prop_assert_eq!(encode(&commands), words);
        for (index, &(field, value)) in fields.iter().enumerate() {
            if fields[index + 1..].iter().all(|(later, _)| *later != field) {
                let at = |command: &&Command| (command.block, command.register.offset) == (field.block, field.register);
                prop_assert_eq!(field.get(commands.iter().find(at).unwrap().value), value);
            }
        }
    }

    #[test]
    fn chains_are_walked_task_by_task(
        chains in prop::collection::vec(prop::collection::vec((a_kind(), any::<bool>()), 1..5), 1..4),
        page in 0..1000_u32,
        linked in any::<bool>(),
    ) {
        let commands = page * 4096;
        let chaining = if linked { Chaining::Linked } else { Chaining::Separate };
        let mut program = Program::new(ProgramOptions { chaining, cores: 1 });
        let mut ranges = Vec::new();
        for chain in &chains {
            let tasks: Vec<_> = chain.iter().map(|&(kind, upload)| {
                let mut task = TaskBuilder::new(kind);
                if upload && kind == TaskKind::Elementwise {
                    task.upload_table(&[1; LUT_ENTRIES], &[-1; LUT_ENTRIES]).unwrap();
                }
                task.finish()
            }).collect();
            ranges.push(program.chain(&tasks).unwrap());
        }
        let words = program.bind_words(&[], commands).unwrap();
        prop_assert!(decode(&raw(&words)).is_ok());
        for range in ranges {
            let tasks = &program.tasks()[range];
            prop_assert!(tasks.iter().all(|task| task.offset % 64 == 0));
            let expected: Vec<_> = tasks.iter().map(|task| (task.offset, task.words + 4)).collect();
            let seen = walk(&words, commands, &tasks[0]);
            prop_assert_eq!(seen, if linked { expected } else { expected[..1].to_vec() });
        }
    }

    /// The in-tree version of the fuzz target `npu_decode`.
    #[test]
    fn any_words_are_decoded_or_refused_and_always_shown(
        stream in 0..STREAMS.len(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u64>(), any::<bool>()), 0..32),
        noise in prop::collection::vec(any::<u64>(), 0..32),
    ) {
        let mut words = words(STREAMS[stream].1);
        for (at, bits, flip) in changes {
            let word = at.get_mut(&mut words);
            *word = if flip { *word ^ 1 << (bits % 64) } else { bits };
        }
        words.extend(noise);
        prop_assert_eq!(disassemble(&words).lines().count(), words.len());
        match decode(&words) {
            Ok(commands) => prop_assert_eq!(encode(&commands), words),
            Err(DecodeError::UnknownTarget { word, target, .. }) => prop_assert_eq!(Word(words[word]).target(), target),
            Err(DecodeError::UnknownRegister { word, register, .. }) => {
                prop_assert_eq!(Word(words[word]).register(), register);
            }
        }
    }
}
