//! `rookery models list`: what an endpoint can generate with now.

use clap::Args;
use rookery_proto::v1::Model;
use serde_json::{Value, json};

use crate::client;
use crate::error::Failure;
use crate::output::{self, Table};

/// Lists the models that an endpoint, worker or control plane, can generate with now.
#[derive(Args, Debug)]
pub(super) struct ListArgs {
    /// Worker or control plane to ask.
    #[arg(long, default_value = client::DEFAULT_ENDPOINT, env = "ROOKERY_ENDPOINT")]
    endpoint: String,
    /// Write JSON.
    #[arg(long)]
    json: bool,
}

pub(super) async fn list(args: ListArgs) -> Result<(), Failure> {
    let mut client = client::connect(&args.endpoint).await?;
    let models = client::list_models(&mut client).await?;
    if args.json {
        return output::json(&models.iter().map(record).collect::<Vec<_>>());
    }
    output::write(&table(&models).render())
}

fn record(model: &Model) -> Value {
    json!({
        "name": model.name, "digest": model.digest, "architecture": model.architecture,
        "recipe": model.recipe, "parameters": model.parameters, "gateways": model.gateways,
        "context_tokens": model.context_tokens, "vocabulary": model.vocabulary,
        "backends": model.backends, "degraded_gateways": model.degraded_gateways,
        "degraded": (model.degraded_gateways > 0).then_some(&model.degraded),
    })
}

fn table(models: &[Model]) -> Table {
    let mut table = Table::new(&[
        "NAME",
        "ARCHITECTURE",
        "RECIPE",
        ">PARAMETERS",
        ">CONTEXT",
        ">GATEWAYS",
        "DIGEST",
        "BACKEND",
        "STATE",
    ]);
    for model in models {
        table.row([
            model.name.clone(),
            model.architecture.clone(),
            model.recipe.clone(),
            output::grouped(model.parameters),
            output::grouped(model.context_tokens.into()),
            model.gateways.to_string(),
            model.digest.chars().take(19).collect(),
            model.backends.join(", "),
            state(model),
        ]);
    }
    table
}

/// Whether the model is served as fast as it should be, and if not, why.
fn state(model: &Model) -> String {
    match (model.degraded_gateways, model.gateways) {
        // A server that says nothing of backends says nothing of their failures either.
        (0, _) if model.backends.is_empty() => "unknown".to_owned(),
        (0, _) => "ok".to_owned(),
        (_, 1) => format!("degraded: {}", model.degraded),
        (degraded, all) => format!("degraded on {degraded} of {all}: {}", model.degraded),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(gateways: u32, degraded_gateways: u32, degraded: &str) -> Model {
        let backends = vec!["cpu/neon-dotprod".to_owned(), "npu/vendor".to_owned()];
        let name = "m".to_owned();
        Model {
            name,
            gateways,
            backends,
            degraded_gateways,
            degraded: degraded.to_owned(),
            ..Model::default()
        }
    }

    #[test]
    fn a_degraded_model_looks_degraded() {
        let models = [
            model(1, 0, ""),
            model(1, 1, "NPU: the device is gone"),
            model(3, 2, "gw-1: NPU: a reset failed"),
            Model::default(),
        ];
        let text = table(&models).render();
        let ends = [
            "BACKEND                       STATE",
            "cpu/neon-dotprod, npu/vendor  ok",
            "cpu/neon-dotprod, npu/vendor  degraded: NPU: the device is gone",
            "cpu/neon-dotprod, npu/vendor  degraded on 2 of 3: gw-1: NPU: a reset failed",
            "unknown",
        ];
        assert_eq!(text.lines().count(), ends.len());
        for (line, end) in text.lines().zip(ends) {
            assert!(line.ends_with(end), "{text}");
        }
        let [well, ill, ..] = models.each_ref().map(record);
        assert_eq!((&well["degraded_gateways"], &well["degraded"]), (&json!(0), &Value::Null));
        assert_eq!(
            (&ill["degraded_gateways"], &ill["degraded"]),
            (&json!(1), &json!("NPU: the device is gone"))
        );
        assert_eq!(ill["backends"], json!(["cpu/neon-dotprod", "npu/vendor"]));
    }
}
