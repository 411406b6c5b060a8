//! Why a device cannot be opened.

use std::path::PathBuf;

use nix::errno::Errno;
use thiserror::Error;

/// Why a device cannot be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// None of the nodes that an NPU can have exists, or none of those that exist is an NPU's.
    #[error(
        "no NPU found (looked at {looked}); load the rknpu or rocket kernel driver, see that the device tree \
         enables the NPU, or use the simulator"
    )]
    NoNode {
        /// The nodes looked at, and what was found at those that exist.
        looked: String,
    },
    /// The node exists, and this user may not open it.
    #[error(
        "no permission to open {}; add the user to the group that owns it (most often render) and log in \
         again",
        .node.display()
    )]
    Permission {
        /// The node.
        node: PathBuf,
    },
    /// Opening failed otherwise.
    #[error("cannot open {}", .node.display())]
    Open {
        /// The node.
        node: PathBuf,
        /// Why.
        source: Errno,
    },
    /// The node belongs to another driver.
    #[error("{} is no node of {expected} (found: {found}); name the NPU's node", .node.display())]
    OtherDriver {
        /// The node.
        node: PathBuf,
        /// The driver's name for itself.
        found: String,
        /// Names that would do.
        expected: &'static str,
    },
    /// The driver's version has structs of another layout.
    #[error(
        "{driver} {found} is not supported: its structs differ from those of {supported}; install a \
         kernel with such a driver"
    )]
    Version {
        /// Name of the driver.
        driver: &'static str,
        /// Version found.
        found: String,
        /// Versions supported.
        supported: &'static str,
    },
    /// The driver answers as no driver with the known structs would.
    #[error(
        "{driver} {version} does not behave as documented: {what}; report this with the kernel's version"
    )]
    Layout {
        /// Name of the driver.
        driver: &'static str,
        /// Version found.
        version: String,
        /// What was seen.
        what: String,
    },
    /// A question to the driver failed.
    #[error("{call} failed while opening")]
    Call {
        /// The kernel's name of the call.
        call: &'static str,
        /// Why.
        source: Errno,
    },
    /// More or fewer cores than the code knows.
    #[error("{0} cores handed in, the chip has 1 to 3")]
    Cores(usize),
    /// The small page that each address space keeps could not be made.
    #[error("cannot prepare the address space")]
    Space(#[source] super::AllocateError),
}
