//! A control plane and workers as child processes of this one.

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rookery_compute_worker::agent::Identity;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::WatchStream;

use crate::client::{self, Access, Client};
use crate::error::{Failure, OrFail};
use crate::output;
use crate::processes::{Process, Starting, Stop};

/// Longest time from a worker being ready to the control plane knowing it.
const REGISTRATION: Duration = Duration::from_secs(20);
/// How often the control plane is asked meanwhile.
const ASK: Duration = Duration::from_millis(50);

/// How a worker is given its join token.
const JOIN_VARIABLE: &str = "ROOKERY_WORKER__LINK__JOIN";

/// What to start.
#[derive(Clone, Debug)]
pub struct FleetOptions {
    /// Bundles that every worker serves.
    pub bundles: Vec<PathBuf>,
    /// Number of workers.
    pub workers: usize,
    /// Address of the control plane for clients.
    pub listen: SocketAddr,
    /// Folder for everything that control plane and workers keep.
    pub state: PathBuf,
    /// Flags that every child gets (configuration file, logs, telemetry).
    pub common: Vec<OsString>,
    /// Flags that every worker gets besides (engine).
    pub worker: Vec<OsString>,
    /// How long a child may take to stop.
    pub grace: Duration,
}

impl FleetOptions {
    /// Arguments of the control plane, which is to let `strangers` workers join.
    fn control_plane(&self, strangers: usize) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = vec!["control-plane".into()];
        arguments.extend(self.common.iter().cloned());
        arguments.extend(["--listen".into(), self.listen.to_string().into()]);
        arguments.extend(["--link-listen".into(), "127.0.0.1:0".into(), "--link-tls".into(), "on".into()]);
        arguments.extend(["--state".into(), self.state.join("control-plane").into()]);
        if strangers > 0 {
            arguments.extend(["--announce-join".into(), strangers.to_string().into()]);
        }
        arguments
    }

    /// Arguments of a worker that keeps its state in `folder` and dials `link`.
    fn worker(&self, name: &str, folder: &Path, link: SocketAddr) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = vec!["worker".into()];
        arguments.extend(self.bundles.iter().map(|path| path.clone().into_os_string()));
        arguments.extend(self.common.iter().cloned());
        arguments.extend(self.worker.iter().cloned());
        arguments.extend(["--listen".into(), "127.0.0.1:0".into(), "--gateway-id".into(), name.into()]);
        arguments.extend(["--control-plane".into(), link.to_string().into()]);
        arguments.extend(["--state".into(), folder.into()]);
        arguments
    }
}

/// A running fleet.
pub struct Fleet {
    plane: Process,
    workers: Vec<Process>,
    /// File with a token for administrators, where clients need one.
    token: PathBuf,
    grace: Duration,
}

/// Threads for each of `workers` on this machine: they share its processors, since busy threads beyond
/// those only take turns.
pub fn threads_per_worker(workers: usize) -> usize {
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    (processors / workers.max(1)).max(1)
}

impl Fleet {
    /// Starts a control plane and workers and waits until every model can be used on every worker.
    ///
    /// # Errors
    /// If a process ends early or the workers do not register in time; nothing is left running then.
    pub async fn start(options: &FleetOptions) -> Result<Fleet, Failure> {
        let folders: Vec<_> =
            (1..=options.workers).map(|number| options.state.join(format!("worker-{number}"))).collect();
        let strangers = folders.iter().filter(|folder| !Identity::new(folder, "").exists()).count();
        let plane = Starting::spawn("control-plane", &options.control_plane(strangers))?.ready().await?;
        let link = plane.ready.link.ok_or("it did not say where workers dial");
        let link = link.or_fail(|| "the control plane is not usable".to_owned())?;
        let token = plane.ready.join.as_deref().map(|token| (JOIN_VARIABLE, token));
        let mut starting = Vec::new();
        for (number, folder) in (1..).zip(&folders) {
            let name = format!("worker-{number}");
            let arguments = options.worker(&name, folder, link);
            starting.push(Starting::spawn_with(&name, &arguments, token.as_slice())?);
        }
        let mut workers = Vec::new();
        for worker in starting {
            workers.push(worker.ready().await?);
        }
        let token = options.state.join("control-plane").join("admin-token");
        let fleet = Fleet { plane, workers, token, grace: options.grace };
        fleet.registered().await?;
        Ok(fleet)
    }

