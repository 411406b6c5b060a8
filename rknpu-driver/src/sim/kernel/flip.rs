//! Inverts one bit of what a job wrote.

use super::engine::CoreWork;
use crate::sim::Memory;
use crate::sim::faults::mix;

/// Words for the DPU carry this target, and its output's base, width and height have these offsets.
const DPU: u64 = 0x1001;
const DST_BASE_ADDR: u64 = 0x4020;
const DATA_CUBE_WIDTH: u64 = 0x4030;
const DATA_CUBE_HEIGHT: u64 = 0x4034;
/// Words for the PC: the next task's address and amount in a task's tail.
const PC: u64 = 0x0101;
const BASE_ADDRESS: u64 = 0x0010;
const REGISTER_AMOUNTS: u64 = 0x0014;
/// Bytes of one pixel in one surface of a cube.
const ATOM: u64 = 16;

/// Inverts one bit in the first surface of one task's output. The streams say where outputs are: every task writes its
/// DPU's destination anew.
pub(super) fn one_bit(memory: &Memory, work: &[CoreWork], draw: u64) {
    let outputs: Vec<_> = work
        .iter()
        .flat_map(|work| &work.kicks)
        .flat_map(|kick| {
            let tasks = kick.task_con & 0xfff;
            outputs(memory, kick.base_address, kick.register_amounts, tasks)
        })
        .collect();
    if outputs.is_empty() {
        return;
    }
    let (base, bytes) = outputs[mix(draw ^ 10) as usize % outputs.len()];
    let bit = mix(draw ^ 11) % (bytes * 8);
    let Ok(at) = u32::try_from(u64::from(base) + bit / 8) else { return };
    let mut byte = [0];
    if memory.read(at, &mut byte).is_ok() {
        // What could be read can be written: reads and writes have the same bounds.
        let _ = memory.write(at, &[byte[0] ^ 1 << (bit % 8)]);
    }
}

/// Base address and bytes of the first surface that each task of a chain writes.
fn outputs(memory: &Memory, mut at: u32, mut amounts: u32, tasks: u32) -> Vec<(u32, u64)> {
    let mut found = Vec::new();
    for _ in 0..tasks {
        let words = ((amounts & 0xffff) as usize + 1) * 2;
        let mut bytes = vec![0; words * 8];
        if memory.read(at & !0xf, &mut bytes).is_err() {
            break;
        }
        let words = bytes.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word));
        let value = |target: u64, register: u64| {
            let mut matching = words.clone().filter(|word| word >> 48 == target && word & 0xffff == register);
            matching.next_back().map(|word| (word >> 16) as u32)
        };
        if let Some(base) = value(DPU, DST_BASE_ADDR) {
            let extent = |register| u64::from(value(DPU, register).unwrap_or(0) & 0x1fff) + 1;
            found.push((base, extent(DATA_CUBE_WIDTH) * extent(DATA_CUBE_HEIGHT) * ATOM));
        }
        match value(PC, BASE_ADDRESS) {
            Some(next) if next != 0 => at = next,
            _ => break,
        }
        amounts = value(PC, REGISTER_AMOUNTS).unwrap_or(0);
    }
    found
}
