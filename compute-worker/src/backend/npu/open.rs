//! Finding a device, and finding out whether it computes what it should.

use rknpu_driver::device::{Device, Interface, InterfaceChoice, OpenOptions};
use rknpu_driver::sim::kernel::SimConfig;
use rknpu_driver::timing::Board;

use super::{CostModel, NpuError, NpuSettings, self_check::self_check};
use crate::config::{NpuInterface, NpuPolicy, NpuW4};
use crate::one_line::one_line;

/// Opens the kernel's device, and checks a few small products. Also tells how `w4` weights can be multiplied: one whose int4
/// mode fails the check is good for int8.
///
/// # Errors
/// When there is no device that can be used, or it computes wrongly.
pub fn open(settings: &NpuSettings) -> Result<(Device, NpuW4), NpuError> {
    let interface = match settings.interface {
        NpuInterface::Auto => InterfaceChoice::Auto,
        NpuInterface::Vendor => InterfaceChoice::Vendor,
        NpuInterface::Rocket => InterfaceChoice::Rocket,
    };
    let options = OpenOptions { interface, node: settings.node.clone() };
    let device = Device::open(&options).map_err(NpuError::Open)?;
    let ways = |w4| NpuSettings { w4, ..settings.clone() };
    self_check(&device, &ways(NpuW4::Int8))?;
    if settings.w4 == NpuW4::Int8 {
        return Ok((device, NpuW4::Int8));
    }
    match self_check(&device, &ways(NpuW4::Int4)) {
        Ok(()) => Ok((device, settings.w4)),
        Err(error @ NpuError::SelfCheck { .. }) => {
            let error = one_line(&error);
            tracing::warn!(error, "the NPU's int4 mode is not used");
            Ok((device, NpuW4::Int8))
        }
        Err(error) => Err(error),
    }
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
        policy @ (NpuPolicy::Auto | NpuPolicy::Npu | NpuPolicy::Cpu | NpuPolicy::Both) => policy,
    };
    let w4 = match settings.w4 {
        NpuW4::Auto if info.simulated => NpuW4::Int8,
        w4 @ (NpuW4::Auto | NpuW4::Int8 | NpuW4::Int4) => w4,
    };
    let cores = u32::from(settings.cores.min(info.cores));
    CostModel::new(preset(info.interface), &settings.board, cores, policy, w4)
}

fn preset(interface: Interface) -> Board {
    match interface {
        Interface::Vendor => Board::rk3588_vendor(),
        Interface::Rocket => Board::rk3588_rocket(),
    }
}

fn board(interface: Interface, settings: &NpuSettings) -> Board {
    let cores = settings.cores.into();
    *CostModel::new(preset(interface), &settings.board, cores, NpuPolicy::Npu, settings.w4).board()
}
