//! Models of both kernel drivers over the simulated machine: every call's meaning, traps included.

pub(crate) mod address;

/// Which of the two kernel drivers a simulated device has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Interface {
  /// The vendor's `rknpu` DRM driver, 0.9.8.
  Vendor,
  /// Mainline's `rocket` accel driver.
  Rocket,
}
