//! The table of kernels: detected once, passed by reference.

use std::sync::OnceLock;

use crate::Isa;
use crate::float::table::{self, FloatTable};
use crate::integer::{self, IntegerTable};

/// The kernels of one instruction set. Every table gives the same bits for the same input.
pub struct Kernels {
    pub(crate) isa: Isa,
    pub(crate) float: &'static FloatTable,
    pub(crate) integer: &'static IntegerTable,
}

impl std::fmt::Debug for Kernels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Kernels({})", self.isa)
    }
}

static SCALAR: Kernels =
    Kernels { isa: Isa::Scalar, float: &table::scalar::TABLE, integer: &integer::scalar::TABLE };

impl Kernels {
    /// The fastest table that this CPU and system can run.
    pub fn detect() -> &'static Kernels {
        static BEST: OnceLock<&'static Kernels> = OnceLock::new();
        BEST.get_or_init(|| Kernels::available().pop().unwrap_or(&SCALAR))
    }

    /// The table of one instruction set, or `None` where it cannot run.
    pub fn for_isa(isa: Isa) -> Option<&'static Kernels> {
        match isa {
            Isa::Scalar => Some(&SCALAR),
            Isa::Avx2 | Isa::Avx512Vnni | Isa::AmxInt8 | Isa::NeonDotprod => native(isa),
        }
    }

    /// Every table that can run here, slowest first.
    pub fn available() -> Vec<&'static Kernels> {
        Isa::ALL.into_iter().filter_map(Kernels::for_isa).collect()
    }

    /// Which instruction set this table uses.
    pub fn isa(&self) -> Isa {
        self.isa
    }
}

#[cfg(target_arch = "x86_64")]
fn native(isa: Isa) -> Option<&'static Kernels> {
    static AVX2: Kernels =
        Kernels { isa: Isa::Avx2, float: &table::avx2::TABLE, integer: &integer::avx2::TABLE };
    static AVX512: Kernels =
        Kernels { isa: Isa::Avx512Vnni, float: &table::avx512::TABLE, integer: &integer::avx512::TABLE };
    let avx2 = is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c");
    let avx512 = avx2
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vnni");
    match isa {
        Isa::Avx2 => avx2.then_some(&AVX2),
        Isa::Avx512Vnni => avx512.then_some(&AVX512),
        Isa::AmxInt8 if avx512 => amx(),
        Isa::Scalar | Isa::AmxInt8 | Isa::NeonDotprod => None,
    }
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn amx() -> Option<&'static Kernels> {
    static AMX: Kernels =
        Kernels { isa: Isa::AmxInt8, float: &table::avx512::TABLE, integer: &integer::amx::hardware::TABLE };
    integer::amx::hardware::available().then_some(&AMX)
}

#[cfg(all(target_arch = "x86_64", not(target_os = "linux")))]
fn amx() -> Option<&'static Kernels> {
    None
}

#[cfg(target_arch = "aarch64")]
fn native(isa: Isa) -> Option<&'static Kernels> {
    static NEON: Kernels =
        Kernels { isa: Isa::NeonDotprod, float: &table::neon::TABLE, integer: &integer::neon::TABLE };
    let found = std::arch::is_aarch64_feature_detected!("dotprod");
    (isa == Isa::NeonDotprod && found).then_some(&NEON)
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn native(_isa: Isa) -> Option<&'static Kernels> {
    None
}

/// A table whose integer kernels run the AMX code over emulated tiles.
#[cfg(test)]
pub(crate) fn emulated_amx() -> &'static Kernels {
    static EMULATED: Kernels =
        Kernels { isa: Isa::AmxInt8, float: &table::scalar::TABLE, integer: &integer::amx::emulator::TABLE };
    &EMULATED
}
