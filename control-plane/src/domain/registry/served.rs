//! The models that can be generated with, over all gateways.

use std::collections::BTreeSet;

use crate::domain::{GatewayId, Model, ModelLoad};

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
    pub(super) fn new(model: Model) -> Self {
        Self { model, gateways: 0, backends: BTreeSet::new(), degraded_gateways: 0, degraded: None }
    }

    /// Counts a gateway. Gateways must come in the order of their ids.
    pub(super) fn add(&mut self, gateway: &GatewayId, load: &ModelLoad) {
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
