//! Finding a device, and finding out whether it computes what it should.

use rknpu_driver::device::{Device, Interface, InterfaceChoice, OpenOptions};
use rknpu_driver::sim::kernel::SimConfig;
use rknpu_driver::timing::Board;

use super::{CostModel, NpuError, NpuSettings, self_check::self_check};
use crate::config::{NpuInterface, NpuPolicy};

/// Opens the kernel's device, and checks a few small products.
///
/// # Errors
/// When there is no device that can be used, or it computes wrongly.
pub fn open(settings: &NpuSettings) -> Result<Device, NpuError> {
    let interface = match settings.interface {
        NpuInterface::Auto => InterfaceChoice::Auto,
        NpuInterface::Vendor => InterfaceChoice::Vendor,
        NpuInterface::Rocket => InterfaceChoice::Rocket,
    };
    let options = OpenOptions { interface, node: settings.node.clone() };
    let device = Device::open(&options).map_err(NpuError::Open)?;
    self_check(&device, settings)?;
    Ok(device)
}

/// A simulated device in this process.
///
/// # Errors
/// When the simulator cannot be set up.
pub fn simulated(settings: &NpuSettings) -> Result<Device, NpuError> {
    let interface = match settings.interface {
        NpuInterface::Auto | NpuInterface::Vendor => Interface::Vendor,
        NpuInterface::Rocket => Interface::Rocket,
    };
    let report: fn(&str) = |line| tracing::warn!(line, "the NPU's simulator stopped a stream");
    let config = SimConfig { report: Some(report), ..SimConfig::new(interface) };
    let config = SimConfig { board: board(interface, settings), ..config };
    rknpu_driver::sim::kernel::device(config).map_err(NpuError::Open)
}

/// The cost model for a device. On the simulator there is no point in leaving work to the processor: it is faster there,
/// and what is wanted is the NPU's behaviour.
pub(super) fn cost_model(device: &Device, settings: &NpuSettings) -> CostModel {
    let info = device.info();
    let policy = match settings.policy {
        NpuPolicy::Auto if info.simulated => NpuPolicy::Npu,
        policy => policy,
    };
    let cores = u32::from(settings.cores.min(info.cores));
    CostModel::new(preset(info.interface), &settings.board, cores, policy)
}

fn preset(interface: Interface) -> Board {
    match interface {
        Interface::Vendor => Board::rk3588_vendor(),
        Interface::Rocket => Board::rk3588_rocket(),
    }
}

fn board(interface: Interface, settings: &NpuSettings) -> Board {
    *CostModel::new(preset(interface), &settings.board, settings.cores.into(), NpuPolicy::Npu).board()
}
