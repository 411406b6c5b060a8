//! The tile instructions themselves, the kernel's permission to use them, and their detection.
//!
//! Inline assembly, because the intrinsics are unstable. Unproven: no machine here has AMX (see the parent).

use std::arch::asm;
use std::sync::OnceLock;

use super::super::avx512;
use super::super::{Acc, IntegerTable, Quad, Rows};
use super::{TileConfig, Tiles};

pub(crate) static TABLE: IntegerTable = IntegerTable {
    direct_rows_w8: 16,
    direct_rows_w4: 8,
    direct: avx512::TABLE.direct,
    pack: avx512::PACK_SIGNED,
    packed,
};

/// # Safety
/// [`available`] said yes; otherwise as for [`IntegerTable`].
unsafe fn packed(panel: &[Quad], rows: Rows<'_>, acc: &mut [Acc]) {
    // SAFETY: the caller's promise, passed on.
    unsafe { super::packed(&mut Hardware, panel, rows, acc) }
}

/// The eight tile registers of this thread's core.
struct Hardware;

// Tile registers are not declared as clobbered: nothing else in the program uses them.
impl Tiles for Hardware {
    unsafe fn configure(&mut self, config: &TileConfig) {
        // SAFETY: reads the 64 bytes of `config`; the caller vouches for AMX.
        unsafe { asm!("ldtilecfg [{0}]", in(reg) config, options(readonly, nostack, preserves_flags)) }
    }

    unsafe fn zero<const T: usize>(&mut self) {
        // SAFETY: touches one tile; the caller vouches for AMX.
        unsafe { asm!("tilezero tmm{0}", const T, options(nomem, nostack, preserves_flags)) }
    }

    unsafe fn load<const T: usize>(&mut self, from: *const i8, stride: usize) {
        // SAFETY: reads the configured rows at `from`; the caller vouches for them and for AMX.
        unsafe {
            asm!("tileloadd tmm{0}, [{1} + {2}*1]", const T, in(reg) from, in(reg) stride,
                 options(readonly, nostack, preserves_flags));
        }
    }

    unsafe fn store<const T: usize>(&mut self, to: *mut i32, stride: usize) {
        // SAFETY: writes the configured rows at `to`; the caller vouches for them and for AMX.
        unsafe {
            asm!("tilestored [{1} + {2}*1], tmm{0}", const T, in(reg) to, in(reg) stride,
                 options(nostack, preserves_flags));
        }
    }

    unsafe fn dot<const C: usize, const A: usize, const B: usize>(&mut self) {
        // SAFETY: touches tiles only; the caller vouches for AMX.
        unsafe {
            asm!("tdpbssd tmm{0}, tmm{1}, tmm{2}", const C, const A, const B,
                 options(nomem, nostack, preserves_flags));
        }
    }

    unsafe fn release(&mut self) {
        // SAFETY: touches tiles only; the caller vouches for AMX.
        unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) }
    }
}

/// Whether the CPU has AMX-INT8, the system saves its state, and this process may use it. Asks Linux for the
/// permission, once; threads started later and earlier share it.
pub(crate) fn available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| cpu_has_amx() && system_saves_tiles() && permitted())
}

fn cpu_has_amx() -> bool {
    const TILE: u32 = 1 << 24;
    const INT8: u32 = 1 << 25;
    if std::arch::x86_64::__cpuid(0).eax < 7 {
        return false;
    }
    std::arch::x86_64::__cpuid_count(7, 0).edx & (TILE | INT8) == TILE | INT8
}

fn system_saves_tiles() -> bool {
    const OSXSAVE: u32 = 1 << 27;
    const TILE_STATE: u32 = 0b11 << 17; // configuration and data
    if std::arch::x86_64::__cpuid(1).ecx & OSXSAVE == 0 {
        return false;
    }
    let low: u32;
    // SAFETY: `xgetbv` of register 0 is allowed where OSXSAVE is set; it writes eax and edx.
    unsafe {
        asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") _, options(nomem, nostack, preserves_flags));
    }
    low & TILE_STATE == TILE_STATE
}

fn permitted() -> bool {
    const SYS_ARCH_PRCTL: usize = 158;
    const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
    const XFEATURE_XTILEDATA: usize = 18;
    let result: isize;
    // SAFETY: a system call with two integers; it clobbers rcx and r11 only and reads no memory of ours.
    unsafe {
        asm!("syscall", inlateout("rax") SYS_ARCH_PRCTL => result, in("rdi") ARCH_REQ_XCOMP_PERM,
             in("rsi") XFEATURE_XTILEDATA, out("rcx") _, out("r11") _, options(nostack));
    }
    result == 0
}

#[cfg(test)]
mod tests {
    #[test]
    fn detection_answers_without_faulting_and_agrees_with_the_table() {
        let found = super::available();
        println!("AMX-INT8 usable here: {found}");
        assert_eq!(found, crate::Kernels::for_isa(crate::Isa::AmxInt8).is_some());
    }
}
