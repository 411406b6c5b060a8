//! W3C trace context in gRPC metadata: `traceparent` and `tracestate`.

use std::sync::LazyLock;

use opentelemetry::{
    Context,
    propagation::{Extractor, Injector, TextMapPropagator},
    trace::TraceContextExt,
};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tonic::metadata::{MetadataKey, MetadataMap};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

// Ours, not the process-wide one: context flows whether or not telemetry was set up.
static PROPAGATOR: LazyLock<TraceContextPropagator> = LazyLock::new(TraceContextPropagator::new);

/// Writes `span`'s context into `metadata`, so that the callee's span becomes its child.
/// Writes nothing when the span belongs to no trace.
pub fn inject(span: &Span, metadata: &mut MetadataMap) {
    inject_or(span, &Context::new(), metadata);
}

/// The same for a server in the middle, whose own caller's context is `incoming`: without a layer for OpenTelemetry
/// no span of its own has a context, and the caller's is passed on, so that the trace stays whole.
pub fn inject_or(span: &Span, incoming: &Context, metadata: &mut MetadataMap) {
    let own = span.context();
    let context = if own.span().span_context().is_valid() { &own } else { incoming };
    PROPAGATOR.inject_context(context, &mut MetadataInjector(metadata));
}

/// The caller's context, empty where `metadata` holds none or an invalid one.
pub fn extract(metadata: &MetadataMap) -> Context {
    PROPAGATOR.extract_with_context(&Context::new(), &MetadataExtractor(metadata))
}

/// Makes `span` a child of the caller's span. Call it right after the span is made, before it is entered.
pub fn set_parent(span: &Span, metadata: &MetadataMap) {
    // Fails only where no OpenTelemetry layer is installed or the span is filtered out: nothing to connect then.
    let _ = span.set_parent(extract(metadata));
}

/// The same with a `traceparent` that came in a message.
pub fn set_parent_text(span: &Span, traceparent: &str) {
    let mut metadata = MetadataMap::new();
    if let Ok(value) = traceparent.parse() {
        metadata.insert("traceparent", value);
        set_parent(span, &metadata);
    }
}

struct MetadataInjector<'a>(&'a mut MetadataMap);

impl Injector for MetadataInjector<'_> {
    fn set(&mut self, key: &str, value: String) {
        if let (Ok(key), Ok(value)) = (MetadataKey::from_bytes(key.as_bytes()), value.parse()) {
            self.0.insert(key, value);
        }
    }
}

struct MetadataExtractor<'a>(&'a MetadataMap);

impl Extractor for MetadataExtractor<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0
            .keys()
            .filter_map(|key| match key {
                tonic::metadata::KeyRef::Ascii(key) => Some(key.as_str()),
                tonic::metadata::KeyRef::Binary(_) => None,
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_valid_parent_survives_the_round_trip() {
        let mut metadata = MetadataMap::new();
        metadata.insert("traceparent", PARENT.parse().unwrap());
        let context = extract(&metadata);
        assert_eq!(context.span().span_context().span_id().to_string(), "00f067aa0ba902b7");
        let mut out = MetadataMap::new();
        PROPAGATOR.inject_context(&context, &mut MetadataInjector(&mut out));
        assert_eq!(out.get("traceparent").unwrap(), PARENT);
    }

    #[test]
    fn without_spans_of_its_own_a_server_passes_the_callers_context_on() {
        let mut metadata = MetadataMap::new();
        metadata.insert("traceparent", PARENT.parse().unwrap());
        let mut out = MetadataMap::new();
        inject_or(&Span::none(), &extract(&metadata), &mut out);
        assert_eq!(out.get("traceparent").unwrap(), PARENT);
        let mut out = MetadataMap::new();
        inject(&Span::none(), &mut out);
        assert!(out.is_empty());
    }

    #[test]
    fn garbage_is_no_parent() {
        for text in ["", "00-zz", "00-00000000000000000000000000000000-00f067aa0ba902b7-01"] {
            let mut metadata = MetadataMap::new();
            metadata.insert("traceparent", text.parse().unwrap());
            assert!(!extract(&metadata).span().span_context().is_valid(), "{text:?}");
        }
    }
}
