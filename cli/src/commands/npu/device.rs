//! Which device the commands work on.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use rknpu_driver::device::{Device, Interface, InterfaceChoice, OpenOptions};
use rknpu_driver::error::OpenError;
use rknpu_driver::sim::kernel::{self, SimConfig};
use rknpu_driver::timing::Board;

use super::product::ProductError;
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

/// A product that was not computed, as the failure of `what`. A device that a job left stuck is reset, so that the next
/// command finds it working.
pub(super) fn not_computed(device: &Device, what: String, error: ProductError) -> Failure {
    let recovery = recover(device);
    let failure = Failure::new(what).caused_by(error);
    match recovery {
        None => failure.hint("`rookery npu info` looks at the device, `rookery npu selftest` tries it"),
        Some(recovery) => {
            failure.hint(format!("{recovery}; `rookery npu selftest --cores 1` tries the device"))
        }
    }
}

/// Resets a device that needs it and says what came of that.
pub(super) fn recover(device: &Device) -> Option<&'static str> {
    device.is_faulted().then(|| match device.reset() {
        Ok(_) => "a reset brought the device back",
        Err(_) => "a reset did not bring the device back: load its driver anew, or restart the board",
    })
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

#[cfg(test)]
mod tests {
    use rknpu_driver::plan::PlanOptions;
    use rknpu_driver::shape::{MatmulShape, Precision};
    use rknpu_driver::sim::faults::{Fault, FaultPlan, Trigger};

    use super::*;
    use crate::commands::npu::product::{Product, Values};

    #[test]
    fn a_device_that_hangs_is_reset_and_the_next_step_is_named() {
        let faults = Some(FaultPlan::new(1).with(Fault::TimeOut, Trigger::At(1)));
        let config = SimConfig { faults, report: None, ..SimConfig::new(Interface::Vendor) };
        let device = kernel::device(config).unwrap();
        let shape = MatmulShape::new(1, 32, 32, Precision::Int8).unwrap();
        let values = Values::random(&shape, 1);
        let product = Product::new(&device, shape, &values, &PlanOptions::default()).unwrap();
        let error = product.run(&device).unwrap_err();
        let mut text = Vec::new();
        not_computed(&device, "a measurement failed".to_owned(), error).report(&mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert!(text.contains("hint: a reset brought the device back; `rookery npu selftest"), "{text}");
        assert!(!device.is_faulted());
    }
}
