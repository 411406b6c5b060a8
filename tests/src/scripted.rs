//! A gateway that misbehaves on cue: it speaks the link protocol and breaks it where the script says.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt, stream};
use rookery_proto::{
    server::{ConnectionLimits, Gate, Tasks, serve},
    v1::{self, gateway_service_server, generate_response::Event, inference_service_server},
};
use tokio::{net::TcpStream, task::JoinSet};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, service::RoutesBuilder};

use crate::bundles::MODEL;

/// What a scripted gateway does with a generation.
#[derive(Clone)]
pub enum Script {
    /// Takes the request and drops the connection.
    DropBeforeFirst,
    /// Sends this many events, then drops the connection.
    DropAfter(u32),
    /// Sends this many events, then ends the stream as if that were all.
    EndAfter(u32),
    /// Refuses with what the function makes.
    Refuse(fn() -> Status),
    /// Takes the request and never answers.
    Hang,
    /// Sends without end, 16 KiB at a time.
    Flood,
}

/// A scripted gateway, linked to a control plane until dropped.
pub struct ScriptedGateway {
    calls: Arc<AtomicU32>,
    silent: CancellationToken,
    _task: JoinSet<()>,
}

#[derive(Clone)]
struct Service {
    id: String,
    script: Script,
    calls: Arc<AtomicU32>,
    kill: CancellationToken,
    silent: CancellationToken,
}

impl ScriptedGateway {
    /// Dials `link` and introduces itself as `id`, idle and with the tiny model.
    ///
    /// # Errors
    /// When the control plane cannot be reached.
    pub async fn start(id: &str, link: SocketAddr, script: Script) -> anyhow::Result<Self> {
        let socket = TcpStream::connect(link).await?;
        let (calls, kill) = (Arc::new(AtomicU32::new(0)), CancellationToken::new());
        let silent = CancellationToken::new();
        let service = Service {
            id: id.to_owned(),
            script,
            calls: Arc::clone(&calls),
            kill: kill.clone(),
            silent: silent.clone(),
        };
        let mut routes = RoutesBuilder::default();
        routes.add_service(inference_service_server::InferenceServiceServer::new(service.clone()));
        routes.add_service(gateway_service_server::GatewayServiceServer::new(service));
        let routes = routes.routes();
        let mut task = JoinSet::new();
        task.spawn(async move {
            let limits = ConnectionLimits {
                handshake_timeout: Duration::from_secs(5),
                keepalive_interval: Duration::from_secs(20),
                keepalive_timeout: Duration::from_secs(20),
                max_streams: 100,
            };
            let (tasks, gate) = (Tasks::new(), Gate::new(100));
            tokio::select! {
                _ = serve(socket, routes, &limits, &tasks, &gate) => {}
                () = kill.cancelled() => {}
            }
        });
        Ok(Self { calls, silent, _task: task })
    }

    /// Sends no status any more, while the connection lives on.
    pub fn fall_silent(&self) {
        self.silent.cancel();
    }

    /// Generations that it was asked for.
    pub fn calls(&self) -> u32 {
        self.calls.load(Ordering::SeqCst)
    }
}

type Stream<T> = stream::BoxStream<'static, Result<T, Status>>;

#[tonic::async_trait]
impl gateway_service_server::GatewayService for Service {
    type WatchGatewayStream = Stream<v1::GatewayStatus>;

    async fn watch_gateway(
        &self,
        _request: Request<v1::WatchGatewayRequest>,
    ) -> Result<Response<Self::WatchGatewayStream>, Status> {
        let model =
            v1::Model { name: MODEL.to_owned(), digest: "sha256:scripted".into(), ..Default::default() };
        let load = v1::ModelLoad { model: Some(model), free_blocks: u32::MAX, ..Default::default() };
        let status = v1::GatewayStatus {
            gateway_id: self.id.clone(),
            worker_version: "scripted".into(),
            accepting: true,
            models: vec![load],
            ..v1::GatewayStatus::default()
        };
        // Beats as it should, by a timer and not by need.
        let silent = self.silent.clone();
        let beats = stream::unfold((status, silent, false), |(status, silent, later)| async move {
            if later {
                tokio::time::sleep(Duration::from_millis(100)).await;
                if silent.is_cancelled() {
                    std::future::pending().await
                }
            }
            Some((Ok(status.clone()), (status, silent, true)))
        });
        Ok(Response::new(beats.boxed()))
    }

    async fn assign(&self, _: Request<v1::Assignment>) -> Result<Response<v1::AssignResponse>, Status> {
        Err(Status::unimplemented("it serves what it is told by the test"))
    }
}

#[tonic::async_trait]
impl inference_service_server::InferenceService for Service {
    type GenerateStream = Stream<v1::GenerateResponse>;

    async fn generate(
        &self,
        _request: Request<v1::GenerateRequest>,
    ) -> Result<Response<Self::GenerateStream>, Status> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        let kill = self.kill.clone();
        let hang = stream::once(std::future::pending());
        match self.script {
            Script::Refuse(status) => Err(status()),
            Script::Hang => Ok(Response::new(hang.boxed())),
            Script::Flood => {
                let long = v1::Delta { text: "x".repeat(16 << 10), ..Default::default() };
                let long = v1::GenerateResponse { event: Some(Event::Delta(long)) };
                Ok(Response::new(stream::iter([event(0)]).chain(stream::repeat(long).map(Ok)).boxed()))
            }
            Script::DropBeforeFirst => {
                kill.cancel();
                Ok(Response::new(hang.boxed()))
            }
            Script::EndAfter(count) => Ok(Response::new(stream::iter((0..count).map(event)).boxed())),
            Script::DropAfter(count) => {
                let die = stream::once(async move {
                    // The events before are on their way first.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    kill.cancel();
                    std::future::pending().await
                });
                Ok(Response::new(stream::iter((0..count).map(event)).chain(die).boxed()))
            }
        }
    }

    async fn tokenize(
        &self,
        _request: Request<v1::TokenizeRequest>,
    ) -> Result<Response<v1::TokenizeResponse>, Status> {
        Err(Status::unimplemented("not in the script"))
    }

    async fn list_models(
        &self,
        _request: Request<v1::ListModelsRequest>,
    ) -> Result<Response<v1::ListModelsResponse>, Status> {
        Err(Status::unimplemented("not in the script"))
    }
}

/// Started, then deltas.
fn event(index: u32) -> Result<v1::GenerateResponse, Status> {
    let event = match index {
        0 => Event::Started(v1::Started { gateway: "scripted".into(), ..Default::default() }),
        _ => Event::Delta(v1::Delta { text: "x".into(), token_ids: vec![index], logprobs: vec![] }),
    };
    Ok(v1::GenerateResponse { event: Some(event) })
}
