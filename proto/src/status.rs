//! From errors to gRPC statuses and back: canonical codes with `google.rpc` details.
//!
//! Every refusal carries an `ErrorInfo` in the domain [`DOMAIN`] with a [`Reason`]; docs/wire.md says what a client
//! should do about each.

use std::{error::Error, fmt, str::FromStr, time::Duration};

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt};

/// Domain of every `ErrorInfo`.
pub const DOMAIN: &str = "rookery";

/// Why a request failed: stable names for programs, where messages are for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// A field of the request is missing or outside its limits.
    InvalidField,
    /// The prompt has more tokens than the model's context has room for.
    PromptTooLong,
    /// No model of that name is served here.
    ModelNotFound,
    /// The queue is full; try again after the time in `RetryInfo`.
    QueueFull,
    /// The client's deadline passed, in the queue or while tokens were produced.
    DeadlineExceeded,
    /// The model exists but no gateway that serves it is linked and accepting at this moment.
    NoGateway,
    /// The gateway was lost after part of the answer had been passed on.
    GatewayLost,
    /// The server is shutting down.
    Draining,
    /// The engine failed; the request may or may not be the cause.
    EngineFailed,
    /// The model computed values that are no numbers for this request, as it would anywhere.
    NumericFault,
    /// The client did not read the answer.
    NotRead,
    /// The call has no usable bearer token or certificate.
    Unauthenticated,
    /// The bearer token's role does not allow the call.
    RoleTooLow,
    /// There is no such version, alias, gateway, roll-out, token or blob.
    ObjectNotFound,
    /// The name of the version is taken by other contents: versions do not change.
    VersionExists,
    /// An alias, a roll-out or a gateway needs what is to be deleted.
    VersionInUse,
    /// Bytes do not have the digest that they should have.
    DigestMismatch,
    /// Another roll-out that is not over has one of the gateways.
    RolloutOverlaps,
    /// The roll-out has ended, or is in a state in which the order makes no sense.
    RolloutOver,
    /// Somebody else changed the same thing at the same moment.
    Conflict,
    /// The gateway holds a newer assignment.
    StaleGeneration,
    /// The gateway holds another assignment of the same generation.
    GenerationConflict,
    /// The database or the artifact store failed.
    StorageFailed,
    /// A defect of the server that has no name of its own.
    Internal,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Reason; 24] = [
        Reason::InvalidField,
        Reason::PromptTooLong,
        Reason::ModelNotFound,
        Reason::QueueFull,
        Reason::DeadlineExceeded,
        Reason::NoGateway,
        Reason::GatewayLost,
        Reason::Draining,
        Reason::EngineFailed,
        Reason::NumericFault,
        Reason::NotRead,
        Reason::Unauthenticated,
        Reason::RoleTooLow,
        Reason::ObjectNotFound,
        Reason::VersionExists,
        Reason::VersionInUse,
        Reason::DigestMismatch,
        Reason::RolloutOverlaps,
        Reason::RolloutOver,
        Reason::Conflict,
        Reason::StaleGeneration,
        Reason::GenerationConflict,
        Reason::StorageFailed,
        Reason::Internal,
    ];

    /// The name in `ErrorInfo.reason`.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::InvalidField => "INVALID_FIELD",
            Reason::PromptTooLong => "PROMPT_TOO_LONG",
            Reason::ModelNotFound => "MODEL_NOT_FOUND",
            Reason::QueueFull => "QUEUE_FULL",
            Reason::DeadlineExceeded => "DEADLINE_EXCEEDED",
            Reason::NoGateway => "NO_GATEWAY",
            Reason::GatewayLost => "GATEWAY_LOST",
            Reason::Draining => "DRAINING",
            Reason::EngineFailed => "ENGINE_FAILED",
            Reason::NumericFault => "NUMERIC_FAULT",
            Reason::NotRead => "NOT_READ",
            Reason::Unauthenticated => "UNAUTHENTICATED",
            Reason::RoleTooLow => "ROLE_TOO_LOW",
            Reason::ObjectNotFound => "OBJECT_NOT_FOUND",
            Reason::VersionExists => "VERSION_EXISTS",
            Reason::VersionInUse => "VERSION_IN_USE",
            Reason::DigestMismatch => "DIGEST_MISMATCH",
            Reason::RolloutOverlaps => "ROLLOUT_OVERLAPS",
            Reason::RolloutOver => "ROLLOUT_OVER",
            Reason::Conflict => "CONFLICT",
            Reason::StaleGeneration => "STALE_GENERATION",
            Reason::GenerationConflict => "GENERATION_CONFLICT",
            Reason::StorageFailed => "STORAGE_FAILED",
            Reason::Internal => "INTERNAL",
        }
    }

    /// The canonical code that goes with it.
    pub fn code(self) -> Code {
        match self {
            Reason::InvalidField | Reason::PromptTooLong => Code::InvalidArgument,
            Reason::ModelNotFound | Reason::ObjectNotFound => Code::NotFound,
            Reason::QueueFull => Code::ResourceExhausted,
            Reason::DeadlineExceeded => Code::DeadlineExceeded,
            Reason::NoGateway
            | Reason::GatewayLost
            | Reason::Draining
            | Reason::EngineFailed
            | Reason::StorageFailed => Code::Unavailable,
            Reason::NotRead | Reason::Conflict => Code::Aborted,
            Reason::Unauthenticated => Code::Unauthenticated,
            Reason::RoleTooLow => Code::PermissionDenied,
            Reason::VersionExists => Code::AlreadyExists,
            Reason::VersionInUse
            | Reason::RolloutOverlaps
            | Reason::RolloutOver
            | Reason::StaleGeneration
            | Reason::GenerationConflict => Code::FailedPrecondition,
            Reason::DigestMismatch => Code::DataLoss,
            Reason::NumericFault | Reason::Internal => Code::Internal,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text is not a [`Reason`].
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a known reason")]
pub struct UnknownReason(String);

impl FromStr for Reason {
    type Err = UnknownReason;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Reason::ALL
            .into_iter()
            .find(|reason| reason.as_str() == text)
            .ok_or_else(|| UnknownReason(text.to_owned()))
    }
}

/// A status with `reason`'s code and an `ErrorInfo`.
pub fn refuse(reason: Reason, message: impl Into<String>) -> Status {
    refuse_with(reason, message, &[], None)
}

/// The same with metadata in the `ErrorInfo` (names in lower camel case) and, where trying again helps, `RetryInfo`.
pub fn refuse_with(
    reason: Reason,
    message: impl Into<String>,
    metadata: &[(&str, String)],
    retry_after: Option<Duration>,
) -> Status {
    let mut details = error_info(reason, metadata);
    if retry_after.is_some() {
        details.set_retry_info(retry_after);
    }
    Status::with_error_details(reason.code(), shorten(message.into(), MOST_MESSAGE_BYTES), details)
}

/// Names in a row, for messages and metadata: as many as fit a status, and how many more there are.
pub fn list(names: &[String]) -> String {
    let mut bytes = 0;
    let fits = |name: &&String| {
        bytes += name.len() + 2;
        bytes <= MOST_LIST_BYTES
    };
    let named: Vec<_> = names.iter().take_while(fits).map(String::as_str).collect();
    match names.len() - named.len() {
        0 if names.is_empty() => "none at this moment".to_owned(),
        0 => named.join(", "),
        more => format!("{} and {more} more", named.join(", ")),
    }
}

/// A status travels in a header block, which peers limit to a few kilobytes, and which encodes bytes beyond ASCII
/// threefold.
const MOST_MESSAGE_BYTES: usize = 1024;

/// Of each value of an error's metadata, and each description.
const MOST_VALUE_BYTES: usize = 512;

/// Of a list of names, inside the limits above.
const MOST_LIST_BYTES: usize = 400;

/// At most `most` bytes of `text`, and a mark where something is missing.
fn shorten(mut text: String, most: usize) -> String {
    if text.len() > most {
        text.truncate(text.floor_char_boundary(most));
        text.push('…');
    }
    text
}

/// INVALID_ARGUMENT for one field.
pub fn invalid_field(field: &str, description: &str) -> Status {
    invalid_fields(vec![(field.to_owned(), description.to_owned())])
}

/// INVALID_ARGUMENT for several fields, each with what is wrong with it. The first eight are named, the rest counted.
pub fn invalid_fields(violations: Vec<(String, String)>) -> Status {
    invalid(Reason::InvalidField, violations, &[])
}

/// INVALID_ARGUMENT for a prompt that the model's context cannot hold; message and metadata carry both numbers.
pub fn prompt_too_long(field: &str, prompt_tokens: usize, context_tokens: usize) -> Status {
    let description =
        format!("the prompt has {prompt_tokens} tokens, the model's context has room for {context_tokens}");
    let metadata =
        [("promptTokens", prompt_tokens.to_string()), ("contextTokens", context_tokens.to_string())];
    invalid(Reason::PromptTooLong, vec![(field.to_owned(), description)], &metadata)
}

fn invalid(reason: Reason, mut violations: Vec<(String, String)>, metadata: &[(&str, String)]) -> Status {
    const NAMED: usize = 8;
    let more = violations.len().saturating_sub(NAMED);
    violations.truncate(NAMED);
    let named = violations.iter().map(|(field, description)| format!("{field}: {description}"));
    let mut message = named.collect::<Vec<_>>().join("; ");
    if more > 0 {
        message.push_str(&format!("; and {more} more"));
    }
    let mut details = error_info(reason, metadata);
    let violations = violations
        .into_iter()
        .map(|(field, description)| FieldViolation::new(field, shorten(description, MOST_VALUE_BYTES)));
    details.set_bad_request(violations.collect::<Vec<_>>());
    Status::with_error_details(reason.code(), shorten(message, MOST_MESSAGE_BYTES), details)
}

fn error_info(reason: Reason, metadata: &[(&str, String)]) -> ErrorDetails {
    let metadata: std::collections::HashMap<String, String> = metadata
        .iter()
        .map(|(key, value)| ((*key).to_owned(), shorten(value.clone(), MOST_VALUE_BYTES)))
        .collect();
    ErrorDetails::with_error_info(reason.as_str(), DOMAIN, metadata)
}

/// The reason that a status carries, if it is one of ours.
pub fn reason_of(status: &Status) -> Option<Reason> {
    let info = status.get_details_error_info()?;
    if info.domain == DOMAIN { info.reason.parse().ok() } else { None }
}

/// One value of the metadata of a status's `ErrorInfo`.
pub fn metadata_of(status: &Status, name: &str) -> Option<String> {
    status.get_details_error_info()?.metadata.remove(name)
}

/// How long the server asks to wait before another try.
pub fn retry_after(status: &Status) -> Option<Duration> {
    status.get_details_retry_info()?.retry_delay
}

/// The fields that a status complains about, each with what is wrong.
pub fn field_violations(status: &Status) -> Vec<(String, String)> {
    let violations = status.get_details_bad_request().map(|bad| bad.field_violations).unwrap_or_default();
    violations.into_iter().map(|violation| (violation.field, violation.description)).collect()
}

/// True if the status was made on this side because the connection failed, and not sent by the peer.
pub fn is_transport_failure(status: &Status) -> bool {
    status.source().is_some()
}

/// What to put into the `error.type` attribute: the reason, else the code's name.
pub fn error_type(status: &Status) -> String {
    match reason_of(status) {
        Some(reason) => reason.as_str().to_owned(),
        None => format!("{:?}", status.code()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_survive_the_wire() {
        for reason in Reason::ALL {
            let status =
                refuse_with(reason, "m", &[("key", "value".into())], Some(Duration::from_millis(1500)));
            let (head, _) = status.into_http::<tonic::body::Body>().into_parts();
            let back = Status::from_header_map(&head.headers).unwrap();
            assert_eq!(back.code(), reason.code());
            assert_eq!(reason_of(&back), Some(reason));
            assert_eq!(retry_after(&back), Some(Duration::from_millis(1500)));
            assert_eq!(back.get_details_error_info().unwrap().metadata["key"], "value");
            assert!(!is_transport_failure(&back));
        }
    }

    #[test]
    fn prompt_too_long_has_both_numbers() {
        let status = prompt_too_long("text", 300, 256);
        assert!(status.message().contains("300") && status.message().contains("256"));
        assert_eq!(field_violations(&status)[0].0, "text");
        assert_eq!(reason_of(&status), Some(Reason::PromptTooLong));
    }

    #[test]
    fn a_status_fits_a_header_block_whatever_the_names() {
        let names: Vec<_> = (0..500).map(|n| format!("{n}-{}", "\u{1F426}".repeat(60))).collect();
        assert!(list(&names).ends_with(" and 499 more"), "{}", list(&names));
        assert_eq!(list(&[]), "none at this moment");
        assert_eq!(list(&["a".into(), "b".into()]), "a, b");
        let all = names.concat();
        let status = refuse_with(Reason::ModelNotFound, all.clone(), &[("available", all.clone())], None);
        let field = invalid_field("model", &all);
        for status in [status, field] {
            let (head, _) = status.into_http::<tonic::body::Body>().into_parts();
            let bytes: usize =
                head.headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
            assert!(bytes < 8 << 10, "{bytes}");
        }
    }

    #[test]
    fn the_message_does_not_grow_with_the_violations() {
        let many = (0..500).map(|i| (format!("field[{i}]"), "bad".to_owned())).collect();
        let status = invalid_fields(many);
        assert!(status.message().len() < 400);
        assert_eq!(status.code(), Code::InvalidArgument);
    }
}
