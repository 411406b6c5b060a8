//! The control plane of a simulation: this program again, as a child, or one that runs already.

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::time::{Duration, Instant};

use rookery_proto::v1::fleet_service_client::FleetServiceClient;
use rookery_proto::v1::model_service_client::ModelServiceClient;
use rookery_proto::v1::rollout_service_client::RolloutServiceClient;
use rookery_proto::v1::{
    CreateJoinTokenRequest, DeleteVersionRequest, Gateway, ListGatewaysRequest, ListTransitionsRequest,
    Phase, RemoveGatewayRequest,
};

use super::proc::{Usage, usage};
use crate::client::{self, Channel, explain};
use crate::commands::models::push_bundle;
use crate::error::{Failure, OrFail};
use crate::processes::{Process, Starting};

/// Largest answer: the list of some thousand gateways.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// Most transitions that a control plane lists.
const MOST_TRANSITIONS: u32 = 10_000;

/// How long gateways may join.
const JOIN: Duration = Duration::from_secs(24 * 3600);

/// The label that the gateways of a simulation have.
const LABEL: &str = "simulated";

/// A running control plane.
pub(super) struct Plane {
    /// `None`: it is somebody else's.
    process: Option<Process>,
    /// Where clients call.
    endpoint: String,
    /// Where gateways dial, `host:port`.
    pub(super) link: String,
    /// What the simulation's gateways are called, and its label's value.
    pub(super) name: String,
}

impl Plane {
    /// Starts one with its state in `folder`.
    pub(super) async fn start(folder: &Path) -> Result<Self, Failure> {
        // Both are to be there again after the restart, so neither may be one that the kernel gives to a gateway's socket.
        let at = fixed_ports()?;
        let process = spawn(folder, at).await?;
        let endpoint = process.ready.url();
        Ok(Self { process: Some(process), endpoint, link: at.1.to_string(), name: "sim".to_owned() })
    }

    /// One that runs already, and knows other gateways, too.
    pub(super) fn existing(endpoint: &str, link: &str) -> Self {
        let run = std::process::id();
        let (endpoint, link) = (endpoint.to_owned(), link.to_owned());
        Self { process: None, endpoint, link, name: format!("sim-{run:x}") }
    }

    /// Kills it, says so to `dead`, and starts it again at the same addresses on the same state. Gives when it was killed
    /// and how long it was not there; `None` if it is somebody else's.
    pub(super) async fn restart(
        &mut self,
        folder: &Path,
        dead: impl FnOnce(),
    ) -> Result<Option<(Instant, Duration)>, Failure> {
        let Some(process) = self.process.take() else { return Ok(None) };
        let link = self.link.parse().or_fail(|| format!("{} is no address", self.link))?;
        let at = (process.ready.listen, link);
        let killed = Instant::now();
        process.kill().await.or_fail(|| "could not kill the control plane".to_owned())?;
        dead();
        self.process = Some(spawn(folder, at).await?);
        Ok(Some((killed, killed.elapsed())))
    }

    /// What it costs; `None` if it is somebody else's.
    pub(super) fn usage(&self) -> Result<Option<Usage>, Failure> {
        let Some(process) = &self.process else { return Ok(None) };
        let process = process.id().ok_or("it has ended");
        let process = process.or_fail(|| "the control plane cannot be measured".to_owned())?;
        usage(process).map(Some).or_fail(|| "the control plane cannot be measured".to_owned())
    }

    /// Matches the simulation's gateways.
    pub(super) fn selector(&self) -> String {
        format!("{LABEL}={}", self.name)
    }

    /// A token that so many gateways may join with.
    pub(super) async fn join_token(&self, uses: u32) -> Result<String, Failure> {
        let labels = [(LABEL.to_owned(), self.name.clone())].into();
        let request = CreateJoinTokenRequest { valid_s: JOIN.as_secs(), uses, labels };
        let answer = self.fleet().await?.create_join_token(request).await;
        Ok(answer.map_err(|status| explain(&status))?.into_inner().token)
    }

    /// The simulation's gateways, as the control plane knows them.
    pub(super) async fn gateways(&self) -> Result<Vec<Gateway>, Failure> {
        let request = ListGatewaysRequest { selector: self.selector() };
        let answer = self.fleet().await?.list_gateways(request).await;
        Ok(answer.map_err(|status| explain(&status))?.into_inner().gateways)
    }

