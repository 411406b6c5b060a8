//! Runs command streams of the vendor's compiler through the simulator and compares with the expected outputs.
//!
//! `cargo run --release -p rknpu-driver --features sim --example conformance -- FOLDER` takes any folder of vectors
//! (`ID.json` beside `ID.bin`), prints a line for each and exits 1 if one failed or there were none.

use std::path::PathBuf;
use std::process::ExitCode;

#[path = "conformance/suite.rs"]
mod suite;

fn main() -> ExitCode {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [folder] = arguments.as_slice() else {
        print("usage: conformance FOLDER");
        return ExitCode::from(2);
    };
    let mut summary = suite::Summary::default();
    match suite::run(folder, 0, &mut |line| print(line), &mut summary) {
        Ok(()) if summary.failed == 0 && summary.passed > 0 => ExitCode::SUCCESS,
        Ok(()) => ExitCode::FAILURE,
        Err(error) => {
            print(&error);
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stdout, reason = "the lines are this program's output")]
fn print(line: &str) {
    println!("{line}");
}
