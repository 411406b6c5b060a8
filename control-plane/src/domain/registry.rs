//! The gateways that are linked at this moment, and the requests in flight on each.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

mod options;
mod served;

use options::Choice;
pub use served::ServedModel;

use super::{
    GatewayId, GatewayState, Labels, Model, Traits, Wish, choose,
    routing::{
        breaker::{Breakers, Verdict},
        names::{NameTable, Target, UnknownVersion},
        prefix::{Holder, PrefixIndex, Prompt},
    },
};

/// One link of a gateway. A gateway that dials again gets a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(u64);

/// Names of models remembered after their gateways went away; beyond that, the memory of the past is not worth it.
const MOST_KNOWN_MODELS: usize = 10_000;

/// In this time, half of what a gateway was given to read is no longer recent.
const RECENT_HALF_LIFE: Duration = Duration::from_secs(10);

/// The live gateways. `C` is how to reach one: a cheap handle that the registry stores and hands out, no more.
///
/// A gateway is in here exactly while its link lives: losing it removes the gateway with everything reported about
/// it, and a newer link of the same gateway replaces the older. What people say of it ([`Traits`]), and that it fails
/// again and again, outlives its links.
#[derive(Debug)]
pub struct Registry<C> {
    gateways: BTreeMap<GatewayId, Linked<C>>,
    next_link: u64,
    known_models: BTreeSet<String>,
    names: NameTable,
    traits: BTreeMap<GatewayId, Traits>,
    breakers: Breakers,
    prefixes: PrefixIndex,
}

#[derive(Debug)]
struct Linked<C> {
    link: LinkId,
    connection: C,
    state: GatewayState,
    in_flight: u64,
    /// Tokens of prompts that were sent there and of which no answer has begun.
    unread: u64,
    /// Tokens of prompts that it was given lately, and when that was true.
    recent: Option<(f64, Instant)>,
}

impl<C> Linked<C> {
    fn recent(&self, now: Instant) -> f64 {
        self.recent.map_or(0.0, |(tokens, at)| {
            let half_lives = now.saturating_duration_since(at).as_secs_f64() / RECENT_HALF_LIFE.as_secs_f64();
            tokens * (-half_lives).exp2()
        })
    }
}

/// What a request asks of routing.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    /// As the request names it; see [`NameTable::resolve`].
    pub model: &'a str,
    /// Only this version, whatever the name stands for by now: what began the answer.
    pub digest: Option<&'a str>,
    /// Labels that the gateway must have.
    pub labels: &'a Labels,
    /// Session that the request belongs to.
    pub session: Option<&'a str>,
    /// What is to be read.
    pub prompt: &'a Prompt,
    /// Links that the request was sent to before.
    pub tried: &'a [LinkId],
    /// Decides between equals.
    pub random: u64,
    /// This moment.
    pub now: Instant,
}

/// A request's place on a gateway, to be given back by [`Registry::release`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reservation<C> {
    /// The gateway.
    pub gateway: GatewayId,
    /// Its link.
    pub link: LinkId,
    /// How to reach it.
    pub connection: C,
    /// The version, as the gateway reported it.
    pub digest: String,
    /// What to call the version there: its digest, where the name alone could mean another one.
    pub model: String,
    /// Tokens that count as waiting there until [`Registry::begun`].
    unread: u64,
    /// The gateway failed before, and this request is to show whether it still does.
    tries: bool,
}

/// There is no gateway to send a request to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoRoute {
    /// No gateway has ever served a model of that name here.
    #[error("no gateway serves a model of that name")]
    UnknownModel {
        /// Names of the models that are served now, sorted.
        available: Vec<String>,
    },
    /// The name was left out, and there is not exactly one model.
    #[error("the model must be named, because there is not exactly one")]
    Ambiguous {
        /// Names of the models that are served now, sorted.
        available: Vec<String>,
    },
    /// The model has no such version or alias.
    #[error(transparent)]
    UnknownVersion(#[from] UnknownVersion),
    /// The model is known, but no gateway that serves it is linked and accepting.
    #[error("no gateway that serves the model can take the request now")]
    NoneLive,
    /// Gateways that serve the model are linked and accepting, but each was tried already.
    #[error("all gateways that serve the model were tried")]
    AllTried,
}

impl<C> Default for Registry<C> {
    fn default() -> Self {
        Self {
            gateways: BTreeMap::new(),
            next_link: 0,
            known_models: BTreeSet::new(),
            names: NameTable::default(),
            traits: BTreeMap::new(),
            breakers: Breakers::default(),
            prefixes: PrefixIndex::default(),
        }
    }
}

impl<C: Clone> Registry<C> {
    /// From now on requests are resolved by these names. True if they are others than before.
    pub fn set_names(&mut self, names: NameTable) -> bool {
        let changed = self.names != names;
        self.names = names;
        changed
    }

    /// What is said of all gateways, linked or not. True if it is not what was said before.
    pub fn set_traits(&mut self, traits: BTreeMap<GatewayId, Traits>) -> bool {
        let changed = self.traits != traits;
        self.traits = traits;
        changed
    }

    /// Adds a gateway with its first report. Gives back the connection that it replaces, which is to be closed.
    pub fn link(&mut self, id: GatewayId, connection: C, state: GatewayState) -> (LinkId, Option<C>) {
        let link = LinkId(self.next_link);
        self.next_link += 1;
        self.remember(&state);
        let linked = Linked { link, connection, state, in_flight: 0, unread: 0, recent: None };
        let replaced = self.gateways.insert(id, linked);
        (link, replaced.map(|old| old.connection))
    }

