//! How what a span covers ended; `cancelled` where the client went away and nobody came to say.

use rookery_proto::semconv::attribute;
use tonic::Status;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::{Metrics, errors, record_failure};
use crate::domain::GatewayId;

/// The span of a call. Dropped without a word, it was cancelled.
pub(super) struct CallEnding {
    span: Span,
    ended: bool,
}

impl CallEnding {
    pub(super) fn new(span: Span) -> Self {
        Self { span, ended: false }
    }

    pub(super) fn span(&self) -> &Span {
        &self.span
    }

    pub(super) fn ok(&mut self) {
        self.ended = true;
        self.span.set_attribute(attribute::RPC_GRPC_STATUS_CODE, 0);
    }

    pub(super) fn failed(&mut self, status: &Status) {
        self.ended = true;
        record_failure(&self.span, status);
    }
}

impl Drop for CallEnding {
    fn drop(&mut self) {
        if !self.ended {
            self.span.set_attribute(attribute::ERROR_TYPE, CANCELLED);
        }
    }
}

/// The span of a try, which is counted when it ends.
pub(super) struct AttemptEnding {
    span: Span,
    metrics: Metrics,
    ended: bool,
}

impl AttemptEnding {
    pub(super) fn new(span: Span, metrics: Metrics) -> Self {
        Self { span, metrics, ended: false }
    }

    pub(super) fn span(&self) -> &Span {
        &self.span
    }

    pub(super) fn ok(&mut self) {
        self.end("ok");
    }

    /// `retry` tells whether another gateway is tried.
    pub(super) fn failed(&mut self, gateway: &GatewayId, status: &Status, retry: bool) {
        record_failure(&self.span, &errors::pass_on(gateway, status));
        self.end(if retry { "retry" } else { "error" });
    }

    fn end(&mut self, outcome: &'static str) {
        if self.ended {
            return;
        }
        self.ended = true;
        self.metrics.attempt(outcome);
        self.span.set_attribute(attribute::ATTEMPT_OUTCOME, outcome);
    }
}

impl Drop for AttemptEnding {
    fn drop(&mut self) {
        if !self.ended {
            self.span.set_attribute(attribute::ERROR_TYPE, CANCELLED);
            self.end(CANCELLED);
        }
    }
}

const CANCELLED: &str = "cancelled";
