//! `rookery fleet label|cordon|uncordon|drain|remove`: changes to single gateways.

use std::collections::HashMap;

use clap::Args;
use rookery_proto::v1::{Admission, RemoveGatewayRequest, SetAdmissionRequest, SetLabelsRequest};

use super::Target;
use super::list::state;
use crate::client::explain;
use crate::error::Failure;
use crate::output;

/// Sets or removes labels.
#[derive(Args, Debug)]
pub(super) struct LabelArgs {
    /// Id of the gateway.
    gateway: String,
    /// NAME=VALUE sets a label, NAME- removes it.
    #[arg(required = true, value_name = "NAME=VALUE|NAME-")]
    changes: Vec<String>,
    #[command(flatten)]
    target: Target,
}

/// Gateways whose admission changes.
#[derive(Args, Debug)]
pub(super) struct AdmissionArgs {
    /// Ids of gateways.
    #[arg(required = true, value_name = "GATEWAY")]
    gateways: Vec<String>,
    #[command(flatten)]
    target: Target,
}

/// Forgets gateways and revokes their certificates; each has to join anew to come back.
#[derive(Args, Debug)]
pub(super) struct RemoveArgs {
    /// Ids of gateways.
    #[arg(required = true, value_name = "GATEWAY")]
    gateways: Vec<String>,
    #[command(flatten)]
    target: Target,
}

/// What gateways are given.
#[derive(Clone, Copy, Debug)]
pub(super) enum Admit {
    Open,
    Cordoned,
    Drained,
}

pub(super) async fn label(args: LabelArgs) -> Result<(), Failure> {
    let (set, remove) = changes(&args.changes)?;
    let mut client = args.target.connect().await?;
    let request = SetLabelsRequest { gateway: args.gateway, set, remove };
    let gateway = client.set_labels(request).await.map_err(|status| explain(&status))?.into_inner();
    let mut labels: Vec<_> = gateway.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    labels.sort();
    output::line(format!("{}: {}", gateway.id, labels.join(" ")))
}

pub(super) async fn admission(args: AdmissionArgs, admit: Admit) -> Result<(), Failure> {
    let mut client = args.target.connect().await?;
    let admission = match admit {
        Admit::Open => Admission::Open,
        Admit::Cordoned => Admission::Cordoned,
        Admit::Drained => Admission::Drained,
    };
    for gateway in args.gateways {
        let request = SetAdmissionRequest { gateway, admission: admission.into() };
        let gateway = client.set_admission(request).await.map_err(|status| explain(&status))?.into_inner();
        output::line(format!("{}: {}, {} requests running", gateway.id, state(&gateway), gateway.in_flight))?;
    }
    Ok(())
}

pub(super) async fn remove(args: RemoveArgs) -> Result<(), Failure> {
    let mut client = args.target.connect().await?;
    for gateway in args.gateways {
        let request = RemoveGatewayRequest { gateway: gateway.clone() };
        client.remove_gateway(request).await.map_err(|status| explain(&status))?;
        output::line(format!("{gateway}: removed, its certificate is revoked"))?;
    }
    Ok(())
}

type Changes = (HashMap<String, String>, Vec<String>);

fn changes(texts: &[String]) -> Result<Changes, Failure> {
    let (mut set, mut remove) = Changes::default();
    for text in texts {
        match (text.split_once('='), text.strip_suffix('-')) {
            (Some((name, value)), _) => drop(set.insert(name.to_owned(), value.to_owned())),
            (None, Some(name)) => remove.push(name.to_owned()),
            (None, None) => {
                let hint = "NAME=VALUE sets a label, NAME- removes it";
                return Err(Failure::usage(format!("{text:?} changes no label")).hint(hint));
            }
        }
    }
    Ok((set, remove))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_set_and_removed() {
        let texts = ["site=berlin", "rack-", "note=a-"].map(str::to_owned);
        let (set, remove) = changes(&texts).unwrap();
        assert_eq!(
            (set["site"].as_str(), set["note"].as_str(), remove),
            ("berlin", "a-", vec!["rack".to_owned()])
        );
        assert_eq!(changes(&["site".to_owned()]).unwrap_err().exit().code(), 2);
    }
}
