//! A gateway as the planner sees it, and where it stands in a roll-out.

use std::time::Duration;

use crate::domain::{
    Digest, GatewayId, Millis,
    rollout::{RolloutId, Target},
};

/// How far a gateway is with a version, by its own report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Progress {
    /// On its way: it is fetched, checked, or lies there.
    Coming,
    /// It is being run for the first time: what happens to the gateway now may be its doing.
    Trying,
    /// It serves and is committed.
    Serving,
    /// It serves its last streams.
    Leaving,
    /// It is not served, and will not be.
    Failed,
}

/// A version of the roll-out's model on a gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reported {
    /// The version.
    pub digest: Digest,
    /// How far it is.
    pub progress: Progress,
    /// The same in the gateway's word.
    pub phase: &'static str,
    /// Why, in words, with the verdicts of gates that it failed.
    pub reason: String,
    /// Generation of the assignment that it follows.
    pub generation: u64,
}

/// What the store wants of a gateway for the roll-out's model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assigned {
    /// The version.
    pub digest: Digest,
    /// The gateway's generation since when this is so.
    pub generation: u64,
}

/// A gateway, as far as a roll-out of one model is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The gateway.
    pub id: GatewayId,
    /// Whether the roll-out's selector matches it.
    pub selected: bool,
    /// Another roll-out that has it: one that is not over and owns it, or a later one that wants something else of it.
    pub claimed_by: Option<RolloutId>,
    /// Whether it takes new versions: neither cordoned nor drained.
    pub open: bool,
    /// Whether it is linked.
    pub online: bool,
    /// Since when it is linked.
    pub online_since: Millis,
    /// When it was last there, or may have been for all that is known.
    pub seen: Millis,
    /// What it is to serve.
    pub assigned: Option<Assigned>,
    /// What it reports, now or at last.
    pub versions: Vec<Reported>,
}

/// Why a gateway that a wave has reached says nothing about the version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Away {
    /// It is not linked.
    Offline,
    /// A person has cordoned or drained it.
    Closed,
    /// Its link was interrupted so often that its time ran out.
    Interrupted,
    /// It joined anew and holds nothing of the roll-out.
    Lost,
}

/// What gateways are granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// From the assignment to serving.
    pub timeout: Duration,
    /// A gateway that has been away for less will be back in a moment.
    pub grace: Duration,
}

/// Where a gateway stands that a roll-out has reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It serves what the plan wants.
    There,
    /// It is on the way.
    Switching,
    /// It refused, or did not get there in time.
    Failed(String),
    /// It neither counts nor holds up anything.
    Away(Away),
}

impl Member {
    /// Whether a plan may change what it serves: it is there to hear it, and nobody else has it.
    pub fn reachable(&self) -> bool {
        self.online && self.open && self.claimed_by.is_none()
    }

    /// The version of the model that it serves.
    pub fn serves(&self) -> Option<&Digest> {
        let serving = |version: &&Reported| version.progress == Progress::Serving;
        // What is wanted comes first: while one version is drained the other may serve beside it.
        let wanted = self.assigned.as_ref().map(|assigned| &assigned.digest);
        let found = self.versions.iter().filter(serving).find(|version| Some(&version.digest) == wanted);
        found.or_else(|| self.versions.iter().find(serving)).map(|version| &version.digest)
    }

    /// Whether it has only just gone.
    pub fn returning(&self, grace: Duration, now: Millis) -> bool {
        !self.online && now.since(self.seen) < grace
    }

    /// Whether it serves as it should: nothing of the model was wanted of it, or it serves some version.
    pub fn healthy(&self) -> bool {
        self.assigned.is_none() || self.serves().is_some()
    }

    /// Whether some version is about to serve.
    pub fn recovers(&self) -> bool {
        self.versions.iter().any(|version| self.engaged(&version.digest))
    }

    /// What it goes back to if `digest` is taken back from it.
    pub fn before(&self, digest: &Digest) -> Option<Digest> {
        let assigned = self.assigned.as_ref().map(|assigned| &assigned.digest);
        self.serves().or(assigned).filter(|before| *before != digest).cloned()
    }

    /// Whether the store wants `digest` of it.
    pub fn wants(&self, digest: Option<&Digest>) -> bool {
        self.assigned.as_ref().map(|assigned| &assigned.digest) == digest
    }

    fn report(&self, digest: &Digest) -> Option<&Reported> {
        self.versions.iter().find(|version| version.digest == *digest)
    }

    /// Whether it runs or is about to run `digest`. One that it only keeps on disk, for going back, follows no assignment.
    fn engaged(&self, digest: &Digest) -> bool {
        let reported = self.report(digest).filter(|version| version.generation > 0);
        reported.is_some_and(|version| match version.progress {
            Progress::Coming | Progress::Trying | Progress::Serving => true,
            Progress::Leaving | Progress::Failed => false,
        })
    }

    /// Where it stands with regard to `target` of a roll-out of `version`.
    pub fn standing(&self, target: &Target, version: &Digest, patience: Patience, now: Millis) -> Standing {
        let Patience { timeout, grace } = patience;
        let back = target.digest.as_ref() != Some(version);
        let there = match &target.digest {
            Some(wanted) => self.report(wanted).is_some_and(|reported| {
                reported.progress == Progress::Serving && !(back && self.engaged(version))
            }),
            None => !self.engaged(version),
        };
        if !self.wants(target.digest.as_ref()) {
            return Standing::Away(Away::Lost);
        }
        if there {
            return Standing::There;
        }
        if !self.open {
            return Standing::Away(Away::Closed);
        }
        let reported = target.digest.as_ref().and_then(|wanted| self.report(wanted));
        let generation = self.assigned.as_ref().map_or(0, |assigned| assigned.generation);
        // What it said of an older assignment of the same version says nothing of this one.
        let reported = reported.filter(|reported| reported.generation >= generation);
        if let Some(reported) = reported.filter(|reported| reported.progress == Progress::Failed) {
            return Standing::Failed(reported.reason.clone());
        }
        let trying = reported.is_some_and(|reported| reported.progress == Progress::Trying);
        let late = now.since(target.since) >= timeout;
        if !self.online {
            return match (trying, late) {
                (true, true) => Standing::Failed("went away while it tried the version".to_owned()),
                (true, false) => Standing::Switching,
                (false, false) if self.returning(grace, now) => Standing::Switching,
                (false, _) => Standing::Away(Away::Offline),
            };
        }
        let had_time = now.since(target.since.max(self.online_since)) >= timeout;
        match (had_time, late) {
            (true, _) => Standing::Failed(format!("is not there after {}", words(timeout))),
            (false, true) => Standing::Away(Away::Interrupted),
            (false, false) => Standing::Switching,
        }
    }
}

/// A duration as people read it, in whole seconds.
pub(super) fn words(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds}s"),
        (0, minutes, 0) => format!("{minutes}m"),
        (0, minutes, seconds) => format!("{minutes}m {seconds}s"),
        (hours, 0, _) => format!("{hours}h"),
        (hours, minutes, _) => format!("{hours}h {minutes}m"),
    }
}

#[cfg(test)]
mod tests;
