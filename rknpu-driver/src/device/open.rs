//! Finding a node and asking it what it is.

use std::fmt::Write;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;

use super::{DeviceInfo, Interface, InterfaceChoice, OpenOptions};
use crate::error::OpenError;
use crate::ioctl::{self, RocketNode, VendorDrmNode, VendorHeapNode, retry};
use crate::uapi::{DriverVersion, NodeDescription, RocketKernel, VendorKernel, rocket, vendor};

/// Descriptors opened on rocket: one a core, as each is one queue and the RK3588 has three cores.
const ROCKET_DESCRIPTORS: usize = 3;

/// Names that a node's driver may have.
const EXPECTED: &str = "rknpu or rocket";

/// An open node of either driver.
#[derive(Debug)]
pub(super) enum Opened {
    Vendor(Arc<dyn VendorKernel>),
    Rocket(Vec<Arc<dyn RocketKernel>>),
}

/// Opens the node that is named, or the first that is an NPU's.
pub(super) fn find(options: &OpenOptions) -> Result<Opened, OpenError> {
    if let Some(node) = &options.node {
        let opened = open_node(node)?;
        return match (&opened, options.interface) {
            (Opened::Vendor(_), InterfaceChoice::Rocket) => {
                Err(other(node, vendor::DRIVER_NAME, rocket::DRIVER_NAME))
            }
            (Opened::Rocket(_), InterfaceChoice::Vendor) => {
                Err(other(node, rocket::DRIVER_NAME, vendor::DRIVER_NAME))
            }
            _ => Ok(opened),
        };
    }
    let mut looked = String::new();
    let mut refused = None;
    for node in candidates(options.interface) {
        match open_node(&node) {
            Ok(opened) => return Ok(opened),
            Err(OpenError::Open { source: Errno::ENOENT, .. }) => {}
            // Another GPU's render node, say: looked at, and passed over.
            Err(OpenError::OtherDriver { node, found, .. }) => note(&mut looked, &node, &found),
            Err(OpenError::Open { node, source }) => note(&mut looked, &node, source.desc()),
            // An NPU that cannot be used is the answer, unless another can.
            Err(error) => {
                refused.get_or_insert(error);
            }
        }
    }
    Err(refused.unwrap_or_else(|| {
        if looked.is_empty() {
            looked.push_str("the usual nodes, none of which exists");
        }
        OpenError::NoNode { looked }
    }))
}

fn note(looked: &mut String, node: &Path, found: &str) {
    let separator = if looked.is_empty() { "" } else { ", " };
    // Writing into a string cannot fail.
    let _ = write!(looked, "{separator}{}: {found}", node.display());
}

fn other(node: &Path, found: &str, expected: &'static str) -> OpenError {
    OpenError::OtherDriver { node: node.to_owned(), found: found.to_owned(), expected }
}

/// The nodes to try: no directory is read, so that a process whose nodes exist for itself alone (in a
/// container, or under a preloaded simulator) finds them too.
fn candidates(interface: InterfaceChoice) -> impl Iterator<Item = PathBuf> {
    let vendor = (128..136).map(|minor| format!("/dev/dri/renderD{minor}")).chain(["/dev/rknpu".to_owned()]);
    let rocket = (0..8).map(|minor| format!("/dev/accel/accel{minor}"));
    let vendor = vendor.filter(move |_| interface != InterfaceChoice::Rocket);
    let rocket = rocket.filter(move |_| interface != InterfaceChoice::Vendor);
    vendor.chain(rocket).map(PathBuf::from)
}

/// Opens a node and finds out whose it is.
fn open_node(node: &Path) -> Result<Opened, OpenError> {
    let open = || {
        retry(|| ioctl::open(node)).map_err(|source| {
            let node = node.to_owned();
            if matches!(source, Errno::EACCES | Errno::EPERM) {
                OpenError::Permission { node }
            } else {
                OpenError::Open { node, source }
            }
        })
    };
    let fd = open()?;
    // The DMA-heap build takes DRM's version request for an action of its own and succeeds; its name stays
    // empty then.
    let name = match retry(|| ioctl::drm_version(fd.as_fd())) {
        Ok(version) => version.name,
        Err(Errno::ENOTTY | Errno::EINVAL) => String::new(),
        Err(source) => return Err(OpenError::Open { node: node.to_owned(), source }),
    };
    match name.as_str() {
        vendor::DRIVER_NAME => Ok(Opened::Vendor(Arc::new(VendorDrmNode::new(node.to_owned(), fd)))),
        rocket::DRIVER_NAME => {
            let mut nodes: Vec<Arc<dyn RocketKernel>> = vec![Arc::new(RocketNode::new(node.to_owned(), fd))];
            while nodes.len() < ROCKET_DESCRIPTORS {
                nodes.push(Arc::new(RocketNode::new(node.to_owned(), open()?)));
            }
            Ok(Opened::Rocket(nodes))
        }
        "" => {
            let heap = VendorHeapNode::new(node.to_owned(), fd);
            match retry(|| heap.version()) {
                Ok(_) => Ok(Opened::Vendor(Arc::new(heap))),
                Err(_) => Err(other(node, "no NPU driver", EXPECTED)),
            }
        }
        found => Err(other(node, found, EXPECTED)),
    }
}

