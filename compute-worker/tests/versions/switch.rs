//! From version to version while requests run.

use rookery_compute_worker::versions::{AssignError, Report, memory::Demand};
use rookery_model::bundle::{BundleConfig, check_manifest};
use rookery_proto::v1;
use tempfile::TempDir;

use crate::{
    bundles::{MODEL, all, engine_config, version},
    gateway::{Blobs, Gateway, board, config, is_in, status},
};

fn phases(report: &Report, digest: &str) -> Vec<v1::Phase> {
    report.transitions.iter().filter(|t| t.digest == digest).map(v1::Transition::to).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn new_requests_go_to_the_new_version_and_old_ones_end_where_they_began() {
    use v1::Phase::{Activating, Assigned, Downloading, Draining, Probing, Serving, Staged, Verifying};
    let (first, second) = (version("switch-a"), version("switch-b"));
    let folder = TempDir::new().unwrap();
    let gateway = Gateway::start(config(folder.path()), Blobs::new(all(&[&first, &second]))).await;
    gateway.agent.assign(first.assigned(3)).await.unwrap();
    gateway.until_phase(&first.digest, Serving).await;
    let request = gateway.agent.machine().request(MODEL).unwrap();
    gateway.agent.assign(second.assigned(4)).await.unwrap();
    let report = gateway
        .until("drained", |r| is_in(r, &second.digest, Serving) && is_in(r, &first.digest, Draining))
        .await;
    assert_eq!(gateway.serving().as_deref(), Some(second.digest.as_str()));
    assert_eq!(request.info().digest, first.digest.as_str());
    assert!(!request.load().failed, "the engine of a running request was stopped");
    assert_eq!(
        phases(&report, second.digest.as_str()),
        [Assigned, Downloading, Verifying, Staged, Probing, Activating, Serving]
    );
    drop(request);
    let report = gateway.until("freed", |r| is_in(r, &first.digest, Staged)).await;
    let numbers: Vec<u64> = report.transitions.iter().map(|t| t.sequence).collect();
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>());
    // Older ones are refused, and so is another one of the same generation.
    let stale = gateway.agent.assign(first.assigned(3)).await;
    assert_eq!(stale, Err(AssignError::Stale { offered: 3, held: 4 }));
    assert_eq!(gateway.agent.assign(first.assigned(4)).await, Err(AssignError::Conflict(4)));
    // What was acknowledged is not told again.
    let last = *numbers.last().unwrap();
    let acknowledged = v1::Assignment { acknowledged_sequence: last, ..second.assigned(4) };
    assert_eq!(gateway.agent.assign(acknowledged).await, Ok(4));
    gateway.until("told", |report| report.transitions.is_empty()).await;
    // Back, without probes: it served here before.
    let mut back = first.assigned(5);
    back.versions[0].rolls_back = true;
    gateway.agent.assign(back).await.unwrap();
    let report = gateway.until("back", |r| is_in(r, &second.digest, v1::Phase::RolledBack)).await;
    assert!(is_in(&report, &first.digest, Serving));
    assert!(!phases(&report, first.digest.as_str()).contains(&Probing));
    // And nothing at all.
    let nothing = v1::Assignment { generation: 6, ..v1::Assignment::default() };
    gateway.agent.assign(nothing).await.unwrap();
    gateway.until("taken away", |r| is_in(r, &first.digest, v1::Phase::RolledBack)).await;
    assert_eq!(gateway.serving(), None);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_memory_has_no_room_for_two_the_old_version_gives_way_and_the_reason_says_so() {
    let (first, second) = (version("room-a"), version("room-b"));
    let folder = TempDir::new().unwrap();
    let source = Blobs::new(all(&[&first, &second]));
    let mut config = config(folder.path());
    config.board = board(folder.path(), 1 << 30, 512 << 20);
    let gateway = Gateway::start(config, source).await;
    gateway.agent.assign(first.assigned(1)).await.unwrap();
    gateway.until_phase(&first.digest, v1::Phase::Serving).await;
    // Room for one and a little: what the present weights take is no room.
    let report = gateway.agent.report();
    let memory = status(&report, &first.digest).unwrap();
    assert!(memory.verdicts.iter().any(|verdict| verdict.gate == "memory" && verdict.passed));
    let config = check_manifest(&second.manifest).unwrap().remove(0);
    let config = BundleConfig::parse(&second.blobs[&config.digest]).unwrap();
    let demand = Demand::of(&config, &engine_config()).unwrap();
    board(folder.path(), 1 << 30, demand.total() + demand.weights / 2);
    gateway.agent.assign(second.assigned(2)).await.unwrap();
    let report = gateway.until("switched", |r| is_in(r, &second.digest, v1::Phase::Serving)).await;
    let reasons: Vec<&str> = report
        .transitions
        .iter()
        .filter(|t| t.digest == first.digest.as_str() && t.to() == v1::Phase::Draining)
        .map(|t| t.reason.as_str())
        .collect();
    assert!(reasons[0].starts_with("memory has no room for two versions at once"), "{reasons:?}");
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_assignment_that_changes_on_the_way_goes_straight_to_the_newest() {
    let versions: Vec<_> = ["way-a", "way-b", "way-c"].map(version).into();
    let folder = TempDir::new().unwrap();
    let source = Blobs { cut: 4096, ..Blobs::new(all(&versions.iter().collect::<Vec<_>>())) };
    let gateway = Gateway::start(config(folder.path()), source).await;
    for (generation, version) in (1..).zip(&versions) {
        gateway.agent.assign(version.assigned(generation)).await.unwrap();
        gateway.until("begun", |r| status(r, &version.digest).is_some()).await;
    }
    gateway.until_phase(&versions[2].digest, v1::Phase::Serving).await;
    assert_eq!(gateway.serving().as_deref(), Some(versions[2].digest.as_str()));
    gateway.stop().await;
}
