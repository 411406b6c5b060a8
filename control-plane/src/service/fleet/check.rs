//! Requests to the fleet service, checked.

use std::{collections::HashMap, time::Duration};

use rookery_proto::{status::invalid_field, v1};
use tonic::Status;

use crate::{
    domain::{GatewayId, Labels, Selector, labels::is_label_text, rollout::RolloutId},
    store::{Admission, TransitionFilter},
    trust::Role,
};

/// Labels that one gateway may have.
const MOST_LABELS: usize = 64;

/// Labels that gateways have by what they are.
const RESERVED: [&str; 4] = ["id", "board", "driver", "processor"];

/// Entries of a list unless asked otherwise, and at most.
const LIMITS: (u32, u32) = (100, 10_000);

/// How long a join token lasts unless asked otherwise, and at most.
const JOIN_VALID: (Duration, Duration) = (Duration::from_secs(3600), Duration::from_secs(30 * 24 * 3600));

/// Gateways that may join with one token.
const MOST_USES: u32 = 100_000;

/// Longest life of a bearer token that ends.
const MOST_VALID: Duration = Duration::from_secs(10 * 366 * 24 * 3600);

pub(super) struct JoinTokenRequest {
    pub(super) valid: Duration,
    pub(super) uses: u32,
    pub(super) labels: Labels,
}

pub(super) struct AccessTokenRequest {
    pub(super) name: String,
    pub(super) role: Role,
    pub(super) valid: Option<Duration>,
}

pub(super) fn selector(text: &str) -> Result<Selector, Status> {
    text.parse().map_err(|error| invalid("selector", &error))
}

pub(super) fn gateway_id(text: &str) -> Result<GatewayId, Status> {
    text.parse().map_err(|error| invalid("gateway", &error))
}

pub(super) fn labels(field: &str, labels: HashMap<String, String>) -> Result<Labels, Status> {
    if labels.len() > MOST_LABELS {
        return Err(invalid_field(field, &format!("has more than {MOST_LABELS} labels")));
    }
    for (name, value) in &labels {
        label_name(field, name)?;
        if !is_label_text(value) {
            return Err(label_text(field, value));
        }
    }
    Ok(labels.into_iter().collect())
}

pub(super) fn label_names(field: &str, names: &[String]) -> Result<(), Status> {
    if names.len() > MOST_LABELS {
        return Err(invalid_field(field, &format!("has more than {MOST_LABELS} labels")));
    }
    names.iter().try_for_each(|name| label_name(field, name))
}

fn label_name(field: &str, name: &str) -> Result<(), Status> {
    if RESERVED.contains(&name) {
        let description = format!("label {name:?} is set by the gateway itself");
        return Err(invalid_field(field, &description));
    }
    if is_label_text(name) { Ok(()) } else { Err(label_text(field, name)) }
}

fn label_text(field: &str, text: &str) -> Status {
    let text: String = text.chars().take(64).collect();
    let rule = "must have 1 to 63 letters, digits, '.', '_', '-' or '/'";
    invalid_field(field, &format!("{text:?} {rule}"))
}

pub(super) fn admission(admission: i32) -> Result<Admission, Status> {
    match v1::Admission::try_from(admission) {
        Ok(v1::Admission::Open) => Ok(Admission::Open),
        Ok(v1::Admission::Cordoned) => Ok(Admission::Cordoned),
        Ok(v1::Admission::Drained) => Ok(Admission::Drained),
        Ok(v1::Admission::Unspecified) | Err(_) => {
            Err(invalid_field("admission", "must be open, cordoned or drained"))
        }
    }
}

pub(super) fn limit(limit: u32) -> Result<u32, Status> {
    match limit {
        0 => Ok(LIMITS.0),
        limit if limit <= LIMITS.1 => Ok(limit),
        _ => Err(invalid_field("limit", &format!("must be at most {}", LIMITS.1))),
    }
}

