//! Where a request could go: versions by name, and the gateways that serve them.

use std::collections::BTreeSet;

use super::{Holder, LinkId, NoRoute, Query, Registry, Target, Verdict};
use crate::domain::{
    Candidate, Digest, GatewayId, Labels, Model, ModelLoad, Traits, routing::prefix::Cached,
};

/// A version on a gateway that a request could go to.
pub(super) struct Choice<'a> {
    pub(super) candidate: Candidate<'a>,
    pub(super) link: LinkId,
    pub(super) load: &'a ModelLoad,
    pub(super) verdict: Verdict,
}

impl<C: Clone> Registry<C> {
    /// Every version on every gateway that the request could go to, tried or not.
    pub(super) fn options<'a>(
        &'a self,
        query: &Query<'_>,
        target: &Target,
        cached: &Cached,
    ) -> Vec<Choice<'a>> {
        let mut options = Vec::new();
        for (id, linked) in self.gateways.iter().filter(|(_, linked)| linked.state.accepting) {
            let traits = self.traits.get(id);
            if traits.is_some_and(|traits| traits.drained) || !has(id, traits, query.labels) {
                continue;
            }
            for load in linked.state.models().iter().filter(|load| Self::meets(target, load)) {
                let holder = || Holder::new(id, &load.model.digest);
                let candidate = Candidate {
                    id,
                    digest: &load.model.digest,
                    in_flight: linked.in_flight,
                    reported: linked.state.generations(),
                    queued_tokens: linked.state.queued_tokens().max(linked.unread),
                    free_blocks: load.free_blocks,
                    cached_tokens: if cached.is_empty() { 0 } else { cached.of(holder()) },
                    recent_tokens: linked.recent(query.now) as u64,
                    slow: load.degraded.is_some() || traits.is_some_and(|traits| traits.hot),
                };
                let verdict = self.breakers.verdict(id, query.now);
                options.push(Choice { candidate, link: linked.link, load, verdict });
            }
        }
        options
    }

    fn meets(target: &Target, load: &ModelLoad) -> bool {
        let model = &load.model;
        match target {
            // Resolved already: only one name is served.
            Target::Only => true,
            Target::Named(name, digests) => model.name == *name || has_digest(digests, model),
            Target::Preferred(_, digests) => has_digest(digests, model),
            Target::Exactly(digest) => model.digest == *digest,
        }
    }

    /// What to call a version when asking the gateway for it.
    pub(super) fn name_for(&self, gateway: &GatewayId, model: &Model, target: &Target) -> String {
        let same = |load: &&ModelLoad| load.model.name == model.name;
        let several = self
            .gateways
            .get(gateway)
            .is_some_and(|linked| linked.state.models().iter().filter(same).count() > 1);
        let exactly = match target {
            Target::Exactly(_) | Target::Preferred(..) => true,
            Target::Only | Target::Named(..) => false,
        };
        let digest = model.digest.parse::<Digest>().is_ok();
        if digest && (exactly || several || self.names.knows(&model.digest)) {
            model.digest.clone()
        } else {
            model.name.clone()
        }
    }

    /// Which versions the name in a request stands for.
    pub(super) fn resolve(&self, text: &str) -> Result<Target, NoRoute> {
        let served = |text: &str| self.gateways.values().any(|linked| linked.state.serves(text));
        let target = match self.names.resolve(text) {
            // What a gateway calls its own model counts first.
            Err(error) if !served(text) => {
                return Err(match self.known_models.is_empty() && !self.names.has(&error.model) {
                    true => NoRoute::NoneLive,
                    false if !self.names.has(&error.model) && !served(&error.model) => {
                        NoRoute::UnknownModel { available: self.available() }
                    }
                    false => error.into(),
                });
            }
            Err(_) => self.names.whatever(text),
            Ok(target) => target,
        };
        let known = match &target {
            Target::Only => return self.only(),
            Target::Named(name, _) | Target::Preferred(name, _) => {
                self.known_models.contains(name) || self.names.has(name) || served(name)
            }
            Target::Exactly(digest) => {
                let reported = |load: &ModelLoad| load.model.digest == *digest;
                self.names.knows(digest)
                    || self.gateways.values().any(|linked| linked.state.models().iter().any(reported))
            }
        };
        // Before the first gateway, nobody can say which names there will be.
        if known || self.known_models.is_empty() {
            return Ok(target);
        }
        Err(NoRoute::UnknownModel { available: self.available() })
    }

    fn only(&self) -> Result<Target, NoRoute> {
        match <[String; 1]>::try_from(self.available()) {
            Ok([only]) => Ok(self.names.resolve(&only).unwrap_or_else(|_| self.names.whatever(&only))),
            Err(available) if available.is_empty() => Err(NoRoute::NoneLive),
            Err(available) => Err(NoRoute::Ambiguous { available }),
        }
    }
}

fn has_digest(digests: &BTreeSet<Digest>, model: &Model) -> bool {
    digests.iter().any(|digest| digest.as_str() == model.digest)
}

/// Whether a gateway has all these labels. Every gateway has its own id.
fn has(id: &GatewayId, traits: Option<&Traits>, wanted: &Labels) -> bool {
    wanted.iter().all(|(name, value)| {
        let own = traits.and_then(|traits| traits.labels.get(name));
        own.map(String::as_str).or((name == "id").then(|| id.as_str())) == Some(value)
    })
}
