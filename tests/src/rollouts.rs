//! A whole fleet of real processes that versions are rolled out to: TLS on both ports, gateways that have joined with a
//! token, all state in a temporary folder, so that whatever was killed comes back with what it had kept.

mod access;
mod replicas;
mod versions;

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, ensure};
use rookery_proto::v1::CreateJoinTokenRequest;
use tempfile::TempDir;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::{PATIENCE, processes::Serving};

pub use access::{Access, Channel, serving};
pub use replicas::Replicas;
pub use versions::{Version, engine_config};

/// Name of the model in the control plane.
pub const MODEL: &str = "tiny";

/// How long a roll-out waits for a gateway that has just gone, unless a test says otherwise.
pub const GRACE: Duration = Duration::from_millis(500);

const ANY: &str = "127.0.0.1:0";

/// The control plane and its gateways.
pub struct VersionedFleet {
    folder: TempDir,
    plane: Option<Serving>,
    /// Clients' port and link port: the same in every life of the control plane.
    ports: [SocketAddr; 2],
    grace: Duration,
    /// Further flags of the control plane.
    flags: Vec<String>,
    workers: Vec<Option<Serving>>,
    access: Access,
}

impl VersionedFleet {
    /// Starts a control plane and lets `gateways` gateways join, called `gw-0`, `gw-1` and so on.
    ///
    /// # Errors
    /// When a process does not get that far.
    pub async fn start(gateways: usize) -> anyhow::Result<Self> {
        Self::start_with(gateways, GRACE, &[]).await
    }

    /// The same with another grace for gateways that have just gone, and further flags for the control plane.
    ///
    /// # Errors
    /// As [`VersionedFleet::start`].
    pub async fn start_with(gateways: usize, grace: Duration, flags: &[&str]) -> anyhow::Result<Self> {
        let folder = TempDir::with_prefix("rookery-tests-")?;
        let plane = start_plane(&folder.path().join("plane"), [ANY, ANY], grace, flags).await?;
        let flags = flags.iter().map(ToString::to_string).collect();
        let ports = [plane.listen, plane.link.context("a control plane has a link port")?];
        let access = Access::of(&folder.path().join("plane"), plane.listen)?;
        let mut fleet = Self { folder, plane: Some(plane), ports, grace, flags, workers: Vec::new(), access };
        fleet.set_memory(64 << 30)?;
        let uses = u32::try_from(gateways)?;
        let request = CreateJoinTokenRequest { uses, ..CreateJoinTokenRequest::default() };
        let token = fleet.access.fleet().create_join_token(request).await?.into_inner().token;
        fleet.workers.resize_with(gateways, || None);
        for index in 0..gateways {
            fleet.launch(index, Some(&token)).await?;
        }
        Ok(fleet)
    }

    /// How to call it.
    pub fn access(&self) -> &Access {
        &self.access
    }

    /// How many gateways have joined.
    pub fn gateways(&self) -> usize {
        self.workers.len()
    }

    /// Folder of what a gateway keeps.
    pub fn state_of(&self, index: usize) -> PathBuf {
        self.folder.path().join(name(index))
    }

    /// Where a gateway serves itself, while it runs.
    pub fn worker(&self, index: usize) -> Option<SocketAddr> {
        self.workers.get(index)?.as_ref().map(|worker| worker.listen)
    }

    /// What every gateway's system says of its memory from now on.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn set_memory(&self, available: u64) -> anyhow::Result<()> {
        write_memory(&self.system(), available)
    }

    /// Whether the control plane runs.
    pub fn has_plane(&self) -> bool {
        self.plane.is_some()
    }

    /// Kills the control plane.
    ///
    /// # Errors
    /// When it does not run.
    pub async fn kill_plane(&mut self) -> anyhow::Result<()> {
        self.plane.take().context("the control plane does not run")?.kill().await
    }

    /// Starts it again.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start_plane(&mut self) -> anyhow::Result<()> {
        let [listen, link] = self.ports.map(|port| port.to_string());
        let folder = self.folder.path().join("plane");
        let flags: Vec<_> = self.flags.iter().map(String::as_str).collect();
        self.plane = Some(start_plane(&folder, [&listen, &link], self.grace, &flags).await?);
        Ok(())
    }

    /// Kills a gateway.
    ///
    /// # Errors
    /// When it does not run.
    pub async fn kill_worker(&mut self, index: usize) -> anyhow::Result<()> {
        self.workers[index].take().context("the gateway does not run")?.kill().await
    }

    /// Starts it again, as whom it has joined.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start_worker(&mut self, index: usize) -> anyhow::Result<()> {
        self.launch(index, None).await
    }

    /// Starts what does not run.
    ///
    /// # Errors
    /// When something does not start.
    pub async fn start_all(&mut self) -> anyhow::Result<()> {
        if self.plane.is_none() {
            self.start_plane().await?;
        }
        for index in 0..self.workers.len() {
            if self.workers[index].is_none() {
                self.start_worker(index).await?;
            }
        }
        Ok(())
    }

    async fn launch(&mut self, index: usize, join: Option<&str>) -> anyhow::Result<()> {
        let (state, system) = (self.state_of(index), self.system());
        self.workers[index] = Some(launch(&name(index), self.ports[1], [&state, &system], join).await?);
        Ok(())
    }

    fn system(&self) -> PathBuf {
        self.folder.path().join("system")
    }
}

