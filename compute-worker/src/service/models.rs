//! The models that this worker serves, by name.

use std::collections::BTreeMap;

use rookery_proto::{
    status::{self, Reason},
    v1,
};
use tonic::Status;

use crate::engine::{EngineHandle, Load, ModelInfo};

/// One engine for each name.
#[derive(Clone)]
pub(crate) struct Models(BTreeMap<String, EngineHandle>);

impl Models {
    /// Models by the names in their bundles.
    ///
    /// # Errors
    /// Gives back a name that two engines have.
    pub(crate) fn new(engines: Vec<EngineHandle>) -> Result<Self, String> {
        let mut models = BTreeMap::new();
        for engine in engines {
            let name = engine.info().name.clone();
            if models.insert(name.clone(), engine).is_some() {
                return Err(name);
            }
        }
        Ok(Self(models))
    }

    /// The engine of the named model, or the only one if `name` is empty.
    pub(crate) fn find(&self, name: &str) -> Result<&EngineHandle, Status> {
        if name.is_empty() {
            let mut all = self.0.values();
            return match (all.next(), all.next()) {
                (Some(only), None) => Ok(only),
                _ => Err(status::invalid_field("model", &format!("must be set, to one of {}", self.names()))),
            };
        }
        self.0.get(name).ok_or_else(|| {
            let message = format!("model {name:?} is not served here; there is {}", self.names());
            status::refuse_with(Reason::ModelNotFound, message, &[("available", self.names())], None)
        })
    }

    /// The models as clients see them, sorted by name. Those whose engine has failed are left out.
    pub(crate) fn list(&self) -> Vec<v1::Model> {
        let loads = self.0.values().map(|engine| (engine.info(), engine.load()));
        loads.filter(|(_, load)| !load.failed).map(|(info, load)| describe_state(info, load)).collect()
    }

    /// The models and their load, as the control plane sees them. Those whose engine has failed are left out.
    pub(crate) fn loads(&self) -> Vec<v1::ModelLoad> {
        let loads = self.0.values().map(|engine| (engine.info(), engine.load()));
        loads.filter(|(_, load)| !load.failed).map(|(info, load)| describe_load(info, load)).collect()
    }

    /// Every engine.
    pub(crate) fn engines(&self) -> impl Iterator<Item = &EngineHandle> {
        self.0.values()
    }

    fn names(&self) -> String {
        status::list(&self.0.keys().cloned().collect::<Vec<_>>())
    }
}

fn describe(info: &ModelInfo) -> v1::Model {
    v1::Model {
        name: info.name.clone(),
        digest: info.digest.clone(),
        architecture: info.architecture.clone(),
        recipe: info.recipe.clone(),
        parameters: info.parameters,
        context_tokens: saturate(info.context_tokens),
        vocabulary: saturate(info.vocabulary),
        gateways: 1,
        ..v1::Model::default()
    }
}

/// The model with where and how well it is computed.
fn describe_state(info: &ModelInfo, load: Load) -> v1::Model {
    v1::Model {
        backends: vec![info.backend.clone()],
        degraded_gateways: load.degraded.is_some().into(),
        degraded: reason(load),
        ..describe(info)
    }
}

fn describe_load(info: &ModelInfo, load: Load) -> v1::ModelLoad {
    v1::ModelLoad {
        model: Some(describe(info)),
        running: load.running,
        queued: load.queued,
        queued_tokens: load.queued_tokens,
        free_blocks: load.free_blocks,
        total_blocks: load.total_blocks,
        backend: info.backend.clone(),
        degraded: reason(load),
    }
}

/// Why it computes slower than it should, in words; empty if it does not.
fn reason(load: Load) -> String {
    load.degraded.map(|kind| format!("NPU: {kind}")).unwrap_or_default()
}

fn saturate(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
