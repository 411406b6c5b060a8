//! Looks at everything all the time, while it is there to be looked at.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use rookery_model::bundle::{Digest, check_manifest};
use rookery_proto::v1::{ListModelsRequest, ListVersionsRequest, Plan, Rollout};
use rookery_tests::{
    client::client,
    rollouts::{Access, MODEL, VersionedFleet, name, serving, until},
};
use tokio::{sync::watch, task::JoinSet, time::timeout};

/// Longest answer that is waited for: whoever is asked may be killed.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where gateways serve now.
pub(crate) struct Addresses(Mutex<Vec<Option<SocketAddr>>>);

impl Addresses {
    pub(crate) fn of(fleet: &VersionedFleet) -> Self {
        Self(Mutex::new((0..fleet.gateways()).map(|index| fleet.worker(index)).collect()))
    }

    pub(crate) fn set(&self, fleet: &VersionedFleet) {
        *self.0.lock().unwrap() = (0..fleet.gateways()).map(|index| fleet.worker(index)).collect();
    }

    pub(crate) fn clear(&self, index: usize) {
        self.0.lock().unwrap()[index] = None;
    }

    fn get(&self) -> Vec<Option<SocketAddr>> {
        self.0.lock().unwrap().clone()
    }
}

/// What has been seen.
struct Seen {
    seed: u64,
    access: Access,
    addresses: Arc<Addresses>,
    folders: Vec<PathBuf>,
    allowed: Vec<String>,
    served: BTreeSet<(usize, String)>,
    plans: BTreeMap<(String, u64), Plan>,
    audit: BTreeSet<String>,
    looks: [usize; 2],
}

pub(crate) struct Watcher {
    stop: watch::Sender<bool>,
    task: JoinSet<Seen>,
}

impl Watcher {
    pub(crate) fn start(
        seed: u64,
        fleet: &VersionedFleet,
        addresses: Arc<Addresses>,
        allowed: Vec<String>,
    ) -> Self {
        let mut seen = Seen {
            seed,
            access: fleet.access().clone(),
            addresses,
            folders: (0..fleet.gateways()).map(|index| fleet.state_of(index).join("versions")).collect(),
            allowed,
            served: BTreeSet::new(),
            plans: BTreeMap::new(),
            audit: BTreeSet::new(),
            looks: [0; 2],
        };
        let (stop, stopped) = watch::channel(false);
        let mut task = JoinSet::new();
        task.spawn(async move {
            while !*stopped.borrow() {
                seen.gateways().await;
                let _ = timeout(PATIENCE, seen.control_plane()).await;
                tokio::task::yield_now().await;
            }
            seen
        });
        Self { stop, task }
    }

    /// Everything that was ever seen is still there.
    pub(crate) async fn stop(self, pushed: &[(&str, &str)]) {
        self.stop.send_replace(true);
        let mut seen = self.task.join_all().await.remove(0);
        let (seed, access) = (seen.seed, seen.access.clone());
        let [gateways, plane] = seen.looks;
        assert!(gateways > 3 && plane > 3, "seed {seed}: looked {gateways} and {plane} times only");
        let (plans, audit) = (std::mem::take(&mut seen.plans), std::mem::take(&mut seen.audit));
        seen.control_plane().await.unwrap();
        for (key, plan) in &plans {
            assert_eq!(seen.plans.get(key), Some(plan), "seed {seed}: {key:?}");
        }
        let lost: Vec<_> = audit.difference(&seen.audit).collect();
        assert!(lost.is_empty(), "seed {seed}: {lost:#?}");
        let request = ListVersionsRequest { model: MODEL.to_owned() };
        let versions = access.models().list_versions(request).await.unwrap().into_inner().versions;
        for (called, digest) in pushed {
            let kept = versions.iter().any(|version| version.version == *called && version.digest == *digest);
            assert!(kept, "seed {seed}: {called} was pushed and is gone: {versions:#?}");
        }
        for (id, rollout) in plans.keys().map(|(id, _)| (id, access.rollout(id))) {
            let begun = rollout.await.unwrap();
            let audited = seen.audit.iter().any(|row| row.contains(id.as_str()));
            assert!(audited, "seed {seed}: no audit of {begun:#?}");
        }
        seen.served_was_probed(&access).await;
        eprintln!(
            "seed {seed}: {gateways} and {plane} looks, {} plans, {} audit rows, {} versions served",
            seen.plans.len(),
            seen.audit.len(),
            seen.served.len()
        );
    }
}

