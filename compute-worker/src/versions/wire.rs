//! Between the wire and what is kept.

use std::collections::BTreeMap;

use prost_types::Timestamp;
use rookery_model::bundle::Digest;
use rookery_proto::v1;

use super::{
    agent::AssignError,
    core::View,
    machine::Numbers,
    state::{Assignment, DetachedSignature, Gate, MAX_MODELS, Phase, TransitionRecord, Verdict, Wanted},
};

/// Largest manifest that is taken.
const MAX_MANIFEST: usize = 1 << 20;
/// Most signatures, and most keys, of a version.
const MAX_KEYS: usize = 64;
/// Longest wait before a download: a day.
const MAX_SPREAD_MS: u64 = 24 * 3600 * 1000;
/// Longest name or trace context.
const MAX_TEXT: usize = 128;

/// Checks an assignment from the control plane.
pub(super) fn assignment(message: v1::Assignment) -> Result<Assignment, AssignError> {
    if message.generation == 0 {
        return Err(invalid("generation", "must be greater than 0"));
    }
    if message.versions.len() > MAX_MODELS {
        return Err(invalid("versions", &format!("must be at most {MAX_MODELS}")));
    }
    let mut versions = BTreeMap::new();
    for (index, version) in message.versions.into_iter().enumerate() {
        let wanted =
            wanted(version).map_err(|(field, rule)| invalid(&format!("versions[{index}].{field}"), &rule))?;
        if let Some(twice) = versions.insert(wanted.model.clone(), wanted) {
            return Err(invalid(
                &format!("versions[{index}].model"),
                &format!("{:?} comes twice", twice.model),
            ));
        }
    }
    Ok(Assignment { generation: message.generation, versions })
}

fn invalid(field: &str, rule: &str) -> AssignError {
    AssignError::Invalid { field: field.to_owned(), rule: rule.to_owned() }
}

fn wanted(message: v1::VersionAssignment) -> Result<Wanted, (&'static str, String)> {
    if !is_name(&message.model, true) {
        return Err(("model", "must have 1 to 128 letters, digits, '.', '_', '-' or '/'".to_owned()));
    }
    if !is_name(&message.version, false) {
        return Err(("version", "must have 1 to 128 letters, digits, '.', '_' or '-'".to_owned()));
    }
    let digest: Digest =
        message.digest.parse().map_err(|_| ("digest", "must be sha256: and 64 hex digits".to_owned()))?;
    if message.manifest.len() > MAX_MANIFEST {
        return Err(("manifest", format!("must have at most {MAX_MANIFEST} bytes")));
    }
    if Digest::of(&message.manifest) != digest {
        return Err(("manifest", format!("must have the digest {digest}")));
    }
    let manifest =
        String::from_utf8(message.manifest).map_err(|_| ("manifest", "must be JSON".to_owned()))?;
    if message.signatures.len() > MAX_KEYS || message.trusted_keys.len() > MAX_KEYS {
        return Err(("signatures", format!("and trusted keys must be at most {MAX_KEYS} each")));
    }
    let sizes_fit =
        message.signatures.iter().all(|s| s.key_id.len() <= MAX_TEXT && s.signature.len() <= MAX_TEXT)
            && message.trusted_keys.iter().all(|key| key.len() <= MAX_TEXT);
    if !sizes_fit || message.traceparent.len() > MAX_TEXT {
        return Err(("signatures", "keys and trace context must have at most 128 bytes".to_owned()));
    }
    let limits = [message.min_speed_percent, message.max_celsius];
    if limits.iter().any(|limit| !limit.is_finite() || *limit < 0.0) {
        return Err(("min_speed_percent", "and max_celsius must be 0 or more".to_owned()));
    }
    let signature = |s: v1::Signature| DetachedSignature { key_id: s.key_id, signature: s.signature };
    Ok(Wanted {
        model: message.model,
        version: message.version,
        digest,
        manifest,
        signatures: message.signatures.into_iter().map(signature).collect(),
        trusted_keys: message.trusted_keys,
        min_speed_percent: message.min_speed_percent,
        max_celsius: message.max_celsius,
        start_spread_ms: message.start_spread_ms.min(MAX_SPREAD_MS),
        bandwidth_limit: message.bandwidth_limit,
        rolls_back: message.rolls_back,
        traceparent: message.traceparent,
    })
}

fn is_name(name: &str, slashes: bool) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let part = |part: &str| !matches!(part, "" | "." | "..") && part.bytes().all(plain);
    let parts = || name.split('/').all(part);
    (1..=MAX_TEXT).contains(&name.len()) && if slashes { parts() } else { name.bytes().all(plain) }
}

impl Phase {
    /// As on the wire.
    pub fn to_wire(self) -> v1::Phase {
        match self {
            Self::Assigned => v1::Phase::Assigned,
            Self::Downloading => v1::Phase::Downloading,
            Self::Verifying => v1::Phase::Verifying,
            Self::Staged => v1::Phase::Staged,
            Self::Probing => v1::Phase::Probing,
            Self::Activating => v1::Phase::Activating,
            Self::Serving => v1::Phase::Serving,
            Self::Failed => v1::Phase::Failed,
            Self::RolledBack => v1::Phase::RolledBack,
            Self::Draining => v1::Phase::Draining,
        }
    }
}

impl Gate {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Signature => "signature",
            Self::Digests => "digests",
            Self::Memory => "memory",
            Self::Disk => "disk",
            Self::Probes => "probes",
            Self::Speed => "speed",
            Self::Temperature => "temperature",
        }
    }
}

fn verdicts(verdicts: &[Verdict]) -> Vec<v1::Verdict> {
    let wire = |verdict: &Verdict| v1::Verdict {
        gate: verdict.gate.name().to_owned(),
        passed: verdict.passed,
        expected: verdict.expected.clone(),
        seen: verdict.seen.clone(),
    };
    verdicts.iter().map(wire).collect()
}

/// A version's status, without what changes all the time.
pub(super) fn status(view: &View) -> v1::VersionStatus {
    v1::VersionStatus {
        model: view.model.clone(),
        digest: view.digest.to_string(),
        phase: view.phase.to_wire().into(),
        reason: view.reason.clone(),
        verdicts: verdicts(&view.verdicts),
        generation: view.generation,
        ..v1::VersionStatus::default()
    }
}

/// Puts in what changes all the time.
pub(super) fn fill(status: &mut v1::VersionStatus, numbers: Numbers, (done, total): (u64, u64)) {
    status.downloaded_bytes = done;
    status.total_bytes = total;
    status.requests = numbers.requests;
    status.failures = numbers.failures;
    status.ttft_us = numbers.ttft_us;
}

/// A transition as it is told.
pub(super) fn transition(record: &TransitionRecord) -> v1::Transition {
    let seconds = i64::try_from(record.at_ms / 1000).unwrap_or(i64::MAX);
    // Below a thousand million, whatever the clock says.
    let nanos = i32::try_from(record.at_ms % 1000).unwrap_or(0) * 1_000_000;
    v1::Transition {
        sequence: record.sequence,
        at: Some(Timestamp { seconds, nanos }),
        model: record.model.clone(),
        digest: record.digest.to_string(),
        from: record.from.to_wire().into(),
        to: record.to.to_wire().into(),
        reason: record.reason.clone(),
        generation: record.generation,
        verdicts: verdicts(&record.verdicts),
    }
}
