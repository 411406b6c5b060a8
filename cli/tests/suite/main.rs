//! The command line as users meet it: the real program, real processes, a local web server, real pip.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod command_line;
mod demo_fetch;
mod npu;
mod plan;
mod processes;
mod pull;
mod simulate;
mod support;
