//! `rookery fleet watch`: the list as it changes; in place on a terminal, one line a change elsewhere.

use std::collections::BTreeMap;
use std::time::SystemTime;

use clap::Args;
use rookery_proto::v1::{Gateway, ListGatewaysRequest};

use super::Target;
use super::list::{record, state, table, versions};
use crate::client::explain;
use crate::error::Failure;
use crate::live::LiveText;
use crate::output;

/// Follows gateways until Ctrl-C.
#[derive(Args, Debug)]
pub(super) struct WatchArgs {
    /// Only those that match, such as site=berlin,board!=dev.
    #[arg(long, value_name = "SELECTOR", default_value = "")]
    select: String,
    #[command(flatten)]
    target: Target,
    /// Write one line of JSON for each gateway that changes.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: WatchArgs) -> Result<(), Failure> {
    let mut client = args.target.connect().await?;
    let answer = client.watch_gateways(ListGatewaysRequest { selector: args.select }).await;
    let mut lists = answer.map_err(|status| explain(&status))?.into_inner();
    let mut live = LiveText::new();
    let mut told = BTreeMap::new();
    while let Some(list) = lists.message().await.map_err(|status| explain(&status))? {
        if args.json {
            for gateway in changed(&mut told, &list.gateways) {
                output::json_line(&record(gateway))?;
            }
        } else if live.is_in_place() {
            live.draw(&summary(&list.gateways))?;
        } else {
            let gone: Vec<_> = gone(&mut told, &list.gateways);
            for gateway in changed(&mut told, &list.gateways) {
                output::line(line(gateway))?;
            }
            for id in gone {
                output::line(format!("{id}: removed"))?;
            }
        }
    }
    Err(Failure::new("the control plane ended the list").hint("it may be restarting; try again"))
}

fn summary(gateways: &[Gateway]) -> String {
    let online = gateways.iter().filter(|gateway| gateway.online).count();
    let head = format!("{} gateways, {online} online\n\n", gateways.len());
    head + &table(gateways, SystemTime::now())
}

fn line(gateway: &Gateway) -> String {
    let versions = versions(gateway);
    let versions = if versions.is_empty() { String::new() } else { format!("; {versions}") };
    format!("{}: {}{versions}", gateway.id, state(gateway))
}

/// Those whose line has changed since it was told.
fn changed<'a>(told: &mut BTreeMap<String, String>, gateways: &'a [Gateway]) -> Vec<&'a Gateway> {
    let differs = |gateway: &&Gateway| {
        let now = line(gateway);
        told.insert(gateway.id.clone(), now.clone()) != Some(now)
    };
    gateways.iter().filter(differs).collect()
}

/// Those that were told of and are not there any more.
fn gone(told: &mut BTreeMap<String, String>, gateways: &[Gateway]) -> Vec<String> {
    let here = |id: &String| gateways.iter().any(|gateway| gateway.id == *id);
    let gone: Vec<_> = told.keys().filter(|id| !here(id)).cloned().collect();
    gone.iter().for_each(|id| drop(told.remove(id)));
    gone
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_told_once() {
        let mut told = BTreeMap::new();
        let gateway = |online| Gateway { id: "gw".into(), online, ..Default::default() };
        assert_eq!(changed(&mut told, &[gateway(true)]).len(), 1);
        assert_eq!(changed(&mut told, &[gateway(true)]).len(), 0);
        let now = [gateway(false)];
        assert_eq!(line(changed(&mut told, &now)[0]), "gw: offline");
        assert!(gone(&mut told, &now).is_empty());
        assert_eq!((gone(&mut told, &[]), gone(&mut told, &[])), (vec!["gw".to_owned()], vec![]));
    }
}
