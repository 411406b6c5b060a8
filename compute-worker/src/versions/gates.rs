//! What decides whether a version may serve here. Each gate gives a [`Verdict`] that says what was expected and seen.

use rookery_model::bundle::{Bundle, BundleError};
use rookery_proto::{
    signing::{self, PublicKey},
    v1,
};

use super::{
    memory::Demand,
    state::{Gate, Verdict, Wanted},
};
use crate::{
    engine::EngineCore,
    probes::{ProbeSet, Replay, SelfCheck, decode_speed, replay},
};

/// Tokens that are decoded to measure speed.
const SPEED_TOKENS: usize = 48;

fn verdict(gate: Gate, passed: bool, expected: impl Into<String>, seen: impl Into<String>) -> Verdict {
    Verdict { gate, passed, expected: expected.into(), seen: seen.into() }
}

/// Whether somebody who is trusted has signed the version.
pub(super) fn signature(wanted: &Wanted) -> Verdict {
    if wanted.trusted_keys.is_empty() {
        return verdict(Gate::Signature, true, "none is asked for", "not looked at");
    }
    let keys: Vec<PublicKey> =
        wanted.trusted_keys.iter().filter_map(|key| PublicKey::from_bytes(key).ok()).collect();
    let wire = |s: &super::DetachedSignature| v1::Signature {
        key_id: s.key_id.clone(),
        signature: s.signature.clone(),
    };
    let signatures: Vec<_> = wanted.signatures.iter().map(wire).collect();
    let ids: Vec<String> = keys.iter().map(|key| key.id().to_string()).collect();
    let expected = format!("a signature by one of {}", ids.join(", "));
    match signing::verify(wanted.digest.as_str(), &signatures, &keys) {
        Ok(key) => verdict(Gate::Signature, true, expected, format!("signed by {key}")),
        Err(error) => verdict(Gate::Signature, false, expected, error.to_string()),
    }
}

/// Whether an engine fits.
pub(super) fn memory(demand: &Demand, room: u64) -> Verdict {
    let Demand { weights, keys_and_values, scratch, other } = *demand;
    let expected = format!(
        "{} for weights {}, keys and values {}, scratch {} and all else {}",
        mb(demand.total()),
        mb(weights),
        mb(keys_and_values),
        mb(scratch),
        mb(other)
    );
    verdict(Gate::Memory, demand.total() <= room, expected, format!("{} can be used", mb(room)))
}

/// Whether blobs fit.
pub(super) fn disk(missing: u64, headroom: u64, free: u64) -> Verdict {
    let passed = missing.saturating_add(headroom) <= free;
    let expected = format!("{} to fetch and {} to stay free", mb(missing), mb(headroom));
    verdict(Gate::Disk, passed, expected, format!("{} free", mb(free)))
}

/// Blobs have the digests that name them.
pub(super) fn digests_right(blobs: usize) -> Verdict {
    verdict(Gate::Digests, true, "every blob has its digest", format!("{blobs} blobs have"))
}

/// Some blob has not.
pub(super) fn digest_wrong(blob: &str, expected: &str, found: &str) -> Verdict {
    verdict(Gate::Digests, false, format!("{blob} has {expected}"), format!("it has {found}"))
}

/// What is wrong with a bundle that cannot be opened, if its bytes are not what its names say.
pub(super) fn damage(error: &BundleError) -> Option<Verdict> {
    match error {
        BundleError::BlobMissing { title, digest } => Some(digest_wrong(title, digest, "no file")),
        BundleError::BlobSize { title, digest, found, expected } => {
            let (expected, found) = (format!("{digest} and {expected} bytes"), format!("{found} bytes"));
            Some(digest_wrong(title, &expected, &found))
        }
        BundleError::BlobDigest { title, digest, found } => Some(digest_wrong(title, digest, found)),
        BundleError::NotABundle { .. }
        | BundleError::Unfinished { .. }
        | BundleError::Io { .. }
        | BundleError::Document { .. }
        | BundleError::SchemaVersion { .. }
        | BundleError::Model(_)
        | BundleError::Blob { .. }
        | BundleError::Tensor { .. }
        | BundleError::NoTensor { .. }
        | BundleError::Tokenizer(_) => None,
    }
}