/// What a vendor device is, and whether it sits behind an IOMMU.
pub(super) fn vendor_info(kernel: &dyn VendorKernel) -> Result<(DeviceInfo, bool), OpenError> {
    const SUPPORTED: &str = "0.9.8 and later 0.9";
    let version = retry(|| kernel.version()).map_err(call("DRM_IOCTL_VERSION"))?;
    let description = kernel.describe();
    let node = || description.node.clone().unwrap_or_default();
    if version.name != vendor::DRIVER_NAME {
        return Err(other(&node(), &version.name, vendor::DRIVER_NAME));
    }
    // 0.9.8 is the version whose structs this code carries. DRM cuts and pads structs of other lengths
    // without a word, so an older driver would take the calls and lose fields: it has to be told by its
    // version.
    if (version.major, version.minor) != (0, 9) || version.patch < 8 {
        return Err(OpenError::Version {
            driver: vendor::DRIVER_NAME,
            found: text(&version),
            supported: SUPPORTED,
        });
    }
    let action = |flags: u32, name: &'static str| {
        let mut args = vendor::rknpu_action { flags, value: 0 };
        retry(|| kernel.action(&mut args)).map(|()| args.value).map_err(call(name))
    };
    // The same version by the driver's own structs: a driver that lays them out differently answers something
    // else.
    let code = action(vendor::RKNPU_GET_DRV_VERSION, "RKNPU_GET_DRV_VERSION")?;
    if code != version.major * 10_000 + version.minor * 100 + version.patch {
        let what = format!("it calls itself {code} by its own request");
        return Err(OpenError::Layout { driver: vendor::DRIVER_NAME, version: text(&version), what });
    }
    let hardware_version = Some(action(vendor::RKNPU_GET_HW_VERSION, "RKNPU_GET_HW_VERSION")?);
    let iommu = action(vendor::RKNPU_GET_IOMMU_EN, "RKNPU_GET_IOMMU_EN")? != 0;
    let sram_bytes = u64::from(action(vendor::RKNPU_GET_TOTAL_SRAM_SIZE, "RKNPU_GET_TOTAL_SRAM_SIZE")?);
    let info = DeviceInfo {
        interface: Interface::Vendor,
        node: description.node.clone(),
        hardware_version,
        cores: vendor::RKNPU_CORES,
        sram_bytes,
        simulated: simulated(&description, &version),
        driver: version,
    };
    Ok((info, iommu))
}

/// What a rocket device is.
pub(super) fn rocket_info(kernels: &[Arc<dyn RocketKernel>]) -> Result<DeviceInfo, OpenError> {
    let Some(first) = kernels.first().filter(|_| kernels.len() <= ROCKET_DESCRIPTORS) else {
        return Err(OpenError::Cores(kernels.len()));
    };
    let version = retry(|| first.version()).map_err(call("DRM_IOCTL_VERSION"))?;
    let description = first.describe();
    if version.name != rocket::DRIVER_NAME {
        let node = description.node.clone().unwrap_or_default();
        return Err(other(&node, &version.name, rocket::DRIVER_NAME));
    }
    // The driver's source calls its first interface 1.0, and its driver struct sets no version, so that 0.0
    // is what nodes say.
    if version.major > 1 {
        return Err(OpenError::Version {
            driver: rocket::DRIVER_NAME,
            found: text(&version),
            supported: "0 and 1",
        });
    }
    Ok(DeviceInfo {
        interface: Interface::Rocket,
        node: description.node.clone(),
        hardware_version: None,
        // Kernels handed in are descriptors; each has a queue that one core serves at a time.
        cores: u8::try_from(kernels.len()).unwrap_or(u8::MAX),
        sram_bytes: 0,
        simulated: simulated(&description, &version),
        driver: version,
    })
}

/// Whether a node is a simulator's: one in this process says so itself; one behind a preloaded library says
/// so in its driver's description, or is named by what is preloaded.
fn simulated(node: &NodeDescription, version: &DriverVersion) -> bool {
    let preloaded = || {
        let libraries = std::env::var_os("LD_PRELOAD").unwrap_or_default();
        node.node.is_some() && libraries.to_string_lossy().contains("librknpu_sim")
    };
    node.simulated || version.description.contains("simulated") || preloaded()
}

fn call(call: &'static str) -> impl Fn(Errno) -> OpenError {
    move |source| OpenError::Call { call, source }
}

fn text(version: &DriverVersion) -> String {
    format!("{}.{}.{}", version.major, version.minor, version.patch)
}
