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

fn native(_isa: Isa) -> Option<&'static Kernels> {
    None
}
