//! An OTLP/gRPC collector that keeps the spans it gets.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::any_value::Value,
    trace::v1::Span,
};
use rookery_proto::server::{ConnectionLimits, Gate, OnPanic, Tasks, accept, serve};
use tokio::{net::TcpListener, sync::watch};
use tonic::{Request, Response, Status, service::RoutesBuilder};

use crate::within;

/// A span with the service that sent it.
#[derive(Clone, Debug)]
pub struct Received {
    /// `service.name` of the sender.
    pub service: String,
    /// The span.
    pub span: Span,
}

impl Received {
    /// A string attribute, empty if it is not there.
    pub fn text(&self, key: &str) -> String {
        match self.value(key) {
            Some(Value::StringValue(text)) => text,
            _ => String::new(),
        }
    }

    /// An integer attribute.
    pub fn integer(&self, key: &str) -> Option<i64> {
        match self.value(key) {
            Some(Value::IntValue(value)) => Some(value),
            _ => None,
        }
    }

    /// The strings of an array attribute, none if it is not there.
    pub fn texts(&self, key: &str) -> Vec<String> {
        let Some(Value::ArrayValue(array)) = self.value(key) else { return Vec::new() };
        let values = array.values.into_iter().filter_map(|value| value.value);
        let text = |value| if let Value::StringValue(text) = value { Some(text) } else { None };
        values.filter_map(text).collect()
    }

    fn value(&self, key: &str) -> Option<Value> {
        let attribute = self.span.attributes.iter().find(|attribute| attribute.key == key)?;
        attribute.value.clone()?.value
    }
}

/// The collector.
#[derive(Clone)]
pub struct Collector {
    address: SocketAddr,
    spans: Arc<Mutex<Vec<Received>>>,
    count: watch::Sender<usize>,
}

impl Collector {
    /// Starts a collector on a free port; it lives as long as the runtime.
    ///
    /// # Errors
    /// When there is no port.
    pub async fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let collector = Self { address, spans: Arc::default(), count: watch::Sender::new(0) };
        let mut routes = RoutesBuilder::default();
        routes.add_service(TraceServiceServer::new(collector.clone()));
        let routes = routes.routes();
        let (tasks, gate) = (Tasks::new(), Gate::new(100));
        let limits = rookery_proto::server::ServerLimits::default().connection()?;
        let accepting = accept(listener, 100, tasks.clone(), gate.clone(), {
            let tasks = tasks.clone();
            move |socket, _| {
                let (routes, limits, tasks, gate): (_, ConnectionLimits, _, _) =
                    (routes.clone(), limits.clone(), tasks.clone(), gate.clone());
                async move {
                    let _ = serve(socket, routes, &limits, &tasks, &gate).await;
                }
            }
        });
        tasks.spawn("collector", OnPanic::Log, accepting);
        Ok(collector)
    }

    /// Its endpoint as exporters want it.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Waits until the spans so far satisfy `wanted`, and gives them.
    pub async fn until(&self, what: &str, wanted: impl Fn(&[Received]) -> bool) -> Vec<Received> {
        let mut count = self.count.subscribe();
        let waiting = async {
            loop {
                let spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner).clone();
                if wanted(&spans) {
                    return spans;
                }
                let _ = count.changed().await;
            }
        };
        within(what, waiting).await
    }
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for resource in request.into_inner().resource_spans {
            let attributes = resource.resource.unwrap_or_default().attributes;
            let name = attributes.into_iter().find(|attribute| attribute.key == "service.name");
            let service = match name.and_then(|attribute| attribute.value?.value) {
                Some(Value::StringValue(name)) => name,
                _ => String::new(),
            };
            let spans = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
            let received = spans.map(|span| Received { service: service.clone(), span });
            self.spans.lock().unwrap_or_else(PoisonError::into_inner).extend(received);
        }
        self.count.send_modify(|count| *count += 1);
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}
