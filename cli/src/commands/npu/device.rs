//! Which device the commands work on.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use rknpu_driver::device::{Device, Interface, InterfaceChoice, OpenOptions};
use rknpu_driver::error::OpenError;
use rknpu_driver::sim::kernel::{self, SimConfig};
use rknpu_driver::timing::Board;

use crate::error::Failure;

/// Flags of every command that works on a device.
#[derive(Args, Debug, Default)]
pub(super) struct DeviceArgs {
    /// The device.
    #[arg(long, value_enum, default_value_t)]
    pub(super) device: DeviceChoice,
    /// The device node, such as /dev/dri/renderD129. Default: the first that answers.
    #[arg(long, value_name = "PATH")]
    pub(super) node: Option<PathBuf>,
}

/// A kind of device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum DeviceChoice {
    /// Whichever NPU there is; the vendor's driver is tried first.
    #[default]
    Auto,
    /// The NPU under the vendor's driver.
    Vendor,
    /// The NPU under mainline's driver.
    Rocket,
    /// A simulated NPU under a model of the vendor's driver.
    Sim,
    /// A simulated NPU under a model of mainline's driver.
    SimRocket,
}

impl DeviceChoice {
    /// Its name on the command line.
    pub(super) fn name(self) -> &'static str {
        match self {
            DeviceChoice::Auto => "auto",
            DeviceChoice::Vendor => "vendor",
            DeviceChoice::Rocket => "rocket",
            DeviceChoice::Sim => "sim",
            DeviceChoice::SimRocket => "sim-rocket",
        }
    }
}

impl DeviceArgs {
    /// Opens the device.
    ///
    /// # Errors
    /// A command line that makes no sense, or no device that works.
    pub(super) fn open(&self) -> Result<Device, Failure> {
        self.try_open()?.map_err(|error| {
            let failure = Failure::new("there is no NPU to work on").caused_by(error);
            match self.device {
                DeviceChoice::Sim | DeviceChoice::SimRocket => failure,
                DeviceChoice::Auto | DeviceChoice::Vendor | DeviceChoice::Rocket => {
                    failure.hint("`rookery npu info` looks closer; `--device sim` simulates an NPU")
                }
            }
        })
    }

    /// Opens the device; the inner result says why there is none.
    ///
    /// # Errors
    /// A node for a device that has none.
    pub(super) fn try_open(&self) -> Result<Result<Device, OpenError>, Failure> {
        let kernel = |interface| Device::open(&OpenOptions { interface, node: self.node.clone() });
        let simulated = |interface| kernel::device(SimConfig::new(interface));
        let is_simulated = matches!(self.device, DeviceChoice::Sim | DeviceChoice::SimRocket);
        if is_simulated && self.node.is_some() {
            return Err(Failure::usage("a simulated NPU has no node").hint("leave out --node or --device"));
        }
        Ok(match self.device {
            DeviceChoice::Auto => kernel(InterfaceChoice::Auto),
            DeviceChoice::Vendor => kernel(InterfaceChoice::Vendor),
            DeviceChoice::Rocket => kernel(InterfaceChoice::Rocket),
            DeviceChoice::Sim => simulated(Interface::Vendor),
            DeviceChoice::SimRocket => simulated(Interface::Rocket),
        })
    }

    /// The flags that select the same device again.
    pub(super) fn command_line(&self) -> String {
        let mut text = format!("--device {}", self.device.name());
        if let Some(node) = &self.node {
            text.push_str(&format!(" --node {}", node.display()));
        }
        text
    }
}

/// The constants that are assumed of a device's board.
pub(super) fn board(device: &Device) -> Board {
    match device.info().interface {
        Interface::Vendor => Board::rk3588_vendor(),
        Interface::Rocket => Board::rk3588_rocket(),
    }
}

/// The device in a few words, for the head of a table.
pub(super) fn describe(device: &Device) -> String {
    let info = device.info();
    let driver = match info.interface {
        Interface::Vendor => "rknpu",
        Interface::Rocket => "rocket",
    };
    match (&info.node, info.simulated) {
        (_, true) => format!("simulated NPU, {} cores, model of the {driver} driver", info.cores),
        (Some(node), false) => format!("NPU at {}, {} cores, {driver} driver", node.display(), info.cores),
        (None, false) => format!("NPU, {} cores, {driver} driver", info.cores),
    }
}
