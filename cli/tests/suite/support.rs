//! What the tests of the command line share.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

pub(crate) mod hub;

/// The program under test, with nothing of this machine's settings.
pub(crate) fn rookery() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rookery"));
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if ["ROOKERY_", "OTEL_", "HF_", "RUST_LOG"].iter().any(|prefix| name.starts_with(prefix)) {
            command.env_remove(name);
        }
    }
    command
}

/// Runs it to its end.
pub(crate) fn run(command: &mut Command) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (status.code(), text(stdout), text(stderr))
}

/// A file of the workspace's fixtures.
pub(crate) fn fixture(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tiny").join(name);
    assert!(path.exists(), "{} is missing", path.display());
    path
}

/// Packs a tiny model into `folder` and returns the bundle.
pub(crate) fn tiny_bundle(folder: &Path) -> PathBuf {
    bundle(folder, "w8")
}

/// The same by another recipe.
pub(crate) fn bundle(folder: &Path, recipe: &str) -> PathBuf {
    let bundle = folder.join(format!("tiny-{recipe}"));
    let (code, _, error) = run(rookery()
        .args(["pack", "--name", "tiny", "--threads", "1", "--recipe", recipe, "--output"])
        .arg(&bundle)
        .arg(fixture("qwen2.gguf")));
    assert_eq!(code, Some(0), "{error}");
    bundle
}
