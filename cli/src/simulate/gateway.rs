//! One simulated gateway: the real link, the real state machine, a modelled machine.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rookery_compute_worker::agent::keep_link;
use rookery_compute_worker::config::{ConfigError, ValidWorkerConfig, WorkerConfig};
use rookery_compute_worker::versions::Agent;
use rookery_proto::server::{Gate, Tasks};
use rookery_proto::v1::gateway_service_server::GatewayServiceServer;
use rookery_proto::v1::inference_service_server::InferenceServiceServer;
use tokio::sync::{Notify, watch};
use tokio::time::sleep;
use tonic::service::RoutesBuilder;

use super::faults::{Dice, Fault};
use super::generate::Inference;
use super::machine::{Disk, Profile, SimulatedMachine};
use super::roster::Roster;
use super::service::Service;

/// How long a program takes to start again after a crash.
const RESTART: Duration = Duration::from_secs(3);

/// How long a gateway with that fault keeps its link, and how long it is away.
const ONLINE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(40));
const OFFLINE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(20));

/// Calls that a gateway answers at a time.
const CALLS: u32 = 1024;

/// What all gateways of a simulation have in common.
pub(crate) struct Common {
    /// Where they dial, `host:port`.
    pub link: String,
    /// What they join with.
    pub join: String,
    /// Beginning of their ids.
    pub name: String,
    /// Folder of their identities.
    pub folder: PathBuf,
    /// Of the whole fleet.
    pub seed: u64,
    /// Modelled times are divided by this.
    pub hurry: f64,
    /// Bytes of a version.
    pub version_bytes: u64,
    /// Their tasks.
    pub tasks: Tasks,
    /// Who is linked, and who has which fault.
    pub roster: Arc<Roster>,
}

impl Common {
    /// Id of gateway `index`.
    pub(crate) fn id(&self, index: usize) -> String {
        format!("{}-{index:05}", self.name)
    }

    /// Number of the gateway with this id, if it is one of this simulation.
    pub(crate) fn index(&self, id: &str) -> Option<usize> {
        id.strip_prefix(&self.name)?.strip_prefix('-')?.parse().ok()
    }
}

/// Why a gateway has no link any more.
enum Gone {
    /// Its uplink is away.
    Offline,
    /// Its program has died.
    Crashed,
}

/// A gateway that has not been switched on.
pub(crate) struct Gateway {
    common: Arc<Common>,
    index: usize,
    config: ValidWorkerConfig,
    profile: Profile,
    dice: Dice,
    disk: Arc<Disk>,
    /// The program is to die.
    crash: Arc<Notify>,
    /// Whether there is an uplink.
    uplink: watch::Sender<bool>,
}

impl Gateway {
    /// Gateway `index` of the fleet.
    ///
    /// # Errors
    /// If its settings cannot be used.
    pub(crate) fn new(common: Arc<Common>, index: usize) -> Result<Self, ConfigError> {
        let id = common.id(index);
        let mut config = WorkerConfig {
            state: Some(common.folder.join(&id)),
            gateway_id: Some(id),
            ..WorkerConfig::default()
        };
        config.link.control_plane = Some(common.link.clone());
        config.link.join = Some(common.join.clone());
        let number = index as u64;
        let mut profile = Profile::new(common.seed, number, common.roster.faults(index));
        (profile.hurry, profile.version_bytes) = (common.hurry, common.version_bytes);
        Ok(Self {
            config: config.validate()?,
            profile,
            dice: Dice::new(common.seed, number, 200),
            disk: Arc::default(),
            crash: Arc::default(),
            uplink: watch::Sender::new(true),
            common,
            index,
        })
    }

    /// Runs it until it is dropped.
    pub(crate) async fn run(mut self) {
        loop {
            let agent = self.start().await;
            while let Gone::Offline = self.linked(&agent).await {
                self.uplink.send_replace(false);
                self.pause(OFFLINE).await;
                self.uplink.send_replace(true);
            }
            self.common.roster.crashed();
            agent.stop().await;
            sleep(RESTART.div_f64(self.profile.hurry)).await;
        }
    }

    /// Starts its program on what is on its disk.
    async fn start(&mut self) -> Agent<SimulatedMachine> {
        let dice = Dice::new(self.common.seed, self.index as u64, self.dice.next());
        let (disk, crash) = (Arc::clone(&self.disk), Arc::clone(&self.crash));
        let machine = SimulatedMachine::new(self.profile.clone(), disk, dice, crash, self.uplink.subscribe());
        Agent::start(Arc::new(machine), &self.common.tasks).await
    }

    /// Keeps its link until that goes.
    async fn linked(&mut self, agent: &Agent<SimulatedMachine>) -> Gone {
        let common = Arc::clone(&self.common);
        let id = common.id(self.index);
        let service = Service::new(id.clone(), self.index, agent.clone(), Arc::clone(&common.roster));
        let gate = Gate::new(CALLS);
        let _drained = DrainOnDrop(gate.clone());
        let mut routes = RoutesBuilder::default();
        routes.add_service(GatewayServiceServer::new(service));
        routes.add_service(InferenceServiceServer::new(Inference::new(id, agent.clone(), gate.clone())));
        let unsteady = common.roster.faults(self.index).contains(&Fault::Offline);
        let crash = Arc::clone(&self.crash);
        // Dropping the link closes its connection, so no arm needs to be cancel safe.
        tokio::select! {
            () = keep_link(self.config.clone(), routes.routes(), common.tasks.clone(), gate) => Gone::Offline,
            () = self.stays(), if unsteady => {
                common.roster.lost();
                Gone::Offline
            }
            () = crash.notified() => Gone::Crashed,
        }
    }

    /// How long a gateway stays whose uplink goes away.
    async fn stays(&mut self) {
        let roster = Arc::clone(&self.common.roster);
        roster.loose().await;
        self.pause(ONLINE).await;
    }

    async fn pause(&mut self, (least, most): (Duration, Duration)) {
        sleep(self.dice.between(least, most).div_f64(self.profile.hurry)).await;
    }
}

/// Ends what runs beside a link, such as the renewal of certificates, when the link is dropped.
struct DrainOnDrop(Gate);

impl Drop for DrainOnDrop {
    fn drop(&mut self) {
        self.0.begin_drain();
    }
}
