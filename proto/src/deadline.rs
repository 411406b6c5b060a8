//! The `grpc-timeout` header.

use std::time::{Duration, Instant};

use tonic::{Status, metadata::MetadataMap};

use crate::status;

/// Name of the header.
pub const HEADER: &str = "grpc-timeout";

/// When the caller wants its answer by, counted from `now`; `None` if it did not say.
///
/// # Errors
/// INVALID_ARGUMENT naming the header if it is not 1 to 8 digits and a unit, as the gRPC specification asks.
pub fn from_metadata(metadata: &MetadataMap, now: Instant) -> Result<Option<Instant>, Status> {
    let Some(value) = metadata.get(HEADER) else { return Ok(None) };
    let timeout = value.to_str().ok().and_then(parse).ok_or_else(|| {
        status::invalid_field(HEADER, "must be 1 to 8 digits followed by one of H, M, S, m, u, n")
    })?;
    // 99,999,999 hours fit any Instant in practice; if not, there is no deadline worth keeping.
    Ok(now.checked_add(timeout))
}

fn parse(value: &str) -> Option<Duration> {
    let (unit_at, _) = value.char_indices().last()?;
    let (digits, unit) = value.split_at(unit_at);
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(count * 3600)),
        "M" => Some(Duration::from_secs(count * 60)),
        "S" => Some(Duration::from_secs(count)),
        "m" => Some(Duration::from_millis(count)),
        "u" => Some(Duration::from_micros(count)),
        "n" => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_and_limits() {
        assert_eq!(parse("1H"), Some(Duration::from_secs(3600)));
        assert_eq!(parse("2M"), Some(Duration::from_secs(120)));
        assert_eq!(parse("3S"), Some(Duration::from_secs(3)));
        assert_eq!(parse("99999999n"), Some(Duration::from_nanos(99_999_999)));
        assert_eq!(parse("5m"), Some(Duration::from_millis(5)));
        assert_eq!(parse("7u"), Some(Duration::from_micros(7)));
        for bad in ["", "S", "1", "123456789S", "-1S", "+1S", "1 S", "1é", "1.5S"] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }
}