    /// Takes in a later report. False if `link` is not the gateway's link any more.
    pub fn update(&mut self, id: &GatewayId, link: LinkId, state: GatewayState) -> bool {
        self.remember(&state);
        match self.current(id, link) {
            Some(linked) => {
                linked.state = state;
                true
            }
            None => false,
        }
    }

    /// Removes a gateway. Does nothing if `link` was replaced by a newer one.
    pub fn unlink(&mut self, id: &GatewayId, link: LinkId) -> bool {
        self.current(id, link).is_some() && self.gateways.remove(id).is_some()
    }

    /// Picks a gateway and counts the request and its prompt on it, so that requests which come at the same moment see
    /// each other.
    ///
    /// # Errors
    /// Tells whether waiting for a gateway could help.
    pub fn reserve(&mut self, query: &Query<'_>) -> Result<Reservation<C>, NoRoute> {
        let target = match query.digest {
            Some(digest) => Target::Exactly(digest.to_owned()),
            None => self.resolve(query.model)?,
        };
        let cached = self.prefixes.cached(query.prompt);
        let mut options = self.options(query, &target, &cached);
        if let (Target::Preferred(name, _), true) = (&target, options.is_empty()) {
            options = self.options(query, &self.names.whatever(name), &cached);
        }
        let none = if options.is_empty() { NoRoute::NoneLive } else { NoRoute::AllTried };
        options.retain(|option| !query.tried.contains(&option.link));
        if options.is_empty() {
            return Err(none);
        }
        // A gateway that fails again and again is better than none, but for one request at a time.
        let healthy = |option: &Choice<'_>| matches!(option.verdict, Verdict::Closed | Verdict::HalfOpen);
        if options.iter().any(healthy) {
            options.retain(healthy);
        } else {
            options.retain(|option| option.verdict != Verdict::Trying);
        }
        let candidates: Vec<_> = options.iter().map(|option| option.candidate).collect();
        let wish = Wish { session: query.session, prompt_tokens: query.prompt.tokens, random: query.random };
        let choice = &options[choose(&candidates, &wish).ok_or(NoRoute::NoneLive)?];
        let unread = query.prompt.tokens.saturating_sub(choice.candidate.cached_tokens);
        let (gateway, link) = (choice.candidate.id.clone(), choice.link);
        let (digest, tries) = (choice.load.model.digest.clone(), choice.verdict != Verdict::Closed);
        let model = self.name_for(&gateway, &choice.load.model, &target);
        if tries {
            self.breakers.trying(&gateway);
        }
        self.prefixes.note(query.prompt, Holder::new(&gateway, &digest));
        let linked = self.current(&gateway, link).ok_or(NoRoute::NoneLive)?;
        linked.in_flight += 1;
        linked.unread = linked.unread.saturating_add(unread);
        linked.recent = Some((linked.recent(query.now) + unread as f64, query.now));
        Ok(Reservation { connection: linked.connection.clone(), gateway, link, digest, model, unread, tries })
    }

    /// The gateway has begun to answer a reserved request. True if others may have waited for that.
    pub fn begun(&mut self, reservation: &mut Reservation<C>) -> bool {
        self.read(reservation);
        self.breakers.succeeded(&reservation.gateway);
        reservation.tries
    }

    /// The gateway has failed a reserved request: not the client, and not for being full.
    pub fn failed(&mut self, reservation: &Reservation<C>, now: Instant) {
        self.breakers.failed(&reservation.gateway, now);
    }

    /// A reserved request has ended. True if others may have waited for that.
    pub fn release(&mut self, reservation: &mut Reservation<C>) -> bool {
        self.read(reservation);
        let tried = std::mem::take(&mut reservation.tries);
        if tried {
            self.breakers.tried(&reservation.gateway);
        }
        // The link may be gone.
        if let Some(linked) = self.current(&reservation.gateway, reservation.link) {
            linked.in_flight = linked.in_flight.saturating_sub(1);
        }
        tried
    }

    fn read(&mut self, reservation: &mut Reservation<C>) {
        let unread = std::mem::take(&mut reservation.unread);
        if let Some(linked) = self.current(&reservation.gateway, reservation.link) {
            linked.unread = linked.unread.saturating_sub(unread);
        }
    }

    /// The models that can be generated with now, sorted.
    pub fn models(&self) -> Vec<ServedModel> {
        let mut models: BTreeMap<&Model, ServedModel> = BTreeMap::new();
        for (id, linked) in self.gateways.iter().filter(|(_, linked)| linked.state.accepting) {
            for load in linked.state.models() {
                let served =
                    models.entry(&load.model).or_insert_with(|| ServedModel::new(load.model.clone()));
                served.add(id, load);
            }
        }
        models.into_values().collect()
    }

    /// The linked gateways with their requests in flight and last report, by id.
    pub fn gateways(&self) -> impl Iterator<Item = (&GatewayId, u64, &GatewayState)> {
        self.gateways.iter().map(|(id, linked)| (id, linked.in_flight, &linked.state))
    }

    fn available(&self) -> Vec<String> {
        let mut names: Vec<_> = self.models().into_iter().map(|served| served.model.name).collect();
        names.dedup();
        names
    }

    fn remember(&mut self, state: &GatewayState) {
        for name in state.models().iter().map(|load| &load.model.name) {
            if self.known_models.len() < MOST_KNOWN_MODELS && !self.known_models.contains(name) {
                self.known_models.insert(name.clone());
            }
        }
    }

    fn current(&mut self, id: &GatewayId, link: LinkId) -> Option<&mut Linked<C>> {
        self.gateways.get_mut(id).filter(|linked| linked.link == link)
    }
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
