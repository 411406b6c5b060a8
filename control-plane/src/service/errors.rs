//! Every error of routing, as a status with a reason.

use std::time::Duration;

use rookery_proto::status::{self, Reason};
use tonic::Status;

use crate::domain::{GatewayId, NoRoute};

/// When it is worth asking for a gateway again: workers dial again within seconds.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// No gateway for a request for `model`.
pub(super) fn no_route(model: &str, error: &NoRoute) -> Status {
    match error {
        NoRoute::UnknownModel { available } => {
            let names = status::list(available);
            let message = format!("no gateway serves model {model:?}; there is {names}");
            status::refuse_with(Reason::ModelNotFound, message, &[("available", names)], None)
        }
        NoRoute::Ambiguous { available } => {
            status::invalid_field("model", &format!("must be set, to one of {}", status::list(available)))
        }
        NoRoute::UnknownVersion(unknown) => {
            let names = status::list(&unknown.available);
            let message = format!("{unknown}; there is {names}");
            status::refuse_with(Reason::ModelNotFound, message, &[("available", names)], None)
        }
        NoRoute::NoneLive | NoRoute::AllTried => {
            let message = if model.is_empty() {
                "no gateway is linked and accepting at this moment".to_owned()
            } else {
                format!("no gateway that serves model {model:?} is linked and accepting at this moment")
            };
            status::refuse_with(Reason::NoGateway, message, &[], Some(RETRY_AFTER))
        }
    }
}

/// The gateway went away while it was answering.
pub(super) fn gateway_lost(gateway: &GatewayId) -> Status {
    let message = format!("gateway {gateway} was lost before the answer was complete");
    let metadata = [("gateway", gateway.to_string())];
    status::refuse_with(Reason::GatewayLost, message, &metadata, Some(Duration::ZERO))
}

/// The gateway that had begun the answer failed with `status` after so many tokens, and no other one can go on with it.
pub(super) fn not_continued(gateway: &GatewayId, status: &Status, tokens: usize, why: &str) -> Status {
    let failed = pass_on(gateway, status);
    let reason = status::reason_of(&failed).unwrap_or(Reason::GatewayLost);
    let message = format!("{} after {tokens} tokens, and {why}", failed.message());
    let metadata = [("gateway", gateway.to_string()), ("generatedTokens", tokens.to_string())];
    status::refuse_with(reason, message, &metadata, Some(Duration::ZERO))
}

/// A gateway answered with another version than the one that was asked for.
pub(super) fn other_version(gateway: &GatewayId, digest: &str) -> Status {
    let message = format!("gateway {gateway} no longer serves version {digest}");
    status::refuse(Reason::ModelNotFound, message)
}

/// The client's deadline passed.
pub(super) fn deadline() -> Status {
    status::refuse(Reason::DeadlineExceeded, "the deadline passed before the answer was complete")
}

/// A gateway's status as this server sends it: code, message and details, without the gateway's own metadata.
pub(super) fn pass_on(gateway: &GatewayId, status: &Status) -> Status {
    if status::is_transport_failure(status) {
        return gateway_lost(gateway);
    }
    Status::with_details(status.code(), status.message(), status.details().to_vec().into())
}

/// Whether another gateway may do better, given that nothing of the answer has reached the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Retry {
    /// The gateway is the cause.
    Yes,
    /// The request may be the cause, and must not go through the fleet engine by engine.
    Once,
    /// The request is the cause, or nobody knows.
    Never,
}

/// What to do after a gateway failed with `status`. Only reasons count: a code alone may be about the request.
pub(super) fn retry(status: &Status) -> Retry {
    if status::is_transport_failure(status) {
        return Retry::Yes;
    }
    match status::reason_of(status) {
        // Asked for what it reported last: it has changed since.
        Some(Reason::Draining | Reason::QueueFull | Reason::GatewayLost | Reason::ModelNotFound) => {
            Retry::Yes
        }
        Some(Reason::EngineFailed) => Retry::Once,
        Some(
            Reason::InvalidField
            | Reason::PromptTooLong
            | Reason::DeadlineExceeded
            | Reason::NoGateway
            | Reason::NumericFault
            | Reason::NotRead
            | Reason::Unauthenticated
            | Reason::RoleTooLow
            | Reason::ObjectNotFound
            | Reason::VersionExists
            | Reason::VersionInUse
            | Reason::DigestMismatch
            | Reason::RolloutOverlaps
            | Reason::RolloutOver
            | Reason::Conflict
            | Reason::StaleGeneration
            | Reason::GenerationConflict
            | Reason::StorageFailed
            | Reason::Internal,
        )
        | None => Retry::Never,
    }
}

/// Whether a failure speaks against the gateway: its breaker and the version's traffic count it.
pub(super) fn blames_gateway(status: &Status) -> bool {
    let ours = [Reason::GatewayLost, Reason::EngineFailed, Reason::NumericFault, Reason::Internal];
    status::is_transport_failure(status)
        || status::reason_of(status).is_some_and(|reason| ours.contains(&reason))
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    #[test]
    fn only_what_another_gateway_could_do_is_retried() {
        for reason in [Reason::QueueFull, Reason::Draining] {
            assert_eq!(retry(&status::refuse(reason, "")), Retry::Yes);
        }
        assert_eq!(retry(&Status::from_error("broken pipe".into())), Retry::Yes);
        assert_eq!(retry(&status::refuse(Reason::EngineFailed, "")), Retry::Once);
        for reason in [Reason::InvalidField, Reason::DeadlineExceeded, Reason::NumericFault, Reason::Internal]
        {
            assert_eq!(retry(&status::refuse(reason, "")), Retry::Never);
        }
        for code in [Code::Unavailable, Code::ResourceExhausted] {
            assert_eq!(retry(&Status::new(code, "no reason")), Retry::Never);
        }
    }

    #[test]
    fn a_status_is_passed_on_with_its_details() {
        let gateway = "gw".parse().unwrap();
        let passed = pass_on(&gateway, &status::prompt_too_long("text", 9, 8));
        assert_eq!(status::reason_of(&passed), Some(Reason::PromptTooLong));
        assert_eq!(status::field_violations(&passed).len(), 1);
        let lost = pass_on(&gateway, &Status::from_error("broken pipe".into()));
        assert_eq!((lost.code(), status::reason_of(&lost)), (Code::Unavailable, Some(Reason::GatewayLost)));
    }
}
