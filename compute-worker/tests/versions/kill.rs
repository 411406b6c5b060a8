//! A gateway that is ended at any instruction: what serves after the next start is one whole version, the committed one.
//!
//! The gateway runs in a process of its own, which is this test binary again, told by the environment to be a child.

use std::{
    env,
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use rookery_compute_worker::versions::store::Store;
use rookery_proto::v1;
use tempfile::TempDir;

use crate::{
    bundles::{MODEL, Version, all, version},
    gateway::{Blobs, Gateway, config, is_in},
};

/// Folder of the child.
const FOLDER: &str = "ROOKERY_TEST_VERSIONS_FOLDER";
/// After so many changes of the disk it aborts.
const STEPS: &str = "ROOKERY_TEST_VERSIONS_STEPS";

fn pair() -> (Version, Version) {
    (version("kill-a"), version("kill-b"))
}

/// Goes to the second version, unless it is ended before. Does nothing in a run of the tests.
#[tokio::test(flavor = "multi_thread")]
async fn child() {
    let Some(folder) = env::var_os(FOLDER) else { return };
    let most: u64 = env::var(STEPS).unwrap().parse().unwrap();
    let (first, second) = pair();
    let steps = AtomicU64::new(0);
    let on_step = move |_: &'static str| {
        if steps.fetch_add(1, Ordering::SeqCst) == most {
            std::process::abort();
        }
    };
    let source = Blobs { cut: 60_000, ..Blobs::new(all(&[&first, &second])) };
    let gateway = Gateway::start_observed(config(Path::new(&folder)), source, Arc::new(on_step)).await;
    gateway.agent.assign(second.assigned(2)).await.unwrap();
    let done = |report: &_| {
        is_in(report, &second.digest, v1::Phase::Serving) && is_in(report, &first.digest, v1::Phase::Staged)
    };
    gateway.until("switched", done).await;
    gateway.stop().await;
}

/// A folder in which the first version is committed.
async fn committed(first: &Version) -> TempDir {
    let folder = TempDir::new().unwrap();
    let gateway = Gateway::start(config(folder.path()), Blobs::new(all(&[first]))).await;
    gateway.agent.assign(first.assigned(1)).await.unwrap();
    gateway.until_phase(&first.digest, v1::Phase::Serving).await;
    gateway.stop().await;
    folder
}

/// Runs a child, which ends by itself, by its step, or by a signal after `limit`. True if it came to its end.
fn run_child(folder: &Path, steps: u64, limit: Option<Duration>) -> bool {
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["--exact", "kill::child", "--nocapture"])
        .env(FOLDER, folder)
        .env(STEPS, steps.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    if let Some(limit) = limit {
        std::thread::sleep(limit);
        child.kill().unwrap();
    }
    child.wait().unwrap().success()
}

/// Starts again on what is left: the committed version serves first, whole, and the wanted one in the end.
async fn comes_back(folder: &Path, first: &Version, second: &Version, what: &str) {
    let saved = Store::open(&folder.join("versions")).unwrap().load();
    let held = saved.state.models[MODEL].committed.clone().unwrap().digest;
    assert!(held == first.digest || held == second.digest, "{what}: committed {held}");
    let source = Blobs::new(all(&[first, second]));
    let gateway = Gateway::start(config(folder), source).await;
    gateway.until("serving", |r| is_in(r, &held, v1::Phase::Serving)).await;
    assert!(
        gateway
            .serving()
            .is_some_and(|serving| serving == held.as_str() || serving == second.digest.as_str())
    );
    gateway.agent.assign(second.assigned(2)).await.unwrap();
    gateway.until_phase(&second.digest, v1::Phase::Serving).await;
    assert_eq!(gateway.serving().as_deref(), Some(second.digest.as_str()), "{what}");
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ended_at_any_change_of_the_disk_one_whole_version_serves() {
    let (first, second) = pair();
    let mut steps = 0;
    loop {
        let folder = committed(&first).await;
        let ended = run_child(folder.path(), steps, None);
        comes_back(folder.path(), &first, &second, &format!("after {steps} steps")).await;
        if ended {
            break;
        }
        // Every step at first, where assignment and documents are, then some.
        steps += if steps < 24 { 3 } else { 7 };
        assert!(steps < 1000, "the child never came to its end");
    }
    assert!(steps > 30, "the child had only {steps} steps");
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_moment_one_whole_version_serves() {
    let (first, second) = pair();
    for round in 0..6u64 {
        let folder = committed(&first).await;
        // Spread over the second or so that a child takes, packing included.
        let limit = Duration::from_millis(100 + round * 211 % 1300);
        run_child(folder.path(), u64::MAX, Some(limit));
        comes_back(folder.path(), &first, &second, &format!("killed after {limit:?}")).await;
    }
}
