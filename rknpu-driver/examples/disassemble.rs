//! Prints a file of command words (u64, little endian) as text, and says whether it decodes.
//!
//! ```text
//! cargo run --release -p rknpu-driver --example disassemble -- FILE
//! ```

use std::io::Write as _;
use std::process::ExitCode;
use std::{env, fs, io};

use rknpu_driver::regcmd::{decode, disassemble, encode};

fn main() -> ExitCode {
    let Some(path) = env::args_os().nth(1) else {
        eprintln!("usage: disassemble FILE");
        return ExitCode::from(2);
    };
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) => {
            eprintln!("{}: {error}", path.display());
            return ExitCode::FAILURE;
        }
    };
    let words: Vec<u64> = bytes.as_chunks::<8>().0.iter().map(|&word| u64::from_le_bytes(word)).collect();
    // A reader that has seen enough and closed the pipe is no failure of ours.
    let _ = io::stdout().write_all(disassemble(&words).as_bytes());
    match decode(&words) {
        Ok(commands) if encode(&commands) == words => ExitCode::SUCCESS,
        Ok(_) => {
            eprintln!("decoded commands encode to other words");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
