//! Words as text for people.

use std::fmt::Write as _;

use super::registers::{self, Block, Field, Register, cna, enable, pc, sync};
use super::word::Word;

/// Values from here on are printed in hexadecimal.
const DECIMAL_BELOW: u32 = 0x1_0000;
const PRECISIONS: [&str; 8] = ["int8", "int16", "fp16", "bf16", "int32", "fp32", "int4", "tf32"];

/// One line a word: byte offset, block, register, value, fields that are not 0 by name, and what a tail's words do.
/// Words that name nothing known are shown as numbers; there is no input that this refuses.
pub fn disassemble(words: &[u64]) -> String {
    let mut out = String::new();
    for (index, &word) in words.iter().enumerate() {
        let word = Word(word);
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{:#08x}  {}", index * 8, line(word));
    }
    out
}

fn line(word: Word) -> String {
    if word == Word::ZERO {
        return "PADDING".to_owned();
    }
    let (target, offset, value) = (word.target(), word.register(), word.value());
    let Some(block) = Block::from_target(target).filter(|&block| block != Block::Padding) else {
        return format!("unknown target {target:#06x}, register {offset:#06x}, value {value:#010x}");
    };
    let Some(register) = registers::lookup(block, offset) else {
        return format!("{block:<8}  unknown register {offset:#06x}  {value:#010x}");
    };
    let mut text = format!("{block:<8}  {:<24}  {value:#010x}", register.name);
    if let Some(meaning) = meaning(register, value) {
        let _ = write!(text, "  ; {meaning}");
        return text;
    }
    let mut named = 0;
    for field in register.fields {
        named |= field.mask();
        let value = field.get(value);
        // A register that is one field needs no second copy of its value.
        if value != 0 && field.mask() != u32::MAX {
            let _ = write!(text, "  {}={}", field.name, number(*field, value));
        }
    }
    if value & !named != 0 {
        let _ = write!(text, "  reserved={:#x}", value & !named);
    }
    text
}

fn number(field: Field, value: u32) -> String {
    let signed = [cna::dma_con1::LINE_STRIDE, cna::dma_con2::SURF_STRIDE];
    if signed.contains(&field) {
        return field.get_signed(field.put(0, value)).to_string();
    }
    if ["IN_PRECISION", "OUT_PRECISION", "PROC_PRECISION"].contains(&field.name) {
        return match PRECISIONS.get(value as usize) {
            Some(name) => format!("{value}({name})"),
            None => value.to_string(),
        };
    }
    if value < DECIMAL_BELOW { value.to_string() } else { format!("{value:#x}") }
}

/// What the words of a tail do; their fields would say less.
fn meaning(register: &Register, value: u32) -> Option<String> {
    if *register == pc::BASE_ADDRESS {
        return Some(format!("the next task is at {value:#x}"));
    }
    if *register == pc::REGISTER_AMOUNTS {
        let pairs = pc::register_amounts::PC_DATA_AMOUNT.get(value);
        let cores = pc::register_amounts::CORES_MINUS_ONE.get(value) + 1;
        let cores = if cores > 1 { format!(", {cores} cores at work") } else { String::new() };
        return Some(match pairs {
            0 => format!("no task follows{cores}"),
            _ => format!("the next task has {} pairs of words{cores}", pairs + 1),
        });
    }
    if *register == sync::BEFORE_ENABLE {
        return Some("must precede the enable".to_owned());
    }
    if *register == enable::OPERATION_ENABLE {
        let names = register.fields.iter().filter(|field| field.get(value) != 0);
        let names: Vec<_> = names.map(|field| field.name.trim_end_matches("_OP_EN")).collect();
        return Some(match names.as_slice() {
            [] => "starts nothing".to_owned(),
            names => format!("starts {}", names.join(", ")),
        });
    }
    None
}
