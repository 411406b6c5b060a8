//! `rookery control-plane`: the fleet's front door.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use rookery_control_plane::control_plane::{ControlPlane, RunningControlPlane};

use crate::commands::worker::default_state;
use crate::config::{Config, Flags};
use crate::error::{Failure, OrFail};
use crate::processes::{Ready, Stop, announce, stop_requests, stopped, stopped_now};
use crate::{open_files, output};

/// Takes the links of workers and routes clients' requests to them.
#[derive(Args, Debug)]
#[command(
    after_help = "Settings come from --config, from ROOKERY_CONTROL_PLANE__… variables and from these flags; a
later one wins. `rookery --dump-config` shows them all.

Examples:
  rookery control-plane
  rookery control-plane --listen 0.0.0.0:7070 --link-listen 0.0.0.0:7072 --tls-name plane.example
  rookery control-plane --state /var/lib/rookery --tls-certificate cert.pem --tls-key key.pem
  rookery control-plane --database postgres://rookery@db/rookery --artifacts s3://models/rookery

Whatever is not a loopback address speaks TLS. The first start makes a certificate authority and writes a token for
administrators into the state folder."
)]
pub struct ControlPlaneArgs {
    /// Address for clients' gRPC; port 0 picks a free one.
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Address that workers dial; port 0 picks a free one.
    #[arg(long, value_name = "ADDRESS")]
    link_listen: Option<SocketAddr>,
    /// Folder for database, artifacts, authority and first token. Default: $XDG_STATE_HOME/rookery/control-plane
    /// (~/.local/state/rookery/control-plane).
    #[arg(long, value_name = "FOLDER")]
    state: Option<PathBuf>,
    /// Database instead of the file in the state folder: sqlite:PATH or postgres://USER@HOST/NAME.
    #[arg(long, value_name = "URL")]
    database: Option<String>,
    /// Place of versions instead of the state folder: a folder or s3://BUCKET/PREFIX.
    #[arg(long, value_name = "URL")]
    artifacts: Option<String>,
    /// Name or address by which clients call it, for its own certificate; may be repeated.
    #[arg(long, value_name = "NAME")]
    tls_name: Vec<String>,
    /// PEM file with a certificate for clients, instead of its own.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_certificate: Option<PathBuf>,
    /// PEM file with the key of that certificate.
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    tls_key: Option<PathBuf>,
    /// Whether workers dial with TLS: auto, on or off; used by `rookery up` and `rookery demo`.
    #[arg(long, hide = true, value_name = "MODE")]
    link_tls: Option<String>,
    /// Tell the parent a join token for so many workers; used by `rookery up` and `rookery demo`.
    #[arg(long, hide = true, value_name = "N", requires = "supervised")]
    pub announce_join: Option<u32>,
    /// The parent process holds standard input; used by `rookery up` and `rookery demo`.
    #[arg(long, hide = true)]
    pub supervised: bool,
}

impl ControlPlaneArgs {
    /// The settings that the flags make.
    pub fn flags(&self, flags: &mut Flags) {
        flags.set("control-plane.listen", self.listen.map(|address| address.to_string()));
        flags.set("control-plane.link.listen", self.link_listen.map(|address| address.to_string()));
        let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
        flags.set("control-plane.state.folder", path(&self.state));
        flags.set("control-plane.state.url", self.database.clone());
        flags.set("control-plane.artifacts.url", self.artifacts.clone());
        flags.set("control-plane.tls.names", (!self.tls_name.is_empty()).then(|| self.tls_name.clone()));
        flags.set("control-plane.tls.certificate", path(&self.tls_certificate));
        flags.set("control-plane.tls.key", path(&self.tls_key));
        flags.set("control-plane.link.tls", self.link_tls.clone());
    }
}

/// How the process that runs the control plane was started.
pub struct Start {
    /// The parent holds standard input.
    pub supervised: bool,
    /// The parent wants a join token for so many workers.
    pub announce_join: Option<u32>,
}

/// Open files that a link takes.
const FILES_A_LINK: u64 = 2;

/// How long the parent's join token is good.
const ANNOUNCED: Duration = Duration::from_secs(3600);

/// Runs the control plane until it is asked to stop.
///
/// # Errors
/// If the configuration is wrong or the control plane cannot start.
pub async fn run(start: Start, config: Config, prometheus: Option<SocketAddr>) -> Result<(), Failure> {
    let Start { supervised, announce_join } = start;
    let mut stops = stop_requests(supervised)?;
    let mut config = config.control_plane;
    if !supervised && config.state.folder.is_none() {
        config.state.folder = default_state("control-plane");
    }
    let links = u64::from(config.link.max_links.get());
    let config = config.validate().map_err(|error| {
        Failure::config("the control plane's configuration cannot be used").caused_by(error)
    })?;
    let files = open_files::raise();
    if files < FILES_A_LINK * links {
        tracing::warn!(files, links, "this process may have fewer open files than links need, two each");
    }
    let plane =
        ControlPlane::start(config).await.or_fail(|| "the control plane could not start".to_owned())?;
    let join = match announce_join {
        Some(workers) => {
            let token = plane.join_token(workers, ANNOUNCED).await;
            Some(token.or_fail(|| "there is no token for the workers".to_owned())?.expose())
        }
        None => None,
    };
    let ready = Ready {
        tls: plane.has_tls(),
        ca: (plane.has_tls() || plane.links_have_tls()).then(|| plane.folder().join("ca.pem")),
        first_token: plane.first_token().map(Path::to_owned),
        link: Some(plane.link_address()),
        join,
        prometheus,
        ..Ready::at(plane.address())
    };
    if supervised {
        announce(&ready)?;
    } else {
        describe(&ready, &plane);
    }
    let failed = tokio::select! {
        biased;
        stop = stopped(&mut stops) => if stop == Stop::Now { return Ok(()) } else { false },
        () = plane.failed() => true,
    };
    tokio::select! {
        biased;
        () = stopped_now(&mut stops) => {}
        _ = plane.drain() => {}
    }
    if failed { Err(Failure::new("a vital task of the control plane has panicked")) } else { Ok(()) }
}

/// Says where it is, and how clients and workers come to it.
fn describe(ready: &Ready, plane: &RunningControlPlane) {
    let link = plane.link_address();
    output::note(format_args!("serving on {}, workers dial {link}; Ctrl-C stops", ready.url()));
    output::note(format_args!("state: {}", plane.folder().display()));
    if let Some(path) = &ready.first_token {
        output::note(format_args!("first start: a token for administrators is in {}", path.display()));
    }
    if ready.tls {
        let ca = plane.folder().join("ca.pem");
        output::note(format_args!(
            "clients: --endpoint {} --ca {}, and ROOKERY_TOKEN with a token",
            ready.url(),
            ca.display()
        ));
    }
    if plane.links_have_tls() {
        output::note(format_args!(
            "to add a gateway: `rookery tokens join` here, then there \
             `rookery worker --control-plane HOST:{} --join TOKEN`",
            link.port()
        ));
    } else {
        output::note(format_args!(
            "to add a gateway on this machine: `rookery worker BUNDLE --control-plane {link}`"
        ));
    }
}
