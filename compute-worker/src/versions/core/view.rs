//! What is told of the versions here.

use rookery_model::bundle::Digest;

use super::{Core, Live, Step};
use crate::versions::state::{Committed, Phase, Verdict};

/// A version on this gateway, as it is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// Name of the model.
    pub model: String,
    /// The version.
    pub digest: Digest,
    /// Where it is.
    pub phase: Phase,
    /// Why, in words.
    pub reason: String,
    /// What gates found.
    pub verdicts: Vec<Verdict>,
    /// Of the assignment that it follows.
    pub generation: u64,
}

impl Core {
    /// Every version that is assigned or here.
    pub fn views(&self) -> Vec<View> {
        let mut views = Vec::new();
        for (model, slots) in &self.state.models {
            let live = self.live.get(model);
            let of = |held: &Committed, phase, reason: &str, generation| View {
                model: model.clone(),
                digest: held.digest.clone(),
                phase,
                reason: reason.to_owned(),
                verdicts: held.verdicts.clone(),
                generation,
            };
            if let Some(committed) = &slots.committed {
                let (phase, reason) = phase_of(committed, live);
                views.push(of(committed, phase, &reason, self.state.generation));
            }
            for target in slots.target.iter().chain(&slots.gone) {
                views.push(View {
                    model: model.clone(),
                    digest: target.digest.clone(),
                    phase: target.phase,
                    reason: target.reason.clone(),
                    verdicts: target.verdicts.clone(),
                    generation: target.generation,
                });
            }
            if let Some(previous) = &slots.previous
                && !views.iter().any(|view| view.model == *model && view.digest == previous.digest)
            {
                views.push(of(previous, Phase::Staged, "served before; kept while disk allows", 0));
            }
        }
        views
    }
}

/// Where a committed version is in this life of the process.
fn phase_of(committed: &Committed, live: Option<&Live>) -> (Phase, String) {
    let Some(live) = live else { return (Phase::Activating, "the gateway was started again".to_owned()) };
    let busy = live.busy.as_ref().filter(|busy| busy.digest == committed.digest).map(|busy| busy.step);
    if busy == Some(Step::Drain) {
        let reason = live.gave_way.clone().unwrap_or_else(|| "it is not assigned any more".to_owned());
        return (Phase::Draining, reason);
    }
    if live.active.as_ref() == Some(&committed.digest) {
        return (Phase::Serving, String::new());
    }
    match &live.gave_way {
        Some(reason) => (Phase::Staged, reason.clone()),
        None => (Phase::Activating, "it is being loaded again".to_owned()),
    }
}