    /// Gateways that refused the version of a roll-out, as far as its last transitions tell.
    pub(super) async fn refusals(&self, rollout: &str) -> Result<Vec<String>, Failure> {
        let request = ListTransitionsRequest {
            rollout: rollout.to_owned(),
            limit: MOST_TRANSITIONS,
            ..ListTransitionsRequest::default()
        };
        let answer = self.fleet().await?.list_transitions(request).await;
        let kept = answer.map_err(|status| explain(&status))?.into_inner().transitions.into_iter();
        let failed = kept.filter(|kept| {
            kept.transition.as_ref().is_some_and(|transition| transition.to() == Phase::Failed)
        });
        Ok(failed.map(|kept| kept.gateway).collect())
    }

    /// Pushes a bundle. Gives its digest.
    pub(super) async fn push(&self, bundle: &Path, model: &str, version: &str) -> Result<String, Failure> {
        Ok(push_bundle(self.models().await?, bundle, model, version).await?.digest)
    }

    /// Takes gateways and versions back from a control plane that stays.
    pub(super) async fn tidy(&self, model: &str, versions: &[&str]) -> Result<(), Failure> {
        if self.process.is_some() {
            return Ok(());
        }
        let mut fleet = self.fleet().await?;
        for gateway in self.gateways().await? {
            let request = RemoveGatewayRequest { gateway: gateway.id };
            fleet.remove_gateway(request).await.map_err(|status| explain(&status))?;
        }
        let mut models = self.models().await?;
        for version in versions {
            let request = DeleteVersionRequest { model: model.to_owned(), version: (*version).to_owned() };
            models.delete_version(request).await.map_err(|status| explain(&status))?;
        }
        Ok(())
    }

    /// Calls its `RolloutService`.
    pub(super) async fn rollouts(&self) -> Result<RolloutServiceClient<Channel>, Failure> {
        let channel = client::channel(&self.endpoint).await?;
        Ok(RolloutServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES))
    }

    async fn fleet(&self) -> Result<FleetServiceClient<Channel>, Failure> {
        let channel = client::channel(&self.endpoint).await?;
        Ok(FleetServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES))
    }

    async fn models(&self) -> Result<ModelServiceClient<Channel>, Failure> {
        Ok(ModelServiceClient::new(client::channel(&self.endpoint).await?))
    }
}

async fn spawn(folder: &Path, (listen, link): (SocketAddr, SocketAddr)) -> Result<Process, Failure> {
    let config = folder.join("control-plane.toml");
    let state = folder.join("state");
    let text = toml::Table::from_iter([(
        "control-plane".to_owned(),
        toml::Value::Table(toml::Table::from_iter([
            ("state".to_owned(), table("folder", &state.display().to_string())),
            ("link".to_owned(), table("tls", "on")),
            ("tls".to_owned(), table("mode", "off")),
        ])),
    )]);
    std::fs::write(&config, text.to_string()).or_fail(|| format!("could not write {}", config.display()))?;
    let arguments: Vec<OsString> = vec![
        "control-plane".into(),
        "--config".into(),
        config.into(),
        "--log-filter".into(),
        "error".into(),
        "--listen".into(),
        listen.to_string().into(),
        "--link-listen".into(),
        link.to_string().into(),
    ];
    Starting::spawn("control-plane", &arguments)?.ready().await
}

/// Two free ports of this machine below those that the kernel picks for sockets that dial.
fn fixed_ports() -> Result<(SocketAddr, SocketAddr), Failure> {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let first: u16 = range.split_whitespace().next().and_then(|first| first.parse().ok()).unwrap_or(32_768);
    // Not the same ones each time, so that simulations beside each other do not meet.
    let start = std::process::id() as u16 % 4096;
    let below = (1..=8192u16).filter_map(|step| first.checked_sub(step.wrapping_add(start)));
    let addresses =
        below.filter(|port| *port > 1024).map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    let mut free = addresses.filter(|address| TcpListener::bind(address).is_ok());
    // Until they are used in a moment, another may take them: then the control plane says so.
    free.next()
        .zip(free.next())
        .ok_or("all are taken")
        .or_fail(|| format!("there are no two ports below {first} for the control plane"))
}

fn table(key: &str, value: &str) -> toml::Value {
    toml::Value::Table(toml::Table::from_iter([(key.to_owned(), toml::Value::String(value.to_owned()))]))
}
