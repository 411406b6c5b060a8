//! Logs, traces and metrics of one process.
//!
//! Logs go to standard error. Traces and metrics go to an OTLP/gRPC collector where one is set, metrics
//! also to a Prometheus page. Whatever happens to the collector, no request waits for it: spans queue in a
//! bounded queue and are dropped and counted when it is full.

use std::net::SocketAddr;
use std::time::Duration;

use opentelemetry::trace::TracerProvider;
use opentelemetry::{KeyValue, global};
use opentelemetry_otlp::{MetricExporter, RetryPolicy, SpanExporter, WithExportConfig, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::{PeriodicReader, SdkMeterProvider};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use serde::{Deserialize, Serialize};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, fmt};

use crate::output;

mod page;
mod spans;

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// For people.
    #[default]
    Human,
    /// One JSON object a line.
    Json,
}

impl LogFormat {
    /// The name in configuration and flags.
    pub fn name(self) -> &'static str {
        match self {
            LogFormat::Human => "human",
            LogFormat::Json => "json",
        }
    }
}

/// What a process tells about itself, and to whom. Section `[telemetry]` of the configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default, deny_unknown_fields)]
pub struct TelemetryConfig {
    /// How log lines look: `human` (default) or `json`.
    pub log_format: LogFormat,
    /// Which log lines are written, in the syntax of `RUST_LOG`, which goes before it. Default `info`.
    pub log_filter: String,
    /// OTLP/gRPC endpoint for traces and metrics, such as `http://127.0.0.1:4317`. Default: what
    /// `OTEL_EXPORTER_OTLP_ENDPOINT` says, and none without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub otlp_endpoint: Option<String>,
    /// Address of the Prometheus page, such as `127.0.0.1:9464`. Default: no page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prometheus_listen: Option<SocketAddr>,
    /// `service.name` of traces and metrics. Default: `rookery-` and the command.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_name: Option<String>,
    /// Share of new traces that are recorded, from 0 to 1. Requests that come with a trace context follow
    /// its decision. Default 1.
    pub trace_sample_ratio: f64,
    /// Most spans that wait for the collector; more are dropped and counted. Default 4096.
    pub span_queue: usize,
    /// Time between two exports of spans. Default 1 s.
    #[serde(with = "humantime_serde")]
    pub span_interval: Duration,
    /// Time between two exports of metrics. Default 15 s.
    #[serde(with = "humantime_serde")]
    pub metric_interval: Duration,
    /// Longest time for one export, and for flushing when the process ends. Default 3 s.
    #[serde(with = "humantime_serde")]
    pub export_timeout: Duration,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        TelemetryConfig {
            log_format: LogFormat::Human,
            log_filter: "info".to_owned(),
            otlp_endpoint: None,
            prometheus_listen: None,
            service_name: None,
            trace_sample_ratio: 1.0,
            span_queue: 4096,
            span_interval: Duration::from_secs(1),
            metric_interval: Duration::from_secs(15),
            export_timeout: Duration::from_secs(3),
        }
    }
}

