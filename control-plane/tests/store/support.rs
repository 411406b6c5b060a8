//! Databases, and things to put into them.

use std::collections::BTreeMap;

use rookery_control_plane::{
    domain::{
        Digest, GatewayId, Labels, Millis, ModelName,
        rollout::{GateLimits, Plan, RolloutId, RolloutSpec, RolloutState, Target, WaveSize},
    },
    store::{AssignmentChange, NewGateway, NewRollout, NewVersion, Store, VersionSummary},
};
use tempfile::TempDir;

use crate::postgres::Postgres;

/// An empty database; opened as often as wanted, each time as another replica would.
pub(crate) struct Db {
    pub(crate) url: String,
    _folder: Option<TempDir>,
}

impl Db {
    pub(crate) fn sqlite() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("state.db").display());
        Self { url, _folder: Some(folder) }
    }

    pub(crate) fn postgres() -> Self {
        Self { url: Postgres::shared().database(), _folder: None }
    }

    pub(crate) async fn open(&self) -> Store {
        Store::open(&self.url).await.unwrap()
    }
}

/// Runs tests over both databases.
macro_rules! on_both {
    ($($name:ident),* $(,)?) => {$(
        mod $name {
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn sqlite() {
                super::$name(&crate::support::Db::sqlite()).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn postgres() {
                super::$name(&crate::support::Db::postgres()).await;
            }
        }
    )*};
}
pub(crate) use on_both;

/// A function of a number that could be the digest of something.
pub(crate) fn digest(number: u64) -> Digest {
    format!("sha256:{number:064x}").parse().unwrap()
}

pub(crate) fn model(name: &str) -> ModelName {
    name.parse().unwrap()
}

pub(crate) fn gateway(number: usize) -> GatewayId {
    format!("gw-{number}").parse().unwrap()
}

/// Version `v{number}` of a model, with its config and two layers, one of which all versions share.
pub(crate) fn version(model: &str, number: u64) -> NewVersion {
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "config": { "mediaType": "application/json", "digest": digest(1000 + number), "size": 2 },
        "layers": [
            { "mediaType": "a", "digest": digest(2000 + number), "size": 3 },
            { "mediaType": "a", "digest": digest(3000), "size": 3 },
        ],
    });
    NewVersion {
        model: model.parse().unwrap(),
        version: format!("v{number}").parse().unwrap(),
        digest: digest(number),
        size_bytes: 8,
        manifest: manifest.to_string(),
        summary: VersionSummary { architecture: "qwen2".into(), recipe: "w8".into(), parameters: 7 },
        created: Millis(i64::try_from(number).unwrap()),
        created_by: "ada".into(),
    }
}

pub(crate) fn new_gateway(number: usize, serial: &str) -> NewGateway {
    NewGateway {
        id: gateway(number),
        labels: [("site".to_owned(), "berlin".to_owned())].into(),
        joined: Millis(1000),
        serial: serial.to_owned(),
        not_after: Millis(9000),
    }
}

pub(crate) fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// A store with versions 1 to 3 of a model, and gateways.
pub(crate) async fn prepared(db: &Db, gateways: usize) -> Store {
    let store = db.open().await;
    prepare(&store, gateways).await;
    store
}

pub(crate) async fn prepare(store: &Store, gateways: usize) {
    for number in 1..=3 {
        store.insert_version(&version("org/chat", number)).await.unwrap();
    }
    for number in 0..gateways {
        store.put_gateway(&new_gateway(number, &format!("serial-{number}")), "ada").await.unwrap();
    }
}

pub(crate) fn spec(version: u64) -> RolloutSpec {
    RolloutSpec {
        model: model("org/chat"),
        version: format!("v{version}").parse().unwrap(),
        digest: digest(version),
        selector: "site=berlin".into(),
        waves: vec![WaveSize::Count(1), WaveSize::Percent(100.0)],
        soak: std::time::Duration::from_secs(600),
        max_failed_percent: 2.0,
        max_unavailable_percent: 20.0,
        windows: vec!["Mon-Fri 01:00-05:00 Europe/Berlin".into()],
        manual_approval: false,
        gateway_timeout: std::time::Duration::from_secs(7200),
        gates: GateLimits::default(),
    }
}

pub(crate) fn id(number: u64) -> RolloutId {
    RolloutId(format!("{number:032x}"))
}

/// Targets of gateways.
pub(crate) type Targets = BTreeMap<GatewayId, Target>;

pub(crate) fn target(version: Option<u64>, previous: Option<u64>) -> Target {
    Target {
        digest: version.map(digest),
        previous: previous.map(digest),
        wave: 0,
        since: Millis(5),
        late: false,
    }
}

pub(crate) fn plan(rollout: &RolloutId, generation: u64, state: RolloutState, targets: Targets) -> Plan {
    Plan {
        rollout: rollout.clone(),
        generation,
        parent: generation - 1,
        state,
        resume: None,
        wave: 0,
        since: Millis(7),
        approved: false,
        actor: "control plane".into(),
        reason: "because".into(),
        targets,
    }
}

/// The plan after `parent`, with other targets.
pub(crate) fn next(parent: &Plan, state: RolloutState, targets: Targets) -> Plan {
    plan(&parent.rollout, parent.generation + 1, state, targets)
}

pub(crate) fn change(gateway: &GatewayId, version: Option<u64>) -> AssignmentChange {
    AssignmentChange {
        gateway: gateway.clone(),
        model: model("org/chat"),
        digest: version.map(digest),
        rolls_back: false,
    }
}

/// A roll-out of a version that selects gateways and reaches the first of them.
pub(crate) fn rollout(number: u64, version: u64, gateways: &[usize]) -> NewRollout {
    let id = id(number);
    let first = gateway(gateways[0]);
    let targets: Targets = [(first.clone(), target(Some(version), None))].into();
    NewRollout {
        plan: plan(&id, 1, RolloutState::Running, targets),
        id,
        spec: spec(version),
        created: Millis(i64::try_from(number).unwrap()),
        created_by: "ada".into(),
        traceparent: "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01".into(),
        gateways: gateways.iter().copied().map(gateway).collect(),
        changes: vec![change(&first, Some(version))],
    }
}
