//! A client in another language, made from the `.proto` files and from reflection alone.

use std::path::Path;

use rookery_tests::{bundles::MODEL, fleet::Fleet, within};
use tokio::process::Command;

#[tokio::test]
async fn python_calls_generate_from_stubs_and_by_reflection() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let python = root.join("target/python-venv/bin/python");
    assert!(python.is_file(), "{python:?} is not there; tests/run makes it, with grpcio and grpcio-tools");
    let fleet = Fleet::start(1).await.unwrap();
    for address in [fleet.control_plane.address(), fleet.workers[0].worker.address()] {
        let mut command = Command::new(&python);
        command.arg(root.join("tests/python/test_generate.py")).args([address.to_string().as_str(), MODEL]);
        command.current_dir(&root).kill_on_drop(true);
        let output = within("the Python client", command.output()).await.unwrap();
        let (stdout, stderr) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{stdout}{stderr}");
        assert!(stdout.contains("stubs: ok") && stdout.contains("reflection: ok"), "{stdout}{stderr}");
    }
    fleet.stop().await;
}
