//! One simulated gateway: the real link, the real state machine, a modelled machine.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::{Stream, stream};
use rookery_compute_worker::agent::keep_link;
use rookery_compute_worker::config::WorkerConfig;
use rookery_compute_worker::versions::{Agent, AssignError};
use rookery_proto::server::{Gate, Tasks};
use rookery_proto::status::{Reason, invalid_field, refuse};
use rookery_proto::v1;
use rookery_proto::v1::gateway_service_server::{GatewayService, GatewayServiceServer};
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};
use tonic::service::RoutesBuilder;
use tonic::{Request, Response, Status};

use super::faults::{Dice, Fault, Faults};
use super::machine::{Disk, Profile, SimulatedMachine};

/// Changes that come closer together than this are reported as one.
const COALESCE: Duration = Duration::from_millis(50);

/// How long a program takes to start again after a crash.
const RESTART: Duration = Duration::from_secs(3);

/// How long a gateway with that fault keeps its link, and how long it is away.
const ONLINE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(40));
const OFFLINE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(20));

/// What all gateways of a simulation have in common.
pub(crate) struct Common {
    /// Where they dial, `host:port`.
    pub link: String,
    /// What they join with.
    pub join: String,
    /// Folder of their identities.
    pub folder: PathBuf,
    /// Of the whole fleet.
    pub seed: u64,
    /// Who has which fault.
    pub faults: Faults,
    /// Modelled times are divided by this.
    pub hurry: f64,
    /// Bytes of a version.
    pub version_bytes: u64,
    /// Their tasks.
    pub tasks: Tasks,
    /// How many are linked now.
    pub linked: Arc<AtomicUsize>,
}

/// Runs gateway `index` until it is dropped.
///
/// # Errors
/// If its settings cannot be used.
pub(crate) async fn run(
    common: Arc<Common>,
    index: u64,
) -> Result<(), rookery_compute_worker::config::ConfigError> {
    let id = format!("sim-{index:05}");
    let mut config = WorkerConfig {
        gateway_id: Some(id.clone()),
        state: Some(common.folder.join(&id)),
        ..WorkerConfig::default()
    };
    config.link.control_plane = Some(common.link.clone());
    config.link.join = Some(common.join.clone());
    let config = config.validate()?;
    let profile = Profile::new(common.seed, index, &common.faults, common.hurry, common.version_bytes);
    let unsteady = common.faults.has(Fault::Offline, common.seed, index);
    let mut dice = Dice::new(common.seed, index, 200);
    let (disk, crash) = (Arc::new(Disk::default()), Arc::new(Notify::new()));
    loop {
        let own = Dice::new(common.seed, index, dice.next());
        let machine = SimulatedMachine::new(profile.clone(), Arc::clone(&disk), own, Arc::clone(&crash));
        let agent = Agent::start(Arc::new(machine), &common.tasks).await;
        loop {
            let service =
                Service { id: id.clone(), agent: agent.clone(), linked: Arc::clone(&common.linked) };
            let mut routes = RoutesBuilder::default();
            routes.add_service(GatewayServiceServer::new(service));
            let link = keep_link(config.clone(), routes.routes(), common.tasks.clone(), Gate::new(1024));
            let away = async {
                if !unsteady {
                    std::future::pending::<()>().await;
                }
                sleep(dice.between(ONLINE.0, ONLINE.1)).await;
            };
            // Dropping the link closes its connection.
            tokio::select! {
                () = link => {}
                () = away => {}
                () = crash.notified() => break,
            }
            sleep(dice.between(OFFLINE.0, OFFLINE.1)).await;
        }
        agent.stop().await;
        sleep(RESTART).await;
    }
}

/// `GatewayService` of a simulated gateway.
#[derive(Clone)]
struct Service {
    id: String,
    agent: Agent<SimulatedMachine>,
    linked: Arc<AtomicUsize>,
}

/// Counts a link while its statuses are watched.
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

struct Statuses {
    service: Service,
    changes: watch::Receiver<u64>,
    heartbeat: Duration,
    first: bool,
    _counted: Counted,
}

impl Service {
    fn status(&self, first: bool) -> v1::GatewayStatus {
        let report = self.agent.report();
        let profile = self.agent.machine().profile();
        let facts = v1::GatewayFacts {
            board: "Simulated ROCK 5B".to_owned(),
            memory_bytes: 8_000_000_000,
            available_memory_bytes: 6_000_000_000,
            free_disk_bytes: 50_000_000_000,
            driver: "simulated".to_owned(),
            celsius: Some(profile.celsius),
            processor: "aarch64".to_owned(),
            clock_us: 0,
        };
        v1::GatewayStatus {
            gateway_id: self.id.clone(),
            worker_version: env!("CARGO_PKG_VERSION").to_owned(),
            accepting: true,
            facts: first.then_some(facts),
            generation: report.generation,
            versions: report.versions,
            transitions: report.transitions,
            ..v1::GatewayStatus::default()
        }
    }
}

impl Statuses {
    async fn next(&mut self) -> v1::GatewayStatus {
        let first = std::mem::replace(&mut self.first, false);
        if !first && let Ok(Ok(())) = timeout(self.heartbeat, self.changes.changed()).await {
            sleep(COALESCE).await;
            self.changes.mark_unchanged();
        }
        self.service.status(first)
    }
}

type StatusStream = Pin<Box<dyn Stream<Item = Result<v1::GatewayStatus, Status>> + Send>>;

#[tonic::async_trait]
impl GatewayService for Service {
    type WatchGatewayStream = StatusStream;

    async fn watch_gateway(
        &self,
        request: Request<v1::WatchGatewayRequest>,
    ) -> Result<Response<StatusStream>, Status> {
        self.linked.fetch_add(1, Ordering::Relaxed);
        let statuses = Statuses {
            service: self.clone(),
            changes: self.agent.changes(),
            heartbeat: Duration::from_millis(request.into_inner().heartbeat_interval_ms.max(100).into()),
            first: true,
            _counted: Counted(Arc::clone(&self.linked)),
        };
        let statuses = stream::unfold(statuses, |mut statuses| async {
            let status = statuses.next().await;
            Some((Ok(status), statuses))
        });
        Ok(Response::new(Box::pin(statuses)))
    }

    async fn assign(&self, request: Request<v1::Assignment>) -> Result<Response<v1::AssignResponse>, Status> {
        let generation = self.agent.assign(request.into_inner()).await.map_err(|error| refused(&error))?;
        Ok(Response::new(v1::AssignResponse { generation }))
    }
}

fn refused(error: &AssignError) -> Status {
    let reason = match error {
        AssignError::Invalid { field, rule } => return invalid_field(field, rule),
        AssignError::Stale { .. } => Reason::StaleGeneration,
        AssignError::Conflict(_) => Reason::GenerationConflict,
        AssignError::NotKept(_) => Reason::StorageFailed,
        AssignError::Stopped => Reason::Draining,
    };
    refuse(reason, error.to_string())
}
