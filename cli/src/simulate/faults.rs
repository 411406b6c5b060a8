//! Which simulated gateway has which fault: drawn from a seed, so that a run can be had again.

use std::{collections::BTreeMap, fmt, str::FromStr, time::Duration};

/// What can be wrong with a simulated gateway. One has at most one of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Fault {
    /// It loses its link now and then, for seconds.
    Offline,
    /// Its uplink has a tenth of the others' speed.
    Slow,
    /// It answers a probe of the second version wrong.
    BadProbe,
    /// Its program dies once while it tries the second version, and starts again on what it had on disk.
    Crash,
    /// Its clock is wrong by an hour to a day.
    Skew,
}

impl Fault {
    /// Every fault.
    pub(crate) const ALL: [Fault; 5] =
        [Fault::Offline, Fault::Slow, Fault::BadProbe, Fault::Crash, Fault::Skew];

    /// Its name on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Fault::Offline => "offline",
            Fault::Slow => "slow",
            Fault::BadProbe => "bad-probe",
            Fault::Crash => "crash",
            Fault::Skew => "skew",
        }
    }
}

/// How many of the gateways have which fault, such as `offline=2%,crash=1%`.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Faults(BTreeMap<Fault, f64>);

/// The text does not say which share has which fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} must be FAULT=SHARE% with a fault of offline, slow, bad-probe, crash, skew and a share from 0 to 100"
)]
pub(crate) struct InvalidFaults(String);

impl FromStr for Faults {
    type Err = InvalidFaults;

    fn from_str(text: &str) -> Result<Self, InvalidFaults> {
        let terms = text.split(',').map(str::trim).filter(|term| !term.is_empty());
        let shares = terms.map(|term| {
            let invalid = || InvalidFaults(term.chars().take(64).collect());
            let (name, share) = term.split_once('=').ok_or_else(invalid)?;
            let fault = Fault::ALL.into_iter().find(|fault| fault.name() == name).ok_or_else(invalid)?;
            let percent: f64 =
                share.strip_suffix('%').and_then(|share| share.parse().ok()).ok_or_else(invalid)?;
            if (0.0..=100.0).contains(&percent) { Ok((fault, percent)) } else { Err(invalid()) }
        });
        shares.collect::<Result<_, _>>().map(Self)
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none");
        }
        for (index, (fault, percent)) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{}={percent}%", fault.name())?;
        }
        Ok(())
    }
}

impl Faults {
    /// Whether gateway `index` of a fleet drawn from `seed` has the fault.
    pub(crate) fn has(&self, fault: Fault, seed: u64, index: u64) -> bool {
        let percent = self.0.get(&fault).copied().unwrap_or(0.0);
        Dice::new(seed, index, fault as u64).unit() * 100.0 < percent
    }
}

/// Numbers that depend on nothing but what they were made from: SplitMix64.
#[derive(Clone, Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    /// A sequence of its own for each gateway and purpose.
    pub(crate) fn new(seed: u64, gateway: u64, purpose: u64) -> Self {
        let mut dice = Self(seed ^ gateway.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17));
        dice.0 ^= dice.next().wrapping_add(purpose.wrapping_mul(0xd1b5_4a32_d192_ed03));
        dice.next();
        dice
    }

    /// The next number.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ (value >> 31)
    }

    /// Evenly spread over [0, 1).
    pub(crate) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Evenly spread between two durations.
    pub(crate) fn between(&mut self, least: Duration, most: Duration) -> Duration {
        least + most.saturating_sub(least).mul_f64(self.unit())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_read_and_refused_by_name() {
        let faults: Faults = "offline=2%, bad-probe=0.5%".parse().unwrap();
        assert_eq!(faults.to_string(), "offline=2%,bad-probe=0.5%");
        assert_eq!("".parse(), Ok(Faults::default()));
        for text in ["offline", "offline=2", "offline=101%", "fire=2%", "slow=-1%", "slow=NaN%"] {
            assert!(text.parse::<Faults>().is_err(), "{text}");
        }
    }

    #[test]
    fn as_many_gateways_as_asked_for_have_a_fault_whatever_the_seed() {
        let faults: Faults = "offline=10%,skew=100%".parse().unwrap();
        for seed in 0..20 {
            let count = |fault| (0..2000).filter(|&index| faults.has(fault, seed, index)).count();
            assert!((130..=270).contains(&count(Fault::Offline)), "seed {seed}: {}", count(Fault::Offline));
            assert_eq!((count(Fault::Skew), count(Fault::Crash)), (2000, 0));
        }
        let one = |seed| (0..2000).map(|index| faults.has(Fault::Offline, seed, index)).collect::<Vec<_>>();
        assert_eq!(one(3), one(3));
        assert_ne!(one(3), one(4));
    }
}
