//! `GatewayService`: the worker's state as the control plane sees it.

use std::{pin::Pin, time::Duration};

use futures_util::{
    Stream,
    future::{pending, select_all},
    stream,
};
use rookery_proto::{server::Gate, status, v1, validate::limit};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tonic::{Request, Response, Status};

use crate::{engine::Load, service::Models};

/// Changes that come closer together than this are reported as one.
const COALESCE: Duration = Duration::from_millis(50);

/// The gateway service of one worker.
#[derive(Clone)]
pub(crate) struct Gateway {
    id: String,
    models: Models,
    gate: Gate,
}

impl Gateway {
    pub(crate) fn new(id: String, models: Models, gate: Gate) -> Self {
        Self { id, models, gate }
    }

    fn status(&self) -> v1::GatewayStatus {
        v1::GatewayStatus {
            gateway_id: self.id.clone(),
            worker_version: env!("CARGO_PKG_VERSION").to_owned(),
            accepting: !self.gate.is_draining(),
            models: self.models.loads(),
            ..v1::GatewayStatus::default()
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
        let watch = Watch {
            gateway: self.clone(),
            loads: self.models.current().engines().map(|engine| engine.load_changes()).collect(),
            heartbeat: Duration::from_millis(interval.into()),
            told: None,
        };
        let statuses = stream::unfold(watch, |mut watch| async {
            let status = watch.next().await;
            Some((Ok(status), watch))
        });
        Ok(Response::new(Box::pin(statuses)))
    }

    async fn assign(&self, _: Request<v1::Assignment>) -> Result<Response<v1::AssignResponse>, Status> {
        Err(Status::unimplemented("this worker serves the bundles that it was started with"))
    }
}

struct Watch {
    gateway: Gateway,
    loads: Vec<watch::Receiver<Load>>,
    heartbeat: Duration,
    /// What was reported last.
    told: Option<v1::GatewayStatus>,
}

impl Watch {
    /// The first status at once, later ones when something changed, or when the heartbeat is due.
    async fn next(&mut self) -> v1::GatewayStatus {
        if self.told.is_some() {
            let (loads, gate, told) = (&mut self.loads, &self.gateway.gate, &self.told);
            let changed = async {
                sleep(COALESCE).await;
                loop {
                    let status = self.gateway.status();
                    if told.as_ref() != Some(&status) {
                        return;
                    }
                    tokio::select! {
                        () = any_change(loads) => {}
                        () = gate.draining(), if status.accepting => {}
                    }
                }
            };
            let _ = timeout(self.heartbeat, changed).await;
        }
        let status = self.gateway.status();
        self.told = Some(status.clone());
        status
    }
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
