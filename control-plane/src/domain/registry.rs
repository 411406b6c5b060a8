//! The gateways that are linked at this moment, and the requests in flight on each.

use std::collections::{BTreeMap, BTreeSet};

use super::{Candidate, GatewayId, GatewayState, Model, ModelLoad, choose};

/// One link of a gateway. A gateway that dials again gets a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(u64);

/// Names of models remembered after their gateways went away; beyond that, the memory of the past is not worth it.
const MOST_KNOWN_MODELS: usize = 10_000;

/// The live gateways. `C` is how to reach one: a cheap handle that the registry stores and hands out, no more.
///
/// A gateway is in here exactly while its link lives: losing it removes the gateway with everything reported about
/// it, and a newer link of the same gateway replaces the older.
#[derive(Debug)]
pub struct Registry<C> {
    gateways: BTreeMap<GatewayId, Linked<C>>,
    next_link: u64,
    known_models: BTreeSet<String>,
}

#[derive(Debug)]
struct Linked<C> {
    link: LinkId,
    connection: C,
    state: GatewayState,
    in_flight: u64,
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
}

/// A model that can be generated with now, over the accepting gateways that serve it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServedModel {
    /// The model.
    pub model: Model,
    /// How many serve it.
    pub gateways: u32,
    /// Where they compute its linear layers.
    pub backends: BTreeSet<String>,
    /// How many of them compute slower than they should.
    pub degraded_gateways: u32,
    /// The first of these by id, and why.
    pub degraded: Option<(GatewayId, String)>,
}

impl ServedModel {
    fn new(model: Model) -> Self {
        Self { model, gateways: 0, backends: BTreeSet::new(), degraded_gateways: 0, degraded: None }
    }

    /// Counts a gateway. Gateways must come in the order of their ids.
    fn add(&mut self, gateway: &GatewayId, load: &ModelLoad) {
        self.gateways += 1;
        if !load.backend.is_empty() {
            self.backends.insert(load.backend.clone());
        }
        if let Some(reason) = &load.degraded {
            self.degraded_gateways += 1;
            self.degraded.get_or_insert_with(|| (gateway.clone(), reason.clone()));
        }
    }
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
    /// The model is known, but no gateway that serves it is linked and accepting.
    #[error("no gateway that serves the model can take the request now")]
    NoneLive,
    /// Gateways that serve the model are linked and accepting, but each was tried already.
    #[error("all gateways that serve the model were tried")]
    AllTried,
}

impl<C> Default for Registry<C> {
    fn default() -> Self {
        Self { gateways: BTreeMap::new(), next_link: 0, known_models: BTreeSet::new() }
    }
}

impl<C: Clone> Registry<C> {
    /// Adds a gateway with its first report. Gives back the connection that it replaces, which is to be closed.
    pub fn link(&mut self, id: GatewayId, connection: C, state: GatewayState) -> (LinkId, Option<C>) {
        let link = LinkId(self.next_link);
        self.next_link += 1;
        self.remember(&state);
        let linked = Linked { link, connection, state, in_flight: 0 };
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

    /// Picks a gateway for `model` (empty: the only one) that is not among `tried`, and counts the request on it, so
    /// that requests which come at the same moment see each other.
    ///
    /// # Errors
    /// Tells whether waiting for a gateway could help.
    pub fn reserve(
        &mut self,
        model: &str,
        session: Option<&str>,
        tried: &[LinkId],
        random: u64,
    ) -> Result<Reservation<C>, NoRoute> {
        let model = self.resolve(model)?;
        let (old, gateways): (Vec<_>, Vec<_>) = self
            .gateways
            .iter()
            .filter(|(_, linked)| linked.state.accepting)
            .filter_map(|(id, linked)| Some((id, linked, linked.state.models.get(&model)?)))
            .partition(|(_, linked, _)| tried.contains(&linked.link));
        let none = if old.is_empty() { NoRoute::NoneLive } else { NoRoute::AllTried };
        let candidates: Vec<_> = gateways
            .iter()
            .map(|(id, linked, load)| Candidate {
                id,
                in_flight: linked.in_flight,
                reported: linked.state.generations(),
                queued_tokens: linked.state.queued_tokens(),
                free_blocks: load.free_blocks,
            })
            .collect();
        let index = choose(&candidates, session, random).ok_or(none)?;
        let (gateway, link) = (gateways[index].0.clone(), gateways[index].1.link);
        let linked = self.current(&gateway, link).ok_or(NoRoute::NoneLive)?;
        linked.in_flight += 1;
        Ok(Reservation { gateway, link, connection: linked.connection.clone() })
    }

    /// A reserved request has ended. Does nothing if the link is gone.
    pub fn release(&mut self, id: &GatewayId, link: LinkId) {
        if let Some(linked) = self.current(id, link) {
            linked.in_flight = linked.in_flight.saturating_sub(1);
        }
    }

    /// The models that can be generated with now, sorted.
    pub fn models(&self) -> Vec<ServedModel> {
        let mut models: BTreeMap<&Model, ServedModel> = BTreeMap::new();
        for (id, linked) in self.gateways.iter().filter(|(_, linked)| linked.state.accepting) {
            for load in linked.state.models.values() {
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

    fn resolve(&self, model: &str) -> Result<String, NoRoute> {
        if model.is_empty() {
            let available = self.available();
            return match <[String; 1]>::try_from(available) {
                Ok([only]) => Ok(only),
                // Before the first gateway, nobody can say which names there will be.
                Err(available) if available.is_empty() => Err(NoRoute::NoneLive),
                Err(available) => Err(NoRoute::Ambiguous { available }),
            };
        }
        // What is served now counts first: the memory of names is limited.
        let served = || self.gateways.values().any(|linked| linked.state.models.contains_key(model));
        if self.known_models.is_empty() || self.known_models.contains(model) || served() {
            return Ok(model.to_owned());
        }
        Err(NoRoute::UnknownModel { available: self.available() })
    }

    fn available(&self) -> Vec<String> {
        let mut names: Vec<_> = self.models().into_iter().map(|served| served.model.name).collect();
        names.dedup();
        names
    }

    fn remember(&mut self, state: &GatewayState) {
        for name in state.models.keys() {
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
mod tests;
