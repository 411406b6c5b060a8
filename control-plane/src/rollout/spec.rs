//! What was asked for, checked: from the wire, and again from the store.

use std::time::Duration;

use rookery_proto::v1;

use crate::domain::{
    AliasName, Digest, ModelName, Selector, VersionName,
    labels::InvalidSelector,
    rollout::{GateLimits, RolloutSpec},
};

use super::{
    waves::{self, InvalidWave},
    windows::{InvalidWindow, Windows},
};

/// A gateway's time unless a roll-out says otherwise.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(2 * 3600);

/// Longest soak and longest time of a gateway.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);

/// Longest text of a selector, bytes.
const MOST_SELECTOR_BYTES: usize = 4096;

/// A specification that a planner can work with.
#[derive(Clone, Debug)]
pub struct CheckedSpec {
    /// As it is stored.
    pub spec: RolloutSpec,
    /// Which gateways.
    pub selector: Selector,
    /// When.
    pub windows: Windows,
}

/// What people ask for; the version is still to be found.
#[derive(Clone, Debug)]
pub struct Wish {
    /// Name of the model.
    pub model: ModelName,
    /// Name of the version or of an alias.
    pub version: String,
    spec: Unresolved,
    selector: Selector,
    windows: Windows,
}

/// All but the version.
#[derive(Clone, Debug)]
struct Unresolved {
    waves: Vec<crate::domain::rollout::WaveSize>,
    soak: Duration,
    max_failed_percent: f64,
    max_unavailable_percent: f64,
    windows: Vec<String>,
    manual_approval: bool,
    gateway_timeout: Duration,
    gates: GateLimits,
}