/// Whether the engine answers every probe to the last bit of every logit as the packer did.
pub(super) fn probes(core: &mut EngineCore, bundle: &Bundle) -> (Verdict, Option<ProbeSet>) {
    let nothing = |seen: &str| verdict(Gate::Probes, true, "as recorded by the packer", seen);
    let set = match ProbeSet::of(bundle) {
        Ok(Some(set)) => set,
        Ok(None) => return (nothing("the bundle carries no probes"), None),
        Err(error) => {
            return (verdict(Gate::Probes, false, "probes that can be read", error.to_string()), None);
        }
    };
    if !core.backend.is_exact() {
        return (nothing("not compared: the NPU computes in fp16 as configured"), Some(set));
    }
    let expected = format!("{} probes as recorded by the packer", set.probes.len());
    let other_tokens = |probe: &&crate::probes::Probe| {
        core.tokenizer().encode_text(&probe.text).is_ok_and(|ids| ids != probe.prompt)
    };
    if let Some(probe) = set.probes.iter().find(other_tokens) {
        let seen = format!("the tokenizer reads probe {:?} differently", probe.name);
        return (verdict(Gate::Probes, false, expected, seen), Some(set));
    }
    let found = match replay(core, &set, SelfCheck::Full) {
        Ok(Replay { differing, probes, positions, elapsed, .. }) => match differing.first() {
            None => verdict(
                Gate::Probes,
                true,
                expected,
                format!("{probes} probes, {positions} tokens and logits alike in {elapsed:.1?}"),
            ),
            Some(first) => {
                let seen = format!("{} of {probes} differ; {first}", differing.len());
                verdict(Gate::Probes, false, expected, seen)
            }
        },
        Err(error) => verdict(Gate::Probes, false, expected, crate::one_line::one_line(&error)),
    };
    (found, Some(set))
}

/// Whether one generation alone decodes fast enough on a board of this name.
pub(super) fn speed(
    core: &mut EngineCore,
    set: Option<&ProbeSet>,
    board: &str,
    min_percent: f64,
) -> Option<Verdict> {
    let set = set?;
    let seen = match decode_speed(core, set, SPEED_TOKENS) {
        Ok(Some(speed)) => speed,
        Ok(None) => return None,
        Err(error) => {
            let error = crate::one_line::one_line(&error);
            return Some(verdict(Gate::Speed, false, "tokens at some speed", error));
        }
    };
    let seen_text = format!("{seen:.1} tokens/s");
    let Some(promised) = set.promised_speed(board) else {
        let expected = format!("no profile for board {board:?}");
        return Some(verdict(Gate::Speed, true, expected, seen_text));
    };
    let least = promised * min_percent / 100.0;
    let expected = format!("{least:.1} tokens/s, {min_percent} % of the profile's {promised:.1}");
    Some(verdict(Gate::Speed, seen >= least, expected, seen_text))
}

/// Whether the board is cool enough.
pub(super) fn temperature(celsius: Option<f64>, max: f64) -> Option<Verdict> {
    if max <= 0.0 {
        return None;
    }
    let expected = format!("at most {max} °C");
    Some(match celsius {
        Some(seen) => verdict(Gate::Temperature, seen <= max, expected, format!("{seen:.1} °C")),
        None => verdict(Gate::Temperature, true, expected, "no thermal zone"),
    })
}

/// The first that let nothing through, in words.
pub(super) fn refusal(verdicts: &[Verdict]) -> Option<String> {
    let failed = verdicts.iter().find(|verdict| !verdict.passed)?;
    let Verdict { gate, expected, seen, .. } = failed;
    Some(format!("{}: expected {expected}; {seen}", gate.name()))
}

fn mb(bytes: u64) -> String {
    bytesize::ByteSize(bytes).display().si().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_say_what_was_expected_and_seen() {
        let demand = Demand { weights: 4_000_000_000, keys_and_values: 500_000_000, scratch: 0, other: 0 };
        let refused = memory(&demand, 3_000_000_000);
        assert!(!refused.passed);
        assert!(refused.expected.starts_with("4.5 GB"), "{}", refused.expected);
        assert_eq!(refused.seen, "3.0 GB can be used");
        assert!(memory(&demand, 4_500_000_000).passed);
        assert!(disk(10, 5, 15).passed && !disk(10, 5, 14).passed && !disk(u64::MAX, 1, u64::MAX - 1).passed);
        assert!(temperature(Some(91.0), 90.0).is_some_and(|verdict| !verdict.passed));
        assert!(temperature(Some(90.0), 90.0).is_some_and(|verdict| verdict.passed));
        assert_eq!(temperature(Some(200.0), 0.0), None);
        let words = refusal(&[disk(1, 1, 2), refused]).unwrap();
        assert!(words.starts_with("memory: expected 4.5 GB") && words.contains("3.0 GB"), "{words}");
    }
}
