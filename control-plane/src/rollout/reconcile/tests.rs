//! The loop over a real store, with gateways that do what they are told and two replicas that race.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use rookery_proto::{
    server::{OnPanic, Tasks},
    v1,
};
use tokio::time::timeout;

use super::*;
use crate::{
    domain::Digest,
    inventory::{DownloadLimits, Ticket, Unknown},
    rollout::{
        TrafficCounts,
        plan::{Order, Refusal},
        spec::{self, Wish},
    },
    store::{NewGateway, NewVersion, TransitionFilter, VersionSummary},
};

const WITHIN: Duration = Duration::from_secs(60);

struct NoTraffic;

impl Traffic for NoTraffic {
    fn of(&self, _: &Digest) -> TrafficCounts {
        TrafficCounts::default()
    }
}

/// A replica: its own connections to the database, its own memory.
struct Replica {
    store: Store,
    inventory: Inventory,
    reconciler: Reconciler,
    tasks: Tasks,
}

/// A gateway that gets where it is sent at once, unless the version is bad.
#[derive(Default)]
struct Puppet {
    generation: u64,
    sequence: u64,
    serving: Option<Digest>,
    failed: Option<(Digest, u64)>,
    link: Option<(usize, Ticket)>,
}

struct Scene {
    replicas: Vec<Replica>,
    puppets: BTreeMap<GatewayId, Puppet>,
    bad: BTreeSet<Digest>,
    _folder: tempfile::TempDir,
}

fn gateway(number: usize) -> GatewayId {
    format!("gw-{number}").parse().unwrap()
}

fn digest(number: u32) -> Digest {
    format!("sha256:{number:064x}").parse().unwrap()
}

fn wish(version: u32, waves: &[&str]) -> Wish {
    spec::from_wire(v1::RolloutSpec {
        model: "m".to_owned(),
        version: format!("v{version}"),
        waves: waves.iter().map(|wave| (*wave).to_owned()).collect(),
        max_failed_percent: 0.0,
        max_unavailable_percent: 50.0,
        ..Default::default()
    })
    .unwrap()
}

