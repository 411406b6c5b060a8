//! `rookery npu disasm`: register commands as text.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use clap::Args;
use rknpu_driver::regcmd::{Word, decode, disassemble, registers};
use serde_json::json;

use crate::error::{Failure, OrFail};
use crate::output;

/// Prints register commands with the names of registers and fields.
#[derive(Args, Debug)]
#[command(
    after_help = "The input is raw command words, 64 bits each, little endian: what lies in the command buffer. Words that name
nothing known are shown as numbers, and the first of them makes the command fail at the end.

Examples:
  rookery npu disasm commands.bin
  rookery npu disasm - < commands.bin | grep DPU
  rookery npu disasm commands.bin --json | jq '.[] | select(.register == \"DST_BASE_ADDR\")'"
)]
pub(super) struct DisasmArgs {
    /// The file; `-` for standard input.
    file: PathBuf,
    /// Write JSON, one object a word.
    #[arg(long)]
    json: bool,
}

/// Most bytes read: far beyond any command buffer, which has 32-bit addresses.
const LIMIT: u64 = 256 << 20;

/// Bytes of a command word.
const WORD: usize = size_of::<u64>();

/// Runs the command.
///
/// # Errors
/// If the file cannot be read, has no whole words, or holds words that are no commands.
pub(super) fn run(args: &DisasmArgs) -> Result<(), Failure> {
    let bytes = read(&args.file)?;
    let words = words(&args.file, &bytes)?;
    if words.iter().all(|word| registers::Block::from_target(Word(*word).target()).is_none()) {
        return Err(Failure::new(format!("{} holds no register commands", name(&args.file))).hint(
            "each word is 64 bits, little endian: register in bits 15:0, value in 47:16, block in 63:48",
        ));
    }
    if args.json {
        print_json(&words)?
    } else {
        print(&words)?
    }
    let decoded = decode(&words).map(drop);
    decoded.or_fail(|| format!("{} holds words that are no known commands", name(&args.file)))
}

fn name(file: &Path) -> String {
    if is_stdin(file) { "standard input".to_owned() } else { file.display().to_string() }
}

fn is_stdin(file: &Path) -> bool {
    file.as_os_str() == "-"
}

fn read(file: &Path) -> Result<Vec<u8>, Failure> {
    let unreadable = || format!("could not read {}", name(file));
    let source: Box<dyn Read> = if is_stdin(file) {
        Box::new(io::stdin().lock())
    } else {
        Box::new(File::open(file).or_fail(unreadable)?)
    };
    let mut bytes = Vec::new();
    source.take(LIMIT + 1).read_to_end(&mut bytes).or_fail(unreadable)?;
    if bytes.len() as u64 > LIMIT {
        return Err(Failure::new(format!("{} is larger than {}", name(file), output::bytes(LIMIT))));
    }
    Ok(bytes)
}

fn words(file: &Path, bytes: &[u8]) -> Result<Vec<u64>, Failure> {
    let (whole, rest) = bytes.as_chunks::<WORD>();
    if bytes.is_empty() {
        return Err(Failure::new(format!("{} is empty", name(file))));
    }
    if !rest.is_empty() {
        let message =
            format!("{} has {} bytes, which is no whole number of 8-byte words", name(file), bytes.len());
        return Err(Failure::new(message).hint("it may be cut off, or not be a command buffer"));
    }
    Ok(whole.iter().map(|word| u64::from_le_bytes(*word)).collect())
}

fn print(words: &[u64]) -> Result<(), Failure> {
    output::write(&disassemble(words))
}

fn print_json(words: &[u64]) -> Result<(), Failure> {
    let commands: Vec<_> =
        words.iter().enumerate().map(|(index, word)| command(index, Word(*word))).collect();
    output::json(&commands)
}

fn command(index: usize, word: Word) -> serde_json::Value {
    let block = registers::Block::from_target(word.target());
    let register = block.and_then(|block| registers::lookup(block, word.register()));
    let fields: serde_json::Map<String, serde_json::Value> = register
        .map(|register| {
            register.fields.iter().map(|field| (field.name.to_owned(), json!(field.get(word.value()))))
        })
        .into_iter()
        .flatten()
        .collect();
    json!({
        "offset": index * WORD,
        "word": format!("{:#018x}", word.0),
        "block": block.map(|block| block.to_string()),
        "offset_in_block": word.register(),
        "register": register.map(|register| register.name),
        "value": word.value(),
        "fields": fields,
    })
}