/// What processes log: `ROOKERY_TESTS_LOG`, or errors.
fn log_filter() -> String {
    std::env::var("ROOKERY_TESTS_LOG").unwrap_or_else(|_| "error".to_owned())
}

/// Id of a gateway.
pub fn name(index: usize) -> String {
    format!("gw-{index}")
}

/// Starts a gateway that dials `link`, with folders of its state and of what its system says of itself.
async fn launch(
    id: &str,
    link: SocketAddr,
    [state, system]: [&Path; 2],
    join: Option<&str>,
) -> anyhow::Result<Serving> {
    let (link, log) = (link.to_string(), log_filter());
    let arguments = ["worker", "--listen", ANY, "--gateway-id", id, "--control-plane", &link];
    let small = ["--threads", "1", "--kv-cache", "4MiB", "--max-batch", "4", "--backend", "cpu"];
    let arguments = [&arguments[..], &small, &["--state", text(state)?]].concat();
    let mut variables = vec![
        ("ROOKERY_WORKER__ENGINE__MAX_STEP_TOKENS", "64"),
        ("ROOKERY_WORKER__LINK__BACKOFF_MIN", "20ms"),
        ("ROOKERY_WORKER__LINK__BACKOFF_MAX", "200ms"),
        ("ROOKERY_WORKER__LINK__RECONNECT_SPREAD", "0s"),
        ("ROOKERY_WORKER__VERSIONS__DISK_HEADROOM", "1MiB"),
        ("ROOKERY_WORKER__VERSIONS__SYSTEM_ROOT", text(system)?),
        ("ROOKERY_TELEMETRY__LOG_FILTER", &log),
    ];
    variables.extend(join.map(|token| ("ROOKERY_WORKER__LINK__JOIN", token)));
    Serving::start_with(&arguments, &variables).await
}

/// Says what a gateway's system has of memory.
fn write_memory(system: &Path, available: u64) -> anyhow::Result<()> {
    let folder = system.join("proc");
    fs::create_dir_all(&folder)?;
    let text = format!("MemTotal: {} kB\nMemAvailable: {} kB\n", (128_u64 << 30) >> 10, available >> 10);
    fs::write(folder.join("meminfo.new"), text)?;
    Ok(fs::rename(folder.join("meminfo.new"), folder.join("meminfo"))?)
}

async fn start_plane(
    folder: &Path,
    [listen, link]: [&str; 2],
    grace: Duration,
    flags: &[&str],
) -> anyhow::Result<Serving> {
    let ports = ["control-plane", "--listen", listen, "--link-listen", link, "--link-tls", "on"];
    let grace = format!("{}ms", grace.as_millis());
    let variables = [
        ("ROOKERY_CONTROL_PLANE__TLS__MODE", "on"),
        ("ROOKERY_CONTROL_PLANE__LINK__HEARTBEAT_INTERVAL", "100ms"),
        ("ROOKERY_CONTROL_PLANE__ROLLOUTS__INTERVAL", "50ms"),
        ("ROOKERY_CONTROL_PLANE__ROLLOUTS__GRACE", &grace),
        ("ROOKERY_CONTROL_PLANE__DOWNLOADS__START_SPREAD", "0s"),
        ("ROOKERY_TELEMETRY__LOG_FILTER", &log_filter()),
    ];
    Serving::start_with(&[&ports[..], &["--state", text(folder)?], flags].concat(), &variables).await
}

fn text(path: &Path) -> anyhow::Result<&str> {
    path.to_str().with_context(|| format!("{path:?} is not Unicode"))
}

/// Looks until there is what is looked for, which `Err` says what is missing of.
///
/// # Panics
/// When it is not there in time: with what was last missing.
pub async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Result<T, String>) -> T {
    let mut missing = "never looked".to_owned();
    let looking = async {
        let mut ticks = interval(Duration::from_millis(20));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            match look().await {
                Ok(found) => return found,
                Err(why) => missing = why,
            }
        }
    };
    match timeout(PATIENCE, looking).await {
        Ok(found) => found,
        Err(_) => panic!("{what}: not within {PATIENCE:?}: {missing}"),
    }
}

/// What a command wrote, if it ended well.
///
/// # Errors
/// With what it said of its failure.
pub fn output(arguments: &[&str], output: &std::process::Output) -> anyhow::Result<String> {
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "rookery {}: {}: {error}", arguments.join(" "), output.status);
    Ok(String::from_utf8(output.stdout.clone())?)
}
