//! Packers that are killed, in processes of their own.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use rookery_model::bundle::{NoProgress, Progress};
use rookery_model::config::ModelConfig;
use rookery_model::pack::{Recipe, pack};

use crate::files;
use crate::support::{RandomSource, options, packed, small_config};

/// Ends the process, as a kill does, at the n-th report of progress.
struct Killer {
    left: AtomicU64,
}

impl Progress for Killer {
    fn advance(&self, _: u64) {
        if self.left.fetch_sub(1, Ordering::Relaxed) == 1 {
            std::process::abort();
        }
    }
}

const CHILD_TARGET: &str = "ROOKERY_TEST_PACK_TARGET";
const CHILD_STEPS: &str = "ROOKERY_TEST_PACK_STEPS";

fn model() -> ModelConfig {
    ModelConfig { tied_head: false, ..small_config() }
}

#[test]
fn a_packer_killed_anywhere_is_resumed() {
    let source = RandomSource::new(model());
    if let (Some(target), Ok(steps)) = (std::env::var_os(CHILD_TARGET), std::env::var(CHILD_STEPS)) {
        let killer = Killer { left: AtomicU64::new(steps.parse().unwrap()) };
        pack(&source, &options(Recipe::W4, 2), Path::new(&target), &killer).unwrap();
        return;
    }
    let (_parent, whole) = packed(model(), Recipe::W4);
    let parent = tempfile::tempdir().unwrap();
    let target = parent.path().join("model");
    let mut deaths = 0;
    for steps in [1, 2, 5, 11, 23, 31, 47, 60] {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "killed::a_packer_killed_anywhere_is_resumed", "--test-threads=1"])
            .envs([(CHILD_TARGET, target.as_os_str())])
            .env(CHILD_STEPS, steps.to_string())
            .output()
            .unwrap();
        if child.status.success() {
            break;
        }
        deaths += 1;
        assert!(!target.exists());
    }
    assert!(deaths >= 4, "{deaths}");
    if !target.exists() {
        pack(&source, &options(Recipe::W4, 2), &target, &NoProgress).unwrap();
    }
    assert!(files(&target) == files(&whole));
    assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 1, "no staging is left");
}
