//! A span queue that never blocks and counts what it drops.
//!
//! The SDK's batch processor drops silently until it is shut down. This one stands in front of it with a
//! bound of its own, just below the SDK's, so that every span is either on its way, exported or counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use opentelemetry::{Context, global};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Span, SpanData, SpanExporter, SpanProcessor,
};
use rookery_proto::semconv::metric;

/// Most spans in one export.
const BATCH: usize = 512;

#[derive(Debug, Default)]
struct Counts {
    waiting: AtomicUsize,
    dropped: AtomicU64,
    failing: AtomicBool,
}

/// How many spans were lost.
#[derive(Clone, Debug)]
pub(super) struct Dropped(Arc<Counts>);

impl Dropped {
    /// Publishes the count as a metric.
    pub(super) fn observe(self) {
        // The SDK keeps the callback; the instrument itself may go.
        let _ = global::meter("rookery")
            .u64_observable_counter(metric::SPANS_DROPPED)
            .with_description("Spans that could not be exported")
            .with_callback(move |observer| observer.observe(self.get(), &[]))
            .build();
    }

    /// Spans lost so far.
    pub(super) fn get(&self) -> u64 {
        self.0.dropped.load(Ordering::Relaxed)
    }
}

/// A processor that hands spans to `exporter` in batches from a thread of its own.
pub(super) fn queue<E: SpanExporter + 'static>(
    exporter: E,
    capacity: usize,
    interval: Duration,
) -> (Queue, Dropped) {
    let counts = Arc::new(Counts::default());
    let exporter = Counting { exporter, counts: counts.clone() };
    let config = BatchConfigBuilder::default()
        .with_max_queue_size(capacity + BATCH)
        .with_max_export_batch_size(BATCH.min(capacity))
        .with_scheduled_delay(interval)
        .build();
    let inner = BatchSpanProcessor::builder(exporter).with_batch_config(config).build();
    (Queue { inner, capacity, counts: counts.clone() }, Dropped(counts))
}

/// Bounds and counts in front of the SDK's processor.
#[derive(Debug)]
pub(super) struct Queue {
    inner: BatchSpanProcessor,
    capacity: usize,
    counts: Arc<Counts>,
}

impl SpanProcessor for Queue {
    fn on_start(&self, span: &mut Span, context: &Context) {
        self.inner.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        // Spans that are not sampled never reach the exporter, so they must not be counted as waiting.
        if !span.span_context.is_sampled() {
            return;
        }
        if self.counts.waiting.fetch_add(1, Ordering::Relaxed) >= self.capacity {
            self.counts.waiting.fetch_sub(1, Ordering::Relaxed);
            self.counts.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.inner.on_end(span);
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

/// Counts what leaves the queue, and says once when the collector goes away and once when it is back.
#[derive(Debug)]
struct Counting<E> {
    exporter: E,
    counts: Arc<Counts>,
}

impl<E: SpanExporter> SpanExporter for Counting<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        let result = self.exporter.export(batch).await;
        self.counts.waiting.fetch_sub(spans, Ordering::Relaxed);
        match &result {
            Ok(()) => {
                if self.counts.failing.swap(false, Ordering::Relaxed) {
                    let dropped = self.counts.dropped.load(Ordering::Relaxed);
                    tracing::info!(dropped, "the trace collector answers again");
                }
            }
            Err(error) => {
                self.counts.dropped.fetch_add(spans as u64, Ordering::Relaxed);
                if !self.counts.failing.swap(true, Ordering::Relaxed) {
                    tracing::warn!(%error, "the trace collector does not take spans; they are dropped and counted");
                }
            }
        }
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use opentelemetry::trace::{Tracer, TracerProvider};
    use opentelemetry_sdk::error::OTelSdkError;
    use opentelemetry_sdk::trace::SdkTracerProvider;

    use super::*;

    /// Fails every export, or takes as long as its gate is locked.
    #[derive(Debug)]
    struct Collector {
        gate: Arc<Mutex<()>>,
        works: bool,
    }

    impl SpanExporter for Collector {
        async fn export(&self, _: Vec<SpanData>) -> OTelSdkResult {
            drop(self.gate.lock());
            if self.works { Ok(()) } else { Err(OTelSdkError::InternalFailure("dead".to_owned())) }
        }
    }

    fn run(works: bool, capacity: usize, spans: usize, stuck: bool) -> u64 {
        let gate = Arc::new(Mutex::new(()));
        let held = stuck.then(|| gate.clone());
        let held = held.as_ref().map(|gate| gate.lock().unwrap());
        let collector = Collector { gate, works };
        let (queue, dropped) = queue(collector, capacity, Duration::from_millis(1));
        let provider = SdkTracerProvider::builder().with_span_processor(queue).build();
        let tracer = provider.tracer("test");
        for _ in 0..spans {
            drop(tracer.start("span"));
        }
        drop(held);
        let _ = provider.shutdown();
        dropped.get()
    }

    #[test]
    fn spans_that_a_dead_collector_refuses_are_counted() {
        assert_eq!(run(false, 100, 50, false), 50);
    }

    #[test]
    fn spans_beyond_the_queue_of_a_stuck_collector_are_counted() {
        assert_eq!(run(true, 10, 25, true), 15);
    }

    #[test]
    fn nothing_is_lost_on_a_good_day() {
        assert_eq!(run(true, 100, 50, false), 0);
    }
}