/// Why telemetry could not be set up. All of these are faults of the configuration.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// `RUST_LOG` or `log-filter` cannot be parsed.
    #[error("the log filter {filter:?} is not valid")]
    Filter {
        /// The filter.
        filter: String,
        /// What is wrong with it.
        source: tracing_subscriber::filter::ParseError,
    },
    /// A number is outside its range.
    #[error("telemetry.{key} is {value}, expected {expected}")]
    Range {
        /// Name of the setting.
        key: &'static str,
        /// Its value.
        value: String,
        /// What it may be.
        expected: &'static str,
    },
    /// The OTLP endpoint cannot be used.
    #[error("the OTLP endpoint cannot be used")]
    Otlp(#[source] opentelemetry_otlp::ExporterBuildError),
    /// The Prometheus page cannot be set up.
    #[error("the Prometheus page cannot be set up on {address}")]
    Page {
        /// Where it was to be.
        address: SocketAddr,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A subscriber is there already.
    #[error("logging was set up twice")]
    Twice(#[source] tracing_subscriber::util::TryInitError),
}

/// Keeps telemetry alive; `main` owns it and calls [`Guard::finish`] at the end, off the runtime.
#[derive(Debug)]
pub struct Guard {
    traces: Option<SdkTracerProvider>,
    metrics: Option<SdkMeterProvider>,
    timeout: Duration,
    /// Where the Prometheus page is, if there is one.
    pub prometheus: Option<SocketAddr>,
}

impl Guard {
    /// Sends what is still waiting, for at most the export timeout each. Must not run on a runtime thread,
    /// since the exporters need the runtime to make progress.
    pub fn finish(self) {
        if let Some(traces) = self.traces {
            // A dead collector is no failure of the command.
            let _ = traces.shutdown_with_timeout(self.timeout);
        }
        if let Some(metrics) = self.metrics {
            let (done, finished) = std::sync::mpsc::channel();
            // The SDK ignores the timeout of a meter provider, so the bound is ours.
            std::thread::spawn(move || {
                let _ = metrics.shutdown();
                let _ = done.send(());
            });
            let _ = finished.recv_timeout(self.timeout);
        }
    }
}

/// Sets up logs, traces and metrics for this process. Call it inside the runtime, before anything else.
///
/// # Errors
/// [`TelemetryError`]: the configuration cannot be used (exit code 64).
pub fn init(config: &TelemetryConfig, command: &str) -> Result<Guard, TelemetryError> {
    check(config)?;
    let resource = resource(config, command);
    let otlp = config.otlp_endpoint.is_some() || endpoint_in_environment();
    let (traces, dropped) = if otlp {
        let (provider, dropped) = traces(config, resource.clone())?;
        (Some(provider), Some(dropped))
    } else {
        (None, None)
    };
    let (metrics, prometheus) = metrics(config, resource, otlp)?;
    if let Some(metrics) = &metrics {
        global::set_meter_provider(metrics.clone());
    }
    if let Some(dropped) = dropped {
        dropped.observe();
    }
    global::set_text_map_propagator(TraceContextPropagator::new());
    let spans = traces.as_ref().map(|provider| {
        global::set_tracer_provider(provider.clone());
        tracing_opentelemetry::layer()
            .with_tracer(provider.tracer("rookery"))
            .with_location(false)
            .with_threads(false)
            // Spans of the libraries underneath (one for every HTTP/2 frame) are not ours to tell.
            .with_filter(filter_fn(|metadata| metadata.target().starts_with("rookery")))
    });
    tracing_subscriber::registry()
        .with(logs(config)?)
        .with(spans)
        .try_init()
        .map_err(TelemetryError::Twice)?;
    Ok(Guard { traces, metrics, timeout: config.export_timeout, prometheus })
}

fn check(config: &TelemetryConfig) -> Result<(), TelemetryError> {
    let refuse = |key, value: String, expected| Err(TelemetryError::Range { key, value, expected });
    if !(0.0..=1.0).contains(&config.trace_sample_ratio) {
        return refuse("trace-sample-ratio", config.trace_sample_ratio.to_string(), "a number from 0 to 1");
    }
    if config.span_queue == 0 {
        return refuse("span-queue", "0".to_owned(), "at least 1");
    }
    for (key, value) in [
        ("span-interval", config.span_interval),
        ("metric-interval", config.metric_interval),
        ("export-timeout", config.export_timeout),
    ] {
        if value.is_zero() {
            return refuse(key, "0".to_owned(), "more than 0");
        }
    }
    Ok(())
}

fn endpoint_in_environment() -> bool {
    ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"]
        .iter()
        .any(|name| std::env::var(name).is_ok_and(|value| !value.is_empty()))
}

fn logs<S>(config: &TelemetryConfig) -> Result<Box<dyn Layer<S> + Send + Sync>, TelemetryError>
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
{
    let filter = std::env::var("RUST_LOG").ok().filter(|filter| !filter.is_empty());
    let filter = filter.unwrap_or_else(|| config.log_filter.clone());
    // The exporters would log every failed batch; the span queue reports once per outage instead.
    let quiet = format!("{filter},opentelemetry=off,opentelemetry_sdk=off,opentelemetry_otlp=off");
    let filter = EnvFilter::try_new(quiet).map_err(|source| TelemetryError::Filter { filter, source })?;
    let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(output::colours());
    Ok(match config.log_format {
        LogFormat::Human => lines.with_target(false).with_filter(filter).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).with_filter(filter).boxed(),
    })
}

fn resource(config: &TelemetryConfig, command: &str) -> Resource {
    let name = config.service_name.clone().unwrap_or_else(|| format!("rookery-{command}"));
    let instance = format!("{}-{}", host_name(), std::process::id());
    Resource::builder()
        .with_service_name(name)
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .with_attribute(KeyValue::new("service.instance.id", instance))
        .build()
}

fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.trim().is_empty() { "unknown".to_owned() } else { name.trim().to_owned() }
}

fn traces(
    config: &TelemetryConfig,
    resource: Resource,
) -> Result<(SdkTracerProvider, spans::Dropped), TelemetryError> {
    // One attempt per batch: the next batch is the retry, and the queue bounds what waits meanwhile.
    let mut exporter = SpanExporter::builder()
        .with_tonic()
        .with_timeout(config.export_timeout)
        .with_retry_policy(RetryPolicy::disabled());
    if let Some(endpoint) = &config.otlp_endpoint {
        exporter = exporter.with_endpoint(endpoint);
    }
    let exporter = exporter.build().map_err(TelemetryError::Otlp)?;
    let (processor, dropped) = spans::queue(exporter, config.span_queue, config.span_interval);
    let ratio = Sampler::TraceIdRatioBased(config.trace_sample_ratio);
    let provider = SdkTracerProvider::builder()
        .with_resource(resource)
        .with_sampler(Sampler::ParentBased(Box::new(ratio)))
        .with_span_processor(processor)
        .build();
    Ok((provider, dropped))
}

fn metrics(
    config: &TelemetryConfig,
    resource: Resource,
    otlp: bool,
) -> Result<(Option<SdkMeterProvider>, Option<SocketAddr>), TelemetryError> {
    if !otlp && config.prometheus_listen.is_none() {
        return Ok((None, None));
    }
    let mut provider = SdkMeterProvider::builder().with_resource(resource);
    if otlp {
        let mut exporter = MetricExporter::builder()
            .with_tonic()
            .with_timeout(config.export_timeout)
            .with_retry_policy(RetryPolicy::disabled());
        if let Some(endpoint) = &config.otlp_endpoint {
            exporter = exporter.with_endpoint(endpoint);
        }
        let exporter = exporter.build().map_err(TelemetryError::Otlp)?;
        provider = provider
            .with_reader(PeriodicReader::builder(exporter).with_interval(config.metric_interval).build());
    }
    let mut bound = None;
    if let Some(address) = config.prometheus_listen {
        let failed = |source| TelemetryError::Page { address, source };
        let registry = prometheus::Registry::new();
        let reader = opentelemetry_prometheus::exporter()
            .with_registry(registry.clone())
            .build()
            .map_err(|error| failed(Box::new(error)))?;
        provider = provider.with_reader(reader);
        bound = Some(page::serve(address, registry).map_err(|error| failed(Box::new(error)))?);
    }
    Ok((Some(provider.build()), bound))
}
