//! Passes the events of a gateway on to the client, once the first one is there.

use std::{future::pending, time::Instant};

use futures_util::{Stream, stream};
use rookery_proto::{
    semconv::attribute,
    server::{Admission, Gate},
    v1::{GenerateResponse, generate_response::Event},
};
use tokio::time::sleep_until;
use tonic::Status;
use tracing::{Span, info};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::{
    errors, record_failure,
    route::{Begun, Routed},
};

/// A generation that a gateway has begun to answer. Dropping it cancels the call there.
pub(super) struct Proxied {
    pub(super) routed: Routed<Begun>,
    pub(super) span: Span,
    pub(super) deadline: Option<Instant>,
    pub(super) gate: Gate,
    #[expect(dead_code, reason = "held for its drop")]
    pub(super) admission: Admission,
}

enum State {
    First(Proxied, GenerateResponse),
    Rest(Proxied),
    Over,
}

impl Proxied {
    /// The gateway's events up to Finished, or an error in its place.
    pub(super) fn events(mut self) -> impl Stream<Item = Result<GenerateResponse, Status>> + Send {
        let first = std::mem::take(&mut self.routed.value.first);
        stream::unfold(State::First(self, first), |state| async {
            let (proxied, item) = match state {
                State::First(proxied, first) => (proxied, Ok(first)),
                State::Rest(mut proxied) => {
                    let item = proxied.next().await;
                    (proxied, item)
                }
                State::Over => return None,
            };
            let over = match &item {
                Ok(response) => matches!(response.event, Some(Event::Finished(_))),
                Err(_) => true,
            };
            if over {
                proxied.record(item.as_ref().err());
            }
            Some((item, if over { State::Over } else { State::Rest(proxied) }))
        })
    }

    async fn next(&mut self) -> Result<GenerateResponse, Status> {
        let deadline = self.deadline;
        let passed = async {
            match deadline {
                Some(at) => sleep_until(at.into()).await,
                None => pending().await,
            }
        };
        let gateway = &self.routed.place.reservation.gateway;
        // Every arm is cancel safe: a message is taken only when it is returned, the others are only times.
        tokio::select! {
            biased;
            message = self.routed.value.rest.message() => match message {
                Ok(Some(response)) => Ok(response),
                Ok(None) => Err(errors::gateway_lost(gateway)),
                Err(status) => Err(errors::pass_on(gateway, &status)),
            },
            () = self.gate.cut() => Err(Gate::draining_status()),
            () = passed => Err(errors::deadline()),
        }
    }

    fn record(&self, failure: Option<&Status>) {
        match failure {
            None => self.span.set_attribute(attribute::RPC_GRPC_STATUS_CODE, 0),
            Some(status) => {
                let gateway = &self.routed.place.reservation.gateway;
                info!(%gateway, code = ?status.code(), message = status.message(), "a generation broke off");
                record_failure(&self.routed.span, status);
                record_failure(&self.span, status);
            }
        }
    }
}
