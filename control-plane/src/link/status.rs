//! What gateways report, checked.

use rookery_proto::v1;

use crate::domain::{GatewayId, GatewayState, InvalidGatewayId, Model, ModelLoad};

/// Models that one gateway may serve.
const MOST_MODELS: usize = 256;

/// Bytes of a name or digest.
const MOST_BYTES: usize = 256;

/// A gateway's status cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InvalidStatus {
    /// The id has another form.
    #[error(transparent)]
    Id(#[from] InvalidGatewayId),
    /// More models than a gateway can serve.
    #[error("{0} models are more than {MOST_MODELS}")]
    TooManyModels(usize),
    /// An entry without a model, or with a name or digest that is empty or too long.
    #[error("entry {0} has no usable model")]
    Model(usize),
    /// Two entries of the same name and digest.
    #[error("model {0:?} is listed twice")]
    Twice(String),
}

pub(super) fn from_wire(status: &v1::GatewayStatus) -> Result<(GatewayId, GatewayState), InvalidStatus> {
    let id = status.gateway_id.parse()?;
    if status.models.len() > MOST_MODELS {
        return Err(InvalidStatus::TooManyModels(status.models.len()));
    }
    let mut state = GatewayState::new(status.accepting);
    for (index, load) in status.models.iter().enumerate() {
        let model = load.model.as_ref().filter(is_usable).ok_or(InvalidStatus::Model(index))?;
        let load = ModelLoad {
            model: Model {
                name: model.name.clone(),
                digest: model.digest.clone(),
                architecture: model.architecture.clone(),
                recipe: model.recipe.clone(),
                parameters: model.parameters,
                context_tokens: model.context_tokens,
                vocabulary: model.vocabulary,
            },
            running: load.running,
            queued: load.queued,
            queued_tokens: load.queued_tokens,
            free_blocks: load.free_blocks,
            backend: words(&load.backend).unwrap_or_default(),
            degraded: words(&load.degraded),
        };
        if !state.add(load) {
            return Err(InvalidStatus::Twice(model.name.clone()));
        }
    }
    Ok((id, state))
}

/// What a gateway says about itself, fit for a log: a hostile one chooses this text.
fn words(text: &str) -> Option<String> {
    let plain = |letter: char| if letter.is_control() { ' ' } else { letter };
    (!text.is_empty()).then(|| text.chars().take(MOST_BYTES).map(plain).collect())
}

fn is_usable(model: &&v1::Model) -> bool {
    let short = |text: &str| text.len() <= MOST_BYTES;
    let named = (1..=MOST_BYTES).contains(&model.name.len());
    named && short(&model.digest) && short(&model.architecture) && short(&model.recipe)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(name: &str) -> v1::ModelLoad {
        v1::ModelLoad {
            model: Some(v1::Model { name: name.into(), ..Default::default() }),
            ..Default::default()
        }
    }

    fn status(id: &str, models: Vec<v1::ModelLoad>) -> v1::GatewayStatus {
        v1::GatewayStatus { gateway_id: id.into(), models, ..Default::default() }
    }

    #[test]
    fn hostile_statuses_are_refused() {
        assert!(from_wire(&status("gw", vec![load("m")])).is_ok());
        assert!(matches!(from_wire(&status("a\nb", vec![])), Err(InvalidStatus::Id(_))));
        let many = (0..257).map(|n| load(&n.to_string())).collect();
        assert!(matches!(from_wire(&status("gw", many)), Err(InvalidStatus::TooManyModels(257))));
        assert!(matches!(from_wire(&status("gw", vec![load("")])), Err(InvalidStatus::Model(0))));
        assert!(matches!(from_wire(&status("gw", vec![load("m"), load("m")])), Err(InvalidStatus::Twice(_))));
        let backend = format!("\u{1b}npu{}", "c".repeat(1000));
        let degraded = v1::ModelLoad { backend, degraded: format!("a\nb{}", "c".repeat(1000)), ..load("m") };
        let (_, state) = from_wire(&status("gw", vec![load("a"), degraded])).unwrap();
        let (model, reason) = state.degraded().unwrap();
        assert_eq!((model, &reason[..4], reason.len()), ("m", "a bc", MOST_BYTES));
        let backend = &state.models()[1].backend;
        assert_eq!((&backend[..4], backend.len()), (" npu", MOST_BYTES));
        let no_model = v1::ModelLoad::default();
        assert!(matches!(from_wire(&status("gw", vec![no_model])), Err(InvalidStatus::Model(0))));
    }
}
