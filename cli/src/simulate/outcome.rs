//! Where gateways are in the end, by what was wrong with them, as the control plane knows it.

use std::collections::BTreeSet;
use std::time::Duration;

use rookery_proto::v1::{Gateway, Phase, RolloutState};
use serde::Serialize;

use super::faults::Fault;
use super::rollout::Versions;
use super::service::clock_error;

/// A clock that is off by more than this is wrong; a report of a link that is older than this may only seem so.
const WRONG: Duration = Duration::from_secs(1800);

/// Gateways with one fault, or with none, or all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Row {
    /// Name of the fault, "none" or "all".
    pub(super) fault: &'static str,
    /// How many.
    pub(super) gateways: usize,
    /// They serve the new version.
    pub(super) serve_new: usize,
    /// They serve the one before.
    pub(super) serve_old: usize,
    /// They serve neither.
    pub(super) serve_nothing: usize,
    /// They refused the new version: a gate did not let it pass.
    pub(super) refused: usize,
    /// They took it and took it back.
    pub(super) taken_back: usize,
    /// Not linked at this moment.
    pub(super) away: usize,
}

/// All of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Outcome {
    /// One for each fault that some gateway has, one for gateways without any, and one for all.
    pub(super) rows: Vec<Row>,
    /// Gateways whose clock the control plane sees to be wrong.
    pub(super) wrong_clocks: usize,
}

impl Outcome {
    /// Of `gateways`, of which some have `refused` the new version at some time, and whose faults `faults` tells.
    pub(super) fn new(
        gateways: &[Gateway],
        versions: &Versions,
        refused: &BTreeSet<String>,
        faults: impl Fn(&Gateway) -> Vec<Fault>,
    ) -> Self {
        let known: Vec<_> = gateways.iter().map(|gateway| (gateway, faults(gateway))).collect();
        let row = |name, belongs: &dyn Fn(&[Fault]) -> bool| {
            let mut row = Row { fault: name, ..Row::default() };
            let those = known.iter().filter(|(_, faults)| belongs(faults));
            those.for_each(|(gateway, _)| row.count(gateway, versions, refused));
            row
        };
        let mut rows: Vec<_> = Fault::ALL
            .into_iter()
            .map(|fault| row(fault.name(), &|faults: &[Fault]| faults.contains(&fault)))
            .collect();
        rows.push(row("none", &|faults: &[Fault]| faults.is_empty()));
        rows.retain(|row| row.gateways > 0);
        rows.push(row("all", &|_| true));
        let wrong = |gateway: &&Gateway| {
            gateway.facts.as_ref().is_some_and(|facts| clock_error(facts.clock_us) > WRONG)
        };
        Self { rows, wrong_clocks: gateways.iter().filter(wrong).count() }
    }
}

impl Row {
    fn count(&mut self, gateway: &Gateway, versions: &Versions, refused: &BTreeSet<String>) {
        let new = versions.phase(gateway, &versions.new);
        self.gateways += 1;
        self.away += usize::from(!gateway.online);
        self.refused += usize::from(new == Some(Phase::Failed) || refused.contains(&gateway.id));
        self.taken_back += usize::from(new == Some(Phase::RolledBack));
        *if new == Some(Phase::Serving) {
            &mut self.serve_new
        } else if versions.phase(gateway, &versions.factory) == Some(Phase::Serving) {
            &mut self.serve_old
        } else {
            &mut self.serve_nothing
        } += 1;
    }
}

impl Versions {
    /// Where a version is on a gateway.
    fn phase(&self, gateway: &Gateway, digest: &str) -> Option<Phase> {
        gateway.versions.iter().find(|version| version.digest == digest).map(|version| version.phase())
    }

    /// Whether a gateway is where it belongs after a roll-out of the new version that ended in `state`.
    pub(super) fn is_settled(&self, gateway: &Gateway, state: RolloutState) -> bool {
        let (new, old) = (self.phase(gateway, &self.new), self.phase(gateway, &self.factory));
        match state {
            RolloutState::Done => match new {
                Some(Phase::Serving) => old != Some(Phase::Draining),
                Some(Phase::Failed) => old == Some(Phase::Serving),
                Some(
                    Phase::Unspecified
                    | Phase::Assigned
                    | Phase::Downloading
                    | Phase::Verifying
                    | Phase::Staged
                    | Phase::Probing
                    | Phase::Activating
                    | Phase::RolledBack
                    | Phase::Draining,
                )
                | None => false,
            },
            RolloutState::RolledBack => {
                old == Some(Phase::Serving)
                    && matches!(new, None | Some(Phase::Failed | Phase::RolledBack | Phase::Staged))
            }
            RolloutState::Unspecified
            | RolloutState::Running
            | RolloutState::Soaking
            | RolloutState::AwaitingApproval
            | RolloutState::AwaitingWindow
            | RolloutState::Paused
            | RolloutState::RollingBack
            | RolloutState::Aborted => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use rookery_proto::v1::VersionStatus;

    use super::*;

    fn gateway(id: &str, phases: &[(&str, Phase)]) -> Gateway {
        let version = |(digest, phase): &(&str, Phase)| VersionStatus {
            digest: (*digest).to_owned(),
            phase: (*phase).into(),
            ..VersionStatus::default()
        };
        let versions = phases.iter().map(version).collect();
        Gateway { id: id.to_owned(), online: true, versions, ..Gateway::default() }
    }

    #[test]
    fn gateways_are_counted_by_what_they_serve_and_what_is_wrong_with_them() {
        let versions = Versions { factory: "old".to_owned(), new: "new".to_owned() };
        let gateways = [
            gateway("good", &[("new", Phase::Serving), ("old", Phase::Staged)]),
            gateway("bad", &[("new", Phase::Failed), ("old", Phase::Serving)]),
            gateway("back", &[("new", Phase::RolledBack), ("old", Phase::Serving)]),
            gateway("lost", &[]),
        ];
        let faults = |gateway: &Gateway| if gateway.id == "bad" { vec![Fault::BadProbe] } else { Vec::new() };
        let refused = ["lost".to_owned()].into();
        let Outcome { rows, wrong_clocks } = Outcome::new(&gateways, &versions, &refused, faults);
        assert_eq!(wrong_clocks, 0);
        let [bad, none, all] = rows.as_slice() else { panic!("{rows:?}") };
        assert_eq!((bad.fault, bad.gateways, bad.serve_old, bad.refused), ("bad-probe", 1, 1, 1));
        assert_eq!((none.fault, none.gateways, none.serve_new, none.serve_nothing), ("none", 3, 1, 1));
        assert_eq!((all.gateways, all.refused, all.taken_back, all.serve_old), (4, 2, 1, 2));
        let settled = |state| gateways.each_ref().map(|gateway| versions.is_settled(gateway, state));
        assert_eq!(settled(RolloutState::Done), [true, true, false, false]);
        assert_eq!(settled(RolloutState::RolledBack), [false, true, true, false]);
    }
}
