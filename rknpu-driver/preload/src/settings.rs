//! What the environment asks for.

use std::ffi::CString;

use rknpu_driver::device::Interface;
use rknpu_driver::sim::Unwritten;
use rknpu_driver::sim::kernel::SimConfig;

/// Which node is simulated. Found out without opening any file: it is asked at every open of the program's and of this library's own.
pub(crate) struct Which {
    pub(crate) interface: Interface,
    pub(crate) path: CString,
}

impl Which {
    /// What is wrong is said in one line.
    pub(crate) fn from_environment() -> Result<Self, String> {
        let (interface, path) = match value("RKNPU_SIM").as_deref() {
            None | Some("vendor") => (Interface::Vendor, "/dev/dri/renderD128"),
            Some("rocket") => (Interface::Rocket, "/dev/accel/accel0"),
            Some(other) => return Err(format!("RKNPU_SIM={other} is neither vendor nor rocket")),
        };
        let path = value("RKNPU_SIM_NODE").unwrap_or_else(|| path.to_owned());
        let path = CString::new(path).map_err(|_| "RKNPU_SIM_NODE holds a NUL".to_owned())?;
        Ok(Self { interface, path })
    }
}

/// The device behind the node. What is wrong is said in one line.
pub(crate) fn config(interface: Interface) -> Result<SimConfig, String> {
    let mut config = SimConfig::new(interface);
    config.real_time_outs = true;
    config.report = Some(|line| eprintln!("rknpu_sim: {line}"));
    if let Some(faults) = value("RKNPU_SIM_FAULTS") {
        config.faults = Some(faults.parse().map_err(|error| format!("RKNPU_SIM_FAULTS: {error}"))?);
    }
    if let Some(threads) = value("RKNPU_SIM_THREADS") {
        let known = threads.parse().ok().filter(|threads| (1..=3).contains(threads));
        config.threads = known.ok_or_else(|| format!("RKNPU_SIM_THREADS={threads} is not 1, 2 or 3"))?;
    }
    match value("RKNPU_SIM_UNWRITTEN").as_deref() {
        None | Some("error") => {}
        Some("zero") => config.options.unwritten = Unwritten::Zero,
        Some(other) => return Err(format!("RKNPU_SIM_UNWRITTEN={other} is neither error nor zero")),
    }
    Ok(config)
}

fn value(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
