//! Passes the events of a gateway on to the client, once the first one is there.

use rookery_proto::{
    server::{Admission, Answer},
    v1::{GenerateResponse, generate_response::Event},
};
use tonic::Status;
use tracing::info;

use super::{
    ending::CallEnding,
    errors,
    route::{Begun, Routed},
};

/// A generation that a gateway has begun to answer. Dropping it cancels the call there.
pub(super) struct Proxied {
    routed: Routed<Begun>,
    ending: CallEnding,
    over: bool,
    _admission: Admission,
}

impl Proxied {
    pub(super) fn new(routed: Routed<Begun>, ending: CallEnding, admission: Admission) -> Self {
        Self { routed, ending, over: false, _admission: admission }
    }

    async fn message(&mut self) -> Result<GenerateResponse, Status> {
        if let Some(first) = self.routed.value.first.take() {
            return Ok(first);
        }
        let gateway = &self.routed.place.reservation.gateway;
        match self.routed.value.rest.message().await {
            Ok(Some(response)) => Ok(response),
            Ok(None) => Err(errors::gateway_lost(gateway)),
            Err(status) => Err(errors::pass_on(gateway, &status)),
        }
    }
}

impl Answer for Proxied {
    type Event = GenerateResponse;

    async fn next(&mut self) -> Result<GenerateResponse, Status> {
        let response = self.message().await.inspect_err(|status| self.broken_off(status))?;
        if matches!(response.event, Some(Event::Finished(_))) {
            self.over = true;
            self.ending.ok();
            self.routed.ending.ok();
        }
        Ok(response)
    }

    fn is_over(&self) -> bool {
        self.over
    }

    fn broken_off(&mut self, status: &Status) {
        self.over = true;
        let gateway = &self.routed.place.reservation.gateway;
        info!(%gateway, code = ?status.code(), message = status.message(), "a generation broke off");
        self.routed.ending.failed(gateway, status, false);
        self.ending.failed(status);
    }
}
