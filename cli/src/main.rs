//! The `rookery` binary: everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    rookery::app::run()
}
