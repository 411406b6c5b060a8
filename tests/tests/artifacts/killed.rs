//! `rookery models push` and the control plane as processes that are killed in the middle.

use std::{net::SocketAddr, path::Path, process::Stdio};

use rookery_proto::v1::ListVersionsRequest;
use rookery_tests::{
    processes::{Serving, rookery},
    within,
};
use tempfile::TempDir;
use tokio::process::Child;

use crate::support::{Random, TestBundle, assert_kept, models};

async fn start(state: &Path, listen: &str) -> Serving {
    let state = state.to_str().unwrap();
    let arguments = ["control-plane", "--listen", listen, "--link-listen", "127.0.0.1:0", "--state", state];
    Serving::start(&arguments).await.unwrap()
}

fn push(bundle: &TestBundle, version: &str, listen: SocketAddr) -> Child {
    let mut command = rookery().unwrap();
    command.args(["models", "push"]).arg(&bundle.path).args(["--name", "tiny", "--version", version]);
    command.args(["--give-up-after", "50s", "--endpoint", &format!("http://{listen}")]);
    command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Waits until so many bytes are there and some of them came now, which says that the child is connected, or it has ended.
async fn until_present(
    child: &mut Child,
    bundle: &TestBundle,
    version: &str,
    listen: SocketAddr,
    bytes: u64,
) {
    let mut models = models(listen);
    let there = async {
        let before = models.begin_push(bundle.begin(version)).await.unwrap().into_inner().present_bytes;
        loop {
            let begun = models.begin_push(bundle.begin(version)).await.unwrap().into_inner();
            if begun.present_bytes >= bytes.max(before + 1) || child.try_wait().unwrap().is_some() {
                return;
            }
        }
    };
    within("bytes arrive", there).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_ends_whichever_side_is_killed_and_no_accepted_push_is_lost() {
    let state = TempDir::new().unwrap();
    let mut plane = start(state.path(), "127.0.0.1:0").await;
    let listen = plane.listen;
    let mut bundles = Vec::new();
    for seed in 1..=6 {
        println!("seed {seed}");
        let mut random = Random(seed);
        let bundle = TestBundle::with_noise(1000 * seed, &[9 << 20, 5 << 20, 3 << 20, 1 << 20]);
        let version = seed.to_string();
        for _ in 0..2 {
            let mut child = push(&bundle, &version, listen);
            let bytes = random.below(18 << 20) as u64;
            until_present(&mut child, &bundle, &version, listen, bytes).await;
            child.kill().await.unwrap();
        }
        let mut child = push(&bundle, &version, listen);
        let bytes = random.below(19 << 20) as u64;
        until_present(&mut child, &bundle, &version, listen, bytes).await;
        plane.kill().await.unwrap();
        plane = start(state.path(), &listen.to_string()).await;
        let output = within("the push ends by itself", child.wait_with_output()).await.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_kept(&state.path().join("artifacts"), &bundle);
        bundles.push(bundle);
    }
    plane.kill().await.unwrap();
    let mut plane = start(state.path(), "127.0.0.1:0").await;
    let listed = models(plane.listen).list_versions(ListVersionsRequest::default()).await.unwrap();
    let mut listed: Vec<_> = listed.into_inner().versions.into_iter().map(|one| one.digest).collect();
    let mut pushed: Vec<_> = bundles.iter().map(TestBundle::digest).collect();
    listed.sort();
    pushed.sort();
    assert_eq!(listed, pushed);
    plane.kill().await.unwrap();
}
