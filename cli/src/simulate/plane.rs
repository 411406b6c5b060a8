//! The control plane of a simulation: this program again, as a child.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use rookery_proto::v1::fleet_service_client::FleetServiceClient;
use rookery_proto::v1::rollout_service_client::RolloutServiceClient;
use rookery_proto::v1::{
    CreateJoinTokenRequest, CreateRolloutRequest, GetRolloutRequest, RolloutSpec, RolloutState,
};
use tokio::process::Command;
use tokio::time::timeout;

use super::proc::{Usage, usage};
use super::report::Wave;
use crate::client::{self, explain};
use crate::error::{Failure, OrFail};
use crate::output;
use crate::processes::{Process, Starting};

/// How long the ports of a killed control plane are waited for.
const PORTS: Duration = Duration::from_secs(10);

/// A running control plane.
pub(super) struct Plane {
    process: Process,
    /// Where clients call.
    address: SocketAddr,
    /// Where gateways dial.
    pub(super) link: SocketAddr,
}

impl Plane {
    /// Starts one with its state in `folder`; at these two addresses, or at any.
    pub(super) async fn start(folder: &Path, at: Option<(SocketAddr, SocketAddr)>) -> Result<Self, Failure> {
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
        std::fs::write(&config, text.to_string())
            .or_fail(|| format!("could not write {}", config.display()))?;
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let (listen, link) = at.unwrap_or((any, any));
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
        let began = Instant::now();
        loop {
            match Starting::spawn("control-plane", &arguments)?.ready().await {
                Ok(process) => {
                    let address = process.ready.listen;
                    let link = process.ready.link.ok_or("it did not say where gateways dial");
                    let link = link.or_fail(|| "the control plane is not usable".to_owned())?;
                    return Ok(Self { process, address, link });
                }
                // A killed one may not have given its ports back yet.
                Err(_) if at.is_some() && began.elapsed() < PORTS => {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Kills it and starts it again at the same addresses on the same state.
    pub(super) async fn restart(self, folder: &Path) -> Result<Self, Failure> {
        let at = (self.address, self.link);
        // Dropping a process kills it.
        drop(self.process);
        Self::start(folder, Some(at)).await
    }

    fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What it costs.
    pub(super) fn usage(&self) -> Result<Usage, Failure> {
        let process = self.process.id().ok_or("it has ended");
        let process = process.or_fail(|| "the control plane cannot be measured".to_owned())?;
        usage(process).or_fail(|| "the control plane cannot be measured".to_owned())
    }

    /// A token that so many gateways may join with.
    pub(super) async fn join_token(&self, uses: u32) -> Result<String, Failure> {
        let mut client = FleetServiceClient::new(client::channel(&self.endpoint()).await?);
        let request = CreateJoinTokenRequest { valid_s: 24 * 3600, uses, ..Default::default() };
        let answer = client.create_join_token(request).await.map_err(|status| explain(&status))?;
        Ok(answer.into_inner().token)
    }

    /// Pushes a bundle as `simulated@1`.
    pub(super) async fn push(&self, bundle: &Path) -> Result<(), Failure> {
        let program = std::env::current_exe().or_fail(|| "could not find this program".to_owned())?;
        let status = Command::new(program)
            .args(["models", "push"])
            .arg(bundle)
            .args(["--name", "simulated", "--version", "1", "--endpoint", &self.endpoint()])
            .stdout(std::process::Stdio::null())
            .status()
            .await
            .or_fail(|| "could not push the bundle".to_owned())?;
        if status.success() { Ok(()) } else { Err(Failure::new("the bundle was not pushed")) }
    }

    /// Rolls `simulated@1` out to all gateways in three waves and gives when each was over.
    pub(super) async fn roll_out(&self, limit: Duration) -> Result<Vec<Wave>, Failure> {
        let mut client = RolloutServiceClient::new(client::channel(&self.endpoint()).await?)
            .max_decoding_message_size(64 << 20);
        let spec = RolloutSpec {
            model: "simulated".to_owned(),
            version: "1".to_owned(),
            waves: ["1%", "20%", "100%"].map(str::to_owned).to_vec(),
            soak_s: 2,
            max_failed_percent: 20.0,
            max_unavailable_percent: 100.0,
            ..RolloutSpec::default()
        };
        let request = CreateRolloutRequest { spec: Some(spec), dry_run: false };
        let created = client.create_rollout(request).await.map_err(|status| explain(&status))?.into_inner();
        let began = Instant::now();
        let request = GetRolloutRequest { id: created.id };
        let mut changes =
            client.watch_rollout(request).await.map_err(|status| explain(&status))?.into_inner();
        let mut waves: Vec<Wave> = Vec::new();
        let follow = async {
            while let Some(rollout) = changes.message().await.map_err(|status| explain(&status))? {
                let counts = rollout.counts.unwrap_or_default();
                while waves.len() <= rollout.wave as usize {
                    waves.push(Wave {
                        began: began.elapsed(),
                        ended: began.elapsed(),
                        serving: 0,
                        failed: 0,
                    });
                }
                if let Some(wave) = waves.last_mut() {
                    (wave.ended, wave.serving, wave.failed) =
                        (began.elapsed(), counts.serving, counts.failed);
                }
                match rollout.state() {
                    RolloutState::Done => return Ok(()),
                    RolloutState::RolledBack | RolloutState::Aborted | RolloutState::RollingBack => {
                        return Err(Failure::new(format!("the roll-out was taken back: {}", rollout.reason)));
                    }
                    RolloutState::Unspecified
                    | RolloutState::Running
                    | RolloutState::Soaking
                    | RolloutState::AwaitingApproval
                    | RolloutState::AwaitingWindow
                    | RolloutState::Paused => {}
                }
            }
            Err(Failure::new("the control plane stopped telling of the roll-out"))
        };
        let result = timeout(limit, follow).await;
        result.unwrap_or_else(|_| Err(Failure::new(format!("the roll-out is not over after {limit:?}"))))?;
        output::note(format_args!("the roll-out is over after {:.1?}", began.elapsed()));
        Ok(waves)
    }
}

fn table(key: &str, value: &str) -> toml::Value {
    toml::Value::Table(toml::Table::from_iter([(key.to_owned(), toml::Value::String(value.to_owned()))]))
}
