//! `rookery control-plane`: the fleet's front door.

use std::net::SocketAddr;

use clap::Args;
use rookery_control_plane::control_plane::ControlPlane;

use crate::config::{Config, Flags};
use crate::error::{Failure, OrFail};
use crate::output;
use crate::processes::{Ready, Stop, announce, stop_requests, stopped, stopped_now};

/// Takes the links of workers and routes clients' requests to them.
#[derive(Args, Debug)]
#[command(
    after_help = "Settings come from --config, from ROOKERY_CONTROL_PLANE__… variables and from these flags; a
later one wins. `rookery --dump-config` shows them all.

Examples:
  rookery control-plane
  rookery control-plane --listen 0.0.0.0:7070 --link-listen 0.0.0.0:7072"
)]
pub struct ControlPlaneArgs {
    /// Address for clients' gRPC; port 0 picks a free one.
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Address that workers dial; port 0 picks a free one.
    #[arg(long, value_name = "ADDRESS")]
    link_listen: Option<SocketAddr>,
    /// The parent process holds standard input; used by `rookery up` and `rookery demo`.
    #[arg(long, hide = true)]
    pub supervised: bool,
}

impl ControlPlaneArgs {
    /// The settings that the flags make.
    pub fn flags(&self, flags: &mut Flags) {
        flags.set("control-plane.listen", self.listen.map(|address| address.to_string()));
        flags.set("control-plane.link.listen", self.link_listen.map(|address| address.to_string()));
    }
}

/// Runs the control plane until it is asked to stop.
///
/// # Errors
/// If the configuration is wrong or the control plane cannot start.
pub async fn run(supervised: bool, config: Config, prometheus: Option<SocketAddr>) -> Result<(), Failure> {
    let mut stops = stop_requests(supervised)?;
    let config = config.control_plane.validate().map_err(|error| {
        Failure::config("the control plane's configuration cannot be used").caused_by(error)
    })?;
    let plane =
        ControlPlane::start(config).await.or_fail(|| "the control plane could not start".to_owned())?;
    let (address, link) = (plane.address(), plane.link_address());
    if supervised {
        announce(&Ready {
            listen: address,
            link: Some(link),
            prometheus,
            backend: None,
            backend_reason: None,
        })?;
    } else {
        output::note(format_args!("serving on http://{address}, workers dial {link}; Ctrl-C stops"));
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
