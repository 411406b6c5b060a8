//! Models of both kernel drivers over the simulated machine.
//!
//! [`VendorNode`] and [`RocketNode`] are devices; what opening one gives, [`VendorFile`] and [`RocketFile`], implements the calls
//! of [`VendorKernel`] and [`RocketKernel`] the way the drivers do, with the traps that programs fall into: which errno, which object, what
//! is ignored, what survives. Where a driver would follow a wild pointer of its caller into the void, the model answers `EFAULT`.
//!
//! Time is the device's, not the host's. Computing takes the time that the timing model says, whatever the simulator needs for it; a hung core's
//! time-out passes in no time at all unless [`SimConfig::real_time_outs`] says so. A stream that the machine refuses hangs its core, as would be feared of the silicon, and the reason goes to
//! [`SimConfig::report`].

mod address;
mod domain;
mod engine;
mod fence;
mod flip;
mod objects;
mod presence;
mod queue;
mod rocket;
mod schedule;
#[cfg(test)]
mod tests;
mod touched;
mod vendor;
mod vendor_job;

use std::sync::Arc;

pub use objects::Usage;
pub use rocket::{RocketFile, RocketNode};
pub use vendor::{VendorFile, VendorNode};

use super::faults::FaultPlan;
use super::{CORES, Options};
use crate::device::{Device, Interface};
use crate::error::OpenError;
use crate::timing::Board;
use crate::uapi::{Errno, RocketKernel, VendorKernel};

/// What to simulate.
#[derive(Clone, Debug)]
pub struct SimConfig {
    /// Which kernel driver's device.
    pub interface: Interface,
    /// The machine's parameters.
    pub options: Options,
    /// Clock, bandwidth and overheads, from which times follow.
    pub board: Board,
    /// What goes wrong; nothing by default.
    pub faults: Option<FaultPlan>,
    /// Threads that compute at once, 1 to 3. By default one a core, or as many as the host has.
    pub threads: usize,
    /// On-chip SRAM that the device tree grants the NPU, bytes. By default none, as boards come; 956 KB can be granted.
    pub sram_bytes: u64,
    /// Whether a time-out really passes on the host. By default not: a hung job is reported at once, as if the time had passed.
    pub real_time_outs: bool,
    /// Is told, in one line, why a stream stopped. By default the line goes to standard error.
    pub report: Option<fn(&str)>,
}

impl SimConfig {
    /// An RK3588 under this driver, without faults.
    #[must_use]
    pub fn new(interface: Interface) -> Self {
        let board = match interface {
            Interface::Vendor => Board::rk3588_vendor(),
            Interface::Rocket => Board::rk3588_rocket(),
        };
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(CORES);
        let report: fn(&str) = |line| eprintln!("{line}");
        Self {
            interface,
            options: Options::default(),
            board,
            faults: None,
            threads,
            sram_bytes: 0,
            real_time_outs: false,
            report: Some(report),
        }
    }
}

/// A simulated NPU, opened in this process.
///
/// # Errors
/// [`OpenError`] as for a node: nothing but an injected fault makes it fail.
pub fn device(config: SimConfig) -> Result<Device, OpenError> {
    Simulation::new(config).device()
}

/// A simulated NPU with its kernel: what [`device`] opens, to be looked into while programs use it.
#[derive(Clone, Debug)]
pub enum Simulation {
    /// Under the vendor's driver.
    Vendor(Arc<VendorNode>),
    /// Under mainline's.
    Rocket(Arc<RocketNode>),
}

impl Simulation {
    /// A device that nobody has opened yet.
    #[must_use]
    pub fn new(config: SimConfig) -> Self {
        match config.interface {
            Interface::Vendor => Self::Vendor(VendorNode::new(&config)),
            Interface::Rocket => Self::Rocket(RocketNode::new(&config)),
        }
    }

    /// Opens it: one descriptor of the vendor's node, one a core of rocket's.
    ///
    /// # Errors
    /// [`OpenError`] as for a node.
    pub fn device(&self) -> Result<Device, OpenError> {
        match self {
            Self::Vendor(node) => {
                let file: Arc<dyn VendorKernel> = Arc::new(node.open().map_err(refused)?);
                Device::over_vendor(file)
            }
            Self::Rocket(node) => {
                let open = || Ok(Arc::new(node.open()?) as Arc<dyn RocketKernel>);
                let files: Result<Vec<_>, _> = std::iter::repeat_with(open).take(CORES).collect();
                Device::over_rocket(files.map_err(refused)?)
            }
        }
    }

    /// What it holds now.
    #[must_use]
    pub fn usage(&self) -> Usage {
        match self {
            Self::Vendor(node) => node.usage(),
            Self::Rocket(node) => node.usage(),
        }
    }

    /// What was injected so far.
    #[must_use]
    pub fn faults(&self) -> super::faults::FaultCounts {
        match self {
            Self::Vendor(node) => node.faults(),
            Self::Rocket(node) => node.faults(),
        }
    }

    /// Why the last stream that stopped did, if one did.
    #[must_use]
    pub fn last_stop(&self) -> Option<String> {
        match self {
            Self::Vendor(node) => node.last_stop(),
            Self::Rocket(node) => node.last_stop(),
        }
    }
}

fn refused(source: Errno) -> OpenError {
    OpenError::Call { call: "open", source }
}