    /// Where clients go.
    pub fn endpoint(&self) -> String {
        self.plane.ready.url()
    }

    /// The children, the control plane first.
    pub fn processes(&self) -> impl Iterator<Item = &Process> {
        std::iter::once(&self.plane).chain(&self.workers)
    }

    /// Connects a client to the control plane.
    ///
    /// # Errors
    /// If it cannot be reached.
    pub async fn client(&self) -> Result<Client, Failure> {
        let ready = &self.plane.ready;
        if !ready.tls {
            return client::connect(&self.endpoint()).await;
        }
        // Others may reach it, so this process too needs a token: the one that the first start left there.
        let token = std::fs::read_to_string(&self.token)
            .or_fail(|| format!("could not read the token in {}", self.token.display()))?;
        let access = Access { authority: ready.ca.clone(), token: Some(token) };
        let mut address = ready.listen;
        if address.ip().is_unspecified() {
            address.set_ip(Ipv4Addr::LOCALHOST.into());
        }
        let channel = client::channel_as(&format!("https://{address}"), &access).await?;
        Ok(Client::new(channel))
    }

    async fn registered(&self) -> Result<(), Failure> {
        let mut client = self.client().await?;
        let began = Instant::now();
        loop {
            let models = client::list_models(&mut client).await?;
            let everywhere = |gateways: u32| gateways as usize >= self.workers.len();
            if !models.is_empty() && models.iter().all(|model| everywhere(model.gateways)) {
                return Ok(());
            }
            if began.elapsed() > REGISTRATION {
                return Err(Failure::new("the workers did not register with the control plane in time"));
            }
            tokio::time::sleep(ASK).await;
        }
    }

    /// Keeps the fleet until somebody asks to stop, and says so when a worker is lost.
    ///
    /// # Errors
    /// If the control plane or the last worker ends.
    pub async fn serve(&mut self, stops: &tokio::sync::watch::Receiver<Stop>) -> Result<(), Failure> {
        let mut asked = WatchStream::new(stops.clone()).filter(|stop| *stop != Stop::No);
        loop {
            let (ended, status) = tokio::select! {
                biased;
                // All arms are cancel safe.
                _ = asked.next() => return Ok(()),
                status = self.plane.ended() => {
                    let status = status.or_fail(|| "could not wait for the control plane".to_owned())?;
                    return Err(Failure::new(format!("the control plane ended ({status})")));
                }
                ended = first_ended(&mut self.workers) => ended,
            };
            let worker = self.workers.remove(ended);
            output::note(format_args!("{} ended ({status}); {} left", worker.name, self.workers.len()));
            if self.workers.is_empty() {
                return Err(Failure::new("no worker is left"));
            }
        }
    }

    /// Stops the workers, then the control plane. A further request to stop kills them.
    pub async fn stop(self, stops: &tokio::sync::watch::Receiver<Stop>) {
        let mut insisted = WatchStream::new(stops.clone()).filter(|stop| *stop == Stop::Now);
        let grace = self.grace;
        let orderly = async {
            let mut stopping = tokio::task::JoinSet::new();
            for worker in self.workers {
                stopping.spawn(worker.stop(grace));
            }
            stopping.join_all().await;
            self.plane.stop(grace).await;
        };
        tokio::select! {
            biased;
            // Dropping a process kills it.
            _ = insisted.next() => {}
            () = orderly => {}
        }
    }
}

/// Waits until a worker ends and says which. Cancel safe.
async fn first_ended(workers: &mut [Process]) -> (usize, String) {
    let waits = workers.iter_mut().enumerate().map(|(index, worker)| {
        Box::pin(async move {
            let status = worker.ended().await;
            (index, status.map_or_else(|error| error.to_string(), |status| status.to_string()))
        })
    });
    let mut waits: Vec<_> = waits.collect();
    std::future::poll_fn(|context| {
        for wait in &mut waits {
            if let std::task::Poll::Ready(ended) = wait.as_mut().poll(context) {
                return std::task::Poll::Ready(ended);
            }
        }
        std::task::Poll::Pending
    })
    .await
}