/// A stored specification that this program cannot work with.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum InvalidSpec {
    /// The selector.
    #[error(transparent)]
    Selector(#[from] InvalidSelector),
    /// A window.
    #[error(transparent)]
    Window(#[from] InvalidWindow),
    /// No waves.
    #[error("a roll-out needs a wave")]
    Waves,
}

impl CheckedSpec {
    /// Reads the texts of a stored specification.
    ///
    /// # Errors
    /// If another program wrote what this one cannot read.
    pub fn new(spec: RolloutSpec) -> Result<Self, InvalidSpec> {
        if spec.waves.is_empty() {
            return Err(InvalidSpec::Waves);
        }
        Ok(Self { selector: spec.selector.parse()?, windows: Windows::parse(&spec.windows)?, spec })
    }
}

impl Wish {
    /// The specification, once it is known which version is meant.
    pub fn resolve(self, version: VersionName, digest: Digest) -> CheckedSpec {
        let Unresolved {
            waves,
            soak,
            max_failed_percent,
            max_unavailable_percent,
            windows,
            manual_approval,
            gateway_timeout,
            gates,
        } = self.spec;
        let spec = RolloutSpec {
            model: self.model,
            version,
            digest,
            selector: self.selector.to_string(),
            waves,
            soak,
            max_failed_percent,
            max_unavailable_percent,
            windows,
            manual_approval,
            gateway_timeout,
            gates,
        };
        CheckedSpec { spec, selector: self.selector, windows: self.windows }
    }
}

/// Fields that are wrong, each with what is wrong with it.
pub type Violations = Vec<(String, String)>;

/// Checks what came over the wire.
///
/// # Errors
/// Every field that is wrong.
pub fn from_wire(raw: v1::RolloutSpec) -> Result<Wish, Violations> {
    let mut wrong = Fields::default();
    let model = wrong.take("spec.model", raw.model.parse::<ModelName>());
    let named = raw.version.parse::<VersionName>().map(drop).or_else(|error| {
        // An alias is shorter than a version, so what is no version is no alias either.
        raw.version.parse::<AliasName>().map(drop).map_err(|_| error)
    });
    wrong.take("spec.version", named);
    let selector = if raw.selector.len() > MOST_SELECTOR_BYTES {
        Err(InvalidSelector::Long)
    } else {
        raw.selector.parse::<Selector>()
    };
    let selector = wrong.take("spec.selector", selector);
    let waves = wrong
        .take("spec.waves", few(&raw.waves, waves::MOST_WAVES, InvalidWave::Many).and_then(waves::parse));
    let windows = wrong.take("spec.windows", Windows::parse(&raw.windows));
    let soak = Duration::from_secs(raw.soak_s);
    wrong.check("spec.soak_s", soak <= LONGEST, "must be at most 30 days");
    let gateway_timeout = match raw.gateway_timeout_s {
        0 => DEFAULT_TIMEOUT,
        seconds => Duration::from_secs(seconds),
    };
    wrong.check("spec.gateway_timeout_s", gateway_timeout <= LONGEST, "must be at most 30 days");
    let (failed, unavailable) = (raw.max_failed_percent, raw.max_unavailable_percent);
    wrong.check("spec.max_failed_percent", (0.0..=100.0).contains(&failed), "must be from 0 to 100");
    let sound = unavailable > 0.0 && unavailable <= 100.0;
    wrong.check("spec.max_unavailable_percent", sound, "must be above 0 and at most 100");
    let gates = gates(raw.gates.unwrap_or_default(), &mut wrong);
    match (model, selector, waves, windows) {
        (Some(model), Some(selector), Some(waves), Some(checked)) if wrong.0.is_empty() => Ok(Wish {
            model,
            version: raw.version,
            spec: Unresolved {
                waves,
                soak,
                max_failed_percent: failed,
                max_unavailable_percent: unavailable,
                windows: raw.windows,
                manual_approval: raw.manual_approval,
                gateway_timeout,
                gates,
            },
            selector,
            windows: checked,
        }),
        _ => Err(wrong.0),
    }
}

fn few<T, E>(items: &[T], most: usize, error: E) -> Result<&[T], E> {
    if items.len() > most { Err(error) } else { Ok(items) }
}

fn gates(raw: v1::Gates, wrong: &mut Fields) -> GateLimits {
    let default = GateLimits::default();
    let mut limit = |field: &str, value: Option<f64>, default: f64, most: f64| {
        let value = value.unwrap_or(default);
        let sound = (0.0..=most).contains(&value);
        wrong.check(&format!("spec.gates.{field}"), sound, &format!("must be from 0 to {most}"));
        value
    };
    GateLimits {
        min_speed_percent: limit(
            "min_speed_percent",
            raw.min_speed_percent,
            default.min_speed_percent,
            100.0,
        ),
        max_celsius: limit("max_celsius", raw.max_celsius, default.max_celsius, 150.0),
        max_extra_error_percent: limit(
            "max_extra_error_percent",
            raw.max_extra_error_percent,
            default.max_extra_error_percent,
            100.0,
        ),
        max_extra_ttft_percent: limit(
            "max_extra_ttft_percent",
            raw.max_extra_ttft_percent,
            default.max_extra_ttft_percent,
            1e6,
        ),
    }
}

#[derive(Default)]
struct Fields(Violations);

impl Fields {
    fn take<T, E: std::fmt::Display>(&mut self, field: &str, value: Result<T, E>) -> Option<T> {
        value.map_err(|error| self.0.push((field.to_owned(), error.to_string()))).ok()
    }

    fn check(&mut self, field: &str, sound: bool, rule: &str) {
        if !sound {
            self.0.push((field.to_owned(), rule.to_owned()));
        }
    }
}

/// On the wire.
pub fn to_wire(spec: &RolloutSpec) -> v1::RolloutSpec {
    v1::RolloutSpec {
        model: spec.model.to_string(),
        version: spec.version.to_string(),
        selector: spec.selector.clone(),
        waves: spec.waves.iter().copied().map(waves::text).collect(),
        soak_s: spec.soak.as_secs(),
        max_failed_percent: spec.max_failed_percent,
        max_unavailable_percent: spec.max_unavailable_percent,
        windows: spec.windows.clone(),
        manual_approval: spec.manual_approval,
        gateway_timeout_s: spec.gateway_timeout.as_secs(),
        gates: Some(v1::Gates {
            min_speed_percent: Some(spec.gates.min_speed_percent),
            max_celsius: Some(spec.gates.max_celsius),
            max_extra_error_percent: Some(spec.gates.max_extra_error_percent),
            max_extra_ttft_percent: Some(spec.gates.max_extra_ttft_percent),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire() -> v1::RolloutSpec {
        v1::RolloutSpec {
            model: "qwen".to_owned(),
            version: "3".to_owned(),
            selector: "site=berlin,board!=dev".to_owned(),
            waves: vec!["1".to_owned(), "10%".to_owned()],
            soak_s: 600,
            max_failed_percent: 2.0,
            max_unavailable_percent: 20.0,
            windows: vec!["Mon-Fri 01:00-05:00 Europe/Berlin".to_owned()],
            ..Default::default()
        }
    }

    #[test]
    fn what_is_asked_for_survives_the_way_through_the_store() {
        let wish = from_wire(wire()).unwrap();
        let digest: Digest = format!("sha256:{}", "a".repeat(64)).parse().unwrap();
        let checked = wish.resolve("3".parse().unwrap(), digest);
        assert_eq!(checked.spec.waves.len(), 3);
        assert_eq!(checked.spec.gateway_timeout, DEFAULT_TIMEOUT);
        assert_eq!(checked.spec.gates, GateLimits::default());
        let again = CheckedSpec::new(checked.spec.clone()).unwrap();
        assert_eq!((&again.spec, &again.selector), (&checked.spec, &checked.selector));
        let sent = to_wire(&checked.spec);
        assert_eq!(sent.waves, ["1", "10%", "100%"]);
        assert_eq!(
            from_wire(sent).unwrap().resolve(checked.spec.version.clone(), checked.spec.digest.clone()).spec,
            checked.spec
        );
    }

    #[test]
    fn every_wrong_field_is_named() {
        let wrong = v1::RolloutSpec {
            model: "../x".to_owned(),
            version: String::new(),
            selector: "=".to_owned(),
            waves: vec!["0".to_owned()],
            soak_s: u64::MAX,
            max_failed_percent: f64::NAN,
            max_unavailable_percent: 0.0,
            windows: vec!["never".to_owned()],
            manual_approval: false,
            gateway_timeout_s: u64::MAX,
            gates: Some(v1::Gates {
                min_speed_percent: Some(-1.0),
                max_celsius: Some(f64::INFINITY),
                ..Default::default()
            }),
        };
        let fields: Vec<_> = from_wire(wrong).unwrap_err().into_iter().map(|(field, _)| field).collect();
        assert_eq!(
            fields,
            [
                "spec.model",
                "spec.version",
                "spec.selector",
                "spec.waves",
                "spec.windows",
                "spec.soak_s",
                "spec.gateway_timeout_s",
                "spec.max_failed_percent",
                "spec.max_unavailable_percent",
                "spec.gates.min_speed_percent",
                "spec.gates.max_celsius",
            ]
        );
        let many = v1::RolloutSpec { waves: vec!["1".to_owned(); 1000], ..wire() };
        assert_eq!(from_wire(many).unwrap_err()[0].0, "spec.waves");
    }
}
