//! `GatewayService`: the worker's state as the control plane sees it, and what the worker is to serve.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures_util::{
    Stream,
    future::{pending, select_all},
    stream,
};
use rookery_proto::{
    server::Gate,
    status::{self, Reason},
    v1,
    validate::limit,
};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tonic::{Request, Response, Status};

use crate::{
    engine::Load,
    service::{Models, Set},
    versions::{Agent, AssignError, Board, station::Station},
};

/// Changes that come closer together than this are reported as one.
const COALESCE: Duration = Duration::from_millis(50);

/// What the gateway is, is looked at no more often than this: a heartbeat costs next to nothing.
const FACTS: Duration = Duration::from_secs(10);

/// The gateway service of one worker.
#[derive(Clone)]
pub(crate) struct Gateway {
    id: String,
    models: Models,
    gate: Gate,
    /// Versions, if the worker has a folder for them.
    versions: Option<Agent<Station>>,
}

impl Gateway {
    pub(crate) fn new(id: String, models: Models, gate: Gate, versions: Option<Agent<Station>>) -> Self {
        Self { id, models, gate, versions }
    }

    /// Everything but the facts.
    fn status(&self) -> v1::GatewayStatus {
        let report = self.versions.as_ref().map(Agent::report).unwrap_or_default();
        v1::GatewayStatus {
            gateway_id: self.id.clone(),
            worker_version: env!("CARGO_PKG_VERSION").to_owned(),
            accepting: !self.gate.is_draining(),
            models: self.models.loads(),
            facts: None,
            generation: report.generation,
            versions: report.versions,
            transitions: report.transitions,
        }
    }

    fn facts(&self) -> v1::GatewayFacts {
        match &self.versions {
            Some(versions) => versions.machine().facts(),
            None => Board::default().facts(0),
        }
    }
}

type StatusStream = Pin<Box<dyn Stream<Item = Result<v1::GatewayStatus, Status>> + Send>>;

#[tonic::async_trait]
impl v1::gateway_service_server::GatewayService for Gateway {
    type WatchGatewayStream = StatusStream;

    async fn watch_gateway(
        &self,
        request: Request<v1::WatchGatewayRequest>,
    ) -> Result<Response<StatusStream>, Status> {
        let interval = request.into_inner().heartbeat_interval_ms;
        if !limit::HEARTBEAT_MS.contains(&interval) {
            return Err(status::invalid_field("heartbeat_interval_ms", "must be from 100 to 60000"));
        }
        let watch = Watch::new(self.clone(), Duration::from_millis(interval.into()));
        let statuses = stream::unfold(watch, |mut watch| async {
            let status = watch.next().await;
            Some((Ok(status), watch))
        });
        Ok(Response::new(Box::pin(statuses)))
    }

    async fn assign(&self, request: Request<v1::Assignment>) -> Result<Response<v1::AssignResponse>, Status> {
        let Some(versions) = &self.versions else {
            return Err(Status::unimplemented(
                "this worker serves the bundles that it was started with; give it a folder for versions \
                 (worker.state)",
            ));
        };
        let generation = versions.assign(request.into_inner()).await.map_err(|error| refusal(&error))?;
        Ok(Response::new(v1::AssignResponse { generation }))
    }
}

fn refusal(error: &AssignError) -> Status {
    let refuse = |reason| status::refuse(reason, error.to_string());
    match error {
        AssignError::Invalid { field, rule } => status::invalid_field(field, rule),
        AssignError::Stale { .. } => refuse(Reason::StaleGeneration),
        AssignError::Conflict(_) => refuse(Reason::GenerationConflict),
        AssignError::NotKept(_) => refuse(Reason::StorageFailed),
        AssignError::Stopped => refuse(Reason::Draining),
    }
}

struct Watch {
    gateway: Gateway,
    models: watch::Receiver<Arc<Set>>,
    loads: Vec<watch::Receiver<Load>>,
    versions: Option<watch::Receiver<u64>>,
    heartbeat: Duration,
    /// What was reported last, without facts.
    told: Option<v1::GatewayStatus>,
    facts: Option<(Instant, v1::GatewayFacts)>,
}

impl Watch {
    fn new(gateway: Gateway, heartbeat: Duration) -> Self {
        let mut models = gateway.models.changes();
        let loads = loads(&mut models);
        let versions = gateway.versions.as_ref().map(Agent::changes);
        Self { gateway, models, loads, versions, heartbeat, told: None, facts: None }
    }

    /// The first status at once, later ones when something changed, or when the heartbeat is due.
    async fn next(&mut self) -> v1::GatewayStatus {
        if self.told.is_some() {
            let (models, loads, versions) = (&mut self.models, &mut self.loads, &mut self.versions);
            let (gateway, told) = (&self.gateway, &self.told);
            let changed = async {
                sleep(COALESCE).await;
                loop {
                    let status = gateway.status();
                    if told.as_ref() != Some(&status) {
                        return;
                    }
                    tokio::select! {
                        () = any_change(loads) => {}
                        Ok(()) = models.changed() => *loads = self::loads(models),
                        () = version_change(versions) => {}
                        () = gateway.gate.draining(), if status.accepting => {}
                    }
                }
            };
            let _ = timeout(self.heartbeat, changed).await;
        }
        let status = self.gateway.status();
        self.told = Some(status.clone());
        v1::GatewayStatus { facts: self.news(), ..status }
    }

    /// What the gateway is, if that was not told yet or has changed by more than a little.
    fn news(&mut self) -> Option<v1::GatewayFacts> {
        if self.facts.as_ref().is_some_and(|(at, _)| at.elapsed() < FACTS) {
            return None;
        }
        let facts = self.gateway.facts();
        let known = self.facts.as_ref().is_some_and(|(_, told)| is_about(told, &facts));
        let told = if known { self.facts.take().map(|(_, told)| told) } else { Some(facts.clone()) };
        self.facts = told.map(|told| (Instant::now(), told));
        (!known).then_some(facts)
    }
}

/// Whether two looks at a gateway found about the same.
fn is_about(a: &v1::GatewayFacts, b: &v1::GatewayFacts) -> bool {
    let about = |a: u64, b: u64, all: u64| a.abs_diff(b) <= all / 20;
    let warm = |facts: &v1::GatewayFacts| facts.celsius.unwrap_or_default();
    (&a.board, &a.driver, &a.processor) == (&b.board, &b.driver, &b.processor)
        && a.memory_bytes == b.memory_bytes
        && about(a.available_memory_bytes, b.available_memory_bytes, a.memory_bytes)
        && about(a.free_disk_bytes, b.free_disk_bytes, a.free_disk_bytes)
        && (warm(a) - warm(b)).abs() < 2.0
}

fn loads(models: &mut watch::Receiver<Arc<Set>>) -> Vec<watch::Receiver<Load>> {
    models.borrow_and_update().engines().map(|engine| engine.load_changes()).collect()
}

/// Resolves when a load has changed. The loads of engines that ended are forgotten.
async fn any_change(loads: &mut Vec<watch::Receiver<Load>>) {
    if loads.is_empty() {
        return pending().await;
    }
    let changes = loads.iter_mut().map(|load| Box::pin(load.changed()));
    let (result, index, others) = select_all(changes).await;
    drop(others);
    if result.is_err() {
        loads.swap_remove(index);
    }
}

/// Resolves when there is something new of versions.
async fn version_change(versions: &mut Option<watch::Receiver<u64>>) {
    if let Some(changes) = versions
        && changes.changed().await.is_ok()
    {
        return;
    }
    // There are none, or the worker stops: nothing new comes.
    pending().await
}