pub(super) fn transition_filter(request: &v1::ListTransitionsRequest) -> Result<TransitionFilter, Status> {
    let gateway = Some(request.gateway.as_str()).filter(|id| !id.is_empty()).map(gateway_id).transpose()?;
    let rollout = match request.rollout.as_str() {
        "" => None,
        id if id.len() <= 64 && id.bytes().all(|byte| byte.is_ascii_alphanumeric()) => {
            Some(RolloutId(id.to_owned()))
        }
        _ => return Err(invalid_field("rollout", "must be the id of a roll-out")),
    };
    Ok(TransitionFilter { gateway, rollout })
}

pub(super) fn join_token(request: v1::CreateJoinTokenRequest) -> Result<JoinTokenRequest, Status> {
    let (usual, most) = JOIN_VALID;
    let valid = if request.valid_s == 0 { usual } else { Duration::from_secs(request.valid_s) };
    if valid > most {
        return Err(invalid_field("valid_s", "must be at most 30 days"));
    }
    let uses = request.uses.max(1);
    if uses > MOST_USES {
        return Err(invalid_field("uses", &format!("must be at most {MOST_USES}")));
    }
    Ok(JoinTokenRequest { valid, uses, labels: labels("labels", request.labels)? })
}

pub(super) fn token_name(name: String) -> Result<String, Status> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b'@');
    if (1..=64).contains(&name.len()) && name.bytes().all(plain) {
        return Ok(name);
    }
    Err(invalid_field("name", "must have 1 to 64 letters, digits, '.', '_', '-' or '@'"))
}

pub(super) fn access_token(request: v1::CreateAccessTokenRequest) -> Result<AccessTokenRequest, Status> {
    let role = match v1::Role::try_from(request.role) {
        Ok(v1::Role::Inference) => Role::Inference,
        Ok(v1::Role::Deployer) => Role::Deployer,
        Ok(v1::Role::Admin) => Role::Admin,
        Ok(v1::Role::Unspecified) | Err(_) => {
            return Err(invalid_field("role", "must be inference, deployer or admin"));
        }
    };
    let valid = (request.valid_s > 0).then(|| Duration::from_secs(request.valid_s));
    if valid.is_some_and(|valid| valid > MOST_VALID) {
        return Err(invalid_field("valid_s", "must be at most 10 years; 0 for a token that does not end"));
    }
    Ok(AccessTokenRequest { name: token_name(request.name)?, role, valid })
}

fn invalid(field: &str, error: &dyn std::error::Error) -> Status {
    invalid_field(field, &error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_should_set_is_refused_by_field() {
        let set = |name: &str, value: &str| labels("set", [(name.to_owned(), value.to_owned())].into());
        assert!(set("site", "berlin").is_ok());
        for (name, value) in [("board", "x"), ("id", "x"), ("a b", "x"), ("a", ""), ("a", "\u{1b}")] {
            assert!(set(name, value).is_err_and(|status| status.message().starts_with("set: ")), "{name}");
        }
        assert!(label_names("remove", &["driver".into()]).is_err());
        assert!(gateway_id("../x").is_err() && selector("a=b c").is_err() && admission(9).is_err());
        assert!(limit(10_001).is_err() && limit(0).is_ok_and(|limit| limit == 100));
    }

    #[test]
    fn tokens_have_bounds() {
        let join =
            |valid_s, uses| join_token(v1::CreateJoinTokenRequest { valid_s, uses, ..Default::default() });
        let usual = join(0, 0).unwrap();
        assert_eq!((usual.valid, usual.uses), (Duration::from_secs(3600), 1));
        assert!(join(31 * 24 * 3600, 0).is_err() && join(0, 100_001).is_err());
        let access = |name: &str, role: v1::Role, valid_s| {
            access_token(v1::CreateAccessTokenRequest { name: name.into(), role: role.into(), valid_s })
        };
        assert_eq!(access("ci@example", v1::Role::Deployer, 0).unwrap().valid, None);
        assert!(access("", v1::Role::Deployer, 0).is_err());
        assert!(access("a", v1::Role::Unspecified, 0).is_err());
        assert!(access("a", v1::Role::Admin, u64::MAX).is_err());
    }
}
