//! Boards that a plan can be made for.

use std::str::FromStr;

use rknpu_driver::timing;
use rookery_compute_worker::backend::npu::BoardSettings;

use super::speed::default_settings;

/// A gateway's hardware.
#[derive(Clone, Debug)]
pub(super) struct Board {
    /// As on the command line.
    pub(super) name: String,
    /// All of its memory.
    pub(super) memory_bytes: u64,
    /// The NPU and the memory's bandwidth.
    pub(super) npu: timing::Board,
    /// The processor.
    pub(super) settings: BoardSettings,
}

/// Memory sizes of modules with an RK3588, in GiB.
const SIZES: [u64; 4] = [4, 8, 16, 32];

impl FromStr for Board {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let size = name.strip_prefix("rk3588-").and_then(|rest| rest.strip_suffix('g')?.parse().ok());
        let Some(size) = size.filter(|size| SIZES.contains(size)) else {
            return Err(format!(
                "{name:?} is not a known board (known: rk3588-4g, rk3588-8g, rk3588-16g, rk3588-32g)"
            ));
        };
        Ok(Self {
            name: name.to_owned(),
            memory_bytes: size << 30,
            npu: timing::Board::rk3588_vendor(),
            settings: default_settings(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boards_are_known_by_their_memory() {
        assert_eq!("rk3588-8g".parse::<Board>().unwrap().memory_bytes, 8 << 30);
        for name in ["rk3588", "rk3588-6g", "rk3588-g", "rk3588-8gb", ""] {
            assert!(name.parse::<Board>().unwrap_err().contains("rk3588-16g"), "{name}");
        }
    }
}
