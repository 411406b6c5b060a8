//! The inventory over a real database.

use std::{future::Future, time::Duration};

use rookery_proto::{server::Tasks, v1};

use super::*;
use crate::{
    domain::{
        ModelName,
        rollout::{GateLimits, Plan, RolloutId, RolloutSpec, RolloutState, Target, WaveSize},
    },
    store::{AssignmentChange, NewGateway, NewRollout, NewVersion, TransitionFilter, VersionSummary},
};

struct Setup {
    store: Store,
    inventory: Inventory,
    tasks: Tasks,
    _folder: tempfile::TempDir,
}

fn id(name: &str) -> GatewayId {
    name.parse().unwrap()
}

async fn setup(unknown: Unknown) -> Setup {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&format!("sqlite:{}", folder.path().join("db").display())).await.unwrap();
    let downloads = DownloadLimits { bandwidth_bytes: 7, start_spread: Duration::from_secs(3) };
    let inventory = Inventory::new(store.clone(), "replica-a".into(), downloads, unknown);
    let tasks = Tasks::new();
    tasks.spawn("inventory", rookery_proto::server::OnPanic::StopNode, inventory.clone().run());
    Setup { store, inventory, tasks, _folder: folder }
}

impl Setup {
    async fn join(&self, name: &str) -> GatewayId {
        let labels = [("site".to_owned(), "berlin".to_owned())].into();
        let (joined, not_after) = (Millis(1), Millis(2));
        let gateway = NewGateway { id: id(name), labels, joined, serial: format!("{name}-1"), not_after };
        self.store.put_gateway(&gateway, "test").await.unwrap();
        gateway.id
    }

    /// Waits until the view of a gateway is as wanted.
    async fn until(&self, id: &GatewayId, what: &str, wanted: impl Fn(&GatewayView) -> bool) -> GatewayView {
        within(what, async {
            loop {
                // Links and reports of others are read again within seconds, or when somebody says so.
                self.inventory.poke();
                let views = self.inventory.views().await.unwrap();
                if let Some(view) = views.into_iter().find(|view| view.record.id == *id)
                    && wanted(&view)
                {
                    return view;
                }
                tokio::task::yield_now().await;
            }
        })
        .await
    }

    async fn assign(&self, gateway: &GatewayId) -> v1::VersionAssignment {
        let manifest = r#"{"schemaVersion":2,"config":{"digest":"sha256:bb","size":1},"layers":[]}"#;
        let manifest = manifest.replace("sha256:bb", &format!("sha256:{}", "b".repeat(64)));
        let digest = crate::trust::hash_of(&manifest);
        let digest: crate::domain::Digest = format!("sha256:{digest}").parse().unwrap();
        let model: ModelName = "m".parse().unwrap();
        let version = NewVersion {
            model: model.clone(),
            version: "1".parse().unwrap(),
            digest: digest.clone(),
            size_bytes: 1,
            manifest: manifest.clone(),
            summary: VersionSummary::default(),
            created: Millis(1),
            created_by: "test".into(),
        };
        self.store.insert_version(&version).await.unwrap();
        self.store.add_signature(&digest, "0123456789abcdef", &[1; 64], "test").await.unwrap();
        let rollout = RolloutId("0".repeat(32));
        let spec = RolloutSpec {
            model: model.clone(),
            version: version.version.clone(),
            digest: digest.clone(),
            selector: String::new(),
            waves: vec![WaveSize::Percent(100.0)],
            soak: Duration::ZERO,
            max_failed_percent: 0.0,
            max_unavailable_percent: 100.0,
            windows: vec![],
            manual_approval: false,
            gateway_timeout: Duration::from_secs(60),
            gates: GateLimits { min_speed_percent: 55.0, ..GateLimits::default() },
        };
        let target =
            Target { digest: Some(digest.clone()), previous: None, wave: 0, since: Millis(1), late: false };
        let plan = Plan {
            rollout: rollout.clone(),
            generation: 1,
            parent: 0,
            state: RolloutState::Running,
            resume: None,
            wave: 0,
            since: Millis(1),
            approved: false,
            actor: "test".into(),
            reason: "created".into(),
            targets: [(gateway.clone(), target)].into(),
        };
        let change = AssignmentChange {
            gateway: gateway.clone(),
            model,
            digest: Some(digest.clone()),
            rolls_back: false,
        };
        let rollout = NewRollout {
            id: rollout,
            spec,
            created: Millis(1),
            created_by: "test".into(),
            traceparent: "00-aa-bb-01".into(),
            gateways: vec![gateway.clone()],
            plan,
            changes: vec![change],
        };
        self.store.create_rollout(&rollout).await.unwrap();
        v1::VersionAssignment {
            model: "m".into(),
            version: "1".into(),
            digest: digest.into(),
            manifest: manifest.into_bytes(),
            signatures: vec![v1::Signature { key_id: "0123456789abcdef".into(), signature: vec![1; 64] }],
            trusted_keys: vec![],
            min_speed_percent: 55.0,
            max_celsius: 90.0,
            start_spread_ms: 3000,
            bandwidth_limit: 7,
            rolls_back: false,
            traceparent: "00-aa-bb-01".into(),
        }
    }
}