impl Scene {
    async fn new(replicas: usize, gateways: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("db").display());
        let mut scene =
            Self { replicas: Vec::new(), puppets: BTreeMap::new(), bad: BTreeSet::new(), _folder: folder };
        for number in 0..replicas {
            let store = Store::open(&url).await.unwrap();
            let name = format!("replica-{number}");
            store.beat(&name, "127.0.0.1:1", Millis::now()).await.unwrap();
            let inventory = Inventory::new(store.clone(), name, DownloadLimits::default(), Unknown::Refuse);
            let tasks = Tasks::new();
            tasks.spawn("inventory", OnPanic::StopNode, inventory.clone().run());
            let settings = RolloutsSection { interval: Duration::from_millis(10), grace: Duration::ZERO };
            let (fleet, traffic) = (Fleet::new(), Arc::new(NoTraffic));
            let reconciler =
                Reconciler::with_traffic(store.clone(), inventory.clone(), fleet, traffic, settings);
            scene.replicas.push(Replica { store, inventory, reconciler, tasks });
        }
        for number in 1..=3 {
            scene.push(number).await;
        }
        for number in 0..gateways {
            scene.join(number).await;
        }
        scene
    }

    fn store(&self) -> &Store {
        &self.replicas[0].store
    }

    fn one(&self) -> &Reconciler {
        &self.replicas[0].reconciler
    }

    async fn push(&self, number: u32) {
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "config": { "mediaType": "application/json", "digest": digest(1000 + number), "size": 2 },
            "layers": [{ "mediaType": "a", "digest": digest(2000 + number), "size": 3 }],
        });
        let version = NewVersion {
            model: "m".parse().unwrap(),
            version: format!("v{number}").parse().unwrap(),
            digest: digest(number),
            size_bytes: 5,
            manifest: manifest.to_string(),
            summary: VersionSummary::default(),
            created: Millis(1),
            created_by: "ann".to_owned(),
        };
        self.store().insert_version(&version).await.unwrap();
    }

    async fn join(&mut self, number: usize) {
        let id = gateway(number);
        let row = NewGateway {
            id: id.clone(),
            labels: [("site".to_owned(), "berlin".to_owned())].into(),
            joined: Millis(1),
            serial: format!("serial-{number}"),
            not_after: Millis(i64::MAX / 2),
        };
        self.store().put_gateway(&row, "ann").await.unwrap();
        self.puppets.insert(id, Puppet::default());
        self.link(number).await;
    }

    /// Links a gateway to one of the replicas.
    async fn link(&mut self, number: usize) {
        let (id, replica) = (gateway(number), number % self.replicas.len());
        let status = self.puppets[&id].status(&id, None);
        // Another replica may have joined it a moment ago.
        self.replicas[replica].inventory.poke();
        let ticket = self.replicas[replica].inventory.linked(&id, &status, None);
        self.puppets.get_mut(&id).unwrap().link = Some((replica, ticket));
        self.until("the link is known", async |scene| {
            scene.store().gateway(&id).await.unwrap().link.is_some()
        })
        .await;
    }

    async fn unlink(&mut self, number: usize) {
        let id = gateway(number);
        let (replica, ticket) = self.puppets.get_mut(&id).unwrap().link.take().unwrap();
        self.replicas[replica].inventory.unlinked(&id, ticket);
        self.until("the end of the link is known", async |scene| {
            scene.store().gateway(&id).await.unwrap().link.is_none()
        })
        .await;
    }

    /// Every gateway that is linked does what the store wants of it.
    async fn work(&mut self) {
        for (id, puppet) in &mut self.puppets {
            let Some((replica, _)) = puppet.link else { continue };
            let (generation, rows) = self.replicas[0].store.assignments_of(id).await.unwrap();
            if generation == puppet.generation {
                continue;
            }
            let before = puppet.serving.clone();
            puppet.generation = generation;
            let wanted = rows.first().map(|row| row.digest.clone());
            let mut to = v1::Phase::Serving;
            match &wanted {
                Some(wanted) if self.bad.contains(wanted) => {
                    puppet.failed = Some((wanted.clone(), generation));
                    to = v1::Phase::Failed;
                }
                Some(_) | None => puppet.serving = wanted.clone(),
            }
            puppet.sequence += 1;
            let transition =
                wanted.filter(|wanted| Some(wanted) != before.as_ref()).map(|digest| v1::Transition {
                    sequence: puppet.sequence,
                    at: Some(prost_types::Timestamp::default()),
                    model: "m".to_owned(),
                    digest: digest.to_string(),
                    from: v1::Phase::Probing.into(),
                    to: to.into(),
                    reason: "because".to_owned(),
                    generation,
                    verdicts: Vec::new(),
                });
            let status = puppet.status(id, transition);
            self.replicas[replica].inventory.status(id, &status);
        }
    }

    /// One round of everything: both replicas at once, then the gateways.
    async fn round(&mut self) {
        for replica in &self.replicas {
            let name = replica.inventory.replica();
            replica.store.beat(name, "127.0.0.1:1", Millis::now()).await.unwrap();
            replica.inventory.poke();
        }
        let passes: Vec<_> = self.replicas.iter().map(|replica| replica.reconciler.clone()).collect();
        let mut racing = tokio::task::JoinSet::new();
        for reconciler in passes {
            racing.spawn(async move { reconciler.pass().await.map(drop) });
        }
        while let Some(passed) = racing.join_next().await {
            passed.unwrap();
        }
        self.work().await;
    }

    async fn until(&self, what: &str, mut reached: impl AsyncFnMut(&Self) -> bool) {
        let waiting = async {
            while !reached(self).await {
                let _ = timeout(Duration::from_millis(20), self.store().written().changed()).await;
            }
        };
        assert!(timeout(WITHIN, waiting).await.is_ok(), "in vain: {what}");
    }

    /// Rounds until a roll-out is in a state.
    async fn reach(&mut self, id: &RolloutId, state: RolloutState) -> Plan {
        let mut last = None;
        let rounds = async {
            loop {
                let plan = self.store().rollout(&id.0).await.unwrap().plan;
                let reached = plan.state == state;
                last = Some(plan);
                if reached {
                    return;
                }
                self.round().await;
            }
        };
        let done = timeout(WITHIN, rounds).await.is_ok();
        let last = last.unwrap();
        if !done {
            for replica in &self.replicas {
                let insight = replica.reconciler.insight(&id.0).await.unwrap();
                eprintln!("{}: {:?} {:#?}", replica.inventory.replica(), insight.waiting, insight.members);
            }
            panic!("{state:?} is not reached: {:?}, {}", last.state, last.reason);
        }
        last
    }

    async fn create(&self, version: u32, waves: &[&str]) -> RolloutId {
        self.one().create(wish(version, waves), "ann").await.unwrap().entry.record.id.clone()
    }

    /// Version by gateway, as the store wants it.
    async fn rows(&self) -> BTreeMap<GatewayId, Digest> {
        let rows = self.store().assignments().await.unwrap();
        rows.into_iter().map(|row| (row.gateway, row.digest)).collect()
    }

    async fn end(self) {
        for replica in self.replicas {
            replica.store.close().await;
            drop((replica.inventory, replica.reconciler, replica.tasks));
        }
    }
}

