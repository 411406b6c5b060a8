//! `GatewayService` of a simulated gateway.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::{Stream, stream};
use rookery_compute_worker::versions::{Agent, AssignError, Machine};
use rookery_proto::status::{Reason, invalid_field, refuse};
use rookery_proto::v1;
use rookery_proto::v1::gateway_service_server::GatewayService;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tonic::{Request, Response, Status};

use super::machine::SimulatedMachine;
use super::roster::{Linked, Roster};

/// Changes that come closer together than this are reported as one, as by a real gateway.
const COALESCE: Duration = Duration::from_millis(50);

/// What the control plane asks of a gateway. Clones are the same one.
#[derive(Clone)]
pub(crate) struct Service {
    id: String,
    index: usize,
    agent: Agent<SimulatedMachine>,
    roster: Arc<Roster>,
}

impl Service {
    /// Of gateway `index`, whose id is `id`.
    pub(crate) fn new(id: String, index: usize, agent: Agent<SimulatedMachine>, roster: Arc<Roster>) -> Self {
        Self { id, index, agent, roster }
    }

    fn status(&self, first: bool) -> v1::GatewayStatus {
        let report = self.agent.report();
        self.roster.reports(self.index, !report.transitions.is_empty());
        v1::GatewayStatus {
            gateway_id: self.id.clone(),
            worker_version: env!("CARGO_PKG_VERSION").to_owned(),
            accepting: true,
            models: self.agent.machine().loads(),
            facts: first.then(|| self.facts()),
            generation: report.generation,
            versions: report.versions,
            transitions: report.transitions,
        }
    }

    fn facts(&self) -> v1::GatewayFacts {
        let machine = self.agent.machine();
        let clock = machine.now().duration_since(UNIX_EPOCH).unwrap_or_default();
        v1::GatewayFacts {
            board: "Simulated ROCK 5B".to_owned(),
            memory_bytes: 8_000_000_000,
            available_memory_bytes: 6_000_000_000,
            free_disk_bytes: 50_000_000_000,
            driver: "simulated".to_owned(),
            celsius: Some(machine.profile().celsius),
            processor: "aarch64".to_owned(),
            clock_us: u64::try_from(clock.as_micros()).unwrap_or(u64::MAX),
        }
    }
}

/// How far a clock is off that showed `clock_us` at this moment.
pub(crate) fn clock_error(clock_us: u64) -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.abs_diff(Duration::from_micros(clock_us))
}

/// The statuses of one link.
struct Statuses {
    service: Service,
    changes: watch::Receiver<u64>,
    heartbeat: Duration,
    first: bool,
    _linked: Linked,
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
        let statuses = Statuses {
            service: self.clone(),
            changes: self.agent.changes(),
            heartbeat: Duration::from_millis(request.into_inner().heartbeat_interval_ms.max(100).into()),
            first: true,
            _linked: self.roster.link(self.index),
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
