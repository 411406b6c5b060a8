//! How many gateways a wave reaches, and which come first.

use crate::domain::{Digest, GatewayId, rollout::WaveSize};

/// Most waves of a roll-out.
pub const MOST_WAVES: usize = 100;

/// The text is no size of a wave.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum InvalidWave {
    /// Another form.
    #[error("wave {0:?} must be a number of gateways such as \"1\", or a share such as \"10%\"")]
    Form(String),
    /// More than all or less than one.
    #[error("wave {0:?} must be at least one gateway, and at most 100%")]
    Range(String),
    /// It would not reach more gateways than the one before.
    #[error(
        "wave {later} comes after {earlier}: waves count from the start, so each has to be larger than those before"
    )]
    Order {
        /// The wave before.
        earlier: String,
        /// The one that is not larger.
        later: String,
    },
    /// Too many.
    #[error("a roll-out has at most {MOST_WAVES} waves")]
    Many,
}

/// Reads waves. The last is always all: it is added if it is missing.
///
/// # Errors
/// Names the first that is none, or that is smaller than the one before.
pub fn parse<T: AsRef<str>>(texts: &[T]) -> Result<Vec<WaveSize>, InvalidWave> {
    let mut waves = texts.iter().map(|text| one(text.as_ref())).collect::<Result<Vec<_>, _>>()?;
    let all = WaveSize::Percent(100.0);
    if waves.last() != Some(&all) {
        waves.push(all);
    }
    if waves.len() > MOST_WAVES {
        return Err(InvalidWave::Many);
    }
    for pair in waves.windows(2) {
        // A number and a share can be compared only once there are gateways; then a wave may add none.
        let ordered = match (pair[0], pair[1]) {
            (WaveSize::Count(earlier), WaveSize::Count(later)) => earlier < later,
            (WaveSize::Percent(earlier), WaveSize::Percent(later)) => earlier < later,
            (WaveSize::Count(_), WaveSize::Percent(_)) | (WaveSize::Percent(_), WaveSize::Count(_)) => true,
        };
        if !ordered {
            return Err(InvalidWave::Order { earlier: text(pair[0]), later: text(pair[1]) });
        }
    }
    Ok(waves)
}

fn one(text: &str) -> Result<WaveSize, InvalidWave> {
    let short = || text.chars().take(32).collect::<String>();
    let form = || InvalidWave::Form(short());
    let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    match text.trim().strip_suffix('%') {
        Some(percent) if plain(percent) => {
            let percent: f64 = percent.parse().map_err(|_| form())?;
            let sound = percent > 0.0 && percent <= 100.0;
            if sound { Ok(WaveSize::Percent(percent)) } else { Err(InvalidWave::Range(short())) }
        }
        Some(_) => Err(form()),
        None => {
            let count: u32 = text.trim().parse().map_err(|_| form())?;
            if count > 0 { Ok(WaveSize::Count(count)) } else { Err(InvalidWave::Range(short())) }
        }
    }
}

/// A wave as people write it.
pub fn text(wave: WaveSize) -> String {
    match wave {
        WaveSize::Count(count) => count.to_string(),
        WaveSize::Percent(percent) => format!("{percent}%"),
    }
}

/// How many of `all` gateways have been reached when a wave has.
pub fn quota(wave: WaveSize, all: usize) -> usize {
    match wave {
        WaveSize::Count(count) => all.min(count as usize),
        // A share of a whole number that should be whole itself must not be rounded up for the last bit's sake.
        WaveSize::Percent(percent) => {
            ((all as f64 * percent / 100.0 - 1e-9).ceil().max(0.0) as usize).min(all)
        }
    }
}

/// How many of `all` gateways may be unavailable at a time: a share rounded down, but one may always be.
pub fn most_unavailable(percent: f64, all: usize) -> usize {
    ((all as f64 * percent / 100.0 + 1e-9).floor() as usize).max(1)
}

/// Where a gateway comes in the order in which a version is rolled out. Each version has its own order, so that it is not always
/// the same gateway that tries what is new; and it is known before, so that a dry run tells the truth.
pub fn place(version: &Digest, gateway: &GatewayId) -> u64 {
    spread(version.as_str().bytes().chain([0]).chain(gateway.as_str().bytes()))
}

/// A number that bytes determine and that says nothing of them.
pub(super) fn spread(bytes: impl Iterator<Item = u8>) -> u64 {
    // FNV-1a, then a mix of all bits: spread is all that is asked of it.
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let hash = (hash ^ (hash >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash ^ (hash >> 29)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waves_are_read_and_the_last_is_all() {
        use WaveSize::{Count, Percent};
        assert_eq!(parse(&["1", "10%", "100%"]).unwrap(), [Count(1), Percent(10.0), Percent(100.0)]);
        assert_eq!(parse(&["2", "5"]).unwrap(), [Count(2), Count(5), Percent(100.0)]);
        assert_eq!(parse::<&str>(&[]).unwrap(), [Percent(100.0)]);
        assert_eq!(parse(&["0.5%"]).unwrap(), [Percent(0.5), Percent(100.0)]);
        for (wrong, because) in [
            (vec!["x"], "must be a number"),
            (vec!["-1"], "must be a number"),
            (vec!["nan%"], "must be a number"),
            (vec!["1e2%"], "must be a number"),
            (vec!["%"], "must be a number"),
            (vec!["0"], "at least one"),
            (vec!["0%"], "at least one"),
            (vec!["101%"], "at least one"),
            (vec!["10%", "10%"], "each has to be larger"),
            (vec!["5", "3"], "each has to be larger"),
            (vec!["100%", "5", "100%", "50%"], "each has to be larger"),
        ] {
            let error = parse(&wrong).unwrap_err().to_string();
            assert!(error.contains(because), "{wrong:?}: {error}");
        }
        let many: Vec<_> = (1..=101).map(|count| count.to_string()).collect();
        assert_eq!(parse(&many).unwrap_err(), InvalidWave::Many);
    }

    #[test]
    fn shares_are_rounded_towards_care() {
        use WaveSize::{Count, Percent};
        for (wave, all, expected) in [
            (Count(1), 0, 0),
            (Count(5), 3, 3),
            (Percent(10.0), 1, 1),
            (Percent(10.0), 10, 1),
            (Percent(10.0), 11, 2),
            (Percent(10.0), 2000, 200),
            (Percent(0.1), 3000, 3),
            (Percent(7.0), 100, 7),
            (Percent(100.0), 7, 7),
        ] {
            assert_eq!(quota(wave, all), expected, "{wave:?} of {all}");
        }
        for (percent, all, expected) in
            [(20.0, 3, 1), (20.0, 10, 2), (20.0, 14, 2), (0.1, 5, 1), (29.0, 100, 29)]
        {
            assert_eq!(most_unavailable(percent, all), expected, "{percent} of {all}");
        }
    }

    #[test]
    fn each_version_has_its_own_order() {
        let first = |version: u32| {
            let digest = format!("sha256:{version:064x}").parse().unwrap();
            (0..100).min_by_key(|n| place(&digest, &format!("gw-{n}").parse().unwrap())).unwrap()
        };
        let firsts: std::collections::BTreeSet<_> = (0..50).map(first).collect();
        assert!(firsts.len() > 25, "{firsts:?}");
    }
}