async fn within<T>(what: &str, wait: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(20), wait).await.unwrap_or_else(|_| panic!("{what} did not happen in time"))
}

fn status(generation: u64) -> v1::GatewayStatus {
    let facts = v1::GatewayFacts { board: "Radxa ROCK 5B".into(), ..Default::default() };
    v1::GatewayStatus { facts: Some(facts), generation, accepting: true, ..Default::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_is_seen_saved_and_gone_again() {
    let setup = setup(Unknown::Refuse).await;
    let gw = setup.join("gw-1").await;
    let view = setup.until(&gw, "the gateway is listed", |_| true).await;
    assert!(!view.online && view.record.last_seen.is_none());
    let ticket = setup.inventory.linked(&gw, &status(0), None);
    let view = setup.until(&gw, "its report is saved", |view| view.record.facts_json.is_some()).await;
    let label = |name: &str| view.labels.get(name).map(String::as_str);
    assert_eq!((label("id"), label("site")), (Some("gw-1"), Some("berlin")));
    assert_eq!((label("board"), label("driver")), (Some("Radxa-ROCK-5B"), None));
    assert!(view.online && view.record.last_seen.is_some());
    assert_eq!(view.record.link.as_ref().map(|link| link.replica.as_str()), Some("replica-a"));
    setup.inventory.unlinked(&gw, ticket);
    let view = setup.until(&gw, "its link is gone", |view| view.record.link.is_none()).await;
    assert!(!view.online);
    assert_eq!(view.facts.board, "Radxa ROCK 5B", "what it was is remembered");
}

#[tokio::test(flavor = "multi_thread")]
async fn heartbeats_write_nothing() {
    let setup = setup(Unknown::Refuse).await;
    let gw = setup.join("gw-1").await;
    setup.inventory.linked(&gw, &status(0), None);
    setup.until(&gw, "its report is saved", |view| view.record.facts_json.is_some()).await;
    let before = *setup.store.written().borrow();
    for clock_us in 0..10_000 {
        let mut heartbeat = status(0);
        heartbeat.facts.as_mut().unwrap().clock_us = clock_us;
        setup.inventory.status(&gw, &heartbeat);
    }
    // Something that is written after them, if they were written.
    let other = setup.join("gw-2").await;
    setup.inventory.linked(&other, &status(0), None);
    setup.until(&other, "the other's report is saved", |view| view.record.facts_json.is_some()).await;
    let writes = *setup.store.written().borrow() - before;
    assert!(writes <= 4, "{writes} writes for a join, a link and a report");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_assignment_is_complete_and_sent_until_it_is_held() {
    let setup = setup(Unknown::Refuse).await;
    let gw = setup.join("gw-1").await;
    let ticket = setup.inventory.linked(&gw, &status(0), None);
    setup.until(&gw, "the link is saved", |view| view.record.link.is_some()).await;
    assert_eq!(setup.inventory.assignment_for(&gw).await.unwrap(), None);
    let inventory = setup.inventory.clone();
    let (waiting, expected) = tokio::join!(
        within("the assignment comes", inventory.next_assignment(&gw, ticket)),
        setup.assign(&gw)
    );
    assert_eq!(waiting, v1::Assignment { generation: 1, versions: vec![expected], acknowledged_sequence: 0 });
    assert_eq!(setup.inventory.assignment_for(&gw).await.unwrap(), None, "it is on its way");
    let refused = tonic::Status::unavailable("");
    setup.inventory.assigned(&gw, 1, Err(&refused));
    assert_eq!(setup.inventory.assignment_for(&gw).await.unwrap(), None, "a refused one waits");
    // The link is lost and comes back: what was sent is of no interest any more.
    let ticket = setup.inventory.linked(&gw, &status(0), None);
    within("it comes again", setup.inventory.next_assignment(&gw, ticket)).await;
    setup.inventory.status(&gw, &status(1));
    assert_eq!(setup.inventory.assignment_for(&gw).await.unwrap(), None, "it is held");
}

#[tokio::test(flavor = "multi_thread")]
async fn transitions_are_kept_once_and_acknowledged() {
    let setup = setup(Unknown::Refuse).await;
    let gw = setup.join("gw-1").await;
    let version = setup.assign(&gw).await;
    let verdict = v1::Verdict { gate: "probes".into(), passed: true, ..Default::default() };
    let transition = |sequence, from: v1::Phase, to: v1::Phase| v1::Transition {
        sequence,
        model: "m".into(),
        digest: version.digest.clone(),
        from: from.into(),
        to: to.into(),
        generation: 1,
        verdicts: vec![verdict.clone()],
        ..Default::default()
    };
    let mut told = status(1);
    told.transitions = vec![
        transition(1, v1::Phase::Unspecified, v1::Phase::Assigned),
        transition(2, v1::Phase::Assigned, v1::Phase::Downloading),
    ];
    let ticket = setup.inventory.linked(&gw, &told, None);
    let sent = within("it is acknowledged", setup.inventory.next_assignment(&gw, ticket)).await;
    assert_eq!((sent.generation, sent.acknowledged_sequence), (1, 2));
    // The gateway has not heard, and links anew with one more.
    told.transitions.push(transition(3, v1::Phase::Downloading, v1::Phase::Verifying));
    let ticket = setup.inventory.linked(&gw, &told, None);
    within("all are acknowledged", async {
        while setup.inventory.next_assignment(&gw, ticket).await.acknowledged_sequence < 3 {}
    })
    .await;
    let kept = setup.store.transitions(&TransitionFilter::default(), 100).await.unwrap();
    let sequences: Vec<_> = kept.iter().map(|kept| kept.transition.sequence).collect();
    assert_eq!(sequences, [3, 2, 1]);
    assert_eq!(
        (kept[0].transition.from.as_str(), kept[0].transition.to.as_str()),
        ("downloading", "verifying")
    );
    assert!(kept[0].transition.verdicts_json.contains("probes") && kept[0].rollout.is_some());
    assert_eq!(setup.store.gateway(&gw).await.unwrap().acknowledged_sequence, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn gateways_nobody_enrolled_join_only_where_that_is_allowed() {
    let strict = setup(Unknown::Refuse).await;
    let ticket = strict.inventory.linked(&id("gw"), &status(0), None);
    within("the link is ended", strict.inventory.removed(&id("gw"), ticket)).await;
    assert!(strict.inventory.views().await.unwrap().is_empty());
    let open = setup(Unknown::Adopt).await;
    open.inventory.linked(&id("gw"), &status(0), None);
    let view = open.until(&id("gw"), "it has joined", |view| view.record.link.is_some()).await;
    assert!(view.online && view.record.serial.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_gateway_loses_its_link() {
    let setup = setup(Unknown::Refuse).await;
    let gw = setup.join("gw").await;
    let ticket = setup.inventory.linked(&gw, &status(0), None);
    setup.until(&gw, "the link is saved", |view| view.record.link.is_some()).await;
    setup.store.remove_gateway(&gw, "test").await.unwrap();
    within("the link is ended", setup.inventory.removed(&gw, ticket)).await;
    assert!(!setup.tasks_failed());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_epoch_and_living_replicas_count() {
    let setup = setup(Unknown::Refuse).await;
    let gw = setup.join("gw").await;
    setup.inventory.linked(&gw, &status(0), None);
    let own = setup.until(&gw, "the link is saved", |view| view.record.link.is_some()).await;
    assert!(own.online);
    // The gateway has dialled another replica, and nobody has noticed here yet.
    setup.store.link_up(&gw, "replica-b").await.unwrap();
    assert!(
        !setup.until(&gw, "the other's link is read", |_| true).await.online,
        "and that one is not alive"
    );
    setup.store.beat("replica-b", "127.0.0.1:1", Millis::now()).await.unwrap();
    assert!(setup.until(&gw, "the other lives", |view| view.online).await.online);
    setup.inventory.remote_status("replica-b", &gw, &status(9));
    setup.inventory.remote_lost("replica-b", None);
}

impl Setup {
    fn tasks_failed(&self) -> bool {
        use futures_util::FutureExt;
        self.tasks.failed().now_or_never().is_some()
    }
}
