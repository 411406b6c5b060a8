//! The real binary, as real processes that are killed when dropped.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, bail};
use tokio::process::{Child, Command};

/// The `rookery` binary beside this test's own.
///
/// # Errors
/// Says how to build it if it is not there.
pub fn binary() -> anyhow::Result<PathBuf> {
    // target/release/deps/scenario-… → target/release/rookery
    let own = std::env::current_exe()?;
    let folder = own.parent().and_then(Path::parent).context("the test binary is not in a target folder")?;
    let binary = folder.join("rookery");
    if !binary.is_file() {
        bail!("{binary:?} is not there; build it with `cargo build --release`, or run tests/run, which does");
    }
    Ok(binary)
}

/// Starts the binary with `arguments` and these settings in its environment; killed when dropped.
///
/// # Errors
/// When it is not there or cannot be started.
pub fn start(arguments: &[&str], settings: &[(&str, &str)]) -> anyhow::Result<Child> {
    let mut command = Command::new(binary()?);
    command.args(arguments).envs(settings.iter().copied());
    command.stdin(Stdio::null()).kill_on_drop(true);
    command.spawn().with_context(|| format!("start rookery {}", arguments.join(" ")))
}

/// A port that nothing uses at this moment.
///
/// # Errors
/// When the machine has none.
pub fn free_port() -> anyhow::Result<u16> {
    Ok(std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}
