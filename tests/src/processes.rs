//! The real binary, as real processes that are killed when dropped.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, bail, ensure};
use rookery_proto::v1::ListModelsRequest;
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    process::{Child, ChildStdin, Command},
};

use crate::{bundles::Packed, client::client, within};

/// The `rookery` binary beside this test's own.
///
/// # Errors
/// Says how to build it if it is not there.
pub fn binary() -> anyhow::Result<PathBuf> {
    // target/release/deps/scenario-… → target/release/rookery
    let own = std::env::current_exe()?;
    let folder = own.parent().and_then(Path::parent).context("the test binary is not in a target folder")?;
    let binary = folder.join("rookery");
    if !binary.is_file() {
        bail!("{binary:?} is not there; build it with `cargo build --release`, or run tests/run, which does");
    }
    Ok(binary)
}

/// A command that runs the binary with nothing of this process's settings.
///
/// # Errors
/// When the binary is not there.
pub fn rookery() -> anyhow::Result<Command> {
    let mut command = Command::new(binary()?);
    let ours = |name: &str| ["ROOKERY_", "OTEL_", "RUST_LOG"].iter().any(|prefix| name.starts_with(prefix));
    std::env::vars_os().filter_map(|(name, _)| name.into_string().ok()).filter(|name| ours(name)).for_each(
        |name| {
            command.env_remove(name);
        },
    );
    command.kill_on_drop(true).stdin(Stdio::null());
    Ok(command)
}

/// The library that puts a simulated NPU where programs look for the device's node, beside this test's own binary.
///
/// # Errors
/// Says how to build it if it is not there.
pub fn simulated_node() -> anyhow::Result<PathBuf> {
    let library = binary()?.with_file_name("librknpu_sim.so");
    if !library.is_file() {
        bail!(
            "{library:?} is not there; `cargo build --release -p rknpu-sim-preload` makes it, and so does tests/run"
        );
    }
    Ok(library)
}

/// A serving process, killed when dropped.
pub struct Serving {
    child: Child,
    /// The process ends when this is closed.
    _stdin: ChildStdin,
    /// Its gRPC port.
    pub listen: SocketAddr,
    /// Where workers dial, if it is a control plane.
    pub link: Option<SocketAddr>,
    /// Where its metrics are, if it was asked for them.
    pub prometheus: Option<SocketAddr>,
}

impl Serving {
    /// Starts `rookery ARGUMENTS --supervised` and waits until it serves.
    ///
    /// # Errors
    /// When it does not get that far.
    pub async fn start(arguments: &[&str]) -> anyhow::Result<Self> {
        Self::start_with(arguments, &[]).await
    }

    /// The same with variables.
    ///
    /// # Errors
    /// When it does not get that far.
    pub async fn start_with(arguments: &[&str], variables: &[(&str, &str)]) -> anyhow::Result<Self> {
        let mut command = rookery()?;
        command
            .envs(variables.iter().copied())
            .args(arguments)
            .arg("--supervised")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let what = format!("rookery {}", arguments.join(" "));
        let mut child = command.spawn().with_context(|| format!("start {what}"))?;
        let stdin = child.stdin.take().context("standard input is piped")?;
        let stdout = child.stdout.take().context("standard output is piped")?;
        let line = within(&what, BufReader::new(stdout).lines().next_line()).await?;
        let ready: Value = serde_json::from_str(&line.with_context(|| format!("{what} ended"))?)?;
        let address = |key: &str| ready[key].as_str().and_then(|text| text.parse().ok());
        let listen = address("listen").with_context(|| format!("{what} says {ready}"))?;
        Ok(Self { child, _stdin: stdin, listen, link: address("link"), prometheus: address("prometheus") })
    }

    /// Its Prometheus page.
    ///
    /// # Errors
    /// When it has none, or does not answer.
    pub async fn metrics(&self) -> anyhow::Result<String> {
        let address = self.prometheus.context("started without --prometheus-listen")?;
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: tests\r\nConnection: close\r\n\r\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        let (head, page) = answer.split_once("\r\n\r\n").context("no end of the headers")?;
        ensure!(head.starts_with("HTTP/1.1 200 "), "{head}");
        Ok(page.to_owned())
    }

    /// Its process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Kills it as the kernel would, without a chance to say goodbye.
    ///
    /// # Errors
    /// When it is not running.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        Ok(self.child.kill().await?)
    }
}

const ANY: &str = "127.0.0.1:0";

/// A control plane and workers as processes.
pub struct ProcessFleet {
    /// The control plane.
    pub control_plane: Serving,
    /// The workers.
    pub workers: Vec<Serving>,
    bundle: String,
    flags: Vec<String>,
}

impl ProcessFleet {
    /// Starts a control plane and `count` workers of `packed`, all with `flags`, and waits until they are linked.
    ///
    /// # Errors
    /// When a process does not start.
    pub async fn start(packed: &Packed, count: usize, flags: &[&str]) -> anyhow::Result<Self> {
        let arguments = [&["control-plane", "--listen", ANY, "--link-listen", ANY], flags].concat();
        let control_plane = Serving::start(&arguments).await?;
        let bundle = packed.path().to_str().context("the bundle's path is not Unicode")?.to_owned();
        let flags = flags.iter().map(ToString::to_string).collect();
        let mut fleet = Self { control_plane, workers: Vec::new(), bundle, flags };
        for index in 0..count {
            let worker = fleet.worker(index).await?;
            fleet.workers.push(worker);
        }
        fleet.until_gateways(u32::try_from(count)?).await;
        Ok(fleet)
    }

    /// Kills a worker and, when it is gone, starts another one in its place.
    ///
    /// # Errors
    /// When it does not run, or the other does not start.
    pub async fn replace(&mut self, index: usize) -> anyhow::Result<()> {
        self.workers[index].kill().await?;
        self.workers[index] = self.worker(index).await?;
        Ok(())
    }

    async fn worker(&self, index: usize) -> anyhow::Result<Serving> {
        let link = self.control_plane.link.context("a control plane has a link port")?.to_string();
        let id = format!("gw-{index}");
        let own = ["worker", &self.bundle, "--listen", ANY, "--gateway-id", &id, "--control-plane", &link];
        let flags: Vec<_> = self.flags.iter().map(String::as_str).collect();
        Serving::start(&[&own[..], &["--threads", "1", "--kv-cache", "4MiB"], &flags].concat()).await
    }

    /// Waits until `count` gateways serve the one model.
    pub async fn until_gateways(&self, count: u32) {
        let mut client = client(self.control_plane.listen);
        within(&format!("{count} gateways are linked"), async {
            loop {
                let models =
                    client.list_models(ListModelsRequest {}).await.map(|models| models.into_inner().models);
                if models.is_ok_and(|models| models.iter().map(|model| model.gateways).sum::<u32>() == count)
                {
                    return;
                }
            }
        })
        .await;
    }
}
