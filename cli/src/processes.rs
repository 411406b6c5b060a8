//! Child processes that cannot outlive their parent.
//!
//! A child runs this same program with `--supervised`. Its standard input is a pipe from the parent: the
//! line `drain` asks it to stop in good order, and the end of the pipe, which the operating system brings
//! about however the parent dies, makes it stop at once. Its standard output carries one line of JSON,
//! [`Ready`], once it serves.

use std::ffi::OsString;
use std::io::BufRead;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::error::{Failure, OrFail};
use crate::output;

/// What a child tells its parent when it serves.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ready {
    /// Where it serves gRPC.
    pub listen: SocketAddr,
    /// Whether with TLS.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tls: bool,
    /// PEM file of the authority that its certificate is from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// File with a token for administrators, if this was the first start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_token: Option<PathBuf>,
    /// Where a control plane takes the links of workers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<SocketAddr>,
    /// A token for workers to join with, if the parent asked for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub join: Option<String>,
    /// Where its Prometheus page is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prometheus: Option<SocketAddr>,
    /// Where a worker computes linear layers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// Why there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend_reason: Option<String>,
}

impl Ready {
    /// Says only where a process serves, without TLS.
    pub fn at(listen: SocketAddr) -> Self {
        Self {
            listen,
            tls: false,
            ca: None,
            first_token: None,
            link: None,
            join: None,
            prometheus: None,
            backend: None,
            backend_reason: None,
        }
    }

    /// Where clients go.
    pub fn url(&self) -> String {
        format!("{}://{}", if self.tls { "https" } else { "http" }, self.listen)
    }

    /// Where a worker computes linear layers and why, for people; empty for others.
    pub fn describe_backend(&self) -> String {
        let Some(backend) = &self.backend else { return String::new() };
        let reason = self.backend_reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
        format!("linear layers on {backend}{reason}")
    }
}

/// How a process is asked to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Not yet.
    No,
    /// Finish what runs, take nothing new.
    Drain,
    /// The parent is gone: end now.
    Now,
}

/// Follows everything that may ask this process to stop: SIGTERM, SIGINT and, if supervised, the parent.
///
/// # Errors
/// If signals cannot be handled.
pub fn stop_requests(supervised: bool) -> Result<watch::Receiver<Stop>, Failure> {
    let (requests, receiver) = watch::channel(Stop::No);
    let handled = |kind| signal(kind).or_fail(|| "could not handle signals".to_owned());
    let mut terminate = handled(SignalKind::terminate())?;
    let mut interrupt = handled(SignalKind::interrupt())?;
    let on_signal = requests.clone();
    let tracker = tokio_util::task::TaskTracker::new();
    tracker.spawn(async move {
        loop {
            // Both arms are cancel safe: a signal that is not received stays pending.
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            // The first asks nicely, the second does not.
            on_signal.send_modify(|stop| *stop = if *stop == Stop::No { Stop::Drain } else { Stop::Now });
        }
    });
    if supervised {
        // A thread of its own: reading standard input on the runtime would hold up its shutdown.
        std::thread::spawn(move || {
            for line in std::io::stdin().lock().lines() {
                match line {
                    Ok(line) if line == "drain" => {
                        requests.send_modify(|stop| *stop = (*stop).max_with(Stop::Drain));
                    }
                    Ok(_) => {}
                    Err(_) => break,
                }
            }
            requests.send_replace(Stop::Now);
            // Whatever hangs, this process does not outlive its parent by more than this.
            std::thread::sleep(ORPHAN_GRACE);
            std::process::exit(1);
        });
    }
    Ok(receiver)
}

/// How long a process whose parent has died may take to end.
const ORPHAN_GRACE: Duration = Duration::from_secs(2);

impl Stop {
    fn max_with(self, other: Stop) -> Stop {
        if self == Stop::Now { self } else { other }
    }
}

/// Waits until somebody asks this process to stop.
pub async fn stopped(requests: &mut watch::Receiver<Stop>) -> Stop {
    match requests.wait_for(|stop| *stop != Stop::No).await {
        Ok(stop) => *stop,
        Err(_) => Stop::Now,
    }
}

/// Waits until this process must end at once.
pub async fn stopped_now(requests: &mut watch::Receiver<Stop>) {
    // An error means that nobody can ask any more, which is as good as having been asked.
    let _ = requests.wait_for(|stop| *stop == Stop::Now).await;
}

/// Tells the parent that this process serves.
///
/// # Errors
/// If standard output is closed.
pub fn announce(ready: &Ready) -> Result<(), Failure> {
    output::json_line(ready)
}

/// A running child.
pub struct Process {
    /// What people call it.
    pub name: String,
    /// What it said when it was ready.
    pub ready: Ready,
    child: Child,
    stdin: ChildStdin,
}

/// A child that has been started and is not ready yet.
pub struct Starting {
    name: String,
    child: Child,
}

impl Starting {
    /// Starts this program again with `arguments`.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn spawn(name: &str, arguments: &[OsString]) -> Result<Starting, Failure> {
        Self::spawn_with(name, arguments, &[])
    }

    /// The same with `secrets` as variables: others can see arguments.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn spawn_with(
        name: &str,
        arguments: &[OsString],
        secrets: &[(&str, &str)],
    ) -> Result<Starting, Failure> {
        let program = std::env::current_exe().or_fail(|| "could not find this program".to_owned())?;
        let child = Command::new(program)
            .args(arguments)
            .envs(secrets.iter().copied())
            .arg("--supervised")
            // Out of the terminal's foreground group: Ctrl-C reaches the parent, which stops its children in order.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .or_fail(|| format!("could not start {name}"))?;
        Ok(Starting { name: name.to_owned(), child })
    }

    /// Waits until the child serves.
    ///
    /// # Errors
    /// If it ends before that.
    pub async fn ready(mut self) -> Result<Process, Failure> {
        let name = self.name;
        let pipes = (self.child.stdin.take(), self.child.stdout.take());
        let (Some(stdin), Some(stdout)) = pipes else {
            return Err(Failure::new(format!("{name} has no pipes")));
        };
        let mut line = String::new();
        let read = BufReader::new(stdout).read_line(&mut line).await;
        if read.is_ok_and(|read| read > 0) {
            let ready =
                serde_json::from_str(&line).or_fail(|| format!("{name} said something odd: {line}"))?;
            return Ok(Process { name, ready, child: self.child, stdin });
        }
        let status = self.child.wait().await.or_fail(|| format!("could not wait for {name}"))?;
        Err(Failure::new(format!("{name} ended before it was ready ({status})"))
            .hint("what it wrote above says why"))
    }
}

impl Process {
    /// The process id, if it has not been waited for.
    pub fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// Waits until the child ends by itself. Cancel safe.
    ///
    /// # Errors
    /// If it cannot be waited for.
    pub async fn ended(&mut self) -> std::io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// Kills the child as the kernel would, and waits until it is gone and its ports are free.
    ///
    /// # Errors
    /// If it cannot be waited for.
    pub async fn kill(mut self) -> std::io::Result<()> {
        self.child.kill().await
    }

    /// Asks the child to finish what it does and end; kills it after `grace`.
    pub async fn stop(mut self, grace: Duration) {
        // A write that fails means that it has ended already.
        let _ = self.stdin.write_all(b"drain\n").await;
        let _ = self.stdin.flush().await;
        if tokio::time::timeout(grace, self.child.wait()).await.is_err() {
            tracing::warn!(process = self.name, "did not end in time and is killed");
            let _ = self.child.kill().await;
        }
    }
}