impl Seen {
    /// What gateways serve, by their own word, was verified and is whole.
    async fn gateways(&mut self) {
        for (index, address) in self.addresses.get().into_iter().enumerate() {
            let Some(address) = address else { continue };
            let Some(digests) = served_at(address).await else { continue };
            self.looks[0] += 1;
            for digest in digests {
                self.is_served(index, &digest);
                if let Err(fault) = whole(&self.folders[index], &digest) {
                    // It may have been replaced and removed in between.
                    let still = served_at(address).await.is_some_and(|digests| digests.contains(&digest));
                    assert!(!still, "seed {}: {} serves {digest}, and {fault}", self.seed, name(index));
                }
            }
        }
    }

    fn is_served(&mut self, index: usize, digest: &str) {
        let (seed, known) = (self.seed, self.allowed.iter().any(|allowed| allowed == digest));
        assert!(known, "seed {seed}: {} serves {digest}, which its probes refuse", name(index));
        self.served.insert((index, digest.to_owned()));
    }

    /// What the control plane says.
    async fn control_plane(&mut self) -> Result<(), tonic::Status> {
        for gateway in self.access.gateways().await? {
            let index = (0..self.folders.len()).find(|index| name(*index) == gateway.id).unwrap();
            let digests: Vec<_> = serving(&gateway).into_iter().map(str::to_owned).collect();
            assert!(digests.len() <= 1, "seed {}: {gateway:#?}", self.seed);
            digests.iter().for_each(|digest| self.is_served(index, digest));
            assert!(
                gateway.assigned.len() <= 1,
                "seed {}: two versions of one model: {gateway:#?}",
                self.seed
            );
        }
        let all = self.access.all_rollouts().await?;
        let mut owned: BTreeMap<String, String> = BTreeMap::new();
        for rollout in &all {
            let rollout = self.access.rollout(&rollout.id).await?;
            for gateway in owned_by(&rollout) {
                let other = owned.insert(gateway.clone(), rollout.id.clone());
                assert_eq!(other, None, "seed {}: {gateway} has two roll-outs: {rollout:#?}", self.seed);
            }
            for plan in self.access.plans(&rollout.id).await? {
                let key = (rollout.id.clone(), plan.generation);
                let before = self.plans.insert(key, plan.clone());
                // A plan is never changed.
                assert!(before.is_none_or(|before| before == plan), "seed {}: {plan:#?}", self.seed);
            }
        }
        self.audit.extend(self.access.audit().await?.iter().map(|entry| format!("{entry:?}")));
        self.looks[1] += 1;
        Ok(())
    }

    /// Every version that was served by a gateway had passed its digests and probes there.
    async fn served_was_probed(&self, access: &Access) {
        for (index, digest) in &self.served {
            // A gateway tells of its transitions until they are acknowledged.
            until(
                &format!("seed {}: {} says how {digest} was verified", self.seed, name(*index)),
                async || {
                    let kept =
                        access.transitions(&name(*index), "").await.map_err(|status| status.to_string())?;
                    let mine = kept.iter().filter_map(|kept| kept.transition.as_ref());
                    let verdicts: Vec<_> = mine
                        .filter(|transition| transition.digest == *digest)
                        .flat_map(|t| &t.verdicts)
                        .collect();
                    let passed = |gate| verdicts.iter().any(|verdict| verdict.gate == gate && verdict.passed);
                    if passed("digests") && passed("probes") { Ok(()) } else { Err(format!("{kept:#?}")) }
                },
            )
            .await;
        }
    }
}

async fn served_at(address: SocketAddr) -> Option<Vec<String>> {
    let mut client = client(address);
    let models = timeout(PATIENCE, client.list_models(ListModelsRequest {})).await.ok()?.ok()?;
    Some(models.into_inner().models.into_iter().map(|model| model.digest).collect())
}

/// Gateways that a roll-out which is not over has reached.
fn owned_by(rollout: &Rollout) -> Vec<String> {
    use rookery_proto::v1::RolloutState::{Aborted, Done, RolledBack};
    if matches!(rollout.state(), Done | RolledBack | Aborted) {
        return Vec::new();
    }
    let reached =
        rollout.gateways.iter().filter(|gateway| !matches!(gateway.phase.as_str(), "waiting" | "late"));
    reached.map(|gateway| gateway.gateway.clone()).collect()
}

/// Whether every blob of the version has its digest.
fn whole(folder: &std::path::Path, digest: &str) -> Result<(), String> {
    let read = |digest: &Digest| {
        let bytes = fs::read(folder.join(digest.path())).map_err(|error| format!("{digest}: {error}"))?;
        if Digest::of(&bytes) == *digest { Ok(bytes) } else { Err(format!("{digest} is damaged")) }
    };
    let manifest = read(&digest.parse().map_err(|error| format!("{digest}: {error}"))?)?;
    let blobs = check_manifest(&manifest).map_err(|error| error.to_string())?;
    blobs.iter().try_for_each(|blob| read(&blob.digest).map(drop))
}
