//! A control plane and workers in one process.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context;
use rookery_compute_worker::{
    config::WorkerConfig,
    engine::{Engine, EngineConfig, EngineHandle, Load},
    worker::{RunningWorker, Worker},
};
use rookery_control_plane::{
    config::ControlPlaneConfig,
    control_plane::{ControlPlane, RunningControlPlane},
};
use rookery_model::bundle::{Bundle, NoProgress};

use crate::{
    bundles::{self, MODEL, Packed},
    client::{Client, client},
    hold::Hold,
    within,
};

/// Any free port of this machine.
pub const ANY_PORT: ([u8; 4], u16) = ([127, 0, 0, 1], 0);

/// A control plane with settings for tests: port 0, quick heartbeats, short waits.
///
/// # Errors
/// When it cannot be started.
pub async fn control_plane(
    edit: impl FnOnce(&mut ControlPlaneConfig),
) -> anyhow::Result<RunningControlPlane> {
    let mut config = ControlPlaneConfig { listen: ANY_PORT.into(), ..ControlPlaneConfig::default() };
    config.link.listen = ANY_PORT.into();
    config.link.heartbeat_interval = Duration::from_millis(500);
    config.drain_timeout = Duration::from_secs(10);
    edit(&mut config);
    Ok(ControlPlane::start(config.validate()?).await?)
}

/// A worker over the tiny model, and the hold on its engine.
pub struct TestWorker {
    /// The worker.
    pub worker: RunningWorker,
    /// Holds its engine.
    pub hold: Hold,
    _packed: Arc<Packed>,
}

/// What a test may change about a worker.
#[derive(Clone)]
pub struct WorkerSettings {
    /// The worker's configuration.
    pub config: WorkerConfig,
    /// The engine's.
    pub engine: EngineConfig,
}

impl TestWorker {
    /// Starts a worker named `id` that dials `link`, if there is one.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn start(
        id: &str,
        link: Option<SocketAddr>,
        edit: impl FnOnce(&mut WorkerSettings),
    ) -> anyhow::Result<Self> {
        let packed = bundles::tiny()?;
        let config = WorkerConfig {
            listen: ANY_PORT.into(),
            gateway_id: Some(id.to_owned()),
            bundles: vec![packed.path().to_owned()],
            drain_timeout: Duration::from_secs(10),
            ..WorkerConfig::default()
        };
        let engine = EngineConfig { threads: 1, kv_cache_bytes: 4 << 20, ..EngineConfig::default() };
        let mut settings = WorkerSettings { config, engine };
        settings.config.link.control_plane = link.map(|address| address.to_string());
        settings.config.link.backoff_max = Duration::from_millis(200);
        settings.config.link.reconnect_spread = Duration::from_millis(200);
        edit(&mut settings);
        let hold = Hold::default();
        let bundle = Bundle::open(packed.path(), &NoProgress)?;
        let engine = Engine::start_with_backend(bundle, settings.engine, hold.backend())?;
        let worker = Worker::start_with_engines(settings.config.validate()?, vec![engine]).await?;
        Ok(Self { worker, hold, _packed: packed })
    }

    /// A client of the worker's own port.
    pub fn client(&self) -> Client {
        client(self.worker.address())
    }

    /// The engine.
    ///
    /// # Panics
    /// Never: a test worker has exactly one.
    pub fn engine(&self) -> &EngineHandle {
        self.worker.engines().next().expect("a test worker has an engine")
    }

    /// Waits until the engine's load is as wanted.
    pub async fn until(&self, what: &str, wanted: impl Fn(&Load) -> bool) {
        let mut changes = self.engine().load_changes();
        // The watch follows steps; what waits in the queue of a held engine is only in the handle.
        let waiting = async {
            while !wanted(&self.engine().load()) {
                let _ = tokio::time::timeout(Duration::from_millis(20), changes.changed()).await;
            }
        };
        within(what, waiting).await;
    }

    /// Waits until nothing runs or waits and every cache block is free again.
    pub async fn until_idle(&self) {
        self.until("the engine is idle and its blocks are free", |load| {
            load.running == 0 && load.queued == 0 && load.free_blocks == load.total_blocks
        })
        .await;
    }

    /// Stops the worker in good order.
    pub async fn stop(self) {
        self.hold.release();
        within("the worker drains", self.worker.drain()).await;
    }
}

/// A control plane with workers `gw-0`, `gw-1`, … linked to it.
pub struct Fleet {
    /// The control plane.
    pub control_plane: RunningControlPlane,
    /// The workers.
    pub workers: Vec<TestWorker>,
}

impl Fleet {
    /// Starts `count` workers and waits until all are linked.
    ///
    /// # Errors
    /// When something cannot be started.
    pub async fn start(count: usize) -> anyhow::Result<Self> {
        Self::start_with(count, |_| {}, |_| {}).await
    }

    /// The same with other settings.
    ///
    /// # Errors
    /// When something cannot be started.
    pub async fn start_with(
        count: usize,
        edit: impl FnOnce(&mut ControlPlaneConfig),
        edit_worker: impl Fn(&mut WorkerSettings),
    ) -> anyhow::Result<Self> {
        let control_plane = control_plane(edit).await.context("start the control plane")?;
        let mut workers = Vec::new();
        for index in 0..count {
            let link = Some(control_plane.link_address());
            workers.push(TestWorker::start(&format!("gw-{index}"), link, &edit_worker).await?);
        }
        until_linked(&control_plane, count).await;
        Ok(Self { control_plane, workers })
    }

    /// A client of the control plane.
    pub fn client(&self) -> Client {
        client(self.control_plane.address())
    }

    /// Waits until the control plane has exactly `count` requests in flight on each gateway.
    pub async fn until_in_flight(&self, count: u64) {
        within(&format!("{count} requests are in flight on each gateway"), async {
            while self.control_plane.fleet().gateways().iter().any(|(_, in_flight, _)| *in_flight != count) {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    /// Stops everything in good order.
    pub async fn stop(self) {
        for worker in self.workers {
            worker.stop().await;
        }
        within("the control plane drains", self.control_plane.drain()).await;
    }
}

/// Waits until exactly `count` gateways are linked and accept requests for the tiny model.
pub async fn until_linked(control_plane: &RunningControlPlane, count: usize) {
    let mut changes = control_plane.fleet().changes();
    let waiting = async {
        loop {
            let gateways = control_plane.fleet().gateways();
            let ready =
                |state: &rookery_control_plane::domain::GatewayState| state.accepting && state.serves(MODEL);
            if gateways.iter().filter(|(_, _, state)| ready(state)).count() == count {
                return;
            }
            let _ = changes.changed().await;
        }
    };
    within(&format!("{count} gateways are linked"), waiting).await;
}
