//! What stays between tasks: register banks, CBUF.

use super::stream::{
    BF16, CONVOLUTION, Conv, FEATURE, FP16, INT8, Numbers, OUTPUT, WEIGHTS, Words, chain, memory, output, run,
};
use crate::sim::{Machine, Options, RegisterId, SimError};

fn small() -> (Conv, Vec<u8>, Vec<u8>) {
    let conv = Conv::pointwise(INT8, 4, 64, 32);
    let mut numbers = Numbers(5);
    let (feature, weights) = (numbers.signed(4 * 64, 128), numbers.signed(32 * 64, 128));
    (conv, conv.pack_feature(&feature), conv.pack_weights(&weights))
}

/// The words that set other registers than these, and these.
fn with(words: &[(u16, u16, u32)], changes: &[(u16, u16, u32)]) -> Words {
    let kept = words.iter().filter(|word| changes.iter().all(|change| change.1 != word.1));
    kept.chain(changes).copied().collect()
}

#[test]
fn a_delta_task_changes_the_task_two_back() {
    let (conv, feature, weights) = small();
    let size = 4 * 32 * 4;
    let memory = memory(&feature, &weights, 4 * size as usize);
    let full = conv.words();
    // The second task's output goes elsewhere and would be the delta's, were there one bank only.
    let second = with(&full, &[(0x1001, 0x4020, OUTPUT + size)]);
    let mode = (0x1001, 0x4004, 0xe);
    let delta = vec![mode, (0x1001, 0x4034, 0)];
    let third = with(&full, &[(0x1001, 0x4020, OUTPUT + 2 * size)]);
    let tasks = [(third, CONVOLUTION), (second, CONVOLUTION), (delta, CONVOLUTION)];
    let report = run(&memory, &tasks).unwrap();
    assert_eq!(report.tasks_done(), 3);
    // Bank 0 ran twice: the interrupts say which.
    let dpu: Vec<u32> = report.tasks.iter().map(|task| task.raw_status & 0x300).collect();
    assert_eq!(dpu, [0x100, 0x200, 0x100]);
    let mut bytes = [0; 4];
    memory.read(OUTPUT, &mut bytes).unwrap_err();
    memory.read(OUTPUT + size, &mut bytes).unwrap();
    memory.read(OUTPUT + 2 * size, &mut bytes).unwrap();
}

#[test]
fn a_register_of_the_other_bank_is_not_written() {
    let (conv, feature, weights) = small();
    let memory = memory(&feature, &weights, 4096);
    let delta = vec![(0x1001, 0x4004, 0xe), (0x1001, 0x4020, OUTPUT)];
    let stopped = run(&memory, &[(conv.words(), CONVOLUTION), (delta, CONVOLUTION)]).unwrap_err();
    assert_eq!(stopped.report.tasks_done(), 1);
    assert!(matches!(stopped.error.root(), SimError::NeverWritten { bank: 1, .. }), "{:?}", stopped.error);
    assert!(stopped.error.to_string().starts_with("task 1, execution"), "{}", stopped.error);
}

#[test]
fn reuse_reads_what_is_in_the_buffer_and_not_memory() {
    let (conv, feature, weights) = small();
    let memory = memory(&feature, &weights, 4096);
    let machine = Machine::new(Options::default());
    machine.run_chain(0, &memory, &chain(&memory, &[(conv.words(), CONVOLUTION)])).unwrap();
    let before = output(&conv, &memory);
    memory.write(FEATURE, &vec![1; feature.len()]).unwrap();
    memory.write(WEIGHTS, &vec![1; weights.len()]).unwrap();
    let reuse = |bits: u32| with(&conv.words(), &[(0x0201, 0x1040, bits | 0xb1)]);
    let report = machine.run_chain(0, &memory, &chain(&memory, &[(reuse(0x3000), CONVOLUTION)])).unwrap();
    assert_eq!(output(&conv, &memory), before);
    assert_eq!(report.tasks[0].work.read_bytes, 0);
    // Only the weights stay: each output is the sum of a kernel.
    machine.run_chain(0, &memory, &chain(&memory, &[(reuse(0x2000), CONVOLUTION)])).unwrap();
    let sums: Vec<i32> = output(&conv, &memory);
    assert_eq!(sums[..32], sums[32..64]);
    assert_ne!(sums, before);
    machine.reset(0);
    let stopped =
        machine.run_chain(0, &memory, &chain(&memory, &[(reuse(0x2000), CONVOLUTION)])).unwrap_err();
    let SimError::Illegal { register, .. } = stopped.error.root() else { panic!("{:?}", stopped.error) };
    assert_eq!(*register, RegisterId(0x1040));
}

#[test]
fn what_was_loaded_otherwise_is_not_used_again() {
    let conv = Conv::pointwise(FP16, 4, 64, 32);
    let other = Conv::pointwise(BF16, 4, 64, 32);
    let memory = memory(&conv.pack_feature(&[1; 256]), &conv.pack_weights(&[1; 2048]), 4096);
    let machine = Machine::new(Options::default());
    let again = |next: &Conv, cbuf: u32| {
        machine.reset(0);
        machine.run_chain(0, &memory, &chain(&memory, &[(conv.words(), CONVOLUTION)])).unwrap();
        let words = with(&next.words(), &[(0x0201, 0x1040, cbuf)]);
        machine.run_chain(0, &memory, &chain(&memory, &[(words, CONVOLUTION)]))
    };
    again(&conv, 0x30b1).unwrap();
    // WEIGHT_REUSE and DATA_REUSE: in another format, behind more banks of data, in more banks.
    for (next, cbuf) in [(&other, 0x20b1), (&conv, 0x20a2), (&other, 0x10b1), (&conv, 0x10a2)] {
        let stopped = again(next, cbuf).unwrap_err();
        let SimError::Illegal { register, reason, .. } = stopped.error.root() else {
            panic!("{:?}", stopped.error)
        };
        assert_eq!(*register, RegisterId(0x1040), "{reason}");
        assert!(reason.contains("Fp16") && reason.contains("data_banks: 1"), "{reason}");
    }
}

#[test]
fn three_cores_run_their_own_chains_at_once() {
    let (conv, feature, weights) = small();
    let memory = memory(&feature, &weights, 4096);
    let machine = Machine::new(Options::default());
    let kick = chain(&memory, &[(conv.words(), CONVOLUTION)]);
    let reports = machine.run_chains(&memory, &[(0, kick), (1, kick), (2, kick)]);
    assert!(reports.iter().all(|report| report.as_ref().is_ok_and(|report| report.status == 0x100)));
    assert!(machine.run_chain(3, &memory, &kick).is_err());
}