impl Puppet {
    fn status(&self, id: &GatewayId, transition: Option<v1::Transition>) -> v1::GatewayStatus {
        let version = |digest: &Digest, phase: v1::Phase, generation| v1::VersionStatus {
            model: "m".to_owned(),
            digest: digest.to_string(),
            phase: phase.into(),
            reason: "probes disagree".to_owned(),
            generation,
            ..Default::default()
        };
        let serving = self.serving.iter().map(|digest| version(digest, v1::Phase::Serving, self.generation));
        let failed =
            self.failed.iter().map(|(digest, generation)| version(digest, v1::Phase::Failed, *generation));
        v1::GatewayStatus {
            gateway_id: id.to_string(),
            accepting: true,
            generation: self.generation,
            versions: serving.chain(failed).collect(),
            transitions: transition.into_iter().collect(),
            ..Default::default()
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_replicas_race_and_one_roll_out_converges() {
    let mut scene = Scene::new(2, 8).await;
    let id = scene.create(1, &["1", "50%"]).await;
    let done = scene.reach(&id, RolloutState::Done).await;
    assert_eq!(done.targets.len(), 8);
    assert!(scene.rows().await.values().all(|row| *row == digest(1)), "{:?}", scene.rows().await);
    assert!(scene.store().owners().await.unwrap().is_empty());
    // Whoever was first, the history is one line of plans.
    let plans = scene.store().plans(&id).await.unwrap();
    let generations: Vec<_> = plans.iter().map(|plan| plan.generation).collect();
    assert_eq!(generations, (1..=done.generation).collect::<Vec<_>>());
    assert!(plans.windows(2).all(|pair| pair[1].parent == pair[0].generation));
    assert_eq!(plans[0].actor, "ann");
    let mut wave = 0;
    for plan in &plans {
        assert!(plan.wave >= wave, "waves go one way");
        wave = plan.wave;
    }
    let filter = TransitionFilter { rollout: Some(id), ..TransitionFilter::default() };
    scene
        .until("every gateway's transition is kept with its roll-out", async |scene| {
            scene.store().transitions(&filter, 100).await.unwrap().len() == 8
        })
        .await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_version_stops_at_the_first_wave_and_goes_back_by_itself() {
    let mut scene = Scene::new(2, 6).await;
    let first = scene.create(1, &["100%"]).await;
    scene.reach(&first, RolloutState::Done).await;
    scene.bad.insert(digest(2));
    let second = scene.create(2, &["1", "100%"]).await;
    let plan = scene.reach(&second, RolloutState::RolledBack).await;
    assert_eq!((plan.targets.len(), plan.wave), (1, 0));
    assert!(
        plan.reason.contains("1 of 1 gateway failed") && plan.reason.contains("probes disagree"),
        "{}",
        plan.reason
    );
    assert!(scene.rows().await.values().all(|row| *row == digest(1)), "{:?}", scene.rows().await);
    let plans = scene.store().plans(&second).await.unwrap();
    assert!(plans.iter().all(|plan| plan.wave == 0));
    assert!(
        plans.iter().any(|plan| plan.state == RolloutState::RollingBack && plan.actor == plan::CONTROL_PLANE)
    );
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn overlapping_roll_outs_are_refused_by_name_and_orders_are_kept() {
    let mut scene = Scene::new(1, 4).await;
    let first = scene.create(1, &["1", "100%"]).await;
    let refused = scene.one().create(wish(2, &["1"]), "ben").await.unwrap_err();
    let RolloutError::Overlaps { other, gateways, .. } = &refused else { panic!("{refused}") };
    assert_eq!((other, gateways.as_str()), (&first, "gw-0, gw-1, gw-2, gw-3"));
    assert!(refused.to_string().contains("m@v1 is not over"), "{refused}");

    scene.one().steer(&first.0[..12], Order::Pause, "ben", "lunch").await.unwrap();
    let rows = scene.rows().await.len();
    for _ in 0..3 {
        scene.round().await;
    }
    assert_eq!(scene.rows().await.len(), rows, "nothing begins in a pause");
    let insight = scene.one().insight(&first.0).await.unwrap();
    assert_eq!(insight.waiting.as_deref(), Some("paused: waits for `resume`"));
    let again = scene.one().steer(&first.0, Order::Pause, "ben", "").await.unwrap_err();
    assert!(matches!(again, RolloutError::Refused(Refusal::Paused)), "{again}");
    scene.one().steer(&first.0, Order::Abort, "ben", "wrong one").await.unwrap();
    let plans = scene.store().plans(&first).await.unwrap();
    let last = plans.last().unwrap();
    assert_eq!((last.actor.as_str(), last.state), ("ben", RolloutState::Aborted));
    assert!(last.reason.ends_with(": wrong one"));
    assert_eq!(scene.rows().await.len(), rows, "gateways stay as they are");
    scene.create(2, &["1"]).await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dry_run_says_what_would_happen_and_does_nothing() {
    let mut scene = Scene::new(1, 10).await;
    scene.unlink(3).await;
    let preview = scene.one().preview(wish(1, &["1", "50%"]), "ann").await.unwrap();
    assert_eq!(preview.step.changes.len(), 1);
    assert!(scene.store().rollouts(false, 10).await.unwrap().is_empty() && scene.rows().await.is_empty());
    // The same gateway comes first when it is meant.
    scene.create(1, &["1", "50%"]).await;
    assert!(scene.rows().await.contains_key(&preview.step.changes[0].gateway));
    let nobody = spec::from_wire(v1::RolloutSpec {
        selector: "site=bonn".to_owned(),
        ..spec::to_wire(&preview.entry.record.spec)
    });
    let refused = scene.one().preview(nobody.unwrap(), "ann").await.unwrap_err();
    assert!(matches!(refused, RolloutError::NoGateways { gateways: 10, .. }), "{refused}");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_was_away_gets_the_newest_version_and_never_an_older_one() {
    let mut scene = Scene::new(2, 4).await;
    scene.unlink(2).await;
    let first = scene.create(1, &["100%"]).await;
    scene.reach(&first, RolloutState::Done).await;
    let second = scene.create(2, &["100%"]).await;
    scene.reach(&second, RolloutState::Done).await;
    assert!(!scene.rows().await.contains_key(&gateway(2)));
    scene.link(2).await;
    // And one that nobody knew.
    scene.join(4).await;
    // By time and not by rounds: late gateways are gathered for some seconds before they get a plan.
    let began = Instant::now();
    for id in [gateway(2), gateway(4)] {
        let row = loop {
            if let Some(row) = scene.rows().await.remove(&id) {
                break row;
            }
            assert!(began.elapsed() < WITHIN, "{id} is not caught up");
            scene.round().await;
        };
        assert_eq!(row, digest(2), "{id} is given an older version");
    }
    let plan = scene.store().rollout(&second.0).await.unwrap().plan;
    assert_eq!(plan.state, RolloutState::Done);
    assert!(plan.targets[&gateway(2)].late && plan.targets[&gateway(4)].late);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_done_can_be_rolled_back_until_a_later_one_has_its_gateways() {
    let mut scene = Scene::new(1, 3).await;
    let first = scene.create(1, &["100%"]).await;
    scene.reach(&first, RolloutState::Done).await;
    let second = scene.create(2, &["100%"]).await;
    scene.reach(&second, RolloutState::Done).await;
    let refused = scene.one().steer(&first.0, Order::RollBack, "ann", "").await.unwrap_err();
    assert!(refused.to_string().contains(&second.0), "{refused}");
    scene.one().steer(&second.0, Order::RollBack, "ann", "worse").await.unwrap();
    scene.reach(&second, RolloutState::RolledBack).await;
    assert!(scene.rows().await.values().all(|row| *row == digest(1)), "{:?}", scene.rows().await);
    scene.one().steer(&first.0, Order::RollBack, "ann", "").await.unwrap();
    scene.reach(&first, RolloutState::RolledBack).await;
    assert!(scene.rows().await.is_empty());
    scene.end().await;
}
