//! Every error of routing, as a status with a reason.

use std::time::Duration;

use rookery_proto::status::{self, Reason};
use tonic::{Code, Status};

use crate::domain::{GatewayId, NoRoute};

/// When it is worth asking for a gateway again: workers dial again within seconds.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// No gateway for a request for `model`.
pub(super) fn no_route(model: &str, error: &NoRoute) -> Status {
    match error {
        NoRoute::UnknownModel { available } => {
            let names = list(available);
            let message = format!("no gateway serves model {model:?}; there is {names}");
            status::refuse_with(Reason::ModelNotFound, message, &[("available", available.join(", "))], None)
        }
        NoRoute::Ambiguous { available } => {
            status::invalid_field("model", &format!("must be set, to one of {}", list(available)))
        }
        NoRoute::NoneLive => {
            let message = if model.is_empty() {
                "no gateway is linked and accepting at this moment".to_owned()
            } else {
                format!("no gateway that serves model {model:?} is linked and accepting at this moment")
            };
            status::refuse_with(Reason::NoGateway, message, &[], Some(RETRY_AFTER))
        }
    }
}

/// Not so many that the status would not fit a header.
fn list(names: &[String]) -> String {
    const NAMED: usize = 16;
    match names.len() {
        0 => "none at this moment".to_owned(),
        count if count > NAMED => format!("{} and {} more", names[..NAMED].join(", "), count - NAMED),
        _ => names.join(", "),
    }
}

/// The gateway went away while it was answering.
pub(super) fn gateway_lost(gateway: &GatewayId) -> Status {
    let message = format!("gateway {gateway} was lost before the answer was complete");
    let metadata = [("gateway", gateway.to_string())];
    status::refuse_with(Reason::GatewayLost, message, &metadata, Some(Duration::ZERO))
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
pub(super) fn is_worth_retrying(status: &Status) -> bool {
    status::is_transport_failure(status)
        || matches!(status.code(), Code::Unavailable | Code::ResourceExhausted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_another_gateway_could_do_is_retried() {
        assert!(is_worth_retrying(&status::refuse(Reason::QueueFull, "")));
        assert!(is_worth_retrying(&status::refuse(Reason::Draining, "")));
        assert!(is_worth_retrying(&Status::from_error("broken pipe".into())));
        assert!(!is_worth_retrying(&status::refuse(Reason::InvalidField, "")));
        assert!(!is_worth_retrying(&status::refuse(Reason::DeadlineExceeded, "")));
        assert!(!is_worth_retrying(&status::refuse(Reason::Internal, "")));
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
